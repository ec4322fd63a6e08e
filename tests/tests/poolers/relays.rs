//! What needs a session of its own behind PgBouncer: relays and some commands.

use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use diesel::connection::SimpleConnection;
use diesel::dsl::sql;
use diesel::prelude::*;
use diesel::sql_types::{Bool, Text};
use diesel_outbox::{Emit, Migrations};
use diesel_outbox_core::{Source, SourceError};
use diesel_outbox_relay::source::wal::WalSource;
use diesel_outbox_relay::source::{PostgresSource, SourceOptions};
use diesel_outbox_relay::{Kafka as Broker, Relay, RelayError, WalOptions};
use outbox_tests::load::{count, migrated, new_topic, relay_at, stop};
use outbox_tests::{Database, Kafka, PgBouncer, Postgres, eventually, workspace_binary};

use super::{PATIENCE, holding_a_session, locks_left, record, uncached};

const POOLER: &str =
    "through a pooler that gives a connection another session of the server for each transaction";

#[track_caller]
fn assert_refused<T: std::fmt::Debug>(claimed: Result<T, SourceError>) -> String {
    let error = claimed.unwrap_err();
    assert!(error.is_misconfigured(), "{error}");
    let error = error.to_string();
    assert!(error.contains(POOLER) && error.contains("Connect directly to PostgreSQL"), "{error}");
    error
}

/// It finds the pooler before it sets anything in a session that others will use.
#[test]
fn a_relay_behind_a_pooler_in_transaction_or_statement_mode_sends_nothing_and_says_what_to_do() {
    let database = migrated();
    database.connect().transaction(|c| c.emit(&record(1))).unwrap();
    for mode in ["transaction", "statement"] {
        for sessions in [1, 2, 5] {
            let bouncer = PgBouncer::start(&database, mode, sessions);
            let mut polling = PostgresSource::new(bouncer.url(), SourceOptions::default());
            let error = assert_refused(polling.claim());
            assert!(error.contains("two connections at once were in the server's process "), "{error}");
            let mut reading = WalSource::new(bouncer.url(), SourceOptions::default(), WalOptions::default());
            assert_refused(reading.claim());
            drop((polling, reading));
            let settings = "SELECT concat_ws(' ', current_setting('enable_seqscan'), current_setting('synchronous_commit'), \
                            current_setting('application_name'))";
            let settings: String = sql::<Text>(settings).get_result(&mut uncached(&bouncer)).unwrap();
            assert_eq!(settings.trim(), "on on");
        }
    }
    let bouncer = PgBouncer::start(&database, "transaction", 2);
    let relay = Relay::postgres(bouncer.url())
        .broker(Broker::new(Kafka::shared().brokers()))
        .topic_naming(new_topic("behind").parse().unwrap())
        .spawn()
        .unwrap();
    eventually("the relay to look", PATIENCE, || {
        let looks =
            "pg_stat_activity WHERE datname = current_database() AND query LIKE '%pg_postmaster_start_time%'";
        (count(&mut database.connect(), looks) > 1).then_some(())
    });
    let error = relay.stop_blocking().unwrap_err();
    assert!(matches!(error, RelayError::Source(_)) && error.to_string().contains(POOLER), "{error}");
    assert_eq!(count(&mut database.connect(), "outbox WHERE sent_at IS NULL"), 1);
}

/// The sessions change hands all the time, so that two connections seldom meet in one.
#[test]
fn a_relay_notices_a_busy_pooler_each_time() {
    let database = migrated();
    let bouncer = PgBouncer::start(&database, "transaction", 4);
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..6 {
            let (mut conn, is_over) = (uncached(&bouncer), &is_over);
            scope.spawn(move || {
                while !is_over.load(Ordering::Relaxed) {
                    conn.transaction(|c| sql::<Bool>("SELECT true").get_result::<bool>(c)).unwrap();
                }
            });
        }
        let noticed: Vec<bool> = (0..20)
            .map(|_| PostgresSource::new(bouncer.url(), SourceOptions::default()).claim())
            .map(|claimed| claimed.is_err_and(|error| error.to_string().contains(POOLER)))
            .collect();
        is_over.store(true, Ordering::Relaxed);
        assert_eq!(noticed, [true; 20]);
    });
}

/// For example if connections are spread over several poolers, and the second one goes elsewhere.
#[test]
fn a_relay_that_did_not_notice_the_pooler_at_first_notices_it_when_its_session_changes() {
    let database = migrated();
    let bouncer = PgBouncer::start(&database, "transaction", 2);
    let urls = [bouncer.url().to_owned(), database.url().to_owned()];
    let connected = AtomicUsize::new(0);
    let mut options = SourceOptions::default();
    options.poll_interval = Duration::from_millis(1);
    let mut source = PostgresSource::new(
        move || {
            let nth = connected.fetch_add(1, Ordering::Relaxed);
            std::io::Result::Ok(urls[nth % 2].clone())
        },
        options,
    );
    assert!(!source.claim().unwrap());
    source.upkeep().unwrap();
    let _holder = holding_a_session(&bouncer);
    let error = eventually("an error", PATIENCE, || source.upkeep().err());
    let error = assert_refused::<()>(Err(error));
    assert!(error.contains("the statements of one connection ran in the server's processes "), "{error}");
}

