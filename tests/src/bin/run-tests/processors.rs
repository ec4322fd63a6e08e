//! How busy the processors were. This shows whether more programs at once would help.

use std::fs;

/// What the processors have done since the system started, in ticks.
pub(crate) struct Processors {
    idle: u64,
    all: u64,
}

impl Processors {
    /// Returns what they have done so far, if the system has `/proc/stat` as Linux does.
    pub(crate) fn now() -> Option<Self> {
        let stat = fs::read_to_string("/proc/stat").ok()?;
        let ticks = stat.lines().next()?.strip_prefix("cpu ")?;
        // user, nice, system, idle, waiting for disks, interrupts, soft interrupts, taken by other machines
        let ticks: Vec<u64> = ticks.split_whitespace().take(8).map_while(|tick| tick.parse().ok()).collect();
        Some(Self { idle: ticks.get(3)? + ticks.get(4)?, all: ticks.iter().sum() })
    }

    /// Returns the percentage of the time since `then` in which they had something to do.
    pub(crate) fn busy_since(&self, then: &Self) -> u64 {
        let all = self.all.saturating_sub(then.all).max(1);
        100 - (100 * self.idle.saturating_sub(then.idle) / all).min(100)
    }
}
