//! The relay reads a backlog on a second connection. If a pass cannot have that connection, or would have to wait for it, it
//! still reads.

#[path = "backlog/gate.rs"]
mod gate;

use std::sync::mpsc::channel;
use std::thread;
use std::time::Duration;

use diesel::connection::SimpleConnection;
use diesel::prelude::*;
use diesel::sql_types::BigInt;
use diesel_outbox::{Emit, Migrations, Record};
use diesel_outbox_core::{Claimed, Source};
use diesel_outbox_relay::source::{DeadLetterPolicy, PostgresSource, SourceOptions};
use outbox_tests::{Database, Postgres, eventually};

use self::gate::Gate;

const EVENTS: usize = 1_000;
/// Enough aggregates that every shard has some.
const AGGREGATES: usize = 101;
const BATCH: usize = 50;

fn migrated() -> Database<'static> {
    let database = Postgres::shared().database();
    Migrations::new().run(&mut database.connect()).unwrap();
    database
}

fn with_backlog() -> Database<'static> {
    let database = migrated();
    emit_backlog(&mut database.connect());
    database
}

/// The event type of each event is its number.
fn emit_backlog(conn: &mut PgConnection) {
    let record = |n: usize| Record::new("order", (n % AGGREGATES).to_string(), n.to_string());
    conn.transaction(|c| c.emit_all((0..EVENTS).map(record))).unwrap();
}

fn number(claimed: &Claimed) -> usize {
    claimed.record.as_ref().unwrap().event_type().parse().unwrap()
}

/// Reads the whole backlog, and settles it half way and at the end.
fn drain(source: &mut PostgresSource) {
    let mut all: Vec<Claimed> = Vec::new();
    let mut settled = 0;
    while all.len() < EVENTS {
        let known = all.len();
        read(source, &mut all);
        assert!(all.len() > known, "{known} events and no more");
        if all.len() - settled >= EVENTS / 2 {
            let tickets: Vec<u64> = all[settled..].iter().map(|claimed| claimed.ticket).collect();
            source.settle(&tickets).unwrap();
            settled = all.len();
        }
    }
    assert!(all.iter().map(number).eq(0..EVENTS), "in another order");
    source.release().unwrap();
}

/// Reads a batch, and has the next one read ahead.
fn read(source: &mut PostgresSource, records: &mut Vec<Claimed>) -> bool {
    let more = source.read(BATCH, records).unwrap();
    if more {
        source.read_ahead(BATCH).unwrap();
    }
    more
}

fn count(conn: &mut PgConnection, sql: &str) -> i64 {
    diesel::dsl::sql::<BigInt>(sql).get_result(conn).unwrap()
}

fn unsent(conn: &mut PgConnection) -> i64 {
    count(conn, "SELECT count(*) FROM outbox WHERE sent_at IS NULL")
}

/// Terminates the connection that holds the claim.
fn end_pass(conn: &mut PgConnection) {
    let terminated = "SELECT count(pg_terminate_backend(pid)) FROM pg_locks JOIN pg_database d ON d.oid = database \
                      WHERE d.datname = current_database() AND relation = 'outbox_shard'::regclass \
                      AND mode = 'RowShareLock'";
    assert_eq!(count(conn, terminated), 1);
}

/// Waits until the second connection has read.
fn reads_ahead(conn: &mut PgConnection) {
    eventually("the second connection to read", Duration::from_secs(20), || {
        let reading = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() \
                       AND state = 'idle in transaction' AND query LIKE 'WITH claimed%'";
        (count(conn, reading) == 1).then_some(())
    });
}

/// The lock request waits for the pass to end, and a second connection would have to wait behind it.
#[test]
fn a_session_that_waits_to_lock_the_table_does_not_hold_up_the_pass() {
    let database = with_backlog();
    let (conn, waiting) = (&mut database.connect(), &mut database.connect());
    let mut source = PostgresSource::new(database.url(), SourceOptions::default());
    assert!(source.claim().unwrap());
    thread::scope(|scope| {
        let locked = scope.spawn(|| waiting.batch_execute("BEGIN; LOCK TABLE outbox; COMMIT"));
        eventually("someone to wait for the table", Duration::from_secs(20), || {
            let waiting = "SELECT count(*) FROM pg_locks JOIN pg_database d ON d.oid = database \
                           WHERE d.datname = current_database() AND NOT granted AND relation = 'outbox'::regclass";
            (count(conn, waiting) == 1).then_some(())
        });
        drain(&mut source);
        locked.join().unwrap().unwrap();
    });
    assert_eq!(unsent(conn), 0);
}

