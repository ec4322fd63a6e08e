//! The tables as a source of records: claim, read, settle, release. A relay drives it.

#[cfg(feature = "postgres-source")]
mod check;
#[cfg(feature = "postgres-source")]
mod database;
#[cfg(feature = "postgres-source")]
mod fence;
mod options;
#[cfg(any(feature = "postgres-source", feature = "sqlite-source"))]
mod polling;
#[cfg(any(feature = "postgres-source", feature = "sqlite-source"))]
mod prune;
#[cfg(any(feature = "postgres-source", feature = "sqlite-source"))]
mod row;
#[cfg(feature = "postgres-source")]
mod sequence;
#[cfg(feature = "postgres-wal")]
pub mod wal;
#[cfg(feature = "postgres-source")]
mod writers;

pub use diesel_outbox_core::DeadLetterPolicy;
#[cfg(any(feature = "postgres-source", feature = "sqlite-source"))]
use diesel_outbox_core::SourceError;

pub use self::options::{SentRows, SourceOptions};
#[cfg(feature = "postgres-source")]
pub use self::polling::PostgresSource;
#[cfg(feature = "sqlite-source")]
pub use self::polling::SqliteSource;

#[cfg(any(feature = "postgres-source", feature = "sqlite-source"))]
const BLOCKED: &str =
    "blocked: an earlier record of the same aggregate is a dead letter; requeue the aggregate";

#[cfg(any(feature = "postgres-source", feature = "sqlite-source"))]
fn database_error(doing: &str, error: diesel::result::Error) -> SourceError {
    let message = crate::problem::one_line(&error.to_string());
    SourceError::because(format!("the database failed while {doing}: {message}"), error)
}
