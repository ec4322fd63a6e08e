//! The primary dies, and a standby or replica of it takes over.

use std::time::Duration;

use outbox_tests::{Tables, eventually};

use super::{Fault, MARIADB, NOTHING_LOST, POSTGRES, Part};
use crate::lanes::Source;
use crate::scene::{PATIENCE, Scene, last};
use crate::servers::Own;

const MAY_UNDO: &str = "what the standby had arrives, in order; commits that it did not have are undone, and their events may have been sent";

const fn fault(name: &'static str, major: u32, is_synchronous: bool) -> Fault {
    Fault {
        name,
        part: Part::Servers(Own::Standby { major, is_synchronous }),
        promise: if is_synchronous { NOTHING_LOST } else { MAY_UNDO },
        on: POSTGRES,
        is_short: false,
        act: if is_synchronous { synchronous } else { asynchronous },
    }
}

const fn of_mariadb(name: &'static str, is_semi_synchronous: bool) -> Fault {
    let part = Part::Servers(Own::Replica { is_semi_synchronous });
    Fault { part, on: MARIADB, ..fault(name, 0, is_semi_synchronous) }
}

pub(super) const FAULTS: &[Fault] = &[
    fault("failover to a synchronous standby, PostgreSQL 17", 17, true),
    fault("failover to a synchronous standby, PostgreSQL 18", 18, true),
    fault("failover to an asynchronous standby, PostgreSQL 17", 17, false),
    fault("failover to an asynchronous standby, PostgreSQL 18", 18, false),
    of_mariadb("failover to a semi-synchronous replica, MariaDB", true),
    of_mariadb("failover to an asynchronous replica, MariaDB", false),
];

/// How long the standby gets nothing before the primary dies.
const BEHIND: Duration = Duration::from_millis(500);

fn synchronous(scene: &Scene<'_>) {
    fail_over(scene);
}

/// Commits that the standby has not got are undone.
fn asynchronous(scene: &Scene<'_>) {
    fail_over(scene);
    scene.note_undone();
}

fn fail_over(scene: &Scene<'_>) {
    let servers = scene.servers;
    if scene.lane.source == Source::Wal {
        let standby = servers.postgres().second.get().expect("a standby");
        let database = standby.existing(scene.site.name());
        let kept = "SELECT count(*) FROM pg_replication_slots WHERE slot_name = current_database() AND synced AND NOT temporary";
        eventually("the standby's copy of the slot", PATIENCE, || (database.number(kept) == 1).then_some(()));
        scene.flows(300);
    }
    scene.interrupted(2);
    let replication = servers.replication();
    replication.hold();
    last(BEHIND);
    servers.first().crash();
    // What is under way does not arrive.
    replication.cut();
    servers.promote();
    scene.move_over();
}
