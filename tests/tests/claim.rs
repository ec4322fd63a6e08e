//! A claim costs the same, however many sent rows are kept, and however much work there is for other workers.

use std::time::Duration;

use diesel::connection::SimpleConnection;
use diesel::prelude::*;
use diesel::sql_types::BigInt;
use diesel_outbox::{Emit, Record};
use diesel_outbox_core::Source;
use diesel_outbox_relay::source::{PostgresSource, SourceOptions};
use outbox_tests::load::{entries_read, migrated, wait_for_the_relays_end};
use outbox_tests::{Database, eventually};

const SENT: usize = 200_000;

/// Inserts rows that were sent and are kept. The expression gives their shard.
fn keep_sent(conn: &mut PgConnection, shard: &str) {
    conn.batch_execute(&format!(
        "INSERT INTO outbox (id, aggregatetype, aggregateid, type, shard, sent_at) \
         SELECT gen_random_uuid(), 'order', '1', 'OrderPlaced', {shard}, now() FROM generate_series(1, {SENT}) AS n"
    ))
    .unwrap();
}

/// Takes the locks that this many other workers hold while they work.
fn others_at_work(database: &Database<'_>, count: usize) -> Vec<PgConnection> {
    let at_work = |_| {
        let mut conn = database.connect();
        conn.batch_execute("SELECT pg_advisory_lock_shared(1869968484, 'outbox'::regclass::oid::int4)")
            .unwrap();
        conn
    };
    (0..count).map(at_work).collect()
}

/// The shards that nobody has claimed, with one bit for each.
fn free_shards(conn: &mut PgConnection) -> i64 {
    let free = "SELECT coalesce(bit_or(1 << shard), 0)::bigint \
                FROM (SELECT shard FROM outbox_shard FOR UPDATE SKIP LOCKED) AS s";
    count(conn, free)
}

fn insert(conn: &mut PgConnection, shards: &str) {
    conn.batch_execute(&format!(
        "INSERT INTO outbox (id, aggregatetype, aggregateid, type, shard) \
         SELECT gen_random_uuid(), 'order', '1', 'OrderPlaced', {shards}"
    ))
    .unwrap();
}

fn emit_one(conn: &mut PgConnection) {
    conn.transaction(|c| c.emit(&Record::new("order", "1", "OrderPlaced"))).unwrap();
}

/// Sends what is unsent in a session of its own, and returns how many index entries that session has read.
fn entries_of_a_look(database: &Database<'_>) -> i64 {
    entries_read(database, || {
        let mut source = PostgresSource::new(database.url(), SourceOptions::default());
        assert!(source.claim().unwrap());
        let mut records = Vec::new();
        source.read(100, &mut records).unwrap();
        let tickets: Vec<u64> = records.iter().map(|claimed| claimed.ticket).collect();
        source.settle(&tickets).unwrap();
        source.release().unwrap();
        assert_eq!(records.len(), 1);
    })
}

fn count(conn: &mut PgConnection, sql: &str) -> i64 {
    diesel::dsl::sql::<BigInt>(sql).get_result(conn).unwrap()
}

/// The other shards have never been claimed. A bad plan would search everything that the busy one has sent for each of them.
#[test]
fn one_busy_shard_does_not_make_a_claim_expensive() {
    let database = migrated();
    let conn = &mut database.connect();
    // The very first relay checks whether the bounds have passed unsent rows. This one does that.
    assert!(!PostgresSource::new(database.url(), SourceOptions::default()).claim().unwrap());
    keep_sent(conn, "5");
    conn.batch_execute(
        "UPDATE outbox_shard SET sent_through = (SELECT max(seq) FROM outbox) WHERE shard = 5; ANALYZE outbox",
    )
    .unwrap();
    emit_one(conn);
    let entries = entries_of_a_look(&database);
    assert!(entries < 1_000, "{entries} entries were read for one event");
}

