//! The tables, polled.

#[cfg(feature = "postgres-source")]
mod postgres;
mod row;
#[cfg(feature = "sqlite-source")]
mod sqlite;
mod upkeep;

use diesel_outbox_core::SourceError;

use crate::problem::one_line;

#[cfg(feature = "postgres-source")]
pub use self::postgres::PostgresSource;
#[cfg(feature = "sqlite-source")]
pub use self::sqlite::SqliteSource;

const BLOCKED: &str =
    "blocked: an earlier record of the same aggregate is a dead letter; requeue the aggregate";

fn database_error(doing: &str, error: diesel::result::Error) -> SourceError {
    let message = one_line(&error.to_string());
    SourceError::because(format!("the database failed while {doing}: {message}"), error)
}
