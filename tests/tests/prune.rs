//! Pruning holds up neither emitters nor the relay.

#[path = "prune/by_hand.rs"]
mod by_hand;
#[path = "prune/fleet.rs"]
mod fleet;
#[path = "prune/retention.rs"]
mod retention;
#[path = "prune/site.rs"]
mod site;

use std::sync::mpsc::channel;
use std::thread;
use std::time::{Duration, Instant};

use diesel::connection::SimpleConnection;
use diesel::prelude::*;
use diesel::sql_types::BigInt;
use diesel_outbox::{Emit, Migrations, Record};
use diesel_outbox_core::Source;
use diesel_outbox_relay::source::{PostgresSource, SourceOptions, SqliteSource};
use outbox_tests::load::{self, migrated};
use outbox_tests::{Database, Folder, eventually};

const PATIENCE: Duration = Duration::from_secs(30);

/// An SQLite database with the tables.
fn sqlite() -> (Folder, String) {
    let folder = Folder::new("prune");
    let path = folder.path().join("outbox.db").display().to_string();
    Migrations::new().run(&mut SqliteConnection::establish(&path).unwrap()).unwrap();
    (folder, path)
}

/// Inserts this many rows that were sent this many days ago.
fn keep_sent(conn: &mut SqliteConnection, rows: usize, days: u32) {
    conn.batch_execute(&format!(
        "INSERT INTO outbox (id, aggregatetype, aggregateid, type, shard, sent_at) \
         WITH RECURSIVE n (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n WHERE n < {rows}) \
         SELECT n, 'order', '1', 'OrderPlaced', n % 16, strftime('%Y-%m-%dT%H:%M:%fZ', 'now', '-{days} days') FROM n"
    ))
    .unwrap();
}

fn count(conn: &mut SqliteConnection, from: &str) -> i64 {
    diesel::dsl::sql::<BigInt>(&format!("SELECT count(*) FROM {from}")).get_result(conn).unwrap()
}

/// An emitter holds the write lock all the time. A relay that wanted it would wait for half a minute.
#[test]
fn on_sqlite_a_relay_with_nothing_to_prune_does_not_take_the_write_lock() {
    let (_folder, path) = sqlite();
    let emitter = &mut SqliteConnection::establish(&path).unwrap();
    keep_sent(emitter, 10_000, 1);
    let mut source = SqliteSource::new(&path, SourceOptions::default());
    assert!(!source.claim().unwrap());
    emitter.batch_execute("BEGIN IMMEDIATE").unwrap();
    let began = Instant::now();
    source.upkeep().unwrap();
    assert!(began.elapsed() < Duration::from_secs(10), "upkeep took {:?}", began.elapsed());
    emitter.batch_execute("COMMIT").unwrap();
}

/// There are several chunks of expired rows, with unsent rows among them.
#[test]
fn on_sqlite_all_expired_rows_are_pruned_soon_and_no_others() {
    let (_folder, path) = sqlite();
    let conn = &mut SqliteConnection::establish(&path).unwrap();
    conn.batch_execute("PRAGMA busy_timeout = 10000").unwrap();
    conn.transaction(|c| c.emit(&Record::new("order", "1", "Unsent"))).unwrap();
    keep_sent(conn, 12_000, 30);
    conn.transaction(|c| c.emit(&Record::new("order", "1", "Unsent"))).unwrap();
    keep_sent(conn, 12_000, 30);
    keep_sent(conn, 10, 1);
    let mut source = SqliteSource::new(&path, SourceOptions::default());
    assert!(source.claim().unwrap());
    eventually("all old rows to be gone", PATIENCE, || {
        source.upkeep().unwrap();
        (count(conn, "outbox") == 12).then_some(())
    });
    assert_eq!(count(conn, "outbox WHERE sent_at IS NULL"), 2);
}

/// Suppose a partition has not taken records for long. More than a chunk of its unsent rows then lies before the expired ones.
/// One of its rows was sent just now.
#[test]
fn expired_rows_behind_many_unsent_rows_are_pruned_on_sqlite() {
    let (_folder, path) = sqlite();
    let conn = &mut SqliteConnection::establish(&path).unwrap();
    conn.batch_execute("PRAGMA busy_timeout = 10000").unwrap();
    keep_sent(conn, 12_000, 30);
    conn.batch_execute(
        "UPDATE outbox SET sent_at = CASE WHEN seq = 3 THEN strftime('%Y-%m-%dT%H:%M:%fZ', 'now') END, \
         created_at = strftime('%Y-%m-%dT%H:%M:%fZ', 'now', '-40 days')",
    )
    .unwrap();
    keep_sent(conn, 100, 30);
    let mut source = SqliteSource::new(&path, SourceOptions::default());
    assert!(source.claim().unwrap());
    eventually("all old rows to be gone", PATIENCE, || {
        source.upkeep().unwrap();
        (count(conn, "outbox") == 12_000).then_some(())
    });
}

