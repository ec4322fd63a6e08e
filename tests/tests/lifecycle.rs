//! How relays start, stop and report what keeps them from working.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use diesel::connection::SimpleConnection;
use diesel::prelude::*;
use diesel_outbox::{Emit, Migrations, Record};
use diesel_outbox_relay::{Kafka as Broker, Relay, RelayError};
use outbox_tests::{
    Database, Kafka, Mariadb, MariadbDatabase, Postgres, Tables, all_logged, eventually, logged,
    on_postgres_and_mariadb, start_logging,
};

const PATIENCE: Duration = Duration::from_secs(60);

on_postgres_and_mariadb!(
    a_relay_whose_handle_is_dropped_stops_and_logs_a_warning,
    a_detached_relay_keeps_running_without_its_handle,
    a_relay_stops_on_any_async_runtime,
    a_relay_whose_credentials_change_asks_for_the_new_ones,
);

fn relay(tables: &impl Tables, topic: &str) -> Relay {
    to_topic(tables.relay(), topic)
}

fn to_topic(relay: Relay, topic: &str) -> Relay {
    relay.broker(Broker::new(Kafka::shared().brokers())).topic_naming(topic.parse().unwrap())
}

fn emit(tables: &impl Tables, event_type: &str) {
    let event = Record::new("order", "1", event_type);
    tables.connect().transaction(|c| c.emit(&event).map(drop)).unwrap();
}

fn a_relay_whose_handle_is_dropped_stops_and_logs_a_warning(tables: &impl Tables) {
    start_logging();
    let topic = Kafka::shared().unique("dropped");
    let handle = relay(tables, &topic).spawn().unwrap();
    emit(tables, "Placed");
    Kafka::shared().read_at_least(&topic, 1, PATIENCE);
    assert!(!handle.is_finished());
    drop(handle);
    eventually("the warning", PATIENCE, || {
        logged(&["WARN", "the relay's handle was dropped, so the relay stops"])
    });
    tables.wait_for_the_relays_end();
}

fn a_detached_relay_keeps_running_without_its_handle(tables: &impl Tables) {
    let topic = Kafka::shared().unique("detached");
    relay(tables, &topic).spawn().unwrap().detach();
    emit(tables, "Placed");
    Kafka::shared().read_at_least(&topic, 1, PATIENCE);
}

fn a_relay_stops_on_any_async_runtime(tables: &impl Tables) {
    let topic = Kafka::shared().unique("stopped");
    let handle = relay(tables, &topic).spawn().unwrap();
    emit(tables, "Placed");
    Kafka::shared().read_at_least(&topic, 1, PATIENCE);
    assert!(tables.relays() > 0);
    futures_executor::block_on(handle.stop()).unwrap();
    tables.wait_for_the_relays_end();
    // A relay that is told to stop at once.
    futures_executor::block_on(relay(tables, &topic).run(async {})).unwrap();
}

// One test, because the relays on both databases log the same line.
#[test]
fn a_relay_without_tables_says_what_to_do_and_works_once_they_are_there() {
    start_logging();
    needs_tables(&Postgres::shared().database());
    needs_tables(&Mariadb::shared().database());
}

fn needs_tables(tables: &impl Tables) {
    let topic = Kafka::shared().unique("tables");
    let run = || {
        let missing = || all_logged(&["ERROR", "the table `outbox` does not exist here: run the migrations"]);
        let before = missing().len();
        // As the owner, because no role has a privilege on tables that are made later.
        let handle = to_topic(tables.relay_by(tables.url().to_owned()), &topic).spawn().unwrap();
        eventually("the error", PATIENCE, || (missing().len() > before).then_some(()));
        handle
    };
    let stopped = run().stop_blocking().unwrap_err();
    assert!(matches!(stopped, RelayError::Source(_)), "{stopped}");
    assert!(stopped.to_string().contains("`outbox migrate`"), "{stopped}");

    let handle = run();
    Migrations::new().run(&mut tables.connect()).unwrap();
    emit(tables, "Placed");
    Kafka::shared().read_at_least(&topic, 1, PATIENCE);
    handle.stop_blocking().unwrap();
}

/// A database whose roles change.
trait Roles: Tables {
    /// Makes a role that may do everything here. Its password is its name.
    fn add(&self, role: &str);
    /// Ends the role's sessions, and lets it begin no more.
    fn shut_out(&self, role: &str);
    fn remove(&self, role: &str);
}

impl Roles for Database<'_> {
    fn add(&self, role: &str) {
        let create = format!("CREATE ROLE {role} SUPERUSER LOGIN PASSWORD '{role}'");
        self.connect().batch_execute(&create).unwrap();
    }

    fn shut_out(&self, role: &str) {
        let end = format!("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = '{role}'");
        self.connect().batch_execute(&format!("ALTER ROLE {role} NOLOGIN; {end}")).unwrap();
    }

    fn remove(&self, role: &str) {
        self.connect().batch_execute(&format!("DROP ROLE {role}")).unwrap();
    }
}

impl Roles for MariadbDatabase<'_> {
    fn add(&self, role: &str) {
        let grant = format!("GRANT ALL ON {}.* TO {role}", self.name());
        self.connect().batch_execute(&format!("CREATE USER {role} IDENTIFIED BY '{role}'; {grant}")).unwrap();
    }

    fn shut_out(&self, role: &str) {
        let conn = &mut self.connect();
        conn.batch_execute(&format!("ALTER USER {role} ACCOUNT LOCK; KILL USER {role}")).unwrap();
    }

    fn remove(&self, role: &str) {
        self.connect().batch_execute(&format!("DROP USER {role}")).unwrap();
    }
}

/// For example if a vault issues database users that are valid for an hour.
fn a_relay_whose_credentials_change_asks_for_the_new_ones(tables: &impl Roles) {
    let topic = Kafka::shared().unique("rotated");
    let roles = ["first", "second"].map(|nth| format!("{}_{nth}", tables.name()));
    for role in &roles {
        tables.add(role);
    }
    let urls = roles.each_ref().map(|role| tables.url_as(role, role));
    let has_changed = Arc::new(AtomicBool::new(false));
    let changed = has_changed.clone();
    let handle = tables
        .relay_by(move || {
            let url = &urls[usize::from(changed.load(Ordering::Relaxed))];
            std::io::Result::Ok(url.clone())
        })
        .broker(Broker::new(Kafka::shared().brokers()))
        .topic_naming(topic.parse().unwrap())
        .spawn()
        .unwrap();
    emit(tables, "Before");
    Kafka::shared().read_at_least(&topic, 1, PATIENCE);
    has_changed.store(true, Ordering::Relaxed);
    tables.shut_out(&roles[0]);
    emit(tables, "After");
    Kafka::shared().read_at_least(&topic, 2, PATIENCE);
    handle.stop_blocking().unwrap();
    for role in &roles {
        tables.remove(role);
    }
}
