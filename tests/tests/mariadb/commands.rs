//! The binary's commands.

use std::process::Command;
use std::time::Duration;

use diesel::connection::SimpleConnection;
use diesel::prelude::*;
use diesel_outbox::{Emit, Migrations};
use outbox_tests::{Mariadb, Process, workspace_binary};

use super::{count, emit, record};

suite!(
    the_binary_migrates_and_shows_what_waits,
    a_migration_that_fails_half_way_is_not_recorded_and_goes_on_when_it_is_run_again,
    several_processes_may_migrate_at_the_same_time,
);

/// Runs the binary, and returns whether it succeeded and what it printed.
pub(super) fn outbox(url: &str, arguments: &[&str]) -> (bool, String) {
    let mut command = Command::new(workspace_binary("outbox"));
    let output = command.args(arguments).env("OUTBOX_DATABASE_URL", url).output().unwrap();
    let text =
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    (output.status.success(), text)
}

/// The same for a command that must succeed.
#[track_caller]
pub(super) fn done(url: &str, arguments: &[&str]) -> String {
    let (done, text) = outbox(url, arguments);
    assert!(done, "{text}");
    text
}

/// A relay takes the parameter too.
fn the_binary_migrates_and_shows_what_waits(server: &'static Mariadb) {
    let database = server.database();
    let url = format!("{}?tcp_connect_timeout_ms=9000", database.url());
    assert_eq!(done(&url, &["migrate", "--inbox-only"]).matches("ran ").count(), 1);
    assert_eq!(done(&url, &["migrate"]).matches("ran ").count(), 2);
    emit(&mut database.connect(), [1, 2, 3]);
    let lag = done(&url, &["lag"]);
    assert!(lag.contains('3'), "{lag}");
    assert!(done(&url, &["migrate"]).contains("is up to date"));
    assert!(Migrations::new().run(&mut database.connect()).unwrap().is_empty(), "the record is another one");
}

/// The second of its statements creates this table, and the third one inserts into it.
fn a_migration_that_fails_half_way_is_not_recorded_and_goes_on_when_it_is_run_again(
    server: &'static Mariadb,
) {
    let database = server.database();
    let conn = &mut database.connect();
    conn.batch_execute("CREATE TABLE outbox_shard (another int)").unwrap();
    let (is_done, text) = outbox(database.url(), &["migrate"]);
    assert!(!is_done && text.contains("create_outbox failed") && text.contains("shard"), "{text}");
    assert_eq!(count(conn, "outbox_migration"), 0);
    conn.batch_execute("DROP TABLE outbox_shard").unwrap();
    done(database.url(), &["migrate"]);
    assert_eq!(count(conn, "outbox_shard"), 16);
    conn.transaction(|c| c.emit(&record(1))).unwrap();
}

fn several_processes_may_migrate_at_the_same_time(server: &'static Mariadb) {
    let database = server.database();
    let mut command = Command::new(workspace_binary("outbox"));
    command.arg("migrate").env("OUTBOX_DATABASE_URL", database.url());
    let processes: Vec<Process> = (0..8).map(|_| Process::start(&command)).collect();
    let ran = |process: &Process| {
        assert!(process.wait(Duration::from_secs(60)).success(), "{}", process.output());
        process.output().matches("ran ").count()
    };
    assert_eq!(processes.iter().map(ran).sum::<usize>(), 3, "one of them ran each");
}
