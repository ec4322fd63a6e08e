//! How relays start, stop and report what keeps them from working.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use diesel::connection::SimpleConnection;
use diesel::prelude::*;
use diesel_outbox::{Emit, Migrations, Record};
use diesel_outbox_relay::{Kafka as Broker, Relay, RelayError};
use outbox_tests::{Database, Kafka, Postgres, eventually, logged, start_logging};

const PATIENCE: Duration = Duration::from_secs(60);

fn migrated() -> Database<'static> {
    let database = Postgres::shared().database();
    Migrations::new().run(&mut database.connect()).unwrap();
    database
}

fn relay(database: &Database<'_>, topic: &str) -> Relay {
    Relay::postgres(database.url())
        .broker(Broker::new(Kafka::shared().brokers()))
        .topic_naming(topic.parse().unwrap())
}

fn emit(database: &Database<'_>, event_type: &str) {
    let event = Record::new("order", "1", event_type);
    database.connect().transaction(|c| c.emit(&event).map(drop)).unwrap();
}

fn sessions(database: &Database<'_>) -> i64 {
    let relays = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'outbox relay'";
    diesel::dsl::sql::<diesel::sql_types::BigInt>(relays).get_result(&mut database.connect()).unwrap()
}

#[test]
fn a_relay_whose_handle_is_dropped_stops_and_logs_a_warning() {
    start_logging();
    let database = migrated();
    let topic = Kafka::shared().unique("dropped");
    let handle = relay(&database, &topic).spawn().unwrap();
    emit(&database, "Placed");
    Kafka::shared().read_at_least(&topic, 1, PATIENCE);
    assert!(!handle.is_finished());
    drop(handle);
    eventually("the warning", PATIENCE, || {
        logged(&["WARN", "the relay's handle was dropped, so the relay stops"])
    });
    eventually("the relay's end", PATIENCE, || (sessions(&database) == 0).then_some(()));
}

#[test]
fn a_detached_relay_keeps_running_without_its_handle() {
    let database = migrated();
    let topic = Kafka::shared().unique("detached");
    relay(&database, &topic).spawn().unwrap().detach();
    emit(&database, "Placed");
    Kafka::shared().read_at_least(&topic, 1, PATIENCE);
}

#[test]
fn a_relay_stops_on_any_async_runtime() {
    let database = migrated();
    let topic = Kafka::shared().unique("stopped");
    let handle = relay(&database, &topic).spawn().unwrap();
    emit(&database, "Placed");
    Kafka::shared().read_at_least(&topic, 1, PATIENCE);
    futures_executor::block_on(handle.stop()).unwrap();
    assert_eq!(sessions(&database), 0);
    // A relay that is told to stop at once.
    futures_executor::block_on(relay(&database, &topic).run(async {})).unwrap();
}

#[test]
fn a_relay_without_tables_says_what_to_do_and_works_once_they_are_there() {
    start_logging();
    let database = Postgres::shared().database();
    let topic = Kafka::shared().unique("tables");
    let run = || {
        let missing = || logged(&["ERROR", "the table `outbox` does not exist here: run the migrations"]);
        let handle = relay(&database, &topic).spawn().unwrap();
        eventually("the error", PATIENCE, missing);
        handle
    };
    let stopped = run().stop_blocking().unwrap_err();
    assert!(matches!(stopped, RelayError::Source(_)), "{stopped}");
    assert!(stopped.to_string().contains("`outbox migrate`"), "{stopped}");

    let handle = run();
    Migrations::new().run(&mut database.connect()).unwrap();
    emit(&database, "Placed");
    Kafka::shared().read_at_least(&topic, 1, PATIENCE);
    handle.stop_blocking().unwrap();
}

/// For example if a vault issues database users that are valid for an hour.
#[test]
fn a_relay_whose_credentials_change_asks_for_the_new_ones() {
    let database = migrated();
    let topic = Kafka::shared().unique("rotated");
    let conn = &mut database.connect();
    let roles = ["first", "second"].map(|nth| format!("{}_{nth}", database.name()));
    for role in &roles {
        conn.batch_execute(&format!("CREATE ROLE {role} SUPERUSER LOGIN PASSWORD '{role}'")).unwrap();
    }
    let urls = roles.each_ref().map(|role| database.url_as(role, role));
    let has_changed = Arc::new(AtomicBool::new(false));
    let changed = has_changed.clone();
    let handle = Relay::postgres(move || {
        let url = &urls[usize::from(changed.load(Ordering::Relaxed))];
        std::io::Result::Ok(url.clone())
    })
    .broker(Broker::new(Kafka::shared().brokers()))
    .topic_naming(topic.parse().unwrap())
    .spawn()
    .unwrap();
    emit(&database, "Before");
    Kafka::shared().read_at_least(&topic, 1, PATIENCE);
    has_changed.store(true, Ordering::Relaxed);
    conn.batch_execute(&format!(
        "ALTER ROLE {first} NOLOGIN; SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = '{first}'",
        first = roles[0]
    ))
    .unwrap();
    emit(&database, "After");
    Kafka::shared().read_at_least(&topic, 2, PATIENCE);
    handle.stop_blocking().unwrap();
    for role in &roles {
        conn.batch_execute(&format!("DROP ROLE {role}")).unwrap();
    }
}
