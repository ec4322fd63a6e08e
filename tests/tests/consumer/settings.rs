//! What can be set.

use std::time::Duration;

use diesel::connection::SimpleConnection;
use diesel::prelude::*;
use diesel_outbox_kafka::consumer::{Consumer, ConsumerError, UnknownTypes};
use outbox_tests::eventually;

use super::bench::{Bench, PATIENCE, Sent, insert_effect};

#[test]
fn wrong_settings_are_told_at_the_start() {
    let spawn = |consumer: Consumer<PgConnection>| {
        consumer.spawn(|| PgConnection::establish("postgres://nowhere")).map(drop).unwrap_err()
    };
    let consumer = || Consumer::<PgConnection>::new("localhost:1", "billing");
    let handled = || consumer().topics(["order"]).on_other(|_, _| Ok(()));
    assert!(matches!(spawn(consumer()), ConsumerError::NoTopics));
    assert!(matches!(spawn(consumer().topics(["order"])), ConsumerError::NoHandlers));
    for wrong in [
        handled().tries(0),
        handled().dead_letter_topic("order"),
        handled().set("enable.auto.commit", "true"),
        handled().set("no.such", "s3cret"),
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
    let consumer = bench.consumer().retention(Duration::from_secs(24 * 60 * 60));
    let consumer = consumer.on("Counted", insert_effect).spawn(bench.connect()).unwrap();
    eventually("the mark to go", PATIENCE, || (bench.marks() == 0).then_some(()));
    consumer.stop().unwrap();
}

#[test]
fn a_record_of_an_unknown_type_can_be_a_dead_letter() {
    let bench = Bench::new(1);
    bench.send([(0, &Sent::new("unknown").with_type("Other")), (0, &Sent::new("rest"))]);
    let consumer = bench.consumer().unknown_types(UnknownTypes::DeadLetter);
    let consumer = consumer.on("Counted", insert_effect).spawn(bench.connect()).unwrap();
    bench.wait_for_effects(1);
    consumer.stop().unwrap();
    assert!(bench.dead_letters()[0].header("outbox-error").unwrap().contains("event type `Other`"));
}