/// A pooler in session mode gives each connection a session, as if it were not there. The role of the last relay may have only one
/// connection.
#[test]
fn a_relay_works_without_a_pooler_or_behind_one_in_session_mode() {
    let database = migrated();
    let conn = &mut database.connect();
    let bouncer = PgBouncer::start(&database, "session", 10);
    let role = format!("{}_one", database.name());
    conn.batch_execute(&format!("CREATE ROLE {role} SUPERUSER LOGIN PASSWORD 'one' CONNECTION LIMIT 1"))
        .unwrap();
    for url in [database.url().to_owned(), bouncer.url().to_owned(), database.url_as(&role, "one")] {
        let topic = new_topic("session");
        let relay = relay_at(&url, &topic, &[]);
        conn.transaction(|c| c.emit(&record(1))).unwrap();
        Kafka::shared().read_at_least(&topic, 1, PATIENCE);
        stop(&relay);
        assert!(!relay.output().contains("pooler"), "{}", relay.output());
    }
    conn.batch_execute(&format!("DROP ROLE {role}")).unwrap();
}

fn sleeps(conn: &mut PgConnection) -> bool {
    count(
        conn,
        "pg_locks WHERE locktype = 'advisory' AND classid = 1869968482 AND objid = 'outbox'::regclass::oid AND mode = 'ExclusiveLock' AND granted",
    ) > 0
}

/// An emitter tries a lock of its session, and lets go of it in the same statement, so that no other transaction of the session has it.
#[test]
fn an_emit_through_a_pooler_wakes_the_sleeping_relay_and_leaves_no_lock_behind() {
    let database = migrated();
    let (conn, bouncer) = (&mut database.connect(), PgBouncer::start(&database, "transaction", 2));
    let topic = new_topic("pooled-wake");
    let relay = Relay::postgres(database.url())
        .broker(Broker::new(Kafka::shared().brokers()))
        .topic_naming(topic.parse().unwrap())
        // Only a wake-up can bring an event to Kafka while the test waits.
        .poll_interval(Duration::from_secs(3_600))
        .lag_interval(Duration::from_secs(3_600))
        .spawn()
        .unwrap();
    let emitters = &mut [uncached(&bouncer), uncached(&bouncer)];
    for round in 1..=4 {
        eventually("the relay to lie down", PATIENCE, || sleeps(conn).then_some(()));
        let emitter = &mut emitters[round % 2];
        emitter.transaction(|c| c.emit(&record(round))).unwrap();
        Kafka::shared().read_at_least(&topic, 2 * round - 1, PATIENCE);
        // While it is awake the emitter gets the lock.
        emitter.transaction(|c| c.emit_all([record("Awake")])).unwrap();
        assert_eq!(locks_left(conn), 0, "a lock is left in a session of the pooler");
        Kafka::shared().read_at_least(&topic, 2 * round, PATIENCE);
    }
    relay.stop_blocking().unwrap();
}

fn outbox(url: &str, arguments: &[&str]) -> (bool, String) {
    let mut command = Command::new(workspace_binary("outbox"));
    let output = command.args(arguments).env("OUTBOX_DATABASE_URL", url).output().unwrap();
    let text =
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    (output.status.success(), text)
}

fn moved_nothing(database: &Database<'_>) -> bool {
    let conn = &mut database.connect();
    count(conn, "pg_replication_slots WHERE database = current_database()") == 0
        && count(conn, "pg_publication") == 0
}

/// Others have prepared statements in the same sessions. A schema is a setting of the session.
#[test]
fn commands_work_through_a_pooler_or_say_that_they_cannot() {
    let database = Postgres::shared().database();
    let bouncer = PgBouncer::start(&database, "transaction", 1);
    for _ in 0..2 {
        let (migrated, text) = outbox(bouncer.url(), &["migrate"]);
        assert!(migrated, "{text}");
    }
    bouncer.connect().transaction(|c| c.emit(&record(1))).unwrap();
    for command in ["lag", "dead-letters"] {
        let (done, text) = outbox(bouncer.url(), &[command]);
        assert!(done, "{text}");
    }
    assert!(outbox(bouncer.url(), &["migrate", "--schema", "events"]).0);
    for arguments in [
        &["lag", "--schema", "events"][..],
        &["requeue", "--all", "--schema", "events"],
        &["wal", "setup", "--slot", database.name()],
        &["wal", "drop", "--slot", database.name()],
    ] {
        let (done, text) = outbox(bouncer.url(), arguments);
        assert!(!done && text.contains(POOLER), "{arguments:?}: {text}");
    }
    assert!(moved_nothing(&database));
    let path: String =
        sql::<Text>("SELECT current_setting('search_path')").get_result(&mut uncached(&bouncer)).unwrap();
    assert_eq!(path, "\"$user\", public", "a session of the pooler has the schema of a command");
    Migrations::new().run(&mut uncached(&bouncer)).unwrap();
}
