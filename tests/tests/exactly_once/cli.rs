use outbox_tests::load::{migrated, new_topic, relay, stop, wal, write};
use outbox_tests::{Database, Process, Signal};

use super::outbox::{FromWal, Outbox};
use super::{PATIENCE, assert_sent_exactly_once, emit_more};

#[test]
fn the_binary_sends_exactly_once_by_polling() {
    let database = migrated();
    sends_exactly_once(&database, &["--exactly-once"]);
}

#[test]
fn the_binary_sends_exactly_once_from_the_wal() {
    let database = migrated();
    wal(&database, "setup");
    let slot = database.name().to_owned();
    sends_exactly_once(&FromWal::of(database), &["--exactly-once", "--source", "wal", "--slot", &slot]);
}

/// A relay is killed when it has sent something, the next one is stopped, and a third one does the rest.
fn sends_exactly_once(outbox: &impl Outbox<Tables = Database<'static>>, arguments: &[&str]) {
    let topic = new_topic("binary");
    let start = || -> Process {
        let arguments: Vec<&str> = arguments.iter().copied().chain(["--max-pass-duration", "20ms"]).collect();
        relay(outbox.tables(), &topic, &arguments)
    };
    let mut committed = write(&mut outbox.tables().connect(), 0, 1, 50, 5_000);
    let killed = start();
    killed
        .wait_for_line("that it has taken over", PATIENCE, |line| line.contains("has taken the outbox over"));
    killed.signal(Signal::Kill);
    killed.wait(PATIENCE);
    let stopped = start();
    stopped
        .wait_for_line("that it has taken over", PATIENCE, |line| line.contains("has taken the outbox over"));
    stop(&stopped);
    let last = start();
    committed.extend(emit_more(&mut outbox.tables().connect()));
    assert_sent_exactly_once(outbox, &topic, &committed);
    stop(&last);
}
