//! A relay that reads the WAL of a server with synchronous standbys.

use std::time::Duration;

use diesel::connection::SimpleConnection;
use diesel::prelude::*;
use diesel_outbox::{Emit, Record};
use outbox_tests::load::{count, grants, migrated_on, new_topic, relay, relay_at, stop, wal, wal_relay};
use outbox_tests::{Database, Kafka, Postgres, Process, eventually};

const PATIENCE: Duration = Duration::from_secs(60);

fn connect_without_waiting(database: &Database<'_>) -> PgConnection {
    let mut conn = database.connect();
    conn.batch_execute("SET synchronous_commit = local").unwrap();
    conn
}

fn set_names(conn: &mut PgConnection, names: &str) {
    conn.batch_execute(&format!("ALTER SYSTEM SET synchronous_standby_names = '{names}'")).unwrap();
    conn.batch_execute("SELECT pg_reload_conf()").unwrap();
    let is_set = format!("pg_settings WHERE name = 'synchronous_standby_names' AND setting = '{names}'");
    eventually("the setting", PATIENCE, || (count(conn, &is_set) == 1).then_some(()));
}

fn is_refused(relay: &Process) {
    relay.wait_for_line("what to do", PATIENCE, |line| line.contains("synchronous_standby_names"));
    assert_eq!(relay.wait(PATIENCE).code(), Some(1));
}

#[test]
fn a_relay_refuses_a_server_whose_commits_would_wait_for_it() {
    let postgres = Postgres::start(15);
    let database = migrated_on(&postgres);
    wal(&database, "setup");
    let conn = &mut connect_without_waiting(&database);
    for names in ["*", "FIRST 1 (other, \"outbox relay\")"] {
        set_names(conn, names);
        is_refused(&wal_relay(&database, &new_topic("waits")));
    }
}

/// The relay must notice before it writes the dead letter: that commit would wait for the relay, and the relay for the commit.
#[test]
fn a_relay_that_becomes_a_synchronous_standby_stops_before_it_waits_for_itself() {
    let postgres = Postgres::start(15);
    let database = migrated_on(&postgres);
    wal(&database, "setup");
    let conn = &mut connect_without_waiting(&database);
    let topic = new_topic("becomes");
    let counter = Kafka::shared().counter(&topic);
    let slot = ["--source", "wal", "--slot", database.name()];
    let log = relay(&database, "{aggregatetype}", &[&slot[..], &["--allow-topics", &topic]].concat());
    conn.transaction(|c| c.emit(&Record::new(&topic, "1", "Placed"))).unwrap();
    eventually("the first event", PATIENCE, || (counter.count() >= 1).then_some(()));
    set_names(conn, "*");
    conn.transaction(|c| c.emit(&Record::new("not_allowed", "1", "Placed"))).unwrap();
    is_refused(&log);
    // The setting cannot name another standby, because there is none.
    set_names(conn, "");
    conn.transaction(|c| c.emit(&Record::new(&topic, "1", "Placed"))).unwrap();
    let log = relay(&database, "{aggregatetype}", &[&slot[..], &["--allow-topics", &topic]].concat());
    eventually("the second event", PATIENCE, || (counter.count() >= 2).then_some(()));
    eventually("the dead letter", PATIENCE, || (count(conn, "outbox_dead_letter") == 1).then_some(()));
    stop(&log);
}

