//! The tables as a source of records: claim, read, settle, release. A relay drives it.

mod options;
#[cfg(any(feature = "postgres-source", feature = "sqlite-source"))]
mod polling;

pub use diesel_outbox_core::DeadLetterPolicy;

pub use self::options::{SentRows, SourceOptions};
#[cfg(feature = "postgres-source")]
pub use self::polling::PostgresSource;
#[cfg(feature = "sqlite-source")]
pub use self::polling::SqliteSource;
