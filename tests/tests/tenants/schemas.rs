//! A database with an outbox in each of several schemas, and a relay for all of them.

use std::collections::{BTreeMap, BTreeSet};
use std::thread;
use std::time::Duration;

use diesel::prelude::*;
use diesel::sql_types::BigInt;
use diesel_outbox::{Outbox, Record};
use diesel_outbox_relay::{Kafka as Broker, Relay};
use outbox_tests::{Database, Kafka, Postgres, ReadRecord, eventually};

pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// A new database with an outbox in each of these schemas.
pub(crate) fn migrated(schemas: &[String]) -> Database<'static> {
    let database = Postgres::shared().database();
    schemas.iter().for_each(|schema| database.migrate_in(schema));
    database
}

pub(crate) fn tenants(count: usize) -> Vec<String> {
    (0..count).map(|number| format!("tenant_{number}")).collect()
}

pub(crate) fn relay(database: &Database<'_>, topic: &str, schemas: &[String]) -> Relay {
    Relay::postgres(database.url())
        .schemas(schemas)
        .broker(Broker::new(Kafka::shared().brokers()))
        .topic_naming(topic.parse().unwrap())
}

/// A relay that finds an event only if it is woken, as long as the test lasts: it does not look by itself for an hour, and does not
/// measure the lag.
pub(crate) fn sleeper(database: &Database<'_>, topic: &str, schemas: &[String]) -> Relay {
    let hour = Duration::from_secs(3_600);
    relay(database, topic, schemas).poll_interval(hour).lag_interval(hour)
}

pub(crate) fn emit(conn: &mut PgConnection, schema: &str, event_type: &str) {
    let record = Record::new("order", schema, event_type).with_payload(*b"{}");
    conn.transaction(|c| Outbox::new().schema(schema).emit(c, &record).map(drop)).unwrap();
}

pub(crate) fn number(conn: &mut PgConnection, sql: &str) -> i64 {
    diesel::dsl::sql::<BigInt>(sql).get_result(conn).unwrap()
}

pub(crate) fn unsent(conn: &mut PgConnection, schema: &str) -> i64 {
    number(conn, &format!("SELECT count(*) FROM {schema}.outbox WHERE sent_at IS NULL"))
}

/// Waits until each of these schemas has an event of this type in the topic. An event's key is its schema.
#[track_caller]
pub(crate) fn wait_for(topic: &str, event_type: &str, schemas: &[String]) {
    eventually(event_type, PATIENCE, || {
        let received = Kafka::shared().read_all(topic);
        let arrived: BTreeSet<&str> = received
            .iter()
            .filter(|received| received.header("eventType") == Some(event_type))
            .filter_map(ReadRecord::key_text)
            .collect();
        schemas.iter().all(|schema| arrived.contains(&**schema)).then_some(())
    });
}

/// Waits until the relays sleep in all of these schemas, so that only a notification wakes them.
#[track_caller]
pub(crate) fn wait_until_asleep(conn: &mut PgConnection, schemas: usize) {
    let asleep = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND classid = 1869968482 AND objsubid = 2 \
                  AND database = (SELECT oid FROM pg_database WHERE datname = current_database()) \
                  AND mode = 'ExclusiveLock' AND granted";
    let quiet = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'outbox relay' \
                 AND datname = current_database() AND state_change > clock_timestamp() - interval '300 ms'";
    eventually("the relay to lie down everywhere", PATIENCE, || {
        (number(conn, asleep) == schemas as i64 && number(conn, quiet) == 0).then_some(())
    });
}

pub(crate) fn sessions(conn: &mut PgConnection) -> i64 {
    number(
        conn,
        "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'outbox relay' AND datname = current_database()",
    )
}

/// Whether a session of the relay watches all schemas: it leads in them.
pub(crate) const WATCHES: &str = "locktype = 'advisory' AND classid = 1869968483 AND objsubid = 2 AND granted \
                                  AND database = (SELECT oid FROM pg_database WHERE datname = current_database())";

/// Writes events of two aggregates into this schema, numbered upwards. Some transactions are rolled back, and some commit late.
/// Returns the ids of the committed events.
pub(crate) fn write(
    database: &Database<'_>,
    schema: &str,
    events: usize,
    is_to_end: impl Fn() -> bool,
) -> BTreeSet<String> {
    let (conn, outbox) = (&mut database.connect(), Outbox::new().schema(schema));
    let (mut ids, mut next, mut round) = (BTreeSet::new(), 0, 0);
    while next < events && !is_to_end() {
        round += 1;
        let records: Vec<Record> = (next..events.min(next + 1 + round % 3))
            .map(|number| Record::new("order", format!("{schema} {}", number % 2), number.to_string()))
            .collect();
        let written: QueryResult<()> = conn.transaction(|c| {
            outbox.emit_all(c, &records)?;
            if round % 7 == 3 {
                thread::sleep(Duration::from_millis(20));
            }
            if round % 5 == 4 { Err(diesel::result::Error::RollbackTransaction) } else { Ok(()) }
        });
        if written.is_ok() {
            next += records.len();
            ids.extend(records.iter().map(|record| record.id().to_string()));
        }
    }
    ids
}

/// Writes into all of these schemas at once.
pub(crate) fn write_everywhere(
    database: &Database<'_>,
    schemas: &[String],
    events: usize,
) -> BTreeSet<String> {
    thread::scope(|scope| {
        let writers: Vec<_> = schemas
            .iter()
            .map(|schema| scope.spawn(move || write(database, schema, events, || false)))
            .collect();
        writers.into_iter().flat_map(|writer| writer.join().unwrap()).collect()
    })
}

/// Waits until all of these events have come, and returns how many came again. Fails if an aggregate's events are not in order.
#[track_caller]
pub(crate) fn repetitions(topic: &str, committed: &BTreeSet<String>) -> usize {
    let received = eventually("all events", PATIENCE, || {
        let received = Kafka::shared().read_all(topic);
        let ids: BTreeSet<&str> = received.iter().filter_map(|received| received.header("id")).collect();
        committed.iter().all(|id| ids.contains(&**id)).then_some(received)
    });
    let (mut seen, mut last) = (BTreeSet::new(), BTreeMap::<&str, usize>::new());
    for record in &received {
        let id = record.header("id").unwrap();
        assert!(committed.contains(id), "{id} was never committed");
        if seen.insert(id) {
            let number: usize = record.header("eventType").unwrap().parse().unwrap();
            let aggregate = record.key_text().unwrap();
            let before = last.insert(aggregate, number);
            assert!(before.is_none_or(|before| before < number), "{aggregate}: {number} after {before:?}");
        }
    }
    received.len() - seen.len()
}
