//! `outbox status`, as its users run it.

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::time::Duration;

use diesel::connection::SimpleConnection;
use diesel::prelude::*;
use diesel_outbox::{Emit, OutboxConnection, Record};
use outbox_tests::{Folder, Process, Signal, migrated_mariadb, workspace_binary};
use serde_json::Value;

const PATIENCE: Duration = Duration::from_secs(60);

fn status(url: &str, more: &[&str]) -> Command {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    let mut command = Command::new(BINARY.get_or_init(|| workspace_binary("outbox")));
    command.args(["status", "--database-url", url]).args(more).env_remove("RUST_LOG");
    command
}

fn printed(url: &str, more: &[&str]) -> String {
    let output = status(url, more).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
    String::from_utf8(output.stdout).unwrap()
}

fn json(url: &str) -> Value {
    serde_json::from_str(&printed(url, &["--json"])).unwrap()
}

fn emit<C: OutboxConnection>(conn: &mut C, aggregate_type: &str, count: usize) {
    let record = |id: usize| Record::new(aggregate_type, id.to_string(), "OrderPlaced").with_payload(*b"{}");
    conn.transaction(|c| c.emit_all((0..count).map(record))).unwrap();
}

#[test]
fn the_state_is_printed_in_aligned_tables_of_80_columns_and_as_json() {
    let database = outbox_tests::load::migrated();
    let conn = &mut database.connect();
    emit(conn, "order", 1_200);
    emit(conn, &"a-very-long-aggregate-type".repeat(4), 3);
    let dead = "INSERT INTO outbox_dead_letter (seq, id, aggregatetype, aggregateid, type, shard, created_at, reason) \
                SELECT n, gen_random_uuid(), 'invoice', n::text, 'InvoiceSentToSomebodyFarAway', 0, now(), n::text || ' bytes are \
                more than the topic''s max.message.bytes allows: raise it' FROM generate_series(-9, -1) AS n";
    conn.batch_execute(dead).unwrap();
    let mut worker = database.connect();
    worker
        .batch_execute(
            "SET application_name = 'outbox relay'; SELECT pg_advisory_lock_shared(1869968484, 'outbox'::regclass::oid::int4); \
             BEGIN; SELECT FROM outbox_shard WHERE shard IN (3, 4, 5, 9) FOR UPDATE",
        )
        .unwrap();
    let text = printed(database.url(), &[]);
    for part in [
        "waiting              1,203  the oldest for ",
        "dead letters             9\n",
        "order  ",
        " works ",
        "3-5 9\n",
        "InvoiceSentToSomebo…",
    ] {
        assert!(text.contains(part), "{part:?} is not in\n{text}");
    }
    assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
    assert!(!text.contains("/s") && !text.contains('\x1b'), "{text}");

    let object = json(database.url());
    assert_eq!(
        (&object["unsent"], &object["dead_letters"], &object["last_number"]),
        (&1_203.into(), &9.into(), &1_203.into())
    );
    assert_eq!(object["causes"].as_array().unwrap().len(), 1);
    assert_eq!(object["claims"].as_array().unwrap().len(), 4);
    assert_eq!(object["claims"][3]["shard"], 9);
    assert_eq!(object["sessions"][0]["works"], true);
    assert!(object.get("slot").is_none());
    // A relay's role sees the same.
    assert_eq!(json(&database.relay_url())["claims"], object["claims"]);
}

#[test]
fn what_a_database_does_not_show_is_said() {
    let database = migrated_mariadb();
    emit(&mut database.connect(), "order", 5);
    let text = printed(&database.relay_url(), &[]);
    assert!(text.contains("No relay has a session in this database"), "{text}");
    let object = json(&database.relay_url());
    assert_eq!(
        (&object["unsent"], &object["claims"], &object["last_number"]),
        (&5.into(), &Value::Null, &5.into())
    );

    let folder = Folder::new("cli-status");
    let path = folder.path().join("outbox.db");
    let path = path.to_str().unwrap();
    let mut conn = SqliteConnection::establish(path).unwrap();
    diesel_outbox::Migrations::new().run(&mut conn).unwrap();
    emit(&mut conn, "order", 2);
    let text = printed(path, &[]);
    assert!(
        text.contains("SQLite has no sessions") && text.lines().all(|line| line.chars().count() <= 80),
        "{text}"
    );
    assert_eq!((&json(path)["unsent"], &json(path)["sessions"]), (&2.into(), &Value::Null));
}

#[test]
fn a_watch_prints_rates_and_goes_on_until_it_is_ended_or_nobody_reads() {
    let database = outbox_tests::load::migrated();
    let conn = &mut database.connect();
    let watch = Process::start(&status(database.url(), &["--watch=100ms"]));
    watch.wait_for_line("the first look", PATIENCE, |line| line.starts_with("waiting"));
    let emitted = outbox_tests::eventually("a rate above zero", PATIENCE, || {
        emit(conn, "order", 100);
        let is_rate =
            |line: &&str| line.starts_with("emitted") && !line.contains("   0/s") && !line.contains('–');
        watch.output().lines().find(is_rate).map(str::to_owned)
    });
    assert!(emitted.contains('█'), "{emitted}");
    assert!(!watch.output().contains('\x1b'));
    // A shell lets its background jobs ignore an interruption.
    watch.signal(Signal::Terminate);
    assert!(!watch.wait(PATIENCE).success());

    let mut unread =
        status(database.url(), &["--watch=10ms", "--json"]).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(unread.stdout.take().unwrap()).lines();
    let first: Value = serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap();
    let second: Value = serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap();
    assert!(first.get("emitted_per_second").is_none() && second["emitted_per_second"] == 0.0, "{second}");
    drop(lines);
    assert!(unread.wait().unwrap().success());
}

/// The command runs in a terminal of its own, which util-linux's `script` makes.
#[test]
fn in_a_terminal_a_watch_writes_over_what_it_wrote() {
    let database = outbox_tests::load::migrated();
    let command = status(database.url(), &["--watch=50ms"]);
    let line: Vec<String> = std::iter::once(command.get_program())
        .chain(command.get_args())
        .map(|word| format!("'{}'", word.to_str().unwrap()))
        .collect();
    let folder = Folder::new("terminal");
    let log = folder.path().join("typescript");
    let mut script = Command::new("script");
    script.args(["-q", "-f", "-c", &line.join(" ")]).arg(&log);
    let terminal = Process::start(&script);
    let seen = outbox_tests::eventually("three screens", PATIENCE, || {
        let seen = std::fs::read_to_string(&log).unwrap_or_default();
        (seen.matches("\x1b[?2026l").count() >= 3).then_some(seen)
    });
    assert_eq!(seen.matches("\x1b[2J").count(), 1);
    assert!(seen.matches("\x1b[H").count() >= 3);
    drop(terminal);
}
