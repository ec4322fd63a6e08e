//! Deleting what was sent and is older than the retention.

#[cfg(feature = "postgres")]
mod postgres;
#[cfg(feature = "sqlite")]
mod sqlite;

use std::time::{Duration, Instant};

#[cfg(feature = "postgres")]
pub(super) use self::postgres::Pruning;
#[cfg(feature = "sqlite")]
pub(super) use self::sqlite::Pruning as SqlitePruning;

const PRUNE_INTERVAL: Duration = Duration::from_secs(60);
const PRUNE_CHUNK: i64 = 5_000;

/// Whether the interval has passed since the last time, which is now where it has.
pub(super) fn is_due(last: &mut Option<Instant>, interval: Duration) -> bool {
    let due = last.is_none_or(|last| last.elapsed() >= interval);
    if due {
        *last = Some(Instant::now());
    }
    due
}
