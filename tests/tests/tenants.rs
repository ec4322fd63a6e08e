//! One relay for the outboxes of many schemas: each keeps all guarantees, and none waits for another.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use diesel::connection::{AnsiTransactionManager, SimpleConnection, TransactionManager};
use diesel::prelude::*;
use diesel::sql_types::BigInt;
use diesel_outbox::{Emit, Migrations, Outbox, Record};
use diesel_outbox_relay::{Kafka as Broker, Relay, RelayError};
use outbox_tests::load::{new_topic, relay as process};
use outbox_tests::{
    Database, Kafka, Postgres, Process, ReadRecord, Signal, eventually, logged, start_logging,
};

const PATIENCE: Duration = Duration::from_secs(60);

/// A new database with an outbox in each of these schemas.
fn migrated(schemas: &[String]) -> Database<'static> {
    let database = Postgres::shared().database();
    let conn = &mut database.connect();
    for schema in schemas {
        Migrations::new().schema(schema).run(conn).unwrap();
    }
    database
}

fn tenants(count: usize) -> Vec<String> {
    (0..count).map(|number| format!("tenant_{number}")).collect()
}

fn relay(database: &Database<'_>, topic: &str, schemas: &[String]) -> Relay {
    Relay::postgres(database.url())
        .schemas(schemas)
        .broker(Broker::new(Kafka::shared().brokers()))
        .topic_naming(topic.parse().unwrap())
}

/// A relay that finds an event only if it is woken, as long as the test lasts.
fn sleeper(database: &Database<'_>, topic: &str, schemas: &[String]) -> Relay {
    relay(database, topic, schemas).poll_interval(Duration::from_secs(3_600))
}

fn emit(conn: &mut PgConnection, schema: &str, event_type: &str) {
    let record = Record::new("order", schema, event_type).with_payload(*b"{}");
    conn.transaction(|c| Outbox::new().schema(schema).emit(c, &record).map(drop)).unwrap();
}

fn number(conn: &mut PgConnection, sql: &str) -> i64 {
    diesel::dsl::sql::<BigInt>(sql).get_result(conn).unwrap()
}

fn unsent(conn: &mut PgConnection, schema: &str) -> i64 {
    number(conn, &format!("SELECT count(*) FROM {schema}.outbox WHERE sent_at IS NULL"))
}