/// Follows the advice of each error and warning to the letter, one after the other, until there are none.
#[test]
fn the_advice_on_synchronous_standbys_is_right() {
    let (primary, standby) = Postgres::start_pair(17);
    let database = migrated_on(&primary);
    wal(&database, "setup");
    let conn = &mut connect_without_waiting(&database);
    let grants = grants(include_str!("../../docs/wal.md"), "my_relay");
    conn.batch_execute(&format!("CREATE ROLE my_relay LOGIN PASSWORD 'relay'; {grants}")).unwrap();
    let topic = new_topic("advice");
    let counter = Kafka::shared().counter(&topic);
    let slot = ["--source", "wal", "--slot", database.name(), "--allow-topics", &topic];
    let start = || relay_at(&database.url_as("my_relay", "relay"), "{aggregatetype}", &slot);
    let mut events = 0;
    let mut all_arrive = |conn: &mut PgConnection, log: &Process| {
        conn.transaction(|c| c.emit(&Record::new(&topic, "1", "Placed"))).unwrap();
        conn.transaction(|c| c.emit(&Record::new("not_allowed", "1", "Placed"))).unwrap();
        events += 1;
        eventually("all events", PATIENCE, || (counter.count() >= events).then_some(()));
        eventually("the dead letters", PATIENCE, || {
            (count(conn, "outbox_dead_letter") >= events).then_some(())
        });
        stop(log);
    };
    set_names(conn, "*");
    is_refused(&start());
    let name = "pg_stat_replication WHERE application_name = 'standby'";
    eventually("the standby", PATIENCE, || (count(conn, name) == 1).then_some(()));
    set_names(conn, "standby");
    let log = start();
    all_arrive(conn, &log);
    let warned = log.wait_for_line("what to grant", PATIENCE, |line| line.contains("run GRANT "));
    let grant = warned.split_once("run ").unwrap().1.split(" slot=").next().unwrap();
    conn.batch_execute(grant).unwrap();
    let log = start();
    all_arrive(conn, &log);
    assert!(!log.output().contains("cannot see how far"), "{}", log.output());

    assert!(log.output().contains("set synchronized_standby_slots to the slots"), "{}", log.output());
    conn.batch_execute("SELECT pg_create_physical_replication_slot('standby')").unwrap();
    let standby = &mut standby.connect();
    standby.batch_execute("ALTER SYSTEM SET primary_slot_name = 'standby'").unwrap();
    standby.batch_execute("SELECT pg_reload_conf()").unwrap();
    let is_used = "pg_replication_slots WHERE slot_name = 'standby' AND active";
    eventually("the standby to use its slot", PATIENCE, || (count(conn, is_used) == 1).then_some(()));
    conn.batch_execute("ALTER SYSTEM SET synchronized_standby_slots = 'standby'").unwrap();
    conn.batch_execute("SELECT pg_reload_conf()").unwrap();
    let is_set = "pg_settings WHERE name = 'synchronized_standby_slots' AND setting = 'standby'";
    eventually("the setting", PATIENCE, || (count(conn, is_set) == 1).then_some(()));
    let log = start();
    all_arrive(conn, &log);
    assert!(!log.output().contains("synchron"), "{}", log.output());
}

#[test]
fn an_event_whose_transaction_a_failover_undoes_is_not_sent_on_15() {
    is_not_sent_if_a_failover_undoes_it(15);
}

#[test]
fn an_event_whose_transaction_a_failover_undoes_is_not_sent_on_17() {
    is_not_sent_if_a_failover_undoes_it(17);
}

fn is_not_sent_if_a_failover_undoes_it(major: u32) {
    let (primary, standby) = Postgres::start_pair(major);
    let database = migrated_on(&primary);
    // Otherwise the relay does not see the standbys, as docs/wal.md says.
    database.connect().batch_execute("GRANT pg_read_all_stats TO outbox_test_relay").unwrap();
    wal(&database, "setup");
    set_names(&mut connect_without_waiting(&database), "standby");
    let topic = new_topic("failover");
    let counter = Kafka::shared().counter(&topic);
    let relay = wal_relay(&database, &topic);
    if major >= 17 {
        // The copy of the slot on the standby could be ahead of the standby.
        relay.wait_for_line("which setting is missing", PATIENCE, |line| {
            line.contains("set synchronized_standby_slots to the slots of the standbys")
        });
    }
    let emit = |conn: &mut PgConnection, n: usize| {
        conn.transaction(|c| c.emit(&Record::new("order", "1", n.to_string())))
    };
    emit(&mut database.connect(), 1).unwrap();
    eventually("the first event", PATIENCE, || (counter.count() >= 1).then_some(()));
    assert_eq!(relay.output().contains("synchronized_standby_slots"), major >= 17, "{}", relay.output());
    standby.crash();
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| emit(&mut database.connect(), 2));
        let conn = &mut connect_without_waiting(&database);
        eventually("the commit to wait", PATIENCE, || {
            (count(conn, "pg_stat_activity WHERE wait_event = 'SyncRep'") == 1).then_some(())
        });
        // By then the relay has received the second event, and had many times the time that it needs.
        let has_got_it = "pg_stat_replication WHERE application_name = 'outbox relay' \
                          AND sent_lsn >= pg_current_wal_flush_lsn()";
        eventually("the relay to have it", PATIENCE, || (count(conn, has_got_it) == 1).then_some(()));
        for _ in 0..100 {
            count(conn, "pg_sleep(0.01)");
        }
        primary.crash();
        assert!(waiting.join().unwrap().is_err());
    });
    standby.restart();
    let conn = &mut standby.connect();
    conn.batch_execute("SELECT pg_promote()").unwrap();
    let url = format!("{}/{}", standby.url().trim_end_matches("/postgres"), database.name());
    let conn = &mut PgConnection::establish(&url).unwrap();
    for event in Kafka::shared().read_all(&topic) {
        let id = event.header("id").unwrap();
        assert_eq!(count(conn, &format!("outbox WHERE id = '{id}'")), 1, "{id} was sent and is gone");
    }
}
