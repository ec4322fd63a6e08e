//! The database goes on elsewhere, from a dump or a backup.

use std::process::Command;
use std::time::Duration;

use super::{Fault, NOTHING_LOST, POSTGRES, Part, SERVED};
use crate::lanes::Source;
use crate::scene::{Scene, last};
use crate::servers::{MAJOR, Own, SETTINGS};

pub(super) const FAULTS: &[Fault] = &[
    Fault {
        name: "dumped and restored into a new server",
        part: Part::Servers(Own::Another),
        promise: NOTHING_LOST,
        on: SERVED,
        is_short: false,
        act: dumped,
    },
    Fault {
        name: "restored to a point in time",
        part: Part::Servers(Own::Archive),
        promise: "what was committed before that point arrives, in order; what was sent since may be sent again, and events that were undone \
                  may have been sent",
        on: POSTGRES,
        is_short: false,
        act: restored,
    },
];

/// The service stops, and so do the relays, before all that they have read is sent. Then everything moves.
fn dumped(scene: &Scene<'_>) {
    scene.kill_relays();
    last(Duration::from_millis(500));
    scene.pause_writers();
    scene.servers.dump(scene.site.name());
    scene.servers.first().stop();
    scene.move_over();
    // Neither dump has roles.
    scene.site.grant();
    scene.resume_writers();
    scene.start_relays();
    set_up(scene);
}

/// The relays run on, and find another past.
fn restored(scene: &Scene<'_>) {
    let servers = scene.servers.postgres();
    let backup = servers.first.back_up(MAJOR);
    scene.flows(300);
    scene.site.execute("SELECT pg_create_restore_point('chaos')").expect("a restore point");
    scene.flows(300);
    scene.interrupted(2);
    // A server that shuts down archives all that it has written.
    servers.first.stop();
    let restored = servers.first.restore(backup, MAJOR, "chaos", &SETTINGS);
    assert!(servers.second.set(restored).is_ok(), "it was restored before");
    scene.move_over();
    scene.note_undone();
    set_up(scene);
}

/// Does what the relays ask for, if they read the WAL: nobody keeps a slot when a database moves.
fn set_up(scene: &Scene<'_>) {
    if scene.lane.source != Source::Wal {
        return;
    }
    for printed in scene.relays_end() {
        assert!(printed.contains("outbox wal setup"), "a relay does not say what to do: {printed}");
    }
    scene.interrupted(2);
    let mut setup = Command::new(&scene.program.path);
    setup.args(["wal", "setup", "--slot", scene.site.name()]).env("OUTBOX_DATABASE_URL", scene.site.url());
    let output = setup.output().expect("run the setup");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    scene.start_relays();
}
