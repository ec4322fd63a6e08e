//! Deletes what was sent and is older than the retention.

#[cfg(feature = "postgres")]
mod postgres;
#[cfg(feature = "sqlite")]
mod sqlite;

use std::time::Duration;

#[cfg(feature = "postgres")]
pub(super) use self::postgres::PostgresPruning;
#[cfg(feature = "sqlite")]
pub(super) use self::sqlite::SqlitePruning;

const PRUNE_INTERVAL: Duration = Duration::from_secs(60);
const PRUNE_CHUNK: i64 = 5_000;
