//! A real Debezium reads the outbox from the binlog, with what `outbox debezium` prints.

#[path = "debezium_binlog/moving.rs"]
mod moving;

use std::time::Duration;

use diesel::connection::SimpleConnection;
use diesel::prelude::*;
use diesel_outbox::{Emit, Migrations, Record};
use outbox_tests::load::relay_command;
use outbox_tests::{BinlogDebezium, Kafka, Mariadb, MariadbDatabase, Process, ReadRecord, eventually};

const PATIENCE: Duration = Duration::from_secs(60);

/// Turns each of these into a test on MariaDB and on MySQL, whose connectors are different programs.
macro_rules! suite {
    ($($name:ident),* $(,)?) => {
        mod mariadb { $(#[test] fn $name() { super::$name(super::Mariadb::shared()); })* }
        mod mysql { $(#[test] fn $name() { super::$name(super::Mariadb::shared_mysql()); })* }
    };
}

suite!(
    debezium_sends_what_is_committed_after_the_offset_that_was_printed,
    the_check_says_what_is_missing_until_the_statements_were_run,
);

fn migrated_on(server: &Mariadb) -> MariadbDatabase<'_> {
    let database = server.database();
    Migrations::new().run(&mut database.connect()).unwrap();
    database
}

fn migrated() -> MariadbDatabase<'static> {
    migrated_on(Mariadb::shared())
}

fn emit(database: &MariadbDatabase<'_>, events: &[Record]) {
    database.connect().transaction(|c| c.emit_all(events)).unwrap();
}

fn named(event_type: &str) -> Record {
    Record::new("order", "7", event_type.to_owned()).with_payload(*b"{}")
}

fn event_types(received: &[ReadRecord]) -> Vec<&str> {
    received.iter().map(|received| received.header("eventType").unwrap()).collect()
}

/// Checks what Debezium made of an event: everything except the event's own headers.
#[track_caller]
fn assert_is(received: &ReadRecord, event: &Record) {
    assert_eq!(received.key_text(), Some(event.aggregate_id()));
    assert_eq!(received.payload.as_deref(), event.payload());
    let headers: Vec<_> =
        received.headers.iter().map(|(key, value)| (key.as_str(), value.clone().unwrap())).collect();
    let id = event.id().to_string().into_bytes();
    assert_eq!(headers, [("id", id), ("eventType", event.event_type().as_bytes().to_vec())]);
}

fn debezium_sends_what_is_committed_after_the_offset_that_was_printed(server: &Mariadb) {
    let database = migrated_on(server);
    let prefix = Kafka::shared().unique("binlog");
    let topic = format!("{prefix}.order");
    let debezium = BinlogDebezium::prepared(&database, &format!("{prefix}.{{aggregatetype}}"));
    emit(&database, &[named("BeforeTheOffset")]);
    let offset = debezium.offset();
    let placed =
        Record::new("order", "7", "OrderPlaced").header("trace", "1").with_payload(*b"\0\xff any bytes");
    let forgotten = Record::new("order", "7", "OrderForgotten");
    emit(&database, &[placed.clone(), forgotten.clone()]);
    // Neither an update nor a deletion is an event.
    let conn = &mut database.connect();
    conn.batch_execute("UPDATE outbox SET sent_at = UTC_TIMESTAMP(3)").unwrap();
    conn.batch_execute("DELETE FROM outbox").unwrap();
    debezium.begin(&offset);
    let later = Record::new("order", "7", "OrderPlaced").with_payload(*b"");
    emit(&database, std::slice::from_ref(&later));
    let records = Kafka::shared().read_at_least(&topic, 3, PATIENCE);
    for (received, event) in records.iter().zip([&placed, &forgotten, &later]) {
        assert_is(received, event);
    }

    debezium.stop();
    emit(&database, &[named("WhileItIsStopped")]);
    conn.batch_execute("TRUNCATE TABLE outbox").unwrap();
    debezium.resume();
    let records = Kafka::shared().read_at_least(&topic, 4, PATIENCE);
    let expected = ["OrderPlaced", "OrderForgotten", "OrderPlaced", "WhileItIsStopped"];
    assert_eq!(event_types(&records), expected);
}

/// Nothing else would say that it has lost its place: it would go on with what comes next.
#[test]
fn a_connector_without_an_offset_fails_instead_of_passing_over_events() {
    let database = migrated();
    let debezium = BinlogDebezium::prepared(&database, &Kafka::shared().unique("no-offset"));
    let connect = debezium.connect();
    connect.request("POST", "/connectors", debezium.connector());
    connect.request("PUT", &format!("/connectors/{}/resume", database.name()), "");
    let why = connect.wait_until_failed(database.name());
    assert!(why.contains("Could not find existing"), "{why}");
}

/// It reads the columns at each start. Rows from before have fewer.
#[test]
fn a_connector_fails_if_the_table_was_changed_while_it_was_stopped() {
    let database = migrated();
    let topic = Kafka::shared().unique("changed");
    let debezium = BinlogDebezium::prepared(&database, &topic);
    debezium.begin(&debezium.offset());
    emit(&database, &[named("Before")]);
    Kafka::shared().read_at_least(&topic, 1, PATIENCE);
    debezium.stop();
    emit(&database, &[named("Unread")]);
    database.connect().batch_execute("ALTER TABLE outbox ADD COLUMN note varchar(10)").unwrap();
    let connect = debezium.connect();
    connect.request("PUT", &format!("/connectors/{}/resume", database.name()), "");
    let why = connect.wait_until_failed(database.name());
    assert!(why.contains("schema"), "{why}");
}

fn failures(report: &str) -> Vec<&str> {
    report.lines().filter(|line| line.starts_with("FAIL")).collect()
}

/// Returns what `outbox debezium check` prints, and whether it succeeded.
fn check(debezium: &BinlogDebezium<'_>) -> (String, bool) {
    let output = debezium.outbox(&["check"]);
    (String::from_utf8(output.stdout).unwrap(), output.status.success())
}

fn the_check_says_what_is_missing_until_the_statements_were_run(server: &Mariadb) {
    let database = migrated_on(server);
    let debezium = BinlogDebezium::without_privileges(&database);
    let (report, good) = check(&debezium);
    assert!(!good, "{report}");
    for part in ["has no REPLICATION SLAVE", "see `outbox debezium setup-sql`", "no table"] {
        assert!(failures(&report).iter().any(|line| line.contains(part)), "{part} is not in\n{report}");
    }
    debezium.set_up();
    let (report, good) = check(&debezium);
    assert!(good && failures(&report).is_empty(), "{report}");
    for part in ["the server is M", "binlog_format is ROW", "row_image is FULL", "GTIDs", "no event waits"] {
        assert!(report.contains(part), "{part} is not in\n{report}");
    }

    emit(&database, &[named("Waits")]);
    assert!(check(&debezium).0.contains("that no relay has marked as sent"));
    let topic = Kafka::shared().unique("checked");
    let brokers = Kafka::shared().brokers();
    let _relay = Process::start(&relay_command(brokers, database.url(), &topic, &[]));
    eventually("the relay to be seen", PATIENCE, || {
        let report = check(&debezium).0;
        (report.contains("a relay polls the outbox") && report.contains("no event waits")).then_some(())
    });
}

#[test]
fn the_check_refuses_a_server_whose_binlog_does_not_have_the_events() {
    let server = Mariadb::start_with(&[
        "binlog_format=MIXED",
        "binlog_row_image=MINIMAL",
        "binlog_ignore_db=outbox_test",
        "expire_logs_days=1",
    ]);
    let database = migrated_on(&server);
    let debezium = BinlogDebezium::without_privileges(&database);
    debezium.set_up();
    let (report, good) = check(&debezium);
    assert!(!good, "{report}");
    for part in ["binlog_format is MIXED", "binlog_row_image is MINIMAL"] {
        assert!(failures(&report).iter().any(|line| line.contains(part)), "{part} is not in\n{report}");
    }
    assert!(report.contains("warn the binlog is kept for 24 hours"), "{report}");
}

/// The ids are stored as text for this reason.
#[test]
fn the_router_does_not_make_text_of_a_binary_id() {
    let database = migrated();
    let conn = &mut database.connect();
    conn.batch_execute("ALTER TABLE outbox MODIFY id binary(16) NOT NULL").unwrap();
    let topic = Kafka::shared().unique("binary");
    let debezium = BinlogDebezium::prepared(&database, &topic);
    let (report, good) = check(&debezium);
    assert!(!good && report.contains("has no id char(36)"), "{report}");
    debezium.begin(&debezium.offset());
    let id = "0198c0de-0000-7000-8000-000000000001";
    conn.batch_execute(&format!(
        "INSERT INTO outbox (id, aggregatetype, aggregateid, type, payload, shard, created_at) \
         VALUES (UNHEX(REPLACE('{id}', '-', '')), 'order', '7', 'Placed', '\\0{{}}', 0, UTC_TIMESTAMP(3))"
    ))
    .unwrap();
    let received = &Kafka::shared().read_at_least(&topic, 1, PATIENCE)[0];
    assert_eq!(received.header("id"), Some("java.nio.HeapByteBuffer[pos=0 lim=16 cap=16]"));
}
