//! Processor time.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

/// What threads have had of the processor, in nanoseconds. Of one that has ended it is what was seen last.
#[derive(Default)]
pub(crate) struct Times(BTreeMap<PathBuf, u64>);

impl Times {
    /// Looks at all threads of a process. `false`: this program does not run under this number on this machine.
    pub(crate) fn look(&mut self, process: u32, program: &str) -> bool {
        let name = fs::read_to_string(format!("/proc/{process}/comm")).unwrap_or_default();
        if name.trim_end() != program {
            return false;
        }
        let Ok(threads) = fs::read_dir(format!("/proc/{process}/task")) else { return false };
        for thread in threads.flatten() {
            let told = fs::read_to_string(thread.path().join("schedstat")).unwrap_or_default();
            if let Some(time) = told.split(' ').next().and_then(|time| time.parse().ok()) {
                self.0.insert(thread.path(), time);
            }
        }
        true
    }

    pub(crate) fn total(&self) -> u64 {
        self.0.values().sum()
    }
}