#[test]
fn a_relay_that_may_have_only_one_connection_still_reads_the_backlog() {
    let database = with_backlog();
    let conn = &mut database.connect();
    let role = format!("{}_relay", database.name());
    conn.batch_execute(&format!(
        "CREATE ROLE {role} LOGIN PASSWORD 'relay' CONNECTION LIMIT 1; GRANT SELECT, UPDATE ON outbox, outbox_shard TO {role}; \
         GRANT SELECT ON outbox_seq_seq, outbox_dead_letter, outbox_requeued TO {role}"
    ))
    .unwrap();
    let mut source = PostgresSource::new(database.url_as(&role, "relay"), SourceOptions::default());
    assert!(source.claim().unwrap());
    drain(&mut source);
    assert_eq!(unsent(conn), 0);
    drop(source);
    eventually("the role to be free", Duration::from_secs(20), || {
        conn.batch_execute(&format!("DROP OWNED BY {role}; DROP ROLE {role}")).ok()
    });
}

/// While the pass reads from the second connection, it does not wait for anything on the first one.
#[test]
fn a_pass_that_reads_on_the_second_connection_notices_that_the_first_is_lost() {
    let database = with_backlog();
    let conn = &mut database.connect();
    let mut source = PostgresSource::new(database.url(), SourceOptions::default());
    assert!(source.claim().unwrap());
    let mut records = Vec::new();
    for _ in 0..2 {
        read(&mut source, &mut records);
    }
    end_pass(conn);
    let tickets: Vec<u64> = records.iter().map(|claimed| claimed.ticket).collect();
    eventually("the loss to be told", Duration::from_secs(20), || source.settle(&tickets).err());
    source.abandon();
    assert!(source.claim().unwrap());
    drain(&mut source);
}

#[test]
fn a_pass_does_not_wait_for_a_second_connection_that_never_opens() {
    let database = with_backlog();
    let gate = Gate::new(database.url());
    let mut source = PostgresSource::new(gate.url(database.url()), SourceOptions::default());
    assert!(source.claim().unwrap());
    drain(&mut source);
    assert_eq!(unsent(&mut database.connect()), 0);
}

/// The expired row makes the relay open the connection.
#[test]
fn a_relay_stops_although_its_connection_for_pruning_never_opens() {
    let database = migrated();
    database
        .connect()
        .batch_execute(
            "INSERT INTO outbox (id, aggregatetype, aggregateid, type, shard, sent_at) \
             VALUES (gen_random_uuid(), 'order', '1', 'Old', 0, now() - interval '30 days')",
        )
        .unwrap();
    let gate = Gate::new(database.url());
    let mut source = PostgresSource::new(gate.url(database.url()), SourceOptions::default());
    source.claim().unwrap();
    source.upkeep().unwrap();
    let (done, stopped) = channel();
    thread::spawn(move || {
        drop(source);
        done.send(())
    });
    stopped.recv_timeout(Duration::from_secs(10)).expect("the relay to stop");
}

/// By then another relay may have sent the rows, and other rows may have taken their places in the table.
#[test]
fn the_second_connection_reads_nothing_for_a_pass_that_has_lost_its_claim() {
    let database = with_backlog();
    let conn = &mut database.connect();
    let gate = Gate::new(database.url());
    let mut source = PostgresSource::new(gate.url(database.url()), SourceOptions::default());
    assert!(source.claim().unwrap());
    assert!(read(&mut source, &mut Vec::new()));
    end_pass(conn);
    let mut other = PostgresSource::new(database.url(), SourceOptions::default());
    eventually("the claim to be free", Duration::from_secs(20), || other.claim().unwrap().then_some(()));
    gate.open();
    let mut records = Vec::new();
    assert!(source.read(BATCH, &mut records).is_err(), "{} records", records.len());
    drain(&mut other);
}

