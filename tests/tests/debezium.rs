//! A real Debezium works with what `outbox debezium` prints.

use std::process::Command;
use std::time::Duration;

use diesel::connection::SimpleConnection;
use diesel::prelude::*;
use diesel::sql_types::Text;
use diesel_outbox::{Emit, Record};
use outbox_tests::load::{migrated, new_topic, relay, stop, wal_with};
use outbox_tests::{Database, Debezium, Kafka, Postgres, eventually, workspace_binary};

const PATIENCE: Duration = Duration::from_secs(60);

/// Returns what `outbox debezium` prints and whether it succeeded, for a role, a slot and a publication that have the
/// database's name.
fn debezium(database: &Database<'_>, arguments: &[&str]) -> (String, bool) {
    let (_, rest) = database.url().split_once('@').unwrap();
    let mut outbox = Command::new(workspace_binary("outbox"));
    outbox.arg("debezium").args(arguments).args([
        "--slot",
        database.name(),
        "--publication",
        database.name(),
    ]);
    let output = outbox
        .env("OUTBOX_DATABASE_URL", format!("postgres://{}:s3cret@{rest}", database.name()))
        .output()
        .unwrap();
    let errors = String::from_utf8(output.stderr).unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(!text.contains("s3cret") && !errors.contains("s3cret"), "{text}{errors}");
    (if text.is_empty() { errors } else { text }, output.status.success())
}

fn failures(report: &str) -> Vec<&str> {
    report.lines().filter(|line| line.starts_with("FAIL")).collect()
}

fn one(conn: &mut PgConnection, sql: &str) -> String {
    diesel::dsl::sql::<Text>(sql).get_result(conn).unwrap()
}

#[test]
fn debezium_needs_only_what_the_commands_print() {
    // A version on which a slot can be a failover slot.
    let database = Postgres::shared_version(18).database();
    let conn = &mut database.connect();
    database.migrate();
    conn.batch_execute(&format!("CREATE ROLE {} LOGIN", database.name())).unwrap();
    let (report, good) = debezium(&database, &["check"]);
    assert!(!good, "{report}");
    for part in ["may not replicate", "may not read public.outbox", "no publication", "no slot"] {
        assert!(failures(&report).iter().any(|line| line.contains(part)), "{part} is not in\n{report}");
    }

    let (sql, _) = debezium(&database, &["setup-sql"]);
    for statement in sql.split("\n\n").skip(1) {
        conn.batch_execute(statement).unwrap_or_else(|error| panic!("{error}: {statement}"));
    }
    let (report, good) = debezium(&database, &["check"]);
    assert!(good && failures(&report).is_empty(), "{report}");
    assert!(
        report.contains("no event waits to be polled") && report.contains("warn max_slot_wal_keep_size"),
        "{report}"
    );

    let prefix = Kafka::shared().unique("printed");
    let topic = format!("{prefix}.{{aggregatetype}}");
    let print = ["connector", "--format", "properties", "--name", database.name(), "--topic", &topic];
    let (connector, _) = debezium(&database, &print);
    assert!(connector.contains("${env:OUTBOX_DATABASE_PASSWORD}"), "{connector}");
    // The configuration as printed, except for the interval at which an idle slot moves.
    let connector = connector.replace("heartbeat.interval.ms=60000", "heartbeat.interval.ms=500");
    let debezium_process = Debezium::with_connector(&database, Kafka::shared(), &connector);
    let event = Record::new("order", "7", "Placed").header("trace", "1").with_payload(*b"\0 any bytes");
    conn.transaction(|c| c.emit(&event)).unwrap();
    let received = &Kafka::shared().read_at_least(&format!("{prefix}.order"), 1, PATIENCE)[0];
    assert_eq!(received.payload.as_deref(), event.payload());
    assert_eq!(received.header("eventType"), Some("Placed"));
    assert!(debezium(&database, &["check"]).0.contains("is read by Debezium"));

    // The outbox is idle and others write. The slot must move forward.
    conn.batch_execute("CREATE TABLE noise AS SELECT repeat('x', 1000) FROM generate_series(1, 1000)")
        .unwrap();
    let end = one(conn, "SELECT pg_current_wal_insert_lsn()::text");
    let moved = format!(
        "SELECT (confirmed_flush_lsn >= '{end}')::text FROM pg_replication_slots WHERE slot_name = '{}'",
        database.name()
    );
    eventually("the slot to move on", PATIENCE, || (one(conn, &moved) == "true").then_some(()));
    debezium_process.stop();
    // A relay must also accept the slot that was made with these statements.
    let names = ["--slot", database.name(), "--publication", database.name()];
    let log = relay(&database, &new_topic("printed"), &[&["--source", "wal"], &names[..]].concat());
    log.wait_for_line("that it reads", PATIENCE, |line| line.contains("reads the write-ahead log"));
    stop(&log);
    let topics = Kafka::shared().read_all(&format!("{}.message", database.name()));
    assert!(topics.is_empty(), "a heartbeat's message was sent as an event");
}

/// `outbox wal setup` has made the cutover, and a relay has read the WAL before.
#[test]
fn the_check_reports_what_waits_and_what_was_sent_before() {
    let database = migrated();
    let conn = &mut database.connect();
    conn.transaction(|c| c.emit(&Record::new("order", "7", "Waits"))).unwrap();
    wal_with(&database, &["setup", "--slot", database.name(), "--publication", database.name()]);
    let (sql, _) = debezium(&database, &["setup-sql"]);
    // The publication, the slot and the cutover exist.
    let made = ["PUBLICATION", "_slot(", "polled_through = 0"];
    for statement in sql.split("\n\n").skip(1).filter(|sql| !made.iter().any(|made| sql.contains(made))) {
        conn.batch_execute(statement).unwrap_or_else(|error| panic!("{error}: {statement}"));
    }
    let (report, good) = debezium(&database, &["check"]);
    assert!(good && report.contains("events wait to be polled"), "{report}");
    assert!(!report.contains("MB of the WAL wait") && !report.contains("_advance("), "{report}");

    conn.batch_execute(
        "SELECT pg_logical_emit_message(false, 'noise', repeat('x', 100 << 20)) FROM generate_series(1, 3); \
         UPDATE outbox_slot SET start_lsn = pg_current_wal_lsn()",
    )
    .unwrap();
    let (report, good) = debezium(&database, &["check"]);
    assert!(good && report.contains("MB of the WAL wait"), "{report}");
    let advance = format!("run SELECT pg_replication_slot_advance('{}', '", database.name());
    assert!(report.contains(&advance), "{report}");
}

/// The router can send the column of the events' own headers only as one header.
#[test]
fn debezium_can_send_own_headers_as_one_json_header() {
    let database = migrated();
    let topic = Kafka::shared().unique("own-headers");
    let placement = "type:header:eventType,headers:header:headers";
    let property = [("transforms.outbox.table.fields.additional.placement", placement)];
    let _debezium = Debezium::start(&database, Kafka::shared(), &topic, &property);
    let event = Record::new("order", "7", "Placed").header("z", "ü").header("a", "").with_payload(*b"{}");
    let conn = &mut database.connect();
    conn.transaction(|c| c.emit_all([&event, &Record::new("order", "7", "Bare")])).unwrap();
    let received = Kafka::shared().read_at_least(&topic, 2, PATIENCE);
    assert_eq!(received[0].header("headers"), Some("{\"z\":\"ü\",\"a\":\"\"}"));
    assert_eq!(received[1].headers[2], ("headers".to_owned(), None));
}
