//! The relay has too little memory.

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};

use outbox_tests::eventually_ok;

use super::{Fault, NOTHING_LOST, Part, SERVED};
use crate::scene::{PATIENCE, Scene};

pub(super) const FAULTS: &[Fault] = &[Fault {
    name: "relay out of memory",
    part: Part::Relay,
    promise: NOTHING_LOST,
    on: SERVED,
    // It takes root and version 1 of Linux's control groups.
    is_short: false,
    act: too_little,
}];

const KILLED: i32 = 9;
/// Payloads that Kafka takes, but that do not fit into the memory that is left.
const LARGE: usize = 500_000;

/// First nobody else relays, so that the one that is killed has all the work.
fn too_little(scene: &Scene<'_>) {
    scene.stop_relays();
    let group = Group::new();
    group.take(scene.start_relay_with(&[]));
    scene.flows(200);
    group.limit_to_what_is_used();
    let aggregates: Vec<u32> = (0..40).collect();
    aggregates.chunks(10).for_each(|some| scene.site.emit(some, Some(LARGE)));
    for is_last in [false, true] {
        let relay = scene.take_relay();
        scene.interrupted(1);
        let status = relay.wait(PATIENCE);
        assert_eq!(status.signal(), Some(KILLED), "the relay ended otherwise: {}", relay.output());
        scene.keep(relay);
        if !is_last {
            // With as little memory, it does not get far.
            group.take(scene.start_relay_with(&[]));
        }
    }
    scene.start_relay();
    scene.start_relay();
}

/// A control group.
struct Group(PathBuf);

impl Group {
    fn new() -> Self {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let name = format!("chaos-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let path = PathBuf::from("/sys/fs/cgroup/memory").join(name);
        fs::create_dir(&path).unwrap_or_else(|error| {
            panic!(
                "{} cannot be made ({error}): this fault takes root and version 1 of control groups",
                path.display()
            )
        });
        Self(path)
    }

    fn write(&self, file: &str, value: impl ToString) -> std::io::Result<()> {
        fs::write(self.0.join(file), value.to_string())
    }

    /// Counts the memory that a process takes from now on.
    fn take(&self, process: u32) {
        // It may have ended already, because there is no memory.
        let _ = self.write("cgroup.procs", process);
    }

    fn limit_to_what_is_used(&self) {
        // It is refused if more is used by then.
        eventually_ok("a limit of the memory", PATIENCE, || {
            let used = fs::read_to_string(self.0.join("memory.usage_in_bytes"))?;
            self.write("memory.limit_in_bytes", used.trim())
        });
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.0);
    }
}
