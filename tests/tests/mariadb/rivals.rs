//! Other transactions that lock what the relay needs.

use std::thread;
use std::time::{Duration, Instant};

use diesel::connection::SimpleConnection;
use diesel_outbox_core::{Claimed, Source};
use diesel_outbox_relay::source::{MysqlSource, SourceOptions};
use outbox_tests::{INNODB_TRX_KEPT, Mariadb, MariadbDatabase, eventually};

use super::{count, emit, migrated, migrated_on, pass, source};

const WAITS: &str = "information_schema.innodb_trx AS t JOIN information_schema.processlist AS p ON p.id = t.trx_mysql_thread_id \
                     WHERE p.db = DATABASE() AND t.trx_state = 'LOCK WAIT'";

/// Claims, reads what there is, and lets the rival do this before the relay settles it.
fn settling_fails(
    database: &MariadbDatabase<'_>,
    source: &mut MysqlSource,
    meanwhile: impl FnOnce(),
) -> String {
    emit(&mut database.connect(), 0..20);
    assert!(source.claim().unwrap());
    let mut claimed: Vec<Claimed> = Vec::new();
    while source.read(10_000, &mut claimed).unwrap() {}
    meanwhile();
    let tickets: Vec<u64> = claimed.iter().map(|claimed| claimed.ticket).collect();
    let error = source.settle(&tickets).unwrap_err();
    assert!(!error.is_permanent() && !error.is_misconfigured(), "{error}");
    // As the relay does after an error.
    source.abandon();
    error.to_string()
}

fn all() -> Vec<String> {
    (0..20).map(|n| n.to_string()).collect()
}

/// The rival has changed more, so that the server rolls back the relay's transaction.
#[test]
fn a_pass_that_loses_a_deadlock_is_repeated_as_a_whole() {
    let database = migrated();
    let (conn, rival) = (&mut database.connect(), &mut database.connect());
    conn.batch_execute("CREATE TABLE heavy (n int)").unwrap();
    let mut source = source(&database);
    thread::scope(|scope| {
        let mut waiting = None;
        let error = settling_fails(&database, &mut source, || {
            rival
                .batch_execute(
                    "START TRANSACTION; INSERT INTO heavy SELECT 1 FROM information_schema.columns LIMIT 500; \
                     SELECT seq FROM outbox WHERE seq = 10 FOR UPDATE",
                )
                .unwrap();
            waiting = Some(scope.spawn(move || {
                rival.batch_execute("SELECT shard FROM outbox_shard FOR UPDATE")?;
                rival.batch_execute("COMMIT")
            }));
            eventually("the rival to wait", Duration::from_secs(20), || {
                thread::sleep(INNODB_TRX_KEPT);
                (count(conn, WAITS) > 0).then_some(())
            });
        });
        assert!(error.contains("1213"), "{error}");
        waiting.unwrap().join().unwrap().unwrap();
    });
    assert_eq!(pass(&mut source), all());
    assert_eq!(count(conn, "outbox WHERE sent_at IS NULL"), 0);
}

#[test]
fn a_pass_that_waits_too_long_for_a_lock_is_repeated_as_a_whole() {
    let database = migrated();
    let (conn, rival) = (&mut database.connect(), &mut database.connect());
    let mut source = source(&database);
    let error = settling_fails(&database, &mut source, || {
        rival.batch_execute("START TRANSACTION; SELECT seq FROM outbox WHERE seq = 10 FOR UPDATE").unwrap();
    });
    assert!(error.contains("1205"), "{error}");
    rival.batch_execute("ROLLBACK").unwrap();
    assert_eq!(pass(&mut source), all());
    assert_eq!(count(conn, "outbox WHERE sent_at IS NULL"), 0);
}

/// Such a session is no worker, and has one of the shards.
#[test]
fn events_of_other_shards_are_sent_while_a_stranger_has_locked_one() {
    let database = migrated();
    let (conn, stranger) = (&mut database.connect(), &mut database.connect());
    let mut source = source(&database);
    stranger
        .batch_execute("START TRANSACTION; SELECT shard FROM outbox_shard WHERE shard = 3 FOR UPDATE")
        .unwrap();
    let mut insert = |shard: u8| {
        conn.batch_execute(&format!(
            "INSERT INTO outbox (id, aggregatetype, aggregateid, type, shard, created_at) \
             VALUES (UUID(), 'order', '1', 'Of{shard}', {shard}, UTC_TIMESTAMP(3))"
        ))
        .unwrap();
    };
    insert(3);
    assert!(!source.claim().unwrap());
    insert(5);
    assert_eq!(pass(&mut source), ["Of5"]);
    assert!(!source.claim().unwrap());
    stranger.batch_execute("ROLLBACK").unwrap();
    assert_eq!(pass(&mut source), ["Of3"]);
}

/// Somebody has locked one of the expired rows, for example to look at it.
#[test]
fn a_locked_row_does_not_hold_up_pruning() {
    for database in [migrated(), migrated_on(Mariadb::shared_mysql())] {
        let (conn, stranger) = (&mut database.connect(), &mut database.connect());
        emit(conn, 0..30);
        conn.batch_execute("UPDATE outbox SET sent_at = '2001-01-01', created_at = '2001-01-01'").unwrap();
        stranger.batch_execute("START TRANSACTION; SELECT seq FROM outbox WHERE seq = 7 FOR UPDATE").unwrap();
        let mut source = source(&database);
        assert!(!source.claim().unwrap());
        let began = Instant::now();
        eventually("the others to be pruned", Duration::from_secs(20), || {
            source.wait(Duration::from_millis(1)).unwrap();
            source.upkeep().unwrap();
            (count(conn, "outbox") == 1).then_some(())
        });
        assert!(began.elapsed() < Duration::from_secs(8), "pruning has waited for the lock");
        stranger.batch_execute("ROLLBACK").unwrap();
    }
}

/// Suppose a partition has not taken records for long. More than a step of its unsent rows then lies before the expired ones. One of
/// its rows was sent just now.
#[test]
fn expired_rows_behind_many_unsent_rows_are_pruned() {
    for database in [migrated(), migrated_on(Mariadb::shared_mysql())] {
        let conn = &mut database.connect();
        emit(conn, 0..3_000);
        conn.batch_execute(
            "UPDATE outbox SET created_at = '2001-01-01', sent_at = IF(seq > 2900, '2001-01-01', IF(seq = 3, UTC_TIMESTAMP(3), NULL))",
        )
        .unwrap();
        let mut source = MysqlSource::new(database.url(), SourceOptions::default());
        assert!(source.claim().unwrap());
        source.release().unwrap();
        eventually("all old rows to be gone", Duration::from_secs(30), || {
            source.upkeep().unwrap();
            (count(conn, "outbox") == 2_900).then_some(())
        });
    }
}
