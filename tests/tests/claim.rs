//! A claim costs the same, however many sent rows are kept, and however much work there is for other workers.

use std::time::Duration;

use diesel::connection::SimpleConnection;
use diesel_outbox::{Emit, OutboxConnection, Record};
use diesel_outbox_core::Source;
use diesel_outbox_relay::source::{PostgresSource, SourceOptions};
use outbox_tests::load::migrated;
use outbox_tests::{Tables, eventually, migrated_mariadb, on_postgres_and_mariadb};

on_postgres_and_mariadb!(
    shards_that_have_become_quiet_do_not_make_each_claim_expensive,
    one_busy_shard_beside_another_worker_does_not_make_a_claim_expensive,
    a_relay_does_not_claim_the_other_shards_because_a_stranger_has_locked_one,
    only_a_worker_that_is_alone_keeps_its_pass_open,
);

const SENT: usize = 200_000;
const SHARDS: std::ops::Range<i16> = 0..16;

/// Builds an event of an aggregate in this shard.
fn event_in(shard: i16) -> Record {
    let mut numbers = 0..;
    let event = numbers.find_map(|number: i32| {
        let event = Record::new("order", number.to_string(), "OrderPlaced");
        (event.shard() == shard).then_some(event)
    });
    event.expect("an aggregate in each shard")
}

fn emit<C: OutboxConnection>(conn: &mut C, shards: impl IntoIterator<Item = i16>) {
    let events: Vec<Record> = shards.into_iter().map(event_in).collect();
    conn.transaction(|c| c.emit_all(&events)).unwrap();
}

/// Reads what was claimed, settles it and ends the pass. Returns the number of events.
fn send(source: &mut dyn Source) -> usize {
    let mut records = Vec::new();
    while source.read(3_000, &mut records).unwrap() {}
    let tickets: Vec<u64> = records.iter().map(|claimed| claimed.ticket).collect();
    source.settle(&tickets).unwrap();
    source.release().unwrap();
    records.len()
}

/// Sends what is unsent in a session of its own, and returns how many rows or index entries that session has read.
fn rows_of_a_look(tables: &impl Tables) -> usize {
    tables.rows_read_by(|| {
        let mut source = tables.source(SourceOptions::default());
        assert!(source.claim().unwrap());
        assert_eq!(send(&mut *source), 1);
    })
}

/// The other shards have never been claimed. A bad plan would search everything that the busy one has sent for each of them. A relay
/// on MariaDB that is alone claims all shards together instead.
#[test]
fn one_busy_shard_does_not_make_a_claim_expensive() {
    let database = migrated();
    let conn = &mut database.connect();
    // The very first relay checks whether the bounds have passed unsent rows. This one does that.
    assert!(!PostgresSource::new(database.url(), SourceOptions::default()).claim().unwrap());
    database.insert(SENT, "5", Some(Duration::ZERO));
    conn.batch_execute(
        "UPDATE outbox_shard SET sent_through = (SELECT max(seq) FROM outbox) WHERE shard = 5; ANALYZE outbox",
    )
    .unwrap();
    emit(conn, [1]);
    let entries = rows_of_a_look(&database);
    assert!(entries < 1_000, "{entries} entries were read for one event");
}

/// The first look finds out that everything was sent.
fn one_busy_shard_beside_another_worker_does_not_make_a_claim_expensive(tables: &impl Tables) {
    let _other = tables.others_at_work(1);
    tables.insert(SENT, "5", Some(Duration::ZERO));
    let conn = &mut tables.connect();
    emit(conn, [5]);
    let first = rows_of_a_look(tables);
    emit(conn, [5]);
    let rows = rows_of_a_look(tables);
    assert!(rows < 1_000, "{rows} rows were read for one event, {first} before");
}

/// The bounds are still at the beginning, as if an old transaction could have inserted earlier events when the rows were sent.
fn shards_that_have_become_quiet_do_not_make_each_claim_expensive(tables: &impl Tables) {
    tables.insert(SENT, "n % 16", Some(Duration::ZERO));
    let conn = &mut tables.connect();
    emit(conn, [1]);
    let first = rows_of_a_look(tables);
    emit(conn, [1]);
    let rows = rows_of_a_look(tables);
    assert!(rows < 10_000, "{rows} rows were read for one event, {first} before");
}

/// It skips the rows of the others in the index.
#[test]
fn on_postgres_a_worker_claims_its_share_of_the_shards_and_does_not_read_other_rows() {
    a_worker_claims_its_share_of_the_shards(&migrated(), 3_000);
}

/// It passes over the rows of the others, because it reads along the primary key: once to read, and once before the bounds move.
#[test]
fn on_mariadb_a_worker_claims_its_share_of_the_shards_and_passes_over_other_rows_twice() {
    a_worker_claims_its_share_of_the_shards(&migrated_mariadb(), 20_000);
}

/// Its share is four neighbouring shards, including the one with the oldest event.
fn a_worker_claims_its_share_of_the_shards(tables: &impl Tables, most_read: usize) {
    let conn = &mut tables.connect();
    emit(conn, [6]);
    tables.insert(8_000, "n % 16", None);
    let others = tables.others_at_work(3);
    let read = tables.rows_read_by(|| {
        let mut source = tables.source(SourceOptions::default());
        assert!(source.claim().unwrap());
        assert_eq!(tables.free_shards(), SHARDS.filter(|shard| shard / 4 != 1).collect::<Vec<_>>());
        let mut records = Vec::new();
        while source.read(3_000, &mut records).unwrap() {}
        assert_eq!(records.len(), 2_001);
        source.release().unwrap();
    });
    drop(others);
    assert!(read < most_read, "{read} rows were looked at for 2,001 of the worker's own");
}

