//! The tables, polled.

#[cfg(feature = "postgres-source")]
mod postgres;
#[cfg(feature = "sqlite-source")]
mod sqlite;

#[cfg(feature = "postgres-source")]
pub use self::postgres::PostgresSource;
#[cfg(feature = "sqlite-source")]
pub use self::sqlite::SqliteSource;
