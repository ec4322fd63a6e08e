use std::collections::BTreeSet;

use diesel::Connection;
use diesel_outbox::{Emit, Record};
use diesel_outbox_relay::Kafka as Broker;
use outbox_tests::load::{migrated_on, wal};
use outbox_tests::{Kafka, Postgres, Server, Tables, eventually, on_servers_of_their_own};

use super::outbox::{FromWal, Outbox};
use super::{PATIENCE, assert_sent_exactly_once_to};

on_servers_of_their_own!(each_event_is_sent_once_and_deleted_though_the_database_and_kafka_crash);

fn each_event_is_sent_once_and_deleted_though_the_database_and_kafka_crash(server: &impl Server) {
    let tables = server.migrated();
    crash_both(server, &tables);
    assert_eq!(tables.count("outbox"), 0);
}

#[test]
fn each_event_from_the_wal_is_sent_once_though_the_database_and_kafka_crash() {
    let server = Postgres::start(15);
    let database = migrated_on(&server);
    wal(&database, "setup");
    crash_both(&server, &FromWal::of(database));
}

/// Kafka crashes first, then the database, then both, each in the middle of the work.
fn crash_both(server: &impl Server, outbox: &impl Outbox) {
    let kafka = Kafka::start();
    let topic = kafka.unique("crashes");
    kafka.create_topic(&topic, 3);
    let counter = kafka.counter(&topic);
    let relay = outbox
        .relay()
        .broker(Broker::new(kafka.brokers()))
        .topic_naming(topic.parse().unwrap())
        .exactly_once(true)
        .delete_sent()
        .max_pass_duration(std::time::Duration::from_millis(20))
        .batch_size(100)
        .stall_timeout(std::time::Duration::from_secs(2))
        .spawn()
        .unwrap();
    let mut committed = BTreeSet::new();
    for (round, [broker, database]) in [[true, false], [false, true], [true, true]].iter().enumerate() {
        let before = counter.count();
        let mut conn = outbox.tables().connect();
        for numbers in (5_000 * round..5_000 * (round + 1)).collect::<Vec<_>>().chunks(500) {
            let record = |number: &usize| Record::new("order", (number % 50).to_string(), number.to_string());
            let records: Vec<Record> = numbers.iter().map(record).collect();
            conn.transaction(|c| c.emit_all(&records)).unwrap();
            committed.extend(records.iter().map(|record| record.id().to_string()));
        }
        eventually("some events", PATIENCE, || (counter.count() > before).then_some(()));
        if *broker {
            kafka.crash();
        }
        if *database {
            server.crash();
            server.restart();
        }
        if *broker {
            kafka.restart();
        }
        println!("round {round}: {} events", committed.len());
    }
    assert_sent_exactly_once_to(&kafka, outbox, &topic, &committed);
    relay.stop_blocking().unwrap();
}
