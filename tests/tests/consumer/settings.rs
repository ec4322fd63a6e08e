//! The consumer's settings.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use diesel::connection::SimpleConnection;
use diesel::prelude::*;
use diesel_async::AsyncPgConnection;
use diesel_outbox_kafka::consumer::{Consumer, ConsumerError, Received, UnknownTypes};
use outbox_tests::eventually;
use tokio::runtime::Runtime;

use super::bench::{Bench, PATIENCE, Sent, insert_effect, insert_effect_async, insert_effect_slowly};

#[test]
fn wrong_settings_are_refused_at_the_start() {
    let spawn = |consumer: Consumer<PgConnection>| {
        consumer.spawn(|| PgConnection::establish("postgres://nowhere")).map(drop).unwrap_err()
    };
    let consumer = || Consumer::<PgConnection>::new("localhost:1", "billing");
    let handled = || consumer().topics(["order"]).on_other(|_, _| Ok(()));
    assert!(matches!(spawn(consumer()), ConsumerError::NoTopics));
    assert!(matches!(spawn(consumer().topics(["order"])), ConsumerError::NoHandlers));
    for wrong in [
        handled().max_attempts(0),
        handled().dead_letter_topic("order"),
        handled().set("enable.auto.commit", "true"),
        handled().set("request.required.acks", "1"),
        handled().set("topic.delivery.timeout.ms", "1"),
        handled().set("no.such", "s3cret"),
        handled().set("check.crcs", "true"),
        handled().set("bootstrap.servers", "one:9092, two:9092"),
        Consumer::new("", "billing").topics(["order"]).on_other(|_, _| Ok(())),
    ] {
        let error = spawn(wrong);
        assert!(matches!(error, ConsumerError::Setting { .. }));
        assert!(!format!("{error} {error:?}").contains("s3cret"));
    }
}

#[test]
fn marks_older_than_the_retention_are_pruned() {
    let bench = Bench::new(1);
    let mut conn = bench.database.connect();
    let mark = format!(
        "insert into inbox (consumer, event_id, received_at) values ('{}', gen_random_uuid(), now() - interval '2 days')",
        bench.name
    );
    conn.batch_execute(&mark).unwrap();
    let consumer = bench.consumer().inbox_retention(Duration::from_secs(24 * 60 * 60));
    let consumer = consumer.on("Counted", insert_effect).spawn(bench.connect()).unwrap();
    eventually("the mark to go", PATIENCE, || (bench.marks() == 0).then_some(()));
    consumer.stop().unwrap();
}

#[test]
fn a_record_of_an_unknown_type_becomes_a_dead_letter_if_the_setting_says_so() {
    let bench = Bench::new(1);
    bench.send([(0, &Sent::new("unknown").with_type("Other")), (0, &Sent::new("rest"))]);
    let consumer = bench.consumer().unknown_types(UnknownTypes::DeadLetter);
    let consumer = consumer.on("Counted", insert_effect).spawn(bench.connect()).unwrap();
    bench.wait_for_effects(1);
    consumer.stop().unwrap();
    assert!(bench.dead_letters()[0].header("outbox-error").unwrap().contains("event type `Other`"));
}

/// Inserts marks that take a millisecond each to prune, as they do when a busy server has millions of them.
fn insert_slow_marks(bench: &Bench<'_>, count: usize) {
    let marks = format!(
        "insert into inbox (consumer, event_id, received_at) \
         select '{}', gen_random_uuid(), now() - interval '2 days' from generate_series(1, {count});
         create function slow() returns trigger language plpgsql as \
         $$ begin perform pg_sleep(0.001); return old; end $$;
         create trigger slow before delete on inbox for each row execute function slow()",
        bench.name
    );
    bench.database.connect().batch_execute(&marks).unwrap();
}

/// The longest time between two records.
#[derive(Default)]
struct Pauses {
    last: Option<Instant>,
    longest: Duration,
}

impl Pauses {
    fn count(pauses: &Mutex<Self>) {
        let mut pauses = pauses.lock().unwrap();
        if let Some(last) = pauses.last.replace(Instant::now()) {
            pauses.longest = last.elapsed().max(pauses.longest);
        }
    }
}

#[test]
fn records_do_not_wait_for_the_inbox_to_be_pruned() {
    const MARKS: usize = 60_000;
    let bench = Bench::new(1);
    insert_slow_marks(&bench, MARKS);
    let records: Vec<Sent> = (0..100).map(|n| Sent::new(&n.to_string())).collect();
    let day = Duration::from_secs(24 * 60 * 60);
    let check = |pauses: Arc<Mutex<Pauses>>| {
        let longest = pauses.lock().unwrap().longest;
        assert!(longest > Duration::ZERO && longest < Duration::from_secs(1), "{longest:?} without a record");
    };

    bench.send(records[..50].iter().map(|record| (0, record)));
    let pauses = Arc::new(Mutex::new(Pauses::default()));
    let counted = Arc::clone(&pauses);
    let handler = move |c: &mut PgConnection, r: &Received| {
        Pauses::count(&counted);
        insert_effect_slowly(c, r, "")
    };
    let consumer =
        bench.consumer().inbox_retention(day).on("Counted", handler).spawn(bench.connect()).unwrap();
    bench.wait_for_effects(50);
    consumer.stop().unwrap();
    check(pauses);

    bench.send(records[50..].iter().map(|record| (0, record)));
    let pauses = Arc::new(Mutex::new(Pauses::default()));
    let counted = Arc::clone(&pauses);
    let handler = async move |c: &mut AsyncPgConnection, r: &Received| {
        Pauses::count(&counted);
        insert_effect_async(c, r).await
    };
    let consumer = bench.async_consumer().inbox_retention(day).on("Counted", handler);
    let runtime = Runtime::new().unwrap();
    let entered = runtime.enter();
    let consumer = consumer.spawn(bench.connect_async()).unwrap();
    bench.wait_for_effects(100);
    drop(entered);
    consumer.stop().unwrap();
    check(pauses);
    let left = bench.marks() as usize - bench.effects().len();
    assert!((1..MARKS).contains(&left), "{left} of {MARKS} marks are left to prune");
}
