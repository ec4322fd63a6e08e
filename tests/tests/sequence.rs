//! A sequence that is set back gives numbers again that the relay has gone past. Nothing that was emitted with those is lost or
//! overtaken, whenever it happened; and whoever follows the advice of an error to the letter loses nothing.

use std::time::Duration;

use diesel::connection::SimpleConnection;
use diesel::prelude::*;
use diesel::sql_types::BigInt;
use diesel_outbox::observe::Observe;
use diesel_outbox::source::{PostgresSource, SourceOptions};
use diesel_outbox::{Emit, Migrations, Record};
use diesel_outbox_core::Source;
use outbox_tests::{Database, Postgres, eventually};

const PATIENCE: Duration = Duration::from_secs(30);

fn migrated() -> Database<'static> {
    let database = Postgres::shared().database();
    Migrations::new().run(&mut database.connect()).unwrap();
    database
}

fn source(url: &str) -> PostgresSource {
    PostgresSource::new(url, SourceOptions::default())
}

/// Events of ten aggregates, whose types are their numbers.
fn emit(conn: &mut PgConnection, numbers: std::ops::Range<u32>) {
    let records = numbers.map(|n| Record::new("order", (n % 10).to_string(), n.to_string()));
    conn.transaction(|c| c.emit_all(records)).unwrap();
}

/// Passes, which may fail, until so many events have come; their numbers.
fn send(source: &mut PostgresSource, count: usize) -> Vec<u32> {
    let mut sent = Vec::new();
    eventually(&format!("{count} events"), PATIENCE, || {
        match pass(source) {
            Ok(numbers) => sent.extend(numbers),
            Err(_) => source.abandon(),
        }
        (sent.len() >= count).then_some(())
    });
    sent
}

fn pass(source: &mut PostgresSource) -> Result<Vec<u32>, diesel_outbox_core::SourceError> {
    let mut records = Vec::new();
    if source.claim()? {
        while source.read(1_000, &mut records)? {}
        source.settle(&records.iter().map(|claimed| claimed.ticket).collect::<Vec<_>>())?;
        source.release()?;
    }
    Ok(records.iter().map(|claimed| claimed.record.as_ref().unwrap().event_type().parse().unwrap()).collect())
}

/// All of these numbers, each once and those of each aggregate in their order.
#[track_caller]
fn assert_complete(sent: &[u32], numbers: std::ops::Range<u32>) {
    let mut sorted = sent.to_vec();
    sorted.sort_unstable();
    assert_eq!(sorted, numbers.collect::<Vec<_>>());
    for aggregate in 0..10 {
        let its: Vec<u32> = sent.iter().copied().filter(|n| n % 10 == aggregate).collect();
        assert!(its.is_sorted(), "{its:?}");
    }
}

fn count(conn: &mut PgConnection, sql: &str) -> i64 {
    diesel::dsl::sql::<BigInt>(sql).get_result(conn).unwrap()
}

/// So many events are sent, so that the lower bounds have moved.
fn send_some(source: &mut PostgresSource, conn: &mut PgConnection) {
    emit(conn, 0..5_000);
    assert_complete(&send(source, 5_000), 0..5_000);
    eventually("the bounds to move", PATIENCE, || {
        emit(conn, 5_000..5_010);
        send(source, 10);
        (count(conn, "SELECT max(low) FROM outbox_shard") > 3_000).then_some(())
    });
}

#[test]
fn a_restart_while_no_relay_is_there_hides_nothing() {
    let database = migrated();
    let conn = &mut database.connect();
    send_some(&mut source(database.url()), conn);
    emit(conn, 0..10);
    conn.batch_execute("DELETE FROM outbox WHERE seq < 1000; ALTER SEQUENCE outbox_seq_seq RESTART").unwrap();
    emit(conn, 10..30);
    assert_complete(&send(&mut source(database.url()), 30), 0..30);
    assert_eq!(conn.lag().unwrap().unsent, 0);
    // It has gone on after all that there was.
    emit(conn, 30..40);
    assert_eq!(count(conn, "SELECT count(*) - count(DISTINCT seq) FROM outbox"), 0);
    assert_complete(&send(&mut source(database.url()), 10), 30..40);
}

/// By then its numbers are higher than any that was sent.
#[test]
fn a_restart_that_has_caught_up_hides_nothing() {
    let database = migrated();
    let conn = &mut database.connect();
    send_some(&mut source(database.url()), conn);
    conn.batch_execute("TRUNCATE outbox RESTART IDENTITY").unwrap();
    emit(conn, 0..9_000);
    assert_complete(&send(&mut source(database.url()), 9_000), 0..9_000);
}

