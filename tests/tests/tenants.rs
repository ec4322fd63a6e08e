//! One relay for the outboxes of many schemas: each keeps all guarantees, and they share connections.

#[path = "tenants/schemas.rs"]
#[allow(dead_code, reason = "other tests use the rest")]
mod schemas;

use std::collections::BTreeSet;
use std::fs;
use std::time::Duration;

use diesel::connection::{AnsiTransactionManager, SimpleConnection, TransactionManager};
use diesel::prelude::*;
use diesel_outbox::{Emit, Migrations, Record};
use diesel_outbox_relay::{Kafka as Broker, Relay};
use outbox_tests::load::{new_topic, relay as process};
use outbox_tests::{Kafka, Process, eventually, logged, start_logging};

use self::schemas::*;

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

/// The lower bounds have moved past the numbers that the sequence gives again.
#[test]
fn a_sequence_that_is_set_back_while_the_relay_sleeps_hides_no_event() {
    let schemas = tenants(2);
    let database = migrated(&schemas);
    let conn = &mut database.connect();
    conn.batch_execute(
        "INSERT INTO tenant_0.outbox (id, aggregatetype, aggregateid, type, shard) \
         SELECT gen_random_uuid(), 'order', 'tenant_0', 'Old', n % 16 FROM generate_series(1, 40000) AS n",
    )
    .unwrap();
    let topic = new_topic("set-back");
    let relay = sleeper(&database, &topic, &schemas).spawn().unwrap();
    eventually("the old events", PATIENCE, || (unsent(conn, "tenant_0") == 0).then_some(()));
    wait_until_asleep(conn, schemas.len());
    for set_back in [
        "ALTER SEQUENCE tenant_0.outbox_seq_seq RESTART",
        // The same file. Perhaps only the other worker has seen higher numbers.
        "SELECT setval('tenant_0.outbox_seq_seq', 20000)",
    ] {
        conn.batch_execute(set_back).unwrap();
        for number in ["one", "two"] {
            let event_type = format!("{set_back}: {number}");
            schemas.iter().for_each(|schema| emit(conn, schema, &event_type));
            wait_for(&topic, &event_type, &schemas);
        }
        wait_until_asleep(conn, schemas.len());
    }
    relay.stop_blocking().unwrap();
}

#[test]
fn what_has_expired_is_pruned_in_all_schemas_one_after_the_other() {
    let schemas = tenants(6);
    let database = migrated(&schemas);
    let conn = &mut database.connect();
    for schema in &schemas {
        conn.batch_execute(&format!(
            "INSERT INTO {schema}.outbox (id, aggregatetype, aggregateid, type, shard, created_at, sent_at) \
             SELECT gen_random_uuid(), 'order', 'old', 'Sent', n % 16, now() - interval '9 days', now() - interval '8 days' \
             FROM generate_series(1, 10000) AS n"
        ))
        .unwrap();
    }
    let topic = Kafka::shared().unique("pruned");
    let relay =
        sleeper(&database, &topic, &schemas).lag_interval(Duration::from_millis(200)).spawn().unwrap();
    let pruning = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'outbox pruning' \
                   AND datname = current_database()";
    let mut most = 0;
    eventually("the old rows to be gone", PATIENCE, || {
        most = most.max(number(conn, pruning));
        let left = |schema: &String| number(conn, &format!("SELECT count(*) FROM {schema}.outbox"));
        (schemas.iter().map(left).sum::<i64>() == 0).then_some(())
    });
    assert!(most <= 1, "{most} connections prune");
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
    // Another name for the same table.
    conn.batch_execute(&format!("ALTER SCHEMA {} RENAME TO tenant_renamed", schemas[1])).unwrap();
    emit(conn, "tenant_renamed", "Renamed");
    wait_for(&topic, "Renamed", &["tenant_renamed".to_owned()]);
    // One of the same name again.
    Migrations::new().schema(&schemas[0]).run(conn).unwrap();
    emit(conn, &schemas[0], "Again");
    wait_for(&topic, "Again", &schemas[..1]);
    relay.stop_blocking().unwrap();
    assert_eq!(unsent(conn, "tenant"), 1, "it does not match");
}

#[test]
fn a_list_of_schemas_that_names_none_is_refused() {
    for schemas in [vec![], vec!["tenant_1", ""]] {
        let relay = Relay::postgres("postgres://localhost/shop").schemas(schemas);
        let refused = relay.broker(Broker::new("localhost:9092")).spawn().unwrap_err().to_string();
        assert!(refused.contains("`schemas`"), "{refused}");
    }
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
