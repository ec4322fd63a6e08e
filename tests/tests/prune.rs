//! Pruning holds up neither emitters nor the relay.

use std::time::{Duration, Instant};

use diesel::connection::SimpleConnection;
use diesel::prelude::*;
use diesel::sql_types::BigInt;
use diesel_outbox::source::{SourceOptions, SqliteSource};
use diesel_outbox::{Emit, Migrations, Record};
use diesel_outbox_core::Source;
use outbox_tests::{Folder, eventually};

const PATIENCE: Duration = Duration::from_secs(30);

/// An SQLite database with its tables.
fn sqlite() -> (Folder, String) {
    let folder = Folder::new("prune");
    let path = folder.path().join("outbox.db").display().to_string();
    Migrations::new().run(&mut SqliteConnection::establish(&path).unwrap()).unwrap();
    (folder, path)
}

/// So many rows that were sent so many days ago.
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

/// An emitter has the write lock all along: whoever else wants it waits for half a minute.
#[test]
fn on_sqlite_a_relay_with_nothing_to_prune_does_not_want_the_write_lock() {
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

/// Some chunks of them, and what is unsent lies among them.
#[test]
fn on_sqlite_all_that_has_expired_is_pruned_soon_and_nothing_else() {
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