/// The bounds are still at the beginning, as if an old transaction could have inserted earlier events when the rows were sent.
#[test]
fn shards_that_have_become_quiet_do_not_make_each_claim_expensive() {
    let database = migrated();
    let conn = &mut database.connect();
    keep_sent(conn, "n % 16");
    conn.batch_execute("ANALYZE outbox").unwrap();
    emit_one(conn);
    let first = entries_of_a_look(&database);
    emit_one(conn);
    let entries = entries_of_a_look(&database);
    assert!(entries < 10_000, "{entries} entries were read for one event, {first} before");
}

/// Its share is four neighbouring shards, including the one with the oldest event. It skips the rows of the others in the
/// index.
#[test]
fn a_worker_claims_its_share_of_the_shards_and_does_not_read_other_rows() {
    let database = migrated();
    let conn = &mut database.connect();
    insert(conn, "6");
    insert(conn, "n % 16 FROM generate_series(1, 8000) AS n");
    conn.batch_execute("ANALYZE outbox").unwrap();
    let _others = others_at_work(&database, 3);
    let rows = "SELECT sum(idx_tup_fetch)::bigint FROM pg_stat_user_tables WHERE relname = 'outbox'";
    let before = count(conn, rows);
    let mut source = PostgresSource::new(database.url(), SourceOptions::default());
    assert!(source.claim().unwrap());
    let mut records = Vec::new();
    while source.read(3_000, &mut records).unwrap() {}
    let shards =
        "SELECT bit_or(1 << shard)::bigint FROM (SELECT shard FROM outbox_shard FOR UPDATE SKIP LOCKED) AS s";
    let free = count(conn, shards);
    source.release().unwrap();
    drop(source);
    wait_for_the_relays_end(conn);
    assert_eq!((records.len(), free), (2_001, 0xffff & !(0b1111 << 4)));
    let looked_at = count(conn, rows) - before;
    assert!(looked_at < 3_000, "{looked_at} rows were looked at for 2,001 of the worker's own");
}

/// While the first worker is stuck, its shards hold the oldest event. The other workers must not wait for that: they take the
/// oldest of the rest.
#[test]
fn a_worker_that_is_stuck_does_not_starve_the_others() {
    let database = migrated();
    let conn = &mut database.connect();
    for shards in ["0", "15", "n FROM generate_series(0, 14) AS n"] {
        insert(conn, shards);
    }
    let _other = others_at_work(&database, 1);
    let stuck = &mut database.connect();
    stuck.batch_execute("BEGIN; SELECT FROM outbox_shard WHERE shard = 0 FOR UPDATE").unwrap();
    let mut source = PostgresSource::new(database.url(), SourceOptions::default());
    assert!(source.claim().unwrap());
    assert_eq!(free_shards(conn), 0b0111_1111_0000_0000);
    source.release().unwrap();
}

/// That session does not count as a worker. A relay that did not notice it would claim all other shards, find nothing there,
/// and start again.
#[test]
fn a_relay_does_not_claim_the_other_shards_because_a_stranger_has_locked_one() {
    let database = migrated();
    let conn = &mut database.connect();
    let mut source = PostgresSource::new(database.url(), SourceOptions::default());
    assert!(!source.claim().unwrap());
    let stuck = &mut database.connect();
    stuck.batch_execute("BEGIN; SELECT FROM outbox_shard WHERE shard = 3 FOR UPDATE").unwrap();
    insert(conn, "3");
    assert!(!source.claim().unwrap());
    assert_eq!(free_shards(conn), 0xffff & !(1 << 3));
    for (shard, expected) in [("5", 1), ("3", 2)] {
        insert(conn, shard);
        assert!(source.claim().unwrap());
        let mut records = Vec::new();
        assert!(!source.read(100, &mut records).unwrap());
        assert_eq!(records.len(), expected);
        let tickets: Vec<u64> = records.iter().map(|claimed| claimed.ticket).collect();
        source.settle(&tickets).unwrap();
        source.release().unwrap();
        stuck.batch_execute("ROLLBACK").unwrap();
    }
}

