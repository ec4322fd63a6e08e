//! Whether something is due that is done now and then.

use std::time::{Duration, Instant};

/// Whether the interval has passed since the last time. If so, the last time is now.
pub(super) fn is_due(last: &mut Option<Instant>, interval: Duration) -> bool {
    let due = has_passed(*last, interval);
    if due {
        *last = Some(Instant::now());
    }
    due
}

/// Whether so much time has passed since then.
pub(super) fn has_passed(since: Option<Instant>, time: Duration) -> bool {
    since.is_none_or(|since| since.elapsed() >= time)
}
