//! Three brokers, two of which come and go: what is settled is on Kafka.

use std::collections::BTreeSet;
use std::time::Duration;

use diesel::prelude::*;
use diesel::sql_types::BigInt;
use diesel_outbox::{Emit, Migrations, Record};
use diesel_outbox_relay::{Kafka as Broker, Limits, Relay, RelayHandle, Topics};
use outbox_tests::{Cluster, Database, Postgres, eventually};

const PATIENCE: Duration = Duration::from_secs(120);
const EVENTS: usize = 160;
const PARTITIONS: usize = 8;

/// A relay whose producer tries again at once what was refused. Large records in a request each keep several requests on
/// their way to each partition.
fn relay(database: &Database<'_>, cluster: &Cluster, topic: &str) -> RelayHandle {
    let mut limits = Limits::default();
    limits.stall_time = Duration::from_secs(20);
    let broker = Broker::new(cluster.kafka().brokers())
        .set("batch.num.messages", "1")
        .set("retry.backoff.ms", "5")
        .set("retry.backoff.max.ms", "5");
    let topics = Topics::pattern(topic).unwrap();
    Relay::postgres(database.url()).publisher(broker).topics(topics).limits(limits).spawn().unwrap()
}

fn emit(database: &Database<'_>) {
    let record = |number: usize| {
        Record::new("order", (number % 40).to_string(), number.to_string()).with_payload(vec![b'x'; 300_000])
    };
    let records: Vec<Record> = (0..EVENTS).map(record).collect();
    database.connect().transaction(|c| c.emit_all(&records)).unwrap();
}

fn settled(database: &Database<'_>) -> usize {
    let settled = "SELECT count(*) FROM outbox WHERE sent_at IS NOT NULL";
    diesel::dsl::sql::<BigInt>(settled).get_result::<i64>(&mut database.connect()).unwrap() as usize
}

#[test]
fn what_is_settled_is_stored_though_it_was_refused_before_replicas_came_back() {
    let cluster = Cluster::start();
    let database = Postgres::shared().database();
    Migrations::new().run(&mut database.connect()).unwrap();
    let topic = "order";
    cluster.create_topic(topic, PARTITIONS);
    cluster.wait_for_replicas(topic, 3);
    cluster.stop_followers();
    cluster.wait_for_replicas(topic, 1);
    emit(&database);
    // All is refused at first, by each partition until a second broker has caught up with it.
    let relay = relay(&database, &cluster, topic);
    cluster.start_followers();
    eventually("all to be settled", PATIENCE, || (settled(&database) == EVENTS).then_some(()));
    relay.stop_blocking().unwrap();
    let stored: BTreeSet<usize> = cluster
        .kafka()
        .read_all(topic)
        .iter()
        .map(|received| received.header("eventType").unwrap().parse().unwrap())
        .collect();
    let lost: Vec<usize> = (0..EVENTS).filter(|number| !stored.contains(number)).collect();
    assert!(lost.is_empty(), "{} are settled and not stored: {lost:?}", lost.len());
}
