//! The tables, polled.

#[cfg(any(feature = "mysql", feature = "postgres"))]
mod batch_size;
#[cfg(feature = "mysql")]
pub(crate) mod mysql;
#[cfg(feature = "postgres")]
pub(crate) mod postgres;
#[cfg(any(feature = "mysql", feature = "postgres"))]
mod prefetch;
#[cfg(feature = "sqlite")]
pub(crate) mod sqlite;

#[cfg(feature = "mysql")]
pub use self::mysql::{MysqlSource, lacks_tls};
#[cfg(feature = "postgres")]
pub use self::postgres::PostgresSource;
#[cfg(feature = "postgres")]
pub(crate) use self::postgres::{Queue, Schemas, SharedSource, Watch};
#[cfg(feature = "sqlite")]
pub use self::sqlite::SqliteSource;
