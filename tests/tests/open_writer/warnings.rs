//! What a relay says of open transactions when it starts.

use diesel::connection::{AnsiTransactionManager, SimpleConnection, TransactionManager};
use diesel::prelude::*;
use diesel_outbox::{Emit, Record};
use outbox_tests::load::{migrated_on, new_topic, relay_at, stop};
use outbox_tests::{Kafka, Postgres, Process, eventually};

use super::{PATIENCE, SENT, count, emit, keep_sent};

/// Sets the clock an hour ahead for sessions that begin from now on, so that no test waits until a transaction is old.
fn put_the_clock_ahead(conn: &mut PgConnection) {
    conn.batch_execute(
        "SET allow_system_table_mods = on; ALTER FUNCTION pg_catalog.clock_timestamp() RENAME TO real_clock_timestamp; \
         CREATE FUNCTION pg_catalog.clock_timestamp() RETURNS timestamptz LANGUAGE sql \
         AS $$ SELECT pg_catalog.real_clock_timestamp() + interval '1 hour' $$",
    )
    .unwrap();
}

/// Returns the message of the warning that names this writer. The age in it must be right.
fn warning(relay: &Process, field: &str, value: &serde_json::Value) -> String {
    let parsed = |line: &str| serde_json::from_str::<serde_json::Value>(line).unwrap_or_default();
    let names_it = |line: &str| parsed(line)[field] == *value;
    let line = parsed(&relay.wait_for_line(&format!("the {field} {value}"), PATIENCE, names_it));
    assert_eq!(line["level"], "WARN");
    let seconds = line["seconds"].as_u64().unwrap();
    assert!((3_600..3_700).contains(&seconds), "{line}");
    line["message"].as_str().unwrap().to_owned()
}

/// Runs the statement that a message advises. The statement begins with these words.
fn follow(conn: &mut PgConnection, message: &str, begins: &str) {
    let (_, statement) = message.rsplit_once(begins).unwrap_or_else(|| panic!("no {begins} in: {message}"));
    conn.batch_execute(&format!("{begins}{statement}")).unwrap();
}

/// One transaction of a session and one prepared transaction, both older than the relay.
#[test]
fn a_relay_warns_of_old_open_writers_when_it_starts_and_its_advice_ends_them() {
    let server = Postgres::start_with(15, &[("max_prepared_transactions", "5")]);
    let database = migrated_on(&server);
    let (conn, writer, orphan) = (&mut database.connect(), &mut database.connect(), &mut database.connect());
    let pid = count(writer, "SELECT pg_backend_pid()::bigint");
    for writer in [&mut *writer, &mut *orphan] {
        AnsiTransactionManager::begin_transaction(writer).unwrap();
        writer.batch_execute("SET LOCAL outbox.notify = 'off'").unwrap();
        writer.emit(&Record::new("order", "slow", "Never")).unwrap();
    }
    orphan.batch_execute("PREPARE TRANSACTION 'nobody''s \\ orphan'").unwrap();
    keep_sent(conn);
    put_the_clock_ahead(conn);
    let topic = new_topic("writers");
    // A relay that may see how old other roles' transactions are.
    let relay = relay_at(database.url(), &topic, &["--log-format", "json"]);

    let of_the_session = warning(&relay, "pid", &pid.into());
    let of_the_orphan = warning(&relay, "gid", &"nobody's \\ orphan".into());
    assert!(
        count(conn, "SELECT max(sent_through) FROM outbox_shard") < SENT,
        "the open transactions were gone past"
    );
    follow(conn, &of_the_session, "SELECT pg_terminate_backend(");
    follow(conn, &of_the_orphan, "ROLLBACK PREPARED ");
    let mut emitted = 0;
    eventually("the first bound to move", PATIENCE, || {
        emitted += 1;
        emit(conn, "other", "Other");
        (count(conn, "SELECT min(sent_through) FROM outbox_shard") >= SENT).then_some(())
    });
    eventually("all to be sent", PATIENCE, || {
        (count(conn, "SELECT count(*) FROM outbox WHERE sent_at IS NULL") == 0).then_some(())
    });
    stop(&relay);
    let received = Kafka::shared().read_all(&topic);
    assert_eq!(received.len(), emitted);
    assert!(received.iter().all(|received| received.header("eventType") == Some("Other")));
}