/// Waits until each of these schemas has an event of this type in the topic. An event's key is its schema.
#[track_caller]
fn wait_for(topic: &str, event_type: &str, schemas: &[String]) {
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
fn wait_until_asleep(conn: &mut PgConnection, schemas: usize) {
    let asleep = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND classid = 1869968482 AND objsubid = 2 \
                  AND database = (SELECT oid FROM pg_database WHERE datname = current_database()) \
                  AND mode = 'ExclusiveLock' AND granted";
    let quiet = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'outbox relay' \
                 AND datname = current_database() AND state_change > clock_timestamp() - interval '300 ms'";
    eventually("the relay to lie down everywhere", PATIENCE, || {
        (number(conn, asleep) == schemas as i64 && number(conn, quiet) == 0).then_some(())
    });
}

fn sessions(conn: &mut PgConnection) -> i64 {
    number(
        conn,
        "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'outbox relay' AND datname = current_database()",
    )
}

/// Writes events of two aggregates into this schema, numbered upwards. Some transactions are rolled back, and some commit late.
/// Returns the ids of the committed events.
fn write(
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
fn write_everywhere(database: &Database<'_>, schemas: &[String], events: usize) -> BTreeSet<String> {
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
fn repetitions(topic: &str, committed: &BTreeSet<String>) -> usize {
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

#[test]
fn the_events_of_twenty_schemas_all_arrive_once_and_in_the_order_of_each_aggregate() {
    let schemas = tenants(20);
    let database = migrated(&schemas);
    let topic = new_topic("twenty");
    let relay = sleeper(&database, &topic, &schemas).spawn().unwrap();
    let committed = write_everywhere(&database, &schemas, 60);
    assert_eq!(committed.len(), 20 * 60);
    assert_eq!(repetitions(&topic, &committed), 0);
    relay.stop_blocking().unwrap();
    let conn = &mut database.connect();
    assert!(
        schemas.iter().all(|schema| unsent(conn, schema) == 0),
        "a pass marks the rows of its own schema"
    );
}

/// All schemas have rows with the same numbers in the same places. A plan for one of them must not be used for another.
#[test]
fn a_worker_that_goes_from_schema_to_schema_settles_each_event_in_its_own() {
    let schemas = tenants(3);
    let database = migrated(&schemas);
    let conn = &mut database.connect();
    let topic = Kafka::shared().unique("in-turn");
    let relay = sleeper(&database, &topic, &schemas).workers(1).spawn().unwrap();
    for round in 0..8 {
        for (number, schema) in schemas.iter().enumerate() {
            // In this round, one of them has nothing.
            if round % 4 != number {
                emit(conn, schema, &format!("{round}"));
            }
        }
        let emitted: i64 =
            schemas.iter().map(|s| number(conn, &format!("SELECT count(*) FROM {s}.outbox"))).sum();
        Kafka::shared().read_at_least(&topic, emitted as usize, PATIENCE);
        for schema in &schemas {
            eventually("all to be settled", PATIENCE, || (unsent(conn, schema) == 0).then_some(()));
        }
    }
    relay.stop_blocking().unwrap();
    let received = Kafka::shared().read_all(&topic);
    let ids: BTreeSet<&str> = received.iter().filter_map(|record| record.header("id")).collect();
    assert_eq!(ids.len(), received.len(), "nothing was sent twice");
}

#[test]
fn an_event_wakes_the_relay_in_whichever_schema_it_is() {
    let schemas = tenants(4);
    let database = migrated(&schemas);
    let conn = &mut database.connect();
    let topic = Kafka::shared().unique("woken");
    let _relay = sleeper(&database, &topic, &schemas).spawn().unwrap();
    for round in 0..2 {
        for schema in &schemas {
            wait_until_asleep(conn, schemas.len());
            let event_type = format!("{schema} {round}");
            emit(conn, schema, &event_type);
            wait_for(&topic, &event_type, std::slice::from_ref(schema));
        }
    }
}

/// The emitter sees that the relay is awake in its schema and does not notify it. It commits when the relay sleeps there.
#[test]
fn an_event_that_commits_late_is_missed_in_no_schema() {
    let schemas = tenants(3);
    let database = migrated(&schemas);
    let conn = &mut database.connect();
    let topic = Kafka::shared().unique("late");
    let _relay = sleeper(&database, &topic, &schemas).spawn().unwrap();
    wait_until_asleep(conn, schemas.len());
    let mut late: Vec<PgConnection> = schemas.iter().map(|_| database.connect()).collect();
    for (late, schema) in late.iter_mut().zip(&schemas) {
        AnsiTransactionManager::begin_transaction(late).unwrap();
        late.batch_execute(&format!("SET search_path TO {schema}; SET LOCAL outbox.notify = 'off'")).unwrap();
        late.emit(&Record::new("order", schema.clone(), "Late")).unwrap();
        // Later numbers are sent and settled before the lower one commits.
        emit(conn, schema, "Early");
    }
    wait_for(&topic, "Early", &schemas);
    for (late, schema) in late.iter_mut().zip(&schemas) {
        assert_eq!(unsent(conn, schema), 0);
        AnsiTransactionManager::commit_transaction(late).unwrap();
    }
    wait_for(&topic, "Late", &schemas);
}

#[test]
fn an_event_of_a_quiet_schema_does_not_wait_for_the_backlog_of_another() {
    const BACKLOG: usize = 200_000;
    let schemas = ["busy", "quiet"].map(str::to_owned);
    let database = migrated(&schemas);
    let conn = &mut database.connect();
    conn.batch_execute(&format!(
        "INSERT INTO busy.outbox (id, aggregatetype, aggregateid, type, shard) \
         SELECT gen_random_uuid(), 'order', n::text, 'Busy', n % 16 FROM generate_series(1, {BACKLOG}) AS n"
    ))
    .unwrap();
    let topic = new_topic("quiet");
    // The only worker would be in one pass until all is sent.
    let relay = sleeper(&database, &topic, &schemas).workers(1).max_pass_duration(PATIENCE).spawn().unwrap();
    eventually("the backlog to be worked on", PATIENCE, || {
        (unsent(conn, "busy") < BACKLOG as i64 || Kafka::shared().read_all(&topic).len() > 10_000)
            .then_some(())
    });
    for event_type in ["One", "Two", "Three"] {
        emit(conn, "quiet", event_type);
        eventually("the quiet event", PATIENCE, || (unsent(conn, "quiet") == 0).then_some(()));
    }
    assert!(unsent(conn, "busy") > 0, "the backlog was sent first");
    relay.stop_blocking().unwrap();
}

#[test]
fn a_schema_whose_table_is_locked_or_dropped_does_not_stop_the_others() {
    start_logging();
    let schemas = tenants(3);
    let database = migrated(&schemas);
    let conn = &mut database.connect();
    let topic = Kafka::shared().unique("failing");
    let relay = relay(&database, &topic, &schemas)
        .poll_interval(Duration::from_secs(1))
        .lag_interval(Duration::from_millis(200))
        .spawn()
        .unwrap();
    let (locked, others) = schemas.split_first().unwrap();
    emit(conn, locked, "Before");
    wait_for(&topic, "Before", &schemas[..1]);

    let locker = &mut database.connect();
    AnsiTransactionManager::begin_transaction(locker).unwrap();
    locker.emit_into(locked, "Locked");
    locker.batch_execute(&format!("LOCK TABLE {locked}.outbox IN ACCESS EXCLUSIVE MODE")).unwrap();
    for round in 0..3 {
        let event_type = format!("While locked {round}");
        others.iter().for_each(|schema| emit(conn, schema, &event_type));
        wait_for(&topic, &event_type, others);
    }
    AnsiTransactionManager::commit_transaction(locker).unwrap();
    wait_for(&topic, "Locked", &schemas[..1]);

    conn.batch_execute(&format!("DROP SCHEMA {locked} CASCADE")).unwrap();
    let missing = format!("the schema `{locked}` has no table `outbox`");
    eventually("the error", PATIENCE, || logged(&["ERROR", &missing]));
    others.iter().for_each(|schema| emit(conn, schema, "After"));
    wait_for(&topic, "After", others);
    let stopped = relay.stop_blocking().unwrap_err();
    assert!(matches!(stopped, RelayError::Source(_)) && stopped.to_string().contains(&missing), "{stopped}");
}

/// Its sequence hands numbers out in advance, so events could be lost there.
#[test]
fn a_schema_that_the_relay_refuses_is_named_and_does_not_stop_the_others() {
    start_logging();
    let schemas = tenants(2);
    let database = migrated(&schemas);
    let conn = &mut database.connect();
    conn.batch_execute("ALTER SEQUENCE tenant_0.outbox_seq_seq CACHE 10").unwrap();
    let topic = Kafka::shared().unique("refused");
    let _relay = relay(&database, &topic, &schemas).spawn().unwrap();
    schemas.iter().for_each(|schema| emit(conn, schema, "One"));
    wait_for(&topic, "One", &schemas[1..]);
    let name = format!("{}.tenant_0", database.name());
    eventually("the error", PATIENCE, || logged(&["ERROR", &name, "has CACHE 10"]));
    conn.batch_execute("ALTER SEQUENCE tenant_0.outbox_seq_seq CACHE 1").unwrap();
    wait_for(&topic, "One", &schemas);
    eventually("the recovery", PATIENCE, || logged(&["the outbox works again", &name]));
}

#[test]
fn a_relay_whose_sessions_are_ended_goes_on_in_all_schemas() {
    let schemas = tenants(5);
    let database = migrated(&schemas);
    let conn = &mut database.connect();
    let topic = Kafka::shared().unique("ended");
    let relay = sleeper(&database, &topic, &schemas).spawn().unwrap();
    for event_type in ["One", "Two", "Three"] {
        schemas.iter().for_each(|schema| emit(conn, schema, event_type));
        wait_for(&topic, event_type, &schemas);
        conn.batch_execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'outbox relay' \
             AND datname = current_database()",
        )
        .unwrap();
        // The relay has lost its locks, so these notify nobody.
        schemas.iter().for_each(|schema| emit(conn, schema, &format!("{event_type} and after")));
        wait_for(&topic, &format!("{event_type} and after"), &schemas);
        wait_until_asleep(conn, schemas.len());
    }
    relay.stop_blocking().unwrap();
}

#[test]
fn a_schema_that_comes_to_match_is_relayed_and_one_that_goes_is_let_go_of() {
    start_logging();
    let schemas = tenants(3);
    let database = migrated(&schemas[..1]);
    let conn = &mut database.connect();
    Migrations::new().schema("tenant").run(conn).unwrap();
    let topic = Kafka::shared().unique("matching");
    let relay = relay(&database, &topic, &["tenant_*".to_owned()])
        .poll_interval(Duration::from_millis(300))
        .spawn()
        .unwrap();
    emit(conn, "tenant", "Other");
    emit(conn, &schemas[0], "One");
    wait_for(&topic, "One", &schemas[..1]);
    for schema in &schemas[1..] {
        Migrations::new().schema(schema).run(conn).unwrap();
        emit(conn, schema, "One");
    }
    wait_for(&topic, "One", &schemas);
    conn.batch_execute(&format!("DROP SCHEMA {} CASCADE", schemas[0])).unwrap();
    let name = format!("{}.{}", database.name(), schemas[0]);
    eventually("the relay to let go", PATIENCE, || logged(&["the outbox is gone", &name]));
    emit(conn, &schemas[1], "Two");
    wait_for(&topic, "Two", &schemas[1..2]);
    // One of the same name again.
    Migrations::new().schema(&schemas[0]).run(conn).unwrap();
    emit(conn, &schemas[0], "Again");
    wait_for(&topic, "Again", &schemas[..1]);
    relay.stop_blocking().unwrap();
    assert_eq!(unsent(conn, "tenant"), 1, "it does not match");
}

#[test]
fn if_a_process_is_killed_another_takes_over_in_all_schemas() {
    let schemas = tenants(4);
    let database = migrated(&schemas);
    let topic = new_topic("killed");
    let list = schemas.join(",");
    let start = || process(&database, &topic, &["--schema", &list, "--poll-interval", "1s"]);
    let (first, second) = (start(), start());
    let has_ended = AtomicBool::new(false);
    let committed: BTreeSet<String> = thread::scope(|scope| {
        let writers: Vec<_> = schemas
            .iter()
            .map(|schema| {
                let (database, has_ended) = (&database, &has_ended);
                scope.spawn(move || write(database, schema, usize::MAX, || has_ended.load(Ordering::Relaxed)))
            })
            .collect();
        let come = |count: usize| {
            eventually("events", PATIENCE, || {
                (Kafka::shared().read_all(&topic).len() >= count).then_some(())
            });
        };
        come(200);
        first.signal(Signal::Kill);
        let before = Kafka::shared().read_all(&topic).len();
        come(before + 400);
        has_ended.store(true, Ordering::Relaxed);
        writers.into_iter().flat_map(|writer| writer.join().unwrap()).collect()
    });
    repetitions(&topic, &committed);
    drop(second);
}

#[test]
fn twenty_schemas_take_three_connections_while_idle_and_five_with_a_backlog() {
    let schemas = tenants(20);
    let database = migrated(&schemas);
    let conn = &mut database.connect();
    let topic = new_topic("connections");
    let process = process(&database, &topic, &["--schema", "tenant_*"]);
    schemas.iter().for_each(|schema| emit(conn, schema, "First"));
    wait_for(&topic, "First", &schemas);
    wait_until_asleep(conn, schemas.len());
    assert_eq!(sessions(conn), 3, "one watches, and two work");
    let threads = threads(&process);
    assert!(threads <= 24, "{threads} threads");
    for schema in &schemas {
        conn.batch_execute(&format!(
            "INSERT INTO {schema}.outbox (id, aggregatetype, aggregateid, type, shard) \
             SELECT gen_random_uuid(), 'order', n::text, 'Busy', n % 16 FROM generate_series(1, 5000) AS n"
        ))
        .unwrap();
        emit(conn, schema, "Last");
    }
    let mut most = 0;
    eventually("the backlog to be sent", PATIENCE, || {
        most = most.max(sessions(conn));
        schemas.iter().all(|schema| unsent(conn, schema) == 0).then_some(())
    });
    assert!(most <= 5, "{most} connections");
}

/// As the system reports them (Linux does).
fn threads(process: &Process) -> usize {
    fs::read_dir(format!("/proc/{}/task", process.id())).unwrap().count()
}

/// Emits into a schema in the open transaction.
trait EmitInto {
    fn emit_into(&mut self, schema: &str, event_type: &str);
}

impl EmitInto for PgConnection {
    fn emit_into(&mut self, schema: &str, event_type: &str) {
        Outbox::new().schema(schema).emit(self, &Record::new("order", schema, event_type)).unwrap();
    }
}
