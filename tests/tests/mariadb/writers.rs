//! Transactions that have emitted and stay open.

use std::time::Duration;

use diesel::connection::{AnsiTransactionManager, SimpleConnection, TransactionManager};
use diesel::prelude::*;
use diesel::sql_types::BigInt;
use diesel_outbox::Emit;
use diesel_outbox_core::Source;
use diesel_outbox_relay::source::{MysqlSource, SentRows, SourceOptions};
use outbox_tests::{Mariadb, MariadbDatabase, eventually, logged, start_logging};

use super::{emit, migrated, pass, pass_by, record};

const PATIENCE: Duration = Duration::from_secs(30);

/// A leader that measures at each call.
fn leader(url: &str, sent_rows: SentRows) -> MysqlSource {
    let mut options = SourceOptions::default().lag_interval(Duration::from_millis(1)).sent_rows(sent_rows);
    options.poll_interval = Duration::from_millis(1);
    let mut source = MysqlSource::new(url, options);
    eventually("the source to lead", PATIENCE, || {
        source.claim().unwrap();
        source.release().unwrap();
        source.upkeep().unwrap()
    });
    source
}

fn oldest_writer(source: &mut MysqlSource) -> Duration {
    eventually("a measured lag", PATIENCE, || source.upkeep().unwrap()).oldest_writer
}

/// It is found before the bounds have passed its event and after that, among events that wait and that were sent, whether those are kept
/// or deleted.
#[test]
fn the_age_of_the_oldest_open_writer_is_measured() {
    for sent_rows in [SentRows::default(), SentRows::Delete] {
        let database = migrated();
        let (conn, writer, bystander) =
            (&mut database.connect(), &mut database.connect(), &mut database.connect());
        let mut source = leader(database.url(), sent_rows);
        emit(conn, 0..10);
        assert_eq!(oldest_writer(&mut source), Duration::ZERO, "what waits is committed");
        pass(&mut source);
        // It has written, but not to the outbox.
        conn.batch_execute("CREATE TABLE other (n int)").unwrap();
        bystander.batch_execute("START TRANSACTION; INSERT INTO other VALUES (1)").unwrap();
        AnsiTransactionManager::begin_transaction(writer).unwrap();
        assert_eq!(oldest_writer(&mut source), Duration::ZERO, "nobody has emitted");
        writer.emit(&record("Open")).unwrap();
        let first = oldest_writer(&mut source);
        assert!(first < PATIENCE, "{first:?}");
        eventually("it to grow older", PATIENCE, || {
            (oldest_writer(&mut source) > Duration::from_millis(50)).then_some(())
        });
        pass_by(&mut source, conn, 1_500);
        emit(conn, 0..10);
        let age = oldest_writer(&mut source);
        assert!(age > Duration::from_millis(50), "{age:?} after the bounds have passed it");
        AnsiTransactionManager::rollback_transaction(writer).unwrap();
        assert_eq!(oldest_writer(&mut source), Duration::ZERO);
    }
}

fn open_for_two_minutes(database: &MariadbDatabase<'_>) -> (MysqlConnection, i64) {
    let mut writer = database.connect();
    writer
        .batch_execute(
            "START TRANSACTION; INSERT INTO outbox (id, aggregatetype, aggregateid, type, shard, created_at) \
             VALUES (UUID(), 'order', '1', 'Open', 0, UTC_TIMESTAMP(3) - INTERVAL 2 MINUTE)",
        )
        .unwrap();
    let id = diesel::dsl::sql::<BigInt>("SELECT CONNECTION_ID()").get_result(&mut writer).unwrap();
    (writer, id)
}

/// The role of the second relay is the one that docs/mysql.md asks for.
#[test]
fn the_relay_warns_of_a_transaction_that_stays_open_and_names_its_connection_if_it_may() {
    start_logging();
    let database = migrated();
    let (_writer, id) = open_for_two_minutes(&database);
    let age = oldest_writer(&mut leader(database.url(), SentRows::default()));
    assert!((120..180).contains(&age.as_secs()), "{age:?}");
    eventually("the warning", PATIENCE, || {
        logged(&[
            "WARN",
            "a transaction that has emitted stays open",
            &format!("connection={id} "),
            &format!("KILL {id} "),
        ])
    });

    let database = migrated();
    let (_writer, _) = open_for_two_minutes(&database);
    let role = format!("{}_relay", database.name());
    let admin = &mut Mariadb::shared().connect();
    admin
        .batch_execute(&format!(
            "CREATE USER {role} IDENTIFIED BY 'relay'; GRANT SELECT, INSERT, UPDATE, DELETE ON {name}.* TO {role}",
            name = database.name()
        ))
        .unwrap();
    let (_, server) = database.url().rsplit_once('@').unwrap();
    let age = oldest_writer(&mut leader(&format!("mysql://{role}:relay@{server}"), SentRows::default()));
    assert!((120..180).contains(&age.as_secs()), "{age:?}");
    eventually("the warning", PATIENCE, || logged(&["WARN", "if its role has the privilege PROCESS"]));
    admin.batch_execute(&format!("DROP USER {role}")).unwrap();
}