#[test]
fn expired_rows_behind_many_unsent_rows_are_pruned_on_postgres() {
    let database = migrated();
    let conn = &mut database.connect();
    for (rows, sent_at) in [(12_000, "CASE WHEN n = 3 THEN now() END"), (100, "now() - interval '30 days'")] {
        conn.batch_execute(&format!(
            "INSERT INTO outbox (id, aggregatetype, aggregateid, type, shard, sent_at, created_at) SELECT gen_random_uuid(), \
             'order', '1', 'OrderPlaced', n % 16, {sent_at}, now() - interval '40 days' FROM generate_series(1, {rows}) AS n"
        ))
        .unwrap();
    }
    let mut source = PostgresSource::new(database.url(), SourceOptions::default());
    assert!(source.claim().unwrap());
    source.release().unwrap();
    eventually("all old rows to be gone", PATIENCE, || {
        source.upkeep().unwrap();
        (load::count(conn, "outbox") == 12_000).then_some(())
    });
}

/// A relay that has begun to prune old rows, and waits for a lock that another session holds.
fn blocked(database: &Database<'_>, lock: &str) -> (PostgresSource, PgConnection) {
    let (conn, mut stranger) = (&mut database.connect(), database.connect());
    conn.batch_execute(
        "INSERT INTO outbox (id, aggregatetype, aggregateid, type, shard, sent_at) SELECT gen_random_uuid(), 'order', '1', \
         'OrderPlaced', n % 16, now() - interval '30 days' FROM generate_series(1, 10) AS n",
    )
    .unwrap();
    stranger.batch_execute(&format!("BEGIN; {lock}")).unwrap();
    let mut source = PostgresSource::new(database.url(), SourceOptions::default());
    source.claim().unwrap();
    source.release().unwrap();
    source.upkeep().unwrap();
    (source, stranger)
}

/// Returns what the closure does within a few seconds. If it takes longer, its thread is left behind.
fn soon<T: Send + 'static>(what: &str, work: impl FnOnce() -> T + Send + 'static) -> T {
    let (done, is_done) = channel();
    thread::spawn(move || done.send(work()));
    is_done.recv_timeout(Duration::from_secs(10)).unwrap_or_else(|error| panic!("{what}: {error}"))
}

/// Pruning skips the row that another session has locked.
#[test]
fn a_locked_row_holds_up_neither_pruning_nor_a_relay_that_has_lost_its_connection() {
    let database = migrated();
    let conn = &mut database.connect();
    let lock = "SELECT FROM outbox ORDER BY seq LIMIT 1 FOR UPDATE";
    let (mut source, stranger) = blocked(&database, lock);
    let pruning =
        "pg_stat_activity WHERE datname = current_database() AND application_name = 'outbox pruning'";
    // A wait for a lock shows only if there is one, so this waits for either outcome.
    eventually("the round to end, or to wait", PATIENCE, || {
        let waits = load::count(conn, &format!("{pruning} AND wait_event_type = 'Lock'")) > 0;
        (waits || load::count(conn, "outbox") == 1).then_some(())
    });
    conn.batch_execute(
        "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity \
         WHERE datname = current_database() AND application_name = 'outbox relay'",
    )
    .unwrap();
    conn.transaction(|c| c.emit(&Record::new("order", "1", "New"))).unwrap();
    let source = soon("a relay that begins anew", move || {
        assert!(source.claim().is_err());
        source.abandon();
        assert!(source.claim().unwrap());
        source
    });
    soon("a relay that stops", move || drop(source));
    assert_eq!(load::count(conn, "outbox"), 2, "the locked row and the new one are left");
    drop(stranger);
}

/// For example while an index is built.
#[test]
fn a_locked_table_does_not_hold_up_a_relay_that_stops_while_it_prunes() {
    let database = migrated();
    let conn = &mut database.connect();
    let (source, stranger) = blocked(&database, "LOCK TABLE outbox IN SHARE MODE");
    eventually("the round to wait", PATIENCE, || {
        let waits = "pg_locks WHERE relation = 'outbox'::regclass AND NOT granted";
        (load::count(conn, waits) > 0).then_some(())
    });
    soon("a relay that stops", move || drop(source));
    drop(stranger);
}
