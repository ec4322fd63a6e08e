//! The database stops, ends sessions, and has other things to do.

use std::time::{Duration, Instant};

use outbox_tests::eventually;

use super::{EXACT, Fault, NOTHING_LOST, POLLED, POSTGRES, Part, SERVED, SQLITE};
use crate::lanes::Source;
use crate::ledger::RESERVED;
use crate::scene::{PATIENCE, Scene, last};

const fn fault(name: &'static str, promise: &'static str, act: fn(&Scene<'_>)) -> Fault {
    Fault { name, part: Part::Database, promise, on: SERVED, is_short: true, act }
}

pub(super) const FAULTS: &[Fault] = &[
    fault("sessions terminated", NOTHING_LOST, sessions),
    fault("database killed", NOTHING_LOST, |scene| away(scene, true)),
    fault("database stopped", NOTHING_LOST, |scene| away(scene, false)),
    fault("old snapshot held", EXACT, snapshot),
    fault("emitting transaction left open", EXACT, open_writer),
    fault("column added and dropped", NOTHING_LOST, columns),
    Fault { on: POSTGRES, ..fault("outbox rewritten (VACUUM FULL)", NOTHING_LOST, rewritten) },
    Fault { is_short: false, ..fault("connections used up", NOTHING_LOST, starved) },
    Fault { on: SQLITE, ..fault("file locked by another writer for 6 s", EXACT, |scene| locked(scene, 6)) },
    Fault {
        on: SQLITE,
        is_short: false,
        ..fault("file locked by another writer for 40 s", NOTHING_LOST, |scene| locked(scene, 40))
    },
    Fault { on: POLLED, ..fault("missed wake-up", EXACT, missed_wakeup) },
];

fn sessions(scene: &Scene<'_>) {
    for _ in 0..3 {
        scene.interrupted(2);
        scene.site.end_sessions();
        if scene.lane.source == Source::Wal {
            // The relay may have begun anew meanwhile.
            scene.interrupted(2);
            let senders = "SELECT pg_terminate_backend(pid) FROM pg_stat_replication";
            scene.site.execute(senders).expect("end the senders");
        }
        scene.flows(50);
    }
}

fn away(scene: &Scene<'_>, killed: bool) {
    scene.interrupted(2);
    if killed {
        scene.site.crash();
    } else {
        scene.site.stop();
    }
    scene.site.restart();
}

fn snapshot(scene: &Scene<'_>) {
    let begin = match scene.lane.source {
        Source::Mariadb => "START TRANSACTION WITH CONSISTENT SNAPSHOT",
        _ => "BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM outbox",
    };
    let held = scene.site.hold(begin);
    scene.flows(1_500);
    drop(held);
}

fn open_writer(scene: &Scene<'_>) {
    let commit = scene.site.emit_and_wait(RESERVED);
    scene.flows(1_500);
    commit();
}

/// A statement that waits for a lock too long is tried again, as a careful operator does.
fn alter(scene: &Scene<'_>, sql: &str) {
    let limit = match scene.lane.source {
        Source::Mariadb => "SET lock_wait_timeout = 2",
        _ => "SET lock_timeout = '2s'",
    };
    let began = Instant::now();
    let mut tries = 0;
    eventually(sql, PATIENCE, || {
        tries += 1;
        // Any other error would come again and again.
        match scene.site.execute(&format!("{limit}; {sql}")) {
            Ok(()) => Some(()),
            Err(refused) => {
                assert!(refused.to_lowercase().contains("timeout"), "{sql}: {refused}");
                None
            }
        }
    });
    println!("    {sql}: {tries} tries, {:.1} s", began.elapsed().as_secs_f64());
}

fn columns(scene: &Scene<'_>) {
    scene.interrupted(2);
    alter(scene, "ALTER TABLE outbox ADD COLUMN note varchar(20) DEFAULT 'none'");
    scene.flows(200);
    alter(scene, "ALTER TABLE outbox DROP COLUMN note");
    alter(scene, "CREATE INDEX outbox_created_at ON outbox (created_at)");
    scene.flows(200);
    // The fault may come twice in a run.
    alter(
        scene,
        if scene.lane.source == Source::Mariadb {
            "DROP INDEX outbox_created_at ON outbox"
        } else {
            "DROP INDEX outbox_created_at"
        },
    );
}

fn rewritten(scene: &Scene<'_>) {
    scene.interrupted(4);
    for _ in 0..2 {
        // It cannot run beside another statement.
        let limited = "SET lock_timeout = '2s'";
        eventually("VACUUM FULL", PATIENCE, || {
            scene.site.execute(limited).ok()?;
            scene.site.execute("VACUUM FULL outbox").ok()
        });
        scene.flows(200);
    }
}

/// A relay waits 30 s for its turn. What it cannot settle then is sent again.
fn locked(scene: &Scene<'_>, seconds: u64) {
    if seconds > 30 {
        scene.interrupted(2);
    }
    let held = scene.site.hold("BEGIN IMMEDIATE");
    last(Duration::from_secs(seconds));
    drop(held);
}

/// Others have every connection that the server gives. Relays that begin then must wait.
fn starved(scene: &Scene<'_>) {
    let mut held = vec![scene.site.take_connections()];
    scene.kill_relays();
    // The server may notice somewhat later that a session is gone.
    for _ in 0..5 {
        last(Duration::from_millis(200));
        held.push(scene.site.take_connections());
    }
    let before = scene.count();
    scene.start_relays();
    last(Duration::from_secs(3));
    assert_eq!(scene.count(), before, "a relay has found a connection");
    drop(held);
}

/// Rows that come without a notification, while nobody else writes.
fn missed_wakeup(scene: &Scene<'_>) {
    scene.pause_writers();
    eventually("all to be sent", PATIENCE, || (scene.site.unsent() == 0).then_some(()));
    let sql = crate::ledger::without_wakeup(0, scene.lane.source);
    scene.site.execute(&sql).expect("insert an event");
    eventually("the event to be sent", PATIENCE, || (scene.site.unsent() == 0).then_some(()));
    scene.resume_writers();
}
