//! One relay for the outboxes of many schemas: none waits for another, whatever happens to that one.

#[path = "tenants/schemas.rs"]
#[allow(dead_code, reason = "other tests use the rest")]
mod schemas;

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use diesel::connection::{AnsiTransactionManager, SimpleConnection, TransactionManager};
use diesel::prelude::*;
use diesel_outbox::{Migrations, Outbox, Record};
use diesel_outbox_relay::{
    Acknowledgement, Kafka as Broker, PublishError, Publisher, Refusal, Relay, RelayError,
};
use outbox_tests::load::{drop_roles, new_topic, relay as process};
use outbox_tests::{Kafka, Postgres, Signal, eventually, logged, start_logging};

use self::schemas::*;

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
        .workers(1)
        .poll_interval(Duration::from_secs(1))
        .lag_interval(Duration::from_millis(200))
        .spawn()
        .unwrap();
    let (locked, others) = schemas.split_first().unwrap();
    emit(conn, locked, "Before");
    wait_for(&topic, "Before", &schemas[..1]);

    let locker = &mut database.connect();
    AnsiTransactionManager::begin_transaction(locker).unwrap();
    Outbox::new().schema(locked).emit(locker, &Record::new("order", locked.as_str(), "Locked")).unwrap();
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

/// Their sequences hand numbers out in advance, so events could be lost there. If the worker waited after each failure, it would wait
/// more than a minute until it comes to the one that is right.
#[test]
fn schemas_that_the_relay_refuses_are_named_and_do_not_delay_the_others() {
    start_logging();
    let schemas = tenants(16);
    let database = migrated(&schemas);
    let conn = &mut database.connect();
    let (right, wrong) = schemas.split_last().unwrap();
    for schema in wrong {
        conn.batch_execute(&format!("ALTER SEQUENCE {schema}.outbox_seq_seq CACHE 10")).unwrap();
    }
    let topic = Kafka::shared().unique("refused");
    let relay = sleeper(&database, &topic, &schemas).workers(1).spawn().unwrap();
    schemas.iter().for_each(|schema| emit(conn, schema, "One"));
    for event_type in ["One", "Two", "Three"] {
        emit(conn, right, event_type);
        wait_for(&topic, event_type, std::slice::from_ref(right));
    }
    let name = format!("{}.{}", database.name(), wrong[0]);
    eventually("the error", PATIENCE, || logged(&["ERROR", &name, "has CACHE 10"]));
    for schema in wrong {
        conn.batch_execute(&format!("ALTER SEQUENCE {schema}.outbox_seq_seq CACHE 1")).unwrap();
    }
    wait_for(&topic, "One", wrong);
    eventually("the recovery", PATIENCE, || logged(&["the outbox works again", &name]));
    relay.stop_blocking().unwrap();
}

#[test]
fn a_relay_that_is_stopped_says_which_schema_it_could_not_relay() {
    start_logging();
    let schemas = tenants(2);
    let database = migrated(&schemas);
    database.connect().batch_execute("ALTER SEQUENCE tenant_1.outbox_seq_seq CACHE 10").unwrap();
    let relay = sleeper(&database, "events", &schemas).spawn().unwrap();
    let name = format!("{}.tenant_1", database.name());
    eventually("the error", PATIENCE, || logged(&["ERROR", &name, "has CACHE 10"]));
    let stopped = relay.stop_blocking().unwrap_err();
    let text = stopped.to_string();
    assert!(matches!(stopped, RelayError::Source(_)), "{text}");
    assert!(text.contains(&name) && text.contains("has CACHE 10"), "{text}");
}

/// A broker that is there, and takes nothing.
struct Refusing {
    is_in_flight: bool,
}

impl Publisher for Refusing {
    fn publish(&mut self, _: u64, _: &str, _: &Record) -> Result<(), Refusal> {
        self.is_in_flight = true;
        Ok(())
    }

    fn acknowledgements(&mut self, _: Duration, _: &mut Vec<Acknowledgement>) -> Result<(), PublishError> {
        if self.is_in_flight { Err(PublishError::new("the partition has no leader")) } else { Ok(()) }
    }

