//! Whether something is due that happens now and then.

use std::time::{Duration, Instant};

/// Returns whether the interval has passed since the last time. If so, sets the last time to now.
pub(super) fn is_due(last: &mut Option<Instant>, interval: Duration) -> bool {
    let due = has_passed(*last, interval);
    if due {
        *last = Some(Instant::now());
    }
    due
}

/// Returns whether this much time has passed since then.
pub(super) fn has_passed(since: Option<Instant>, time: Duration) -> bool {
    since.is_none_or(|since| since.elapsed() >= time)
}
