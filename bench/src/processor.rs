//! Processor time.

use std::fs;

/// What the threads of this program's process have had of the processor; nothing where it has ended, or does not run on
/// this machine.
pub(crate) fn nanoseconds(process: u32, program: &str) -> Option<u64> {
    let name = fs::read_to_string(format!("/proc/{process}/comm")).ok()?;
    if name.trim_end() != program {
        return None;
    }
    let threads = fs::read_dir(format!("/proc/{process}/task")).ok()?;
    let times = threads.map(|thread| {
        let told = fs::read_to_string(thread.ok()?.path().join("schedstat")).ok()?;
        told.split(' ').next()?.parse::<u64>().ok()
    });
    times.sum()
}