#[test]
fn a_restart_under_a_relay_at_work_hides_nothing() {
    let database = migrated();
    let conn = &mut database.connect();
    let mut relay = source(database.url());
    send_some(&mut relay, conn);
    conn.batch_execute("TRUNCATE outbox RESTART IDENTITY").unwrap();
    emit(conn, 0..20);
    assert_complete(&send(&mut relay, 20), 0..20);
    conn.batch_execute("SELECT setval('outbox_seq_seq', 7)").unwrap();
    emit(conn, 20..30);
    assert_complete(&send(&mut relay, 10), 20..30);
}

/// Logical replication copies rows, and no sequence.
#[test]
fn a_copy_without_its_sequence_goes_on_after_its_rows() {
    let database = migrated();
    let conn = &mut database.connect();
    send_some(&mut source(database.url()), conn);
    emit(conn, 0..5);
    conn.batch_execute(
        "CREATE SEQUENCE fresh; ALTER TABLE outbox ALTER seq DROP IDENTITY; \
         ALTER TABLE outbox ALTER seq ADD GENERATED BY DEFAULT AS IDENTITY",
    )
    .unwrap();
    assert_complete(&send(&mut source(database.url()), 5), 0..5);
    emit(conn, 5..15);
    assert_complete(&send(&mut source(database.url()), 10), 5..15);
}

/// What an error advises, from the word on that it begins with.
fn advice(error: &str, begins: &str) -> String {
    let start = error.find(begins).unwrap_or_else(|| panic!("no {begins} in: {error}"));
    error[start..].split(';').next().unwrap().to_owned()
}

fn refusal(url: &str) -> String {
    source(url).claim().unwrap_err().to_string()
}

#[test]
fn a_table_without_a_sequence_is_refused_with_advice_that_loses_nothing() {
    let database = migrated();
    let conn = &mut database.connect();
    send_some(&mut source(database.url()), conn);
    emit(conn, 0..5);
    conn.batch_execute("ALTER TABLE outbox ALTER seq DROP IDENTITY").unwrap();
    conn.batch_execute(&advice(&refusal(database.url()), "ALTER TABLE")).unwrap();
    emit(conn, 5..25);
    assert_complete(&send(&mut source(database.url()), 25), 0..25);
}

#[test]
fn missing_shards_are_refused_with_advice_that_loses_nothing() {
    let database = migrated();
    let conn = &mut database.connect();
    send_some(&mut source(database.url()), conn);
    conn.batch_execute("DELETE FROM outbox_shard WHERE shard > 3").unwrap();
    emit(conn, 0..50);
    conn.batch_execute(&advice(&refusal(database.url()), "INSERT INTO outbox_shard")).unwrap();
    assert_complete(&send(&mut source(database.url()), 50), 0..50);
}

#[test]
fn a_relay_that_may_not_set_the_sequence_says_which_grant_it_needs() {
    let database = migrated();
    let conn = &mut database.connect();
    send_some(&mut source(database.url()), conn);
    conn.batch_execute("DELETE FROM outbox WHERE seq < 1000; ALTER SEQUENCE outbox_seq_seq RESTART").unwrap();
    emit(conn, 0..20);
    let role = format!("{}_relay", database.name());
    conn.batch_execute(&format!(
        "CREATE ROLE {role} LOGIN PASSWORD 'relay'; GRANT SELECT, UPDATE ON outbox, outbox_shard TO {role}; \
         GRANT SELECT ON outbox_seq_seq TO {role}"
    ))
    .unwrap();
    let (_, server) = database.url().rsplit_once('@').unwrap();
    let url = format!("postgres://{role}:relay@{server}");
    let refusal = refusal(&url);
    for grant in refusal.match_indices("GRANT ").map(|(at, _)| &refusal[at..]) {
        let grant = grant.split([';', '.']).next().unwrap().trim();
        conn.batch_execute(&grant.replace("the relay's role", &role)).unwrap();
    }
    let mut relay = source(&url);
    assert_complete(&send(&mut relay, 20), 0..20);
    drop(relay);
    eventually("the role to be free", PATIENCE, || {
        conn.batch_execute(&format!("DROP OWNED BY {role}; DROP ROLE {role}")).ok()
    });
}
