//! Three brokers, two of which come and go. Every settled record is on Kafka.

use std::collections::BTreeSet;
use std::ops::Range;
use std::thread;
use std::time::Duration;

use diesel::prelude::*;
use diesel::sql_types::BigInt;
use diesel_outbox::{Emit, Migrations, Record};
use diesel_outbox_relay::{Kafka as Broker, Relay, RelayHandle};
use outbox_tests::{Cluster, Database, Postgres, eventually};

const PATIENCE: Duration = Duration::from_secs(120);
const EVENTS: usize = 160;
const EVENTS_UNDER_LOAD: usize = 600;
const PARTITIONS: usize = 8;

/// A relay whose producer retries at once. Each request has one large record, so that several requests to each partition are in
/// flight.
fn relay(database: &Database<'_>, cluster: &Cluster, topic: &str, stall_timeout: Duration) -> RelayHandle {
    let broker = Broker::new(cluster.kafka().brokers())
        .set("batch.num.messages", "1")
        .set("retry.backoff.ms", "5")
        .set("retry.backoff.max.ms", "5");
    let topics = topic.parse().unwrap();
    Relay::postgres(database.url())
        .broker(broker)
        .topic_naming(topics)
        .stall_timeout(stall_timeout)
        .spawn()
        .unwrap()
}

fn emit(conn: &mut PgConnection, numbers: Range<usize>) {
    let record = |number: usize| {
        Record::new("order", (number % 40).to_string(), number.to_string()).with_payload(vec![b'x'; 300_000])
    };
    let records: Vec<Record> = numbers.map(record).collect();
    conn.transaction(|c| c.emit_all(&records)).unwrap();
}

fn settled(database: &Database<'_>) -> usize {
    let settled = "SELECT count(*) FROM outbox WHERE sent_at IS NOT NULL";
    diesel::dsl::sql::<BigInt>(settled).get_result::<i64>(&mut database.connect()).unwrap() as usize
}

#[test]
fn settled_records_are_stored_although_replicas_come_and_go() {
    let cluster = Cluster::start();
    let database = Postgres::shared().database();
    Migrations::new().run(&mut database.connect()).unwrap();
    let topic = "order";
    cluster.create_topic(topic, PARTITIONS);
    cluster.wait_for_replicas(topic, 3);
    cluster.stop_followers();
    cluster.wait_for_replicas(topic, 1);
    emit(&mut database.connect(), 0..EVENTS);
    // At first each partition refuses everything, until a second broker has caught up with it.
    let patient = relay(&database, &cluster, topic, Duration::from_secs(20));
    cluster.start_missing();
    eventually("all to be settled", PATIENCE, || (settled(&database) == EVENTS).then_some(()));
    patient.stop_blocking().unwrap();

    // Under load, with a relay that gets a new producer each second while replicas are missing, and is restarted.
    cluster.wait_for_replicas(topic, 3);
    let all = EVENTS + EVENTS_UNDER_LOAD;
    let restarted = || relay(&database, &cluster, topic, Duration::from_secs(1));
    thread::scope(|scope| {
        let first = restarted();
        scope.spawn(|| {
            let mut conn = database.connect();
            for number in EVENTS..all {
                emit(&mut conn, number..number + 1);
                thread::sleep(Duration::from_millis(20));
            }
        });
        eventually("some to be settled", PATIENCE, || (settled(&database) > EVENTS + 20).then_some(()));
        cluster.stop_followers();
        cluster.wait_for_replicas(topic, 1);
        // The records in flight at that time are never acknowledged.
        let _ = first.stop_blocking();
        let second = restarted();
        cluster.start_missing();
        eventually("all to be settled", PATIENCE, || (settled(&database) == all).then_some(()));
        second.stop_blocking().unwrap();
    });

    let stored: BTreeSet<usize> = cluster
        .kafka()
        .read_all(topic)
        .iter()
        .map(|received| received.header("eventType").unwrap().parse().unwrap())
        .collect();
    let lost: Vec<usize> = (0..all).filter(|number| !stored.contains(number)).collect();
    assert!(lost.is_empty(), "{} are settled and not stored: {lost:?}", lost.len());
}