/// A worker that has only a share of the shards would make the others' events wait.
#[test]
fn only_a_worker_that_is_alone_keeps_its_pass_open() {
    let database = migrated();
    let conn = &mut database.connect();
    insert(conn, "3");
    let lingers = || {
        let mut source = PostgresSource::new(database.url(), SourceOptions::default());
        assert!(source.claim().unwrap());
        let lingers = source.lingers();
        source.abandon();
        lingers
    };
    assert!(lingers());
    wait_for_the_relays_end(conn);
    let _other = others_at_work(&database, 1);
    assert!(!lingers());
}

/// Makes a pass and returns the types of the events that it sends, or nothing if nothing can be claimed.
fn pass(source: &mut PostgresSource) -> Vec<String> {
    let mut records = Vec::new();
    if source.claim().unwrap() {
        while source.read(1_000, &mut records).unwrap() {}
        let tickets: Vec<u64> = records.iter().map(|claimed| claimed.ticket).collect();
        source.settle(&tickets).unwrap();
        source.release().unwrap();
    }
    records.into_iter().map(|claimed| claimed.record.unwrap().event_type().to_owned()).collect()
}

/// The snapshot of a claim may be older than the shard rows that it locks. The claim must use their bounds as they are after
/// the lock.
#[test]
fn a_row_that_is_requeued_while_a_claim_looks_for_rows_is_sent() {
    let database = migrated();
    let (conn, operator) = (&mut database.connect(), &mut database.connect());
    conn.batch_execute("SELECT setval('outbox_seq_seq', 10000)").unwrap();
    keep_sent(conn, "n % 16");
    let mut source = PostgresSource::new(database.url(), SourceOptions::default());
    emit_one(conn);
    eventually("the shard's bounds to move", Duration::from_secs(30), || {
        pass(&mut source);
        emit_one(conn);
        (count(conn, "SELECT sent_through FROM outbox_shard WHERE shard = 3") > 10_000).then_some(())
    });
    // The other rows make the claim last long enough.
    conn.batch_execute("UPDATE outbox_shard SET sent_through = 0, passed = 0 WHERE shard <> 3").unwrap();
    operator
        .batch_execute(
            "BEGIN; SELECT FROM outbox_shard FOR UPDATE; UPDATE outbox_shard SET sent_through = 499, passed = 499 WHERE shard = 3; \
             INSERT INTO outbox (seq, id, aggregatetype, aggregateid, type, shard) OVERRIDING SYSTEM VALUE \
             VALUES (500, gen_random_uuid(), 'order', '1', 'Requeued', 3)",
        )
        .unwrap();
    emit_one(conn);
    let claiming = std::thread::spawn(move || {
        let mut sent = Vec::new();
        while sent.is_empty() {
            sent = pass(&mut source);
        }
        (source, sent)
    });
    eventually("the relay to look for rows", Duration::from_secs(30), || {
        let looks = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() \
                     AND application_name = 'outbox relay' AND state = 'active' AND query LIKE 'WITH looked%'";
        (count(conn, looks) > 0).then_some(())
    });
    operator.batch_execute("COMMIT").unwrap();
    let (mut source, mut sent) = claiming.join().unwrap();
    eventually("the row to be sent", Duration::from_secs(10), || {
        sent.extend(pass(&mut source));
        emit_one(conn);
        sent.contains(&"Requeued".to_owned()).then_some(())
    });
}

/// Pruning does not wait for the end of a pass, nor the pass for pruning.
#[test]
fn old_rows_are_pruned_while_a_pass_goes_on() {
    let database = migrated();
    let conn = &mut database.connect();
    // More than a few chunks.
    conn.batch_execute(
        "INSERT INTO outbox (id, aggregatetype, aggregateid, type, shard, sent_at) SELECT gen_random_uuid(), 'order', '1', \
         'OrderPlaced', n % 16, now() - interval '30 days' FROM generate_series(1, 30000) AS n",
    )
    .unwrap();
    emit_one(conn);
    let mut source = PostgresSource::new(database.url(), SourceOptions::default());
    assert!(source.claim().unwrap());
    source.upkeep().unwrap();
    eventually("all old rows to be gone", Duration::from_secs(30), || {
        (count(conn, "SELECT count(*) FROM outbox") == 1).then_some(())
    });
    source.release().unwrap();
}
