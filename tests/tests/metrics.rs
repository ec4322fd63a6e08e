//! What the relay reports through the `metrics` facade.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use diesel::connection::{AnsiTransactionManager, TransactionManager};
use diesel::prelude::*;
use diesel_outbox::{Emit, Outbox, Record};
use diesel_outbox_relay::source::wal::setup;
use diesel_outbox_relay::{Kafka as Broker, Relay, WalOptions};
use metrics_util::debugging::{DebugValue, DebuggingRecorder, Snapshotter};
use outbox_tests::load::migrated;
use outbox_tests::{Kafka, Tables, eventually, migrated_mariadb, on_postgres_and_mariadb};

const PATIENCE: Duration = Duration::from_secs(60);

on_postgres_and_mariadb!(the_lag_and_the_numbers_of_published_and_dead_letters_are_metrics);

/// Returns the recorder of this process. Each snapshot resets it, so the tests take turns.
fn recorder() -> MutexGuard<'static, Snapshotter> {
    static RECORDER: OnceLock<Mutex<Snapshotter>> = OnceLock::new();
    let recorder = RECORDER.get_or_init(|| {
        let recorder = DebuggingRecorder::new();
        let snapshotter = recorder.snapshotter();
        recorder.install().unwrap();
        Mutex::new(snapshotter)
    });
    recorder.lock().unwrap_or_else(PoisonError::into_inner)
}

fn record(event_type: &str) -> Record {
    Record::new("order", "1", event_type)
}

fn relay(relay: Relay, brokers: &str, topic: &str) -> Relay {
    relay
        .broker(Broker::new(brokers))
        .topic_naming(topic.parse().unwrap())
        .stall_timeout(Duration::from_secs(1))
        .lag_interval(Duration::from_millis(50))
}

fn the_lag_and_the_numbers_of_published_and_dead_letters_are_metrics(tables: &impl Tables) {
    let snapshotter = recorder();
    let topic = Kafka::shared().unique("metrics");
    let (conn, outbox) = (&mut tables.connect(), tables.label());
    let working = relay(tables.relay(), Kafka::shared().brokers(), &topic).spawn().unwrap();
    let large = record("TooLarge").with_payload(vec![b'x'; 2_000_000]);
    conn.transaction(|c| c.emit_all([record("One"), large, record("Two")])).unwrap();
    Kafka::shared().read_at_least(&topic, 2, PATIENCE);
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
    eventually("the metrics", PATIENCE, || look(0.0));
    let oldest_writer = || {
        snapshotter.snapshot().into_vec().into_iter().find_map(|(key, .., value)| match value {
            DebugValue::Gauge(value)
                if key.key().name() == "outbox_oldest_writer_seconds"
                    && key.key().labels().any(|label| label.value() == outbox) =>
            {
                Some(value.into_inner())
            }
            _ => None,
        })
    };
    let writer = &mut tables.connect();
    AnsiTransactionManager::begin_transaction(writer).unwrap();
    writer.emit(&record("Never")).unwrap();
    eventually("the age of the open writer", PATIENCE, || oldest_writer().filter(|age| *age > 0.1));
    AnsiTransactionManager::rollback_transaction(writer).unwrap();
    eventually("no open writer", PATIENCE, || oldest_writer().filter(|age| *age == 0.0));
    working.stop_blocking().unwrap();

    conn.transaction(|c| c.emit(&record("Three"))).unwrap();
    let without_broker = relay(tables.relay(), "127.0.0.1:1", &topic).spawn().unwrap();
    eventually("the lag while the broker is away", PATIENCE, || look(1.0));
    without_broker.stop_blocking().unwrap();
}

#[test]
fn two_outboxes_in_one_postgres_have_a_lag_each() {
    let database = migrated();
    let conn = &mut database.connect();
    database.migrate_in("events");
    conn.transaction(|c| c.emit(&record("One"))).unwrap();
    let events = Outbox::new().schema("events");
    conn.transaction(|c| events.emit_all(c, [record("Two"), record("Three")])).unwrap();
    let of_events = database.relay().schema("events");
    have_a_lag_each(database.relay(), of_events, [database.label(), format!("{}.events", database.name())]);
}

/// A schema is a database there.
#[test]
fn two_outboxes_on_one_mariadb_have_a_lag_each() {
    let (database, events) = (migrated_mariadb(), migrated_mariadb());
    database.connect().transaction(|c| c.emit(&record("One"))).unwrap();
    events.connect().transaction(|c| c.emit_all([record("Two"), record("Three")])).unwrap();
    let of_events = database.relay().schema(events.name());
    have_a_lag_each(database.relay(), of_events, [database.label(), events.label()]);
}

/// In the first outbox waits one event, in the second two.
fn have_a_lag_each(first: Relay, second: Relay, outboxes: [String; 2]) {
    let snapshotter = recorder();
    let relays = [first, second].map(|each| relay(each, "127.0.0.1:1", "nowhere").spawn().unwrap());
    let mut unsent = BTreeMap::new();
    eventually("the lag of both outboxes", PATIENCE, || {
        for (key, _, _, value) in snapshotter.snapshot().into_vec() {
            let labels = key.key().labels().filter(|label| label.key() == "outbox");
            let of = labels.map(|label| label.value().to_owned()).find(|label| outboxes.contains(label));
            // Each snapshot sets the gauges to 0 too.
            if let (DebugValue::Gauge(value), "outbox_unsent", Some(outbox)) = (value, key.key().name(), of)
                && value.into_inner() > 0.0
            {
                unsent.insert(outbox, value.into_inner());
            }
        }
        (unsent.len() == 2).then_some(())
    });
    assert_eq!(unsent, outboxes.into_iter().zip([1.0, 2.0]).collect());
    for relay in relays {
        relay.stop_blocking().unwrap();
    }
}

#[test]
fn how_far_the_wal_is_read_is_a_metric() {
    let snapshotter = recorder();
    let database = migrated();
    let outbox = database.label();
    database.connect().transaction(|c| c.emit(&record("One"))).unwrap();
    let mut wal = WalOptions::default();
    wal.slot = database.name().to_owned();
    setup(&mut database.connect(), &mut database.connect(), &wal).unwrap();
    let topic = Kafka::shared().unique("metrics-of-the-wal");
    let reading = relay(Relay::postgres_wal(database.url(), wal), Kafka::shared().brokers(), &topic);
    let reading = reading.spawn().unwrap();
    let mut seen = BTreeMap::new();
    eventually("the metrics of the WAL", PATIENCE, || {
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
