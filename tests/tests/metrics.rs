//! What the relay reports through the `metrics` facade.

use std::collections::BTreeMap;
use std::time::Duration;

use diesel::connection::{AnsiTransactionManager, TransactionManager};
use diesel::prelude::*;
use diesel_outbox::{Emit, Migrations, Outbox, Record};
use diesel_outbox_relay::source::wal::setup;
use diesel_outbox_relay::{Kafka as Broker, Relay, WalOptions};
use metrics_util::debugging::{DebugValue, DebuggingRecorder};
use outbox_tests::{Kafka, Postgres, eventually};

#[test]
fn the_lag_and_the_numbers_of_published_and_dead_letters_are_metrics() {
    let recorder = DebuggingRecorder::new();
    let snapshotter = recorder.snapshotter();
    recorder.install().unwrap();
    let database = Postgres::shared().database();
    let conn = &mut database.connect();
    Migrations::new().run(conn).unwrap();
    let topic = Kafka::shared().unique("metrics");
    let relay = |brokers: &str| {
        Relay::postgres(database.url())
            .broker(Broker::new(brokers))
            .topic_naming(topic.parse().unwrap())
            .stall_timeout(Duration::from_secs(1))
            .lag_interval(Duration::from_millis(50))
    };
    let outbox = format!("{}.public", database.name());
    let working = relay(Kafka::shared().brokers()).spawn().unwrap();
    let record = |event_type: &str| Record::new("order", "1", event_type);
    let large = record("TooLarge").with_payload(vec![b'x'; 2_000_000]);
    conn.transaction(|c| c.emit_all([record("One"), large, record("Two")])).unwrap();
    Kafka::shared().read_at_least(&topic, 2, Duration::from_secs(60));
    // Each snapshot resets the counters, so this adds them up.
    let (mut counters, mut gauges) = (BTreeMap::<String, u64>::new(), BTreeMap::<String, f64>::new());
    let mut look = |unsent: f64| {
        for (key, unit, description, value) in snapshotter.snapshot().into_vec() {
            let name = key.key().name().to_owned();
            assert!(unit.is_some() && description.is_some(), "{name} has no unit or no description");
            if key.key().labels().all(|label| (label.key(), label.value()) != ("outbox", &*outbox)) {
                continue;
            }
            match value {
                DebugValue::Counter(count) => *counters.entry(name).or_default() += count,
                DebugValue::Gauge(value) => _ = gauges.insert(name, value.into_inner()),
                DebugValue::Histogram(_) => {}
            }
        }
        let counted = counters.get("outbox_published_total") == Some(&2)
            && counters.get("outbox_dead_letters_total") == Some(&1);
        let oldest = gauges.get("outbox_oldest_unsent_seconds");
        let measured = gauges.get("outbox_unsent") == Some(&unsent)
            && oldest.is_some_and(|age| (*age > 0.0) == (unsent > 0.0));
        (counted && measured).then_some(())
    };
    eventually("the metrics", Duration::from_secs(60), || look(0.0));
    let oldest_writer = || {
        let gauges = snapshotter.snapshot().into_vec().into_iter();
        gauges.filter(|(key, ..)| key.key().name() == "outbox_oldest_writer_seconds").find_map(
            |(.., value)| match value {
                DebugValue::Gauge(value) => Some(value.into_inner()),
                _ => None,
            },
        )
    };
    let writer = &mut database.connect();
    AnsiTransactionManager::begin_transaction(writer).unwrap();
    writer.emit(&record("Never")).unwrap();
    eventually("the age of the open writer", Duration::from_secs(60), || {
        oldest_writer().filter(|age| *age > 0.1)
    });
    AnsiTransactionManager::rollback_transaction(writer).unwrap();
    eventually("no open writer", Duration::from_secs(60), || oldest_writer().filter(|age| *age == 0.0));
    working.stop_blocking().unwrap();

    conn.transaction(|c| c.emit(&record("Three"))).unwrap();
    let without_broker = relay("127.0.0.1:1").spawn().unwrap();
    eventually("the lag while the broker is away", Duration::from_secs(60), || look(1.0));
    Migrations::new().schema("events").run(conn).unwrap();
    let events = Outbox::new().schema("events");
    conn.transaction(|c| events.emit_all(c, [record("Four"), record("Five")])).unwrap();
    let of_events = relay("127.0.0.1:1").schema("events").spawn().unwrap();
    let mut unsent = BTreeMap::new();
    eventually("the lag of both outboxes", Duration::from_secs(60), || {
        for (key, _, _, value) in snapshotter.snapshot().into_vec() {
            // Each snapshot sets the gauges to 0 too.
            if let (DebugValue::Gauge(value), "outbox_unsent") = (value, key.key().name())
                && value.into_inner() > 0.0
            {
                let labels = key.key().labels().filter(|label| label.key() == "outbox");
                unsent.extend(labels.map(|label| (label.value().to_owned(), value.into_inner())));
            }
        }
        (unsent.len() == 2).then_some(())
    });
    assert_eq!(unsent, BTreeMap::from([(outbox.clone(), 1.0), (format!("{}.events", database.name()), 2.0)]));
    of_events.stop_blocking().unwrap();
    without_broker.stop_blocking().unwrap();

    let mut wal = WalOptions::default();
    wal.slot = database.name().to_owned();
    setup(conn, &mut database.connect(), &wal).unwrap();
    let reading = Relay::postgres_wal(database.url(), wal)
        .broker(Broker::new(Kafka::shared().brokers()))
        .topic_naming(topic.parse().unwrap())
        .lag_interval(Duration::from_millis(50))
        .spawn()
        .unwrap();
    let mut seen = BTreeMap::new();
    eventually("the metrics of the WAL", Duration::from_secs(60), || {
        for (key, _, _, value) in snapshotter.snapshot().into_vec() {
            let labels: String = key.key().labels().map(|label| format!(" {}", label.value())).collect();
            if let DebugValue::Gauge(value) = value {
                seen.insert(format!("{}{labels}", key.key().name()), value.into_inner());
            }
        }
        ["outbox_wal_lag_bytes", "outbox_wal_lag_seconds", "outbox_wal_retained_bytes"]
            .iter()
            .all(|name| seen.contains_key(&format!("{name} {outbox}")))
            .then_some(())
    });
    reading.stop_blocking().unwrap();
    assert_eq!(seen.get(&format!("outbox_wal_slot_status {outbox} reserved")), Some(&1.0));
    assert_eq!(seen.get(&format!("outbox_wal_slot_status {outbox} lost")), Some(&0.0));
}
