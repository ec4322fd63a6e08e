//! What is particular to MySQL and MariaDB: bounds that never pass a late commit, a table that was truncated, servers and tables that
//! cannot hold an outbox, TLS, and relays that are killed.

/// Turns each of these into a test on MariaDB and on MySQL.
macro_rules! suite {
    ($($name:ident),* $(,)?) => {
        mod mariadb { $(#[test] fn $name() { super::$name(super::Mariadb::shared()); })* }
        mod mysql { $(#[test] fn $name() { super::$name(super::Mariadb::shared_mysql()); })* }
    };
}

#[path = "mariadb/commands.rs"]
mod commands;
#[path = "mariadb/consumers.rs"]
mod consumers;
#[path = "mariadb/refusals.rs"]
mod refusals;
#[path = "mariadb/rivals.rs"]
mod rivals;
#[path = "mariadb/tls.rs"]
mod tls;
#[path = "mariadb/writers.rs"]
mod writers;

use std::time::{Duration, Instant};

use diesel::connection::SimpleConnection;
use diesel::prelude::*;
use diesel::sql_types::{BigInt, Text};
use diesel_outbox::{Emit, Migrations, Record};
use diesel_outbox_core::{Claimed, Source};
use diesel_outbox_relay::source::{MysqlSource, SentRows, SourceOptions};
use outbox_tests::load::kill_relays_while_events_are_written;
use outbox_tests::{Mariadb, MariadbDatabase, Tables, eventually};

suite!(
    a_row_that_commits_behind_the_bounds_is_sent_and_before_later_ones_of_its_aggregate,
    another_relay_knows_what_was_open_when_the_bounds_went_past_it,
    a_truncated_table_is_read_from_its_first_row_whether_sent_rows_are_kept_or_not,
    rows_of_a_truncated_table_are_sent_in_their_order_also_if_they_come_past_the_old_bounds_at_once,
    rows_of_a_truncated_table_are_sent_in_their_order_by_one_that_has_not_looked_since_the_bounds_moved,
    a_backlog_that_is_read_ahead_comes_once_and_in_order_beside_a_late_commit,
    rows_that_an_operator_deletes_and_restores_while_the_bounds_move_are_sent,
    a_change_of_the_table_in_the_middle_of_a_pass_holds_nobody_up,
    a_row_with_a_date_that_is_none_is_sent_and_stops_nobody,
    settling_waits_for_nobody_who_emits,
    killed_relays_lose_nothing_and_keep_the_order,
);

#[test]
fn on_mariadb_the_bounds_wait_for_a_statement_that_has_taken_numbers_and_not_stored_all_rows() {
    // As on MySQL, a statement that inserts several rows does not keep others from taking numbers meanwhile.
    let server = Mariadb::start_with(&["innodb_autoinc_lock_mode=2"]);
    the_bounds_wait_for_a_statement_that_has_taken_numbers_and_not_stored_all_rows(&server);
}

#[test]
fn on_mysql_the_bounds_wait_for_a_statement_that_has_taken_numbers_and_not_stored_all_rows() {
    the_bounds_wait_for_a_statement_that_has_taken_numbers_and_not_stored_all_rows(Mariadb::shared_mysql());
}

fn migrated_on(server: &Mariadb) -> MariadbDatabase<'_> {
    let database = server.database();
    Migrations::new().run(&mut database.connect()).unwrap();
    database
}

fn migrated() -> MariadbDatabase<'static> {
    migrated_on(Mariadb::shared())
}

fn source(database: &MariadbDatabase<'_>) -> MysqlSource {
    MysqlSource::new(database.url(), SourceOptions::default())
}

fn record(event_type: impl ToString) -> Record {
    Record::new("order", "1", event_type.to_string()).with_payload(*b"{}")
}

fn emit(conn: &mut MysqlConnection, event_types: impl IntoIterator<Item = usize>) {
    conn.transaction(|c| c.emit_all(event_types.into_iter().map(record))).unwrap();
}

fn count(conn: &mut MysqlConnection, from: &str) -> i64 {
    diesel::dsl::sql::<BigInt>(&format!("SELECT count(*) FROM {from}")).get_result(conn).unwrap()
}

/// Makes one pass, and returns the event types that it has sent.
fn pass(source: &mut MysqlSource) -> Vec<String> {
    let mut claimed: Vec<Claimed> = Vec::new();
    if !source.claim().unwrap() {
        return Vec::new();
    }
    while source.read(10_000, &mut claimed).unwrap() {}
    source.settle(&claimed.iter().map(|claimed| claimed.ticket).collect::<Vec<_>>()).unwrap();
    source.release().unwrap();
    claimed.iter().map(|claimed| claimed.record.as_ref().unwrap().event_type().to_owned()).collect()
}

fn sent_through(conn: &mut MysqlConnection) -> i64 {
    diesel::dsl::sql::<BigInt>("SELECT MAX(sent_through) FROM outbox_shard").get_result(conn).unwrap()
}

/// Emits and sends until the bounds have gone past this number.
fn pass_by(source: &mut MysqlSource, conn: &mut MysqlConnection, seq: i64) {
    eventually("the bounds to move on", Duration::from_secs(30), || {
        emit(conn, 0..1_100);
        pass(source);
        (sent_through(conn) > seq).then_some(())
    });
}

fn a_row_that_commits_behind_the_bounds_is_sent_and_before_later_ones_of_its_aggregate(
    server: &'static Mariadb,
) {
    let database = migrated_on(server);
    let (conn, late) = (&mut database.connect(), &mut database.connect());
    let mut source = source(&database);
    late.batch_execute("START TRANSACTION").unwrap();
    late.batch_execute(
        "INSERT INTO outbox (id, aggregatetype, aggregateid, type, shard, created_at) \
         VALUES (UUID(), 'order', '1', 'Late', 0, UTC_TIMESTAMP(3))",
    )
    .unwrap();
    pass_by(&mut source, conn, 1_500);
    late.batch_execute("COMMIT").unwrap();
    emit(conn, [7]);
    assert_eq!(pass(&mut source), ["Late", "7"]);
    // It is not looked for any more.
    pass_by(&mut source, conn, 5_000);
    let listed: Vec<String> =
        diesel::dsl::sql::<Text>("SELECT unsent FROM outbox_shard WHERE unsent <> ''").load(conn).unwrap();
    assert_eq!(listed, [""; 0]);
}

fn another_relay_knows_what_was_open_when_the_bounds_went_past_it(server: &'static Mariadb) {
    let database = migrated_on(server);
    let (conn, late) = (&mut database.connect(), &mut database.connect());
    late.begin_test_transaction().unwrap();
    late.emit(&record("Late")).unwrap();
    pass_by(&mut source(&database), conn, 1_500);
    late.batch_execute("COMMIT").unwrap();
    assert_eq!(pass(&mut source(&database)), ["Late"]);
}

/// The bounds move only if nobody is in the midst of a statement on the table: such a statement may have taken numbers.
fn the_bounds_wait_for_a_statement_that_has_taken_numbers_and_not_stored_all_rows(server: &Mariadb) {
    let database = migrated_on(server);
    let (conn, slow) = (&mut database.connect(), &mut database.connect());
    let mut source = source(&database);
    std::thread::scope(|scope| {
        // It takes two numbers for its second and third row, and waits before it stores the third.
        let slow = scope.spawn(|| {
            slow.batch_execute(
                "INSERT INTO outbox (id, aggregatetype, aggregateid, type, shard, created_at) \
                 SELECT UUID(), 'order', '1', CONCAT('Slow ', n, SLEEP(IF(n = 3, 2, 0))), 0, UTC_TIMESTAMP(3) \
                 FROM (SELECT 1 AS n UNION ALL SELECT 2 UNION ALL SELECT 3) AS three",
            )
        });
        eventually("the statement to wait", Duration::from_secs(20), || {
            (count(conn, "information_schema.processlist WHERE db = DATABASE() AND state = 'User sleep'")
                == 1)
                .then_some(())
        });
        while !slow.is_finished() {
            emit(conn, 0..1_100);
            pass(&mut source);
            let moved = sent_through(conn);
            assert!(moved == 0 || slow.is_finished(), "the bounds have moved to {moved}");
        }
        slow.join().unwrap().unwrap();
    });
    pass_by(&mut source, conn, 2_200);
    assert_eq!(count(conn, "outbox WHERE sent_at IS NULL"), 0);
    assert_eq!(count(conn, "outbox WHERE type LIKE 'Slow%'"), 3);
}

fn a_truncated_table_is_read_from_its_first_row_whether_sent_rows_are_kept_or_not(server: &'static Mariadb) {
    for sent_rows in [SentRows::default(), SentRows::Delete] {
        let database = migrated_on(server);
        let conn = &mut database.connect();
        let mut source = MysqlSource::new(database.url(), SourceOptions::default().sent_rows(sent_rows));
        pass_by(&mut source, conn, 1_500);
        conn.batch_execute("TRUNCATE TABLE outbox").unwrap();
        emit(conn, [1, 2, 3]);
        let mut sent = Vec::new();
        eventually("the new rows", Duration::from_secs(20), || {
            sent.extend(pass(&mut source));
            (sent.len() >= 3).then_some(())
        });
        assert_eq!(sent, ["1", "2", "3"]);
        // Nor by a relay that starts later.
        pass_by(&mut source, conn, 1_500);
        drop(source);
        conn.batch_execute("TRUNCATE TABLE outbox").unwrap();
        emit(conn, 0..2_000);
        let mut source = MysqlSource::new(database.url(), SourceOptions::default().sent_rows(sent_rows));
        eventually("the new rows", Duration::from_secs(20), || {
            (pass(&mut source).len() == 2_000).then_some(())
        });
    }
}

fn rows_of_a_truncated_table_are_sent_in_their_order_also_if_they_come_past_the_old_bounds_at_once(
    server: &'static Mariadb,
) {
    for sent_rows in [SentRows::default(), SentRows::Delete] {
        let database = migrated_on(server);
        let conn = &mut database.connect();
        let mut source = MysqlSource::new(database.url(), SourceOptions::default().sent_rows(sent_rows));
        pass_by(&mut source, conn, 1_500);
        let rows = sent_through(conn) as usize + 500;
        conn.batch_execute("TRUNCATE TABLE outbox").unwrap();
        // It looks at the empty table before, and has just looked at all of it.
        assert_eq!(pass(&mut source), [""; 0]);
        emit(conn, 0..rows);
        let mut sent = Vec::new();
        eventually("the new rows", Duration::from_secs(20), || {
            sent.extend(pass(&mut source));
            (sent.len() >= rows).then_some(())
        });
        assert_eq!(sent, (0..rows).map(|n| n.to_string()).collect::<Vec<_>>());
    }
}

/// The one that looks last knows only the bounds of before: either it has moved them itself since its last look, or another has.
fn rows_of_a_truncated_table_are_sent_in_their_order_by_one_that_has_not_looked_since_the_bounds_moved(
    server: &'static Mariadb,
) {
    for another in [false, true] {
        let database = migrated_on(server);
        let conn = &mut database.connect();
        let (mut mover, mut source) = (source(&database), source(&database));
        if another {
            // It leads, because it comes first.
            assert_eq!(pass(&mut mover), [""; 0]);
        }
        assert_eq!(pass(&mut source), [""; 0]);
        pass_by(if another { &mut mover } else { &mut source }, conn, 1_500);
        let rows = sent_through(conn) as usize + 500;
        drop(mover);
        conn.batch_execute("TRUNCATE TABLE outbox").unwrap();
        emit(conn, 0..rows);
        let mut sent = Vec::new();
        eventually("the new rows", Duration::from_secs(20), || {
            sent.extend(pass(&mut source));
            (sent.len() >= rows).then_some(())
        });
        assert_eq!(sent, (0..rows).map(|n| n.to_string()).collect::<Vec<_>>(), "moved by another: {another}");
    }
}

/// The snapshot in which the backlog is read ahead shows neither the late event nor what comes after it. The reads after that do.
fn a_backlog_that_is_read_ahead_comes_once_and_in_order_beside_a_late_commit(server: &'static Mariadb) {
    let database = migrated_on(server);
    let (conn, late) = (&mut database.connect(), &mut database.connect());
    late.begin_test_transaction().unwrap();
    late.emit(&record("Late")).unwrap();
    emit(conn, 0..500);
    let mut source = source(&database);
    assert!(source.claim().unwrap());
    let mut claimed: Vec<Claimed> = Vec::new();
    assert!(source.read(100, &mut claimed).unwrap());
    source.read_ahead(100).unwrap();
    assert!(source.read(100, &mut claimed).unwrap());
    late.batch_execute("COMMIT").unwrap();
    emit(conn, 500..510);
    let mut settled = 0;
    for _ in 0..20 {
        source.read_ahead(100).unwrap();
        source.settle(&claimed[settled..].iter().map(|claimed| claimed.ticket).collect::<Vec<_>>()).unwrap();
        settled = claimed.len();
        source.read(100, &mut claimed).unwrap();
    }
    let types: Vec<String> =
        claimed.iter().map(|claimed| claimed.record.as_ref().unwrap().event_type().to_owned()).collect();
    let mut expected: Vec<String> = (0..500).map(|n| n.to_string()).collect();
    expected.push("Late".to_owned());
    expected.extend((500..510).map(|n| n.to_string()));
    assert_eq!(types, expected);
}

/// Claims and reads what there is, and settles all but the events of this type.
fn settle_all_but(source: &mut MysqlSource, event_type: &str) {
    assert!(source.claim().unwrap());
    let mut claimed: Vec<Claimed> = Vec::new();
    while source.read(10_000, &mut claimed).unwrap() {}
    let is_left = |claimed: &&Claimed| claimed.record.as_ref().unwrap().event_type() != event_type;
    source.settle(&claimed.iter().filter(is_left).map(|claimed| claimed.ticket).collect::<Vec<_>>()).unwrap();
}

fn rows_that_an_operator_deletes_and_restores_while_the_bounds_move_are_sent(server: &'static Mariadb) {
    let database = migrated_on(server);
    let (conn, operator) = (&mut database.connect(), &mut database.connect());
    let mut source = source(&database);
    conn.transaction(|c| c.emit(&record("Kept"))).unwrap();
    eventually("the bounds to move past it", Duration::from_secs(30), || {
        emit(conn, 0..1_100);
        operator.batch_execute("START TRANSACTION; DELETE FROM outbox WHERE seq = 1").unwrap();
        settle_all_but(&mut source, "Kept");
        source.release().unwrap();
        operator.batch_execute("ROLLBACK").unwrap();
        (sent_through(conn) > 100).then_some(())
    });
    assert_eq!(pass(&mut source), ["Kept"]);
}

/// Whoever changes the table waits for the pass, and all emitters wait behind: the pass must not wait for either.
fn a_change_of_the_table_in_the_middle_of_a_pass_holds_nobody_up(server: &'static Mariadb) {
    let database = migrated_on(server);
    let (conn, open, operator) = (&mut database.connect(), &mut database.connect(), &mut database.connect());
    let mut source = source(&database);
    open.begin_test_transaction().unwrap();
    open.emit(&record("Open")).unwrap();
    // Its row is listed from now on, and looked at when a pass ends.
    pass_by(&mut source, conn, 1_500);
    emit(conn, 0..10);
    settle_all_but(&mut source, "none");
    std::thread::scope(|scope| {
        let change = scope.spawn(|| operator.batch_execute("ALTER TABLE outbox ADD COLUMN note int"));
        eventually("the change to wait for the pass", Duration::from_secs(20), || {
            let waits = "information_schema.processlist WHERE db = DATABASE() AND state = 'Waiting for table metadata lock' AND info LIKE 'ALTER%'";
            (count(conn, waits) >= 1).then_some(())
        });
        let began = Instant::now();
        source.release().unwrap();
        let took = began.elapsed();
        open.batch_execute("ROLLBACK").unwrap();
        change.join().unwrap().unwrap();
        assert!(took < Duration::from_secs(8), "the pass's end took {took:?}");
    });
    assert_eq!(count(conn, "outbox WHERE sent_at IS NULL"), 0);
}

/// Without strict mode, a row that is inserted without `created_at` has a date that is none.
fn a_row_with_a_date_that_is_none_is_sent_and_stops_nobody(server: &'static Mariadb) {
    let database = migrated_on(server);
    let conn = &mut database.connect();
    conn.batch_execute(
        "SET sql_mode = ''; INSERT INTO outbox (id, aggregatetype, aggregateid, type, shard) VALUES (UUID(), 'order', '1', 'Dateless', 0)",
    )
    .unwrap();
    emit(conn, [1]);
    assert_eq!(pass(&mut source(&database)), ["Dateless", "1"]);
}

/// Most of the table is settled at once. The row before what is settled is not committed, nor is the one behind it.
fn settling_waits_for_nobody_who_emits(server: &'static Mariadb) {
    for sent_rows in [SentRows::default(), SentRows::Delete] {
        let database = migrated_on(server);
        let (conn, before, behind) =
            (&mut database.connect(), &mut database.connect(), &mut database.connect());
        let mut source = MysqlSource::new(database.url(), SourceOptions::default().sent_rows(sent_rows));
        for (open, rows) in [(before, 30), (behind, 0)] {
            open.begin_test_transaction().unwrap();
            open.emit(&record("Open")).unwrap();
            emit(conn, 0..rows);
        }
        let began = Instant::now();
        assert_eq!(pass(&mut source).len(), 30);
        assert!(began.elapsed() < Duration::from_secs(8), "the pass took {:?}", began.elapsed());
    }
}

#[test]
fn emitting_without_the_tables_says_what_to_do() {
    let conn = &mut Mariadb::shared().database().connect();
    let error = conn.transaction(|c| c.emit(&record("1"))).unwrap_err().to_string();
    assert!(error.contains("run the migrations"), "{error}");
}

fn killed_relays_lose_nothing_and_keep_the_order(server: &'static Mariadb) {
    let database = migrated_on(server);
    let is_sent = || database.count("outbox WHERE sent_at IS NOT NULL");
    kill_relays_while_events_are_written(database.url(), 3, 20_000, || database.connect(), is_sent);
}
