//! A relay's memory does not follow a jump in the size of payloads.

use std::time::Duration;

use diesel::connection::SimpleConnection;
use outbox_tests::load::{count, migrated, new_topic, relay};
use outbox_tests::{Kafka, eventually};

const PATIENCE: Duration = Duration::from_secs(120);

/// After many small ones come 800 payloads of 300 kB, and 15 of 20 MB, which Kafka does not take.
#[test]
fn a_jump_in_payload_size_does_not_exhaust_the_memory_of_a_polling_relay() {
    let database = migrated();
    let conn = &mut database.connect();
    let insert = |payloads: &str| {
        format!(
            "INSERT INTO outbox (id, aggregatetype, aggregateid, type, payload, shard) \
             SELECT gen_random_uuid(), 'order', n::text, 'Placed', {payloads} AS n; "
        )
    };
    conn.batch_execute(&insert("'small', n % 16 FROM generate_series(1, 20000)")).unwrap();
    conn.batch_execute(&insert(
        "convert_to(repeat('m', 300000), 'UTF8'), n % 16 FROM generate_series(1, 800)",
    ))
    .unwrap();
    conn.batch_execute(&insert(
        "convert_to(repeat('l', 20000000), 'UTF8'), n % 16 FROM generate_series(1, 15)",
    ))
    .unwrap();
    let topic = new_topic("jump");
    let relay = relay(&database, &topic, &[]);
    eventually("all events to be settled", PATIENCE, || {
        (count(conn, "outbox WHERE sent_at IS NULL") == 0).then_some(())
    });
    let peak = relay.peak_resident_kb().unwrap() / 1_024;
    println!("{peak} MB at most");
    assert_eq!(count(conn, "outbox_dead_letter"), 15);
    assert_eq!(Kafka::shared().counter(&topic).count(), 20_800);
    assert!(peak < 200, "{peak} MB");
}
