//! A relay's memory does not follow a jump in the size of payloads.

use std::time::Duration;

use diesel::connection::SimpleConnection;
use diesel::prelude::*;
use outbox_tests::load::{count, log_relay, migrated, new_topic, relay, wal};
use outbox_tests::{Kafka, Process, eventually};

const PATIENCE: Duration = Duration::from_secs(120);

/// After many small ones come 800 payloads of 300 kB, and 15 of 20 MB, which Kafka does not take.
fn insert(conn: &mut PgConnection) {
    let insert = |payloads: &str| {
        format!(
            "INSERT INTO outbox (id, aggregatetype, aggregateid, type, payload, shard) \
             SELECT gen_random_uuid(), 'order', n::text, 'Placed', {payloads} AS n; "
        )
    };
    for payloads in [
        "'small', n % 16 FROM generate_series(1, 20000)",
        "convert_to(repeat('m', 300000), 'UTF8'), n % 16 FROM generate_series(1, 800)",
        "convert_to(repeat('l', 20000000), 'UTF8'), n % 16 FROM generate_series(1, 15)",
    ] {
        conn.batch_execute(&insert(payloads)).unwrap();
    }
}

/// In megabytes.
#[track_caller]
fn assert_peak(relay: &Process, limit: u64) {
    let peak = relay.peak_resident_kb().unwrap() / 1_024;
    println!("{peak} MB at most");
    assert!(peak < limit, "{peak} MB");
}

#[test]
fn a_jump_in_payload_size_does_not_exhaust_the_memory_of_a_polling_relay() {
    let database = migrated();
    let conn = &mut database.connect();
    insert(conn);
    let topic = new_topic("jump");
    let relay = relay(&database, &topic, &[]);
    eventually("all events to be settled", PATIENCE, || {
        (count(conn, "outbox WHERE sent_at IS NULL") == 0).then_some(())
    });
    assert_eq!(count(conn, "outbox_dead_letter"), 15);
    assert_eq!(Kafka::shared().counter(&topic).count(), 20_800);
    assert_peak(&relay, 200);
}

#[test]
fn a_jump_in_payload_size_does_not_exhaust_the_memory_of_a_relay_on_the_log() {
    does_not_exhaust_a_relay_on_the_log("jump-log", false);
}

#[test]
fn a_jump_in_payload_size_does_not_exhaust_the_memory_of_a_relay_that_reads_batches() {
    does_not_exhaust_a_relay_on_the_log("jump-batches", true);
}

/// Payloads of one letter leave so little of the log that it is streamed, unless they are stored as they are.
fn does_not_exhaust_a_relay_on_the_log(topic: &str, in_batches: bool) {
    let database = migrated();
    let conn = &mut database.connect();
    if in_batches {
        conn.batch_execute("ALTER TABLE outbox ALTER payload SET STORAGE EXTERNAL").unwrap();
    }
    wal(&database, "setup");
    insert(conn);
    let topic = new_topic(topic);
    let relay = log_relay(&database, &topic);
    let counter = Kafka::shared().counter(&topic);
    eventually("all events", PATIENCE, || {
        (count(conn, "outbox_dead_letter") == 15 && counter.count() >= 20_800).then_some(())
    });
    // What other tests write meanwhile is in the log too.
    assert!(!in_batches || relay.output().contains("in batches"), "{}", relay.output());
    // The rows are kept until they are acknowledged, beside the producer's copy. All of them would take 560 MB.
    assert_peak(&relay, 350);
}
