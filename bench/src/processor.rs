//! Processor time.

use std::fs;

/// What the threads of a process have had of the processor.
pub(crate) fn nanoseconds(process: u32) -> u64 {
    let threads = fs::read_dir(format!("/proc/{process}/task")).expect("a process that runs here, on Linux");
    threads
        .map(|thread| {
            let told = fs::read_to_string(thread.unwrap().path().join("schedstat")).unwrap();
            told.split(' ').next().unwrap().parse::<u64>().unwrap()
        })
        .sum()
}
