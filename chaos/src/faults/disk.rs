//! The disk of the database is full.

use std::time::Duration;

use outbox_tests::eventually;

use super::{ALL, Fault, NOTHING_LOST, Part};
use crate::scene::{PATIENCE, Scene, last};
use crate::servers::Own;

pub(super) const FAULTS: &[Fault] = &[Fault {
    name: "the database's disk full",
    part: Part::Servers(Own::SmallDisk),
    promise: NOTHING_LOST,
    on: ALL,
    is_short: false,
    act: full,
}];

/// Some servers end when their disk is full, and their operator starts them again when there is room. Others go on by themselves.
fn full(scene: &Scene<'_>) {
    // After the first failure, relays try with one event at a time. They had little in flight.
    scene.interrupted(1);
    let disk = scene.servers.disk();
    disk.fill();
    stalls(scene);
    last(Duration::from_secs(2));
    disk.free();
    if scene.site.execute("SELECT 1").is_err() {
        scene.site.restart();
    }
}

/// Waits until no more events come.
fn stalls(scene: &Scene<'_>) {
    let mut before = scene.count();
    eventually("the disk to stop everything", PATIENCE, || {
        last(Duration::from_millis(1_500));
        let now = scene.count();
        (std::mem::replace(&mut before, now) == now).then_some(())
    });
}
