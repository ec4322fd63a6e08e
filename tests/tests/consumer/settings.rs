//! The consumer's settings.

use std::time::{Duration, Instant};

use diesel::connection::SimpleConnection;
use diesel::prelude::*;
use diesel_async::AsyncPgConnection;
use diesel_outbox_kafka::InboxEvent;
use diesel_outbox_kafka::consumer::{Consumer, ConsumerError, UnknownTypes};
use outbox_tests::eventually;

use super::bench::{Bench, PATIENCE, Sent, insert_effect, insert_effect_async};

#[test]
fn wrong_settings_are_refused_at_the_start() {
    let spawn = |consumer: Consumer<PgConnection>| consumer.spawn().map(drop).unwrap_err();
    let unconnected = || Consumer::<PgConnection>::new("localhost:1", "billing");
    let consumer = || unconnected().database_url("postgres://nowhere");
    let handled = || consumer().topics(["order"]).on_other(|_, _| Ok(()));
    assert!(matches!(spawn(consumer()), ConsumerError::NoTopics));
    assert!(matches!(spawn(consumer().topics(["order"])), ConsumerError::NoHandlers));
    let unconnected = unconnected().topics(["order"]).on_other(|_, _| Ok(()));
    assert!(matches!(spawn(unconnected), ConsumerError::NoDatabase));
    for wrong in [
        handled().shutdown_timeout(Duration::ZERO),
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

#[derive(serde::Deserialize, InboxEvent)]
enum OrderEvent {
    #[outbox(type = "OrderPlaced", version = 1)]
    Placed {},
    #[outbox(type = "OrderPlaced", version = 2)]
    PlacedInShop {},
    #[outbox(type = "OrderPaid")]
    Paid {},
}

#[test]
fn a_second_handler_for_an_event_type_is_refused_at_the_start() {
    let consumer = || {
        let consumer =
            Consumer::<PgConnection>::new("localhost:1", "billing").database_url("postgres://nowhere");
        consumer.topics(["order"])
    };
    let event = |_: &mut PgConnection, _: OrderEvent| Ok(());
    for (ambiguous, named) in [
        (consumer().on("OrderPaid", |_, _| Ok(())).on("OrderPaid", |_, _| Ok(())), "`OrderPaid`"),
        (consumer().on_event(event).on("OrderPaid", |_, _| Ok(())), "`OrderPaid`"),
        (consumer().on_json("OrderPlaced", |_, _: ()| Ok(())).on_event(event), "`OrderPlaced`"),
        (consumer().on_other(|_, _| Ok(())).on_other(|_, _| Ok(())), "all other event types"),
    ] {
        let error = ambiguous.spawn().map(drop).unwrap_err();
        assert!(matches!(error, ConsumerError::Setting { .. }));
        assert!(error.to_string().contains(named), "{error}");
    }
    let ambiguous = Consumer::<AsyncPgConnection>::new_async("localhost:1", "billing").topics(["order"]);
    let ambiguous = ambiguous.on("OrderPaid", async |_, _| Ok(())).on("OrderPaid", async |_, _| Ok(()));
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let _entered = runtime.enter();
    assert!(matches!(ambiguous.spawn().map(drop), Err(ConsumerError::Setting { .. })));

    let unambiguous = consumer().on_event(event).on("OrderShipped", |_, _| Ok(())).on_other(|_, _| Ok(()));
    unambiguous.spawn().unwrap().stop_blocking().unwrap();
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
    let consumer = consumer.on("Counted", insert_effect).spawn().unwrap();
    eventually("the mark to go", PATIENCE, || (bench.marks() == 0).then_some(()));
    consumer.stop_blocking().unwrap();
}

#[test]
fn a_record_of_an_unknown_type_becomes_a_dead_letter_if_the_setting_says_so() {
    let bench = Bench::new(1);
    bench.send([(0, &Sent::new("unknown").with_type("Other")), (0, &Sent::new("rest"))]);
    let consumer = bench.consumer().unknown_types(UnknownTypes::DeadLetter);
    let consumer = consumer.on("Counted", insert_effect).spawn().unwrap();
    bench.wait_for_effects(1);
    consumer.stop_blocking().unwrap();
    assert!(bench.dead_letters()[0].header("outbox-error").unwrap().contains("event type `Other`"));
}

const MARKS: usize = 60_000;
const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// Inserts marks that take long to prune, as they do when a busy server has millions of them, and that refuse a step that takes too long. Every fifth one sleeps for
/// a millisecond or two, so that the first step, which knows nothing of that, is no reason yet to leave the rest for later.
fn insert_slow_marks(bench: &Bench<'_>) {
    let marks = format!(
        "insert into inbox (consumer, event_id, received_at) \
         select '{}', gen_random_uuid(), now() - interval '2 days' from generate_series(1, {MARKS});
         create function slow() returns trigger language plpgsql as $$ begin
             if clock_timestamp() > statement_timestamp() + interval '1.5 s' then raise exception 'it takes too long'; end if;
             if random() < 0.2 then perform pg_sleep(0.001); end if;
             return old;
         end $$;
         create trigger slow before delete on inbox for each row execute function slow()",
        bench.name
    );
    bench.database.connect().batch_execute(&marks).unwrap();
}

/// Sends one record after the other while the inbox is being pruned.
fn check_that_records_do_not_wait(bench: &Bench<'_>) {
    const RECORDS: usize = 50;
    let left = || bench.marks() as usize - bench.effects().len();
    for count in 1..=RECORDS {
        bench.send([(0, &Sent::new(&count.to_string()))]);
        let sent = Instant::now();
        bench.wait_for_effects(count);
        let waited = sent.elapsed();
        // Before the first one the consumer joins its group.
        assert!(count == 1 || waited < Duration::from_secs(2), "record {count} waited for {waited:?}");
    }
    assert!((1..MARKS).contains(&left()), "{} of {MARKS} marks are left to prune", left());
}

#[test]
fn records_do_not_wait_for_the_inbox_to_be_pruned() {
    let bench = Bench::new(1);
    insert_slow_marks(&bench);
    let consumer = bench.consumer().inbox_retention(DAY).on("Counted", insert_effect).spawn().unwrap();
    check_that_records_do_not_wait(&bench);
    consumer.stop_blocking().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn records_do_not_wait_for_the_inbox_to_be_pruned_on_diesel_async_either() {
    let bench = Bench::new(1);
    insert_slow_marks(&bench);
    let consumer = bench.async_consumer().inbox_retention(DAY).on("Counted", insert_effect_async);
    let consumer = consumer.spawn().unwrap();
    check_that_records_do_not_wait(&bench);
    consumer.stop().await.unwrap();
}