/// It takes the oldest of the rest, and their neighbours.
#[test]
fn on_postgres_a_worker_that_is_stuck_does_not_starve_the_others() {
    a_worker_that_is_stuck_does_not_starve_the_others(&migrated(), 8..15);
}

/// It takes the neighbours of the oldest, and then others.
#[test]
fn on_mariadb_a_worker_that_is_stuck_does_not_starve_the_others() {
    a_worker_that_is_stuck_does_not_starve_the_others(&migrated_mariadb(), 9..16);
}

/// While the first worker is stuck, its shards hold the oldest event. The other workers must not wait for that.
fn a_worker_that_is_stuck_does_not_starve_the_others(tables: &impl Tables, free: std::ops::Range<i16>) {
    let conn = &mut tables.connect();
    emit(conn, [0, 15].into_iter().chain(0..15));
    let _other = tables.others_at_work(1);
    let stuck = &mut tables.connect();
    stuck.batch_execute("BEGIN").unwrap();
    stuck.batch_execute("SELECT shard FROM outbox_shard WHERE shard = 0 FOR UPDATE").unwrap();
    let mut source = tables.source(SourceOptions::default());
    assert!(source.claim().unwrap());
    assert_eq!(tables.free_shards(), free.collect::<Vec<_>>());
    source.release().unwrap();
}

/// That session does not count as a worker. A relay that did not notice it would claim all other shards, find nothing there,
/// and start again.
fn a_relay_does_not_claim_the_other_shards_because_a_stranger_has_locked_one(tables: &impl Tables) {
    let conn = &mut tables.connect();
    let source = &mut *tables.source(SourceOptions::default());
    assert!(!source.claim().unwrap());
    let stuck = &mut tables.connect();
    stuck.batch_execute("BEGIN").unwrap();
    stuck.batch_execute("SELECT shard FROM outbox_shard WHERE shard = 3 FOR UPDATE").unwrap();
    emit(conn, [3]);
    assert!(!source.claim().unwrap());
    assert_eq!(tables.free_shards(), SHARDS.filter(|shard| *shard != 3).collect::<Vec<_>>());
    for (shard, expected) in [(5, 1), (3, 2)] {
        emit(conn, [shard]);
        assert!(source.claim().unwrap());
        assert_eq!(send(source), expected);
        stuck.batch_execute("ROLLBACK").unwrap();
    }
}

/// A worker that has only a share of the shards would make the others' events wait.
fn only_a_worker_that_is_alone_keeps_its_pass_open(tables: &impl Tables) {
    emit(&mut tables.connect(), [3]);
    let lingers = || {
        let mut source = tables.source(SourceOptions::default());
        assert!(source.claim().unwrap());
        let lingers = source.lingers();
        source.abandon();
        lingers
    };
    assert!(lingers());
    tables.wait_for_the_relays_end();
    let _other = tables.others_at_work(1);
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
/// the lock. On MariaDB a claim fails if a bound has moved since the look.
#[test]
fn a_row_that_is_requeued_while_a_claim_looks_for_rows_is_sent() {
    let database = migrated();
    let (conn, operator) = (&mut database.connect(), &mut database.connect());
    conn.batch_execute("SELECT setval('outbox_seq_seq', 10000)").unwrap();
    database.insert(SENT, "n % 16", Some(Duration::ZERO));
    let mut source = PostgresSource::new(database.url(), SourceOptions::default());
    emit(conn, [1]);
    eventually("the shard's bounds to move", Duration::from_secs(30), || {
        pass(&mut source);
        emit(conn, [1]);
        (database.number("SELECT sent_through FROM outbox_shard WHERE shard = 3") > 10_000).then_some(())
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
    emit(conn, [1]);
    let claiming = std::thread::spawn(move || {
        let mut sent = Vec::new();
        while sent.is_empty() {
            sent = pass(&mut source);
        }
        (source, sent)
    });
    eventually("the relay to look for rows", Duration::from_secs(30), || {
        let looks = "pg_stat_activity WHERE datname = current_database() AND application_name = 'outbox relay' \
                     AND state = 'active' AND query LIKE 'WITH looked%'";
        (database.count(looks) > 0).then_some(())
    });
    operator.batch_execute("COMMIT").unwrap();
    let (mut source, mut sent) = claiming.join().unwrap();
    eventually("the row to be sent", Duration::from_secs(10), || {
        sent.extend(pass(&mut source));
        emit(conn, [1]);
        sent.contains(&"Requeued".to_owned()).then_some(())
    });
}

/// Pruning does not wait for the end of a pass, nor the pass for pruning. On MariaDB the relay prunes between passes.
#[test]
fn old_rows_are_pruned_while_a_pass_goes_on() {
    let database = migrated();
    let conn = &mut database.connect();
    // More than a few chunks.
    database.insert(30_000, "n % 16", Some(Duration::from_secs(30 * 86_400)));
    emit(conn, [1]);
    let mut source = PostgresSource::new(database.url(), SourceOptions::default());
    assert!(source.claim().unwrap());
    source.upkeep().unwrap();
    eventually("all old rows to be gone", Duration::from_secs(30), || {
        (database.count("outbox") == 1).then_some(())
    });
    source.release().unwrap();
}