    fn abandon(&mut self) {
        self.is_in_flight = false;
    }

    fn ready(&mut self, _: Duration) -> Result<(), PublishError> {
        Ok(())
    }
}

#[test]
fn the_lag_of_a_schema_whose_passes_fail_is_measured() {
    start_logging();
    let schemas = tenants(2);
    let database = migrated(&schemas);
    let conn = &mut database.connect();
    let relay = relay(&database, "events", &schemas)
        .broker(|| Ok(Box::new(Refusing { is_in_flight: false }) as Box<dyn Publisher>))
        .workers(1)
        .lag_interval(Duration::from_millis(200))
        .spawn()
        .unwrap();
    for event_type in ["One", "Two", "Three"] {
        emit(conn, &schemas[1], event_type);
    }
    let name = format!("{}.{}", database.name(), schemas[1]);
    eventually("the lag", PATIENCE, || logged(&["outbox lag", &name, "unsent=3"]));
    relay.stop_blocking().unwrap();
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

/// Each round wakes all of them at once, and ends the session while it hears what the workers report.
#[test]
fn no_schema_is_forgotten_if_the_session_that_watches_is_ended_while_they_are_worked_on() {
    let schemas = tenants(20);
    let database = migrated(&schemas);
    let conn = &mut database.connect();
    let topic = new_topic("forgotten");
    let relay = sleeper(&database, &topic, &schemas).spawn().unwrap();
    let unsent_in = |schema: &String| format!("SELECT seq FROM {schema}.outbox WHERE sent_at IS NULL");
    let unsent: Vec<String> = schemas.iter().map(unsent_in).collect();
    let unsent = unsent.join(" UNION ALL ");
    for round in 0..6 {
        wait_until_asleep(conn, schemas.len());
        let in_all = |c: &mut PgConnection| {
            let record = |schema: &String| Record::new("order", schema.as_str(), format!("{round}"));
            schemas.iter().try_for_each(|s| Outbox::new().schema(s).emit(c, &record(s)).map(drop))
        };
        conn.transaction(in_all).unwrap();
        // As soon as some of them are sent.
        conn.batch_execute(&format!(
            "DO $$ BEGIN WHILE (SELECT count(*) FROM ({unsent}) AS unsent) > {} LOOP END LOOP; \
             PERFORM pg_terminate_backend(pid) FROM (SELECT DISTINCT pid FROM pg_locks WHERE {WATCHES}) AS watch; END $$",
            19 - 3 * round
        ))
        .unwrap();
        wait_for(&topic, &round.to_string(), &schemas);
    }
    relay.stop_blocking().unwrap();
}

/// A session keeps what it began with.
#[test]
fn sessions_that_began_while_the_database_was_read_only_do_not_stay_read_only() {
    start_logging();
    let schemas = tenants(2);
    let database = migrated(&schemas);
    let conn = &mut database.connect();
    let is_read_only = format!("ALTER DATABASE {} SET default_transaction_read_only", database.name());
    conn.batch_execute(&format!("{is_read_only} = on")).unwrap();
    let topic = Kafka::shared().unique("read-only");
    let relay = relay(&database, &topic, &schemas).poll_interval(Duration::from_millis(200)).spawn().unwrap();
    schemas.iter().for_each(|schema| emit(conn, schema, "One"));
    eventually("the failure", PATIENCE, || logged(&["the database takes no writes"]));
    conn.batch_execute(&format!("{is_read_only} = off")).unwrap();
    wait_for(&topic, "One", &schemas);
    relay.stop_blocking().unwrap();
}

/// A statement that a session keeps prepared is for every schema.
#[test]
fn tables_with_wider_columns_are_relayed_beside_others() {
    let schemas = tenants(3);
    let database = migrated(&schemas);
    let conn = &mut database.connect();
    conn.batch_execute(
        "ALTER TABLE tenant_1.outbox ALTER aggregatetype TYPE text, ALTER aggregateid TYPE varchar(400), ALTER type TYPE text",
    )
    .unwrap();
    let topic = Kafka::shared().unique("wider");
    let relay = sleeper(&database, &topic, &schemas).workers(1).spawn().unwrap();
    for event_type in ["One", "Two", "Three"] {
        schemas.iter().for_each(|schema| emit(conn, schema, event_type));
        wait_for(&topic, event_type, &schemas);
    }
    relay.stop_blocking().unwrap();
}

/// If transactions can be prepared, the session that watches all schemas asks their sequences for the last number.
#[test]
fn a_schema_that_is_about_to_be_dropped_does_not_end_the_session_that_watches_the_others() {
    let server = Postgres::start_with(15, &[("max_prepared_transactions", "5")]);
    let database = server.database();
    let schemas = tenants(3);
    let conn = &mut database.connect();
    for schema in &schemas {
        Migrations::new().schema(schema).run(conn).unwrap();
    }
    let topic = Kafka::shared().unique("about-to-go");
    let relay = sleeper(&database, &topic, &schemas).spawn().unwrap();
    schemas.iter().for_each(|schema| emit(conn, schema, "Before"));
    wait_for(&topic, "Before", &schemas);
    wait_until_asleep(conn, schemas.len());
    let watch = format!("SELECT min(pid)::bigint FROM pg_locks WHERE {WATCHES}");
    let (watching, others) = (number(conn, &watch), &schemas[1..]);
    let dropping = &mut database.connect();
    AnsiTransactionManager::begin_transaction(dropping).unwrap();
    dropping.batch_execute(&format!("DROP SCHEMA {} CASCADE", schemas[0])).unwrap();
    let began = number(conn, "SELECT extract(epoch FROM clock_timestamp())::bigint");
    for event_type in ["One", "Two"] {
        others.iter().for_each(|schema| emit(conn, schema, event_type));
        wait_for(&topic, event_type, others);
    }
    // By then it has asked more than once.
    eventually("two seconds", PATIENCE, || {
        let now = number(conn, "SELECT extract(epoch FROM clock_timestamp())::bigint");
        (now > began + 2).then_some(())
    });
    others.iter().for_each(|schema| emit(conn, schema, "Three"));
    wait_for(&topic, "Three", others);
    assert_eq!(number(conn, &watch), watching, "the session that watches was ended");
    AnsiTransactionManager::rollback_transaction(dropping).unwrap();
    emit(conn, &schemas[0], "After");
    wait_for(&topic, "After", &schemas[..1]);
    relay.stop_blocking().unwrap();
}

/// For example because the server has no room for more locks.
#[test]
fn schemas_in_which_the_watching_session_cannot_take_its_locks_are_relayed_all_the_same() {
    start_logging();
    let schemas = tenants(2);
    let database = migrated(&schemas);
    let conn = &mut database.connect();
    let role = format!("{}_relay", database.name());
    conn.batch_execute(&format!(
        "CREATE ROLE {role} LOGIN PASSWORD 'relay'; \
         REVOKE EXECUTE ON FUNCTION pg_try_advisory_lock_shared(int, int) FROM PUBLIC"
    ))
    .unwrap();
    for schema in &schemas {
        conn.batch_execute(&format!(
            "GRANT USAGE ON SCHEMA {schema} TO {role}; GRANT ALL ON ALL TABLES IN SCHEMA {schema} TO {role}; \
             GRANT ALL ON ALL SEQUENCES IN SCHEMA {schema} TO {role}"
        ))
        .unwrap();
    }
    let topic = Kafka::shared().unique("without-locks");
    let hour = Duration::from_secs(3_600);
    let relay = Relay::postgres(database.url_as(&role, "relay"))
        .schemas(&schemas)
        .broker(Broker::new(Kafka::shared().brokers()))
        .topic_naming(topic.parse().unwrap())
        .poll_interval(hour)
        .lag_interval(hour)
        .spawn()
        .unwrap();
    for event_type in ["One", "Two"] {
        schemas.iter().for_each(|schema| emit(conn, schema, event_type));
        wait_for(&topic, event_type, &schemas);
    }
    let name = format!("{}.{}", database.name(), schemas[0]);
    eventually("the warning", PATIENCE, || logged(&["cannot be watched", &name]));
    relay.stop_blocking().unwrap();
    drop_roles(conn, &role);
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