/// The transaction of the first event commits behind the point that the pass reads. Only then is the second event emitted.
#[test]
fn an_event_that_commits_while_the_backlog_is_read_ahead_is_not_overtaken() {
    let database = migrated();
    let (conn, late) = (&mut database.connect(), &mut database.connect());
    let slow = |event_type: usize| Record::new("order", "slow", event_type.to_string());
    let mut source = PostgresSource::new(database.url(), SourceOptions::default());
    let mut all = Vec::new();
    late.transaction(|late| {
        late.emit(&slow(EVENTS))?;
        emit_backlog(conn);
        assert!(source.claim().unwrap());
        read(&mut source, &mut all);
        reads_ahead(conn);
        QueryResult::Ok(())
    })
    .unwrap();
    conn.transaction(|c| c.emit(&slow(EVENTS + 1))).unwrap();
    while read(&mut source, &mut all) {}
    let tickets: Vec<u64> = all.iter().map(|claimed| claimed.ticket).collect();
    source.settle(&tickets).unwrap();
    // The same pass also reads what was committed since.
    read(&mut source, &mut all);
    assert!(all.iter().map(number).eq(0..EVENTS + 2), "in another order");
}

/// The numbers of the backlog are lower than that of the event that is read first.
#[test]
fn a_backlog_that_commits_late_does_not_make_the_pass_read_an_event_twice() {
    let database = migrated();
    let (conn, late) = (&mut database.connect(), &mut database.connect());
    let mut source = PostgresSource::new(database.url(), SourceOptions::default());
    let (mut first, mut all) = (Vec::new(), Vec::new());
    late.transaction(|late| {
        emit_backlog(late);
        conn.transaction(|c| c.emit(&Record::new("order", "other", EVENTS.to_string())))?;
        assert!(source.claim().unwrap());
        read(&mut source, &mut first);
        QueryResult::Ok(())
    })
    .unwrap();
    assert!(first.iter().map(number).eq([EVENTS]));
    while read(&mut source, &mut all) {}
    assert!(all.iter().map(number).eq(0..EVENTS), "others, or in another order");
}

#[test]
fn records_that_were_read_ahead_are_held_back_if_their_aggregate_is_blocked() {
    let database = with_backlog();
    let conn = &mut database.connect();
    let mut options = SourceOptions::default();
    options.dead_letter_policy = DeadLetterPolicy::Block;
    let mut source = PostgresSource::new(database.url(), options);
    let mut all = Vec::new();
    assert!(source.claim().unwrap());
    source.read(1, &mut all).unwrap();
    source.dead_letter(all[0].ticket, "never").unwrap();
    source.release().unwrap();
    all.clear();
    assert!(source.claim().unwrap());
    // These include the next event of the blocked aggregate.
    source.read(AGGREGATES, &mut all).unwrap();
    source.read_ahead(BATCH).unwrap();
    reads_ahead(conn);
    while read(&mut source, &mut all) {}
    assert!(all.iter().map(number).eq((0..EVENTS).filter(|n| n % AGGREGATES > 0)), "in another order");
    source.release().unwrap();
    let dead_letters = "SELECT count(*) FROM outbox_dead_letter WHERE aggregateid = '0'";
    assert_eq!(count(conn, dead_letters) as usize, EVENTS.div_ceil(AGGREGATES));
}

/// A frozen process does not receive what the server sends for its query.
#[test]
fn a_relay_that_does_not_receive_what_it_reads_loses_its_claim() {
    let database = migrated();
    let conn = &mut database.connect();
    let large = |n: usize| Record::new("order", n.to_string(), "Large").with_payload(vec![b'x'; 60_000]);
    conn.transaction(|c| c.emit_all((0..200).map(large))).unwrap();
    let gate = Gate::for_first_bytes(database.url());
    let mut frozen = PostgresSource::new(gate.url(database.url()), SourceOptions::default());
    let mut other = PostgresSource::new(database.url(), SourceOptions::default());
    assert!(frozen.claim().unwrap());
    let reading = thread::spawn(move || frozen.read(200, &mut Vec::new()));
    assert!(!other.claim().unwrap());
    eventually("the claim to be free", Duration::from_secs(100), || other.claim().unwrap().then_some(()));
    gate.open();
    assert!(reading.join().unwrap().is_err());
}
