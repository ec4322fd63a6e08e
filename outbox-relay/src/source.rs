//! The tables as a source of records. A relay drives it: claim, read, settle, release.

#[cfg(feature = "postgres")]
mod advisory_lock;
#[cfg(feature = "postgres")]
pub(crate) mod bounds;
#[cfg(feature = "postgres")]
pub(crate) mod check;
#[cfg(feature = "postgres")]
pub(crate) mod database;
#[cfg(any(feature = "mysql", feature = "postgres"))]
mod database_url;
#[cfg(feature = "postgres")]
pub(crate) mod fence;
#[cfg(any(feature = "mysql", feature = "postgres", feature = "sqlite"))]
mod interval;
#[cfg(feature = "sqlite")]
pub(crate) mod julian_day;
mod options;
#[cfg(any(feature = "mysql", feature = "postgres", feature = "sqlite"))]
pub(crate) mod polling;
#[cfg(feature = "postgres")]
mod pooler;
#[cfg(any(feature = "mysql", feature = "postgres", feature = "sqlite"))]
pub(crate) mod promote;
#[cfg(any(feature = "mysql", feature = "postgres", feature = "sqlite"))]
pub(crate) mod prune;
#[cfg(any(feature = "mysql", feature = "postgres", feature = "sqlite"))]
pub(crate) mod row;
#[cfg(feature = "postgres")]
mod row_security;
#[cfg(feature = "postgres")]
mod search_path;
#[cfg(feature = "postgres")]
pub(crate) mod sequence;
#[cfg(feature = "postgres")]
mod undoable;
#[cfg(feature = "postgres-wal")]
pub mod wal;
#[cfg(feature = "postgres")]
mod writers;

pub use diesel_outbox_core::DeadLetterPolicy;
#[cfg(any(feature = "mysql", feature = "postgres", feature = "sqlite"))]
use diesel_outbox_core::SourceError;

#[cfg(any(feature = "mysql", feature = "postgres"))]
pub use self::database_url::DatabaseUrl;
pub use self::options::{SentRows, SourceOptions};
#[cfg(feature = "mysql")]
pub use self::polling::MysqlSource;
#[cfg(feature = "postgres")]
pub use self::polling::PostgresSource;
#[cfg(feature = "sqlite")]
pub use self::polling::SqliteSource;
#[cfg(feature = "mysql")]
#[doc(hidden)]
pub use self::polling::lacks_tls;
#[cfg(feature = "mysql")]
pub(crate) use self::polling::mysql;
#[cfg(feature = "postgres")]
pub(crate) use self::polling::{Queue, Schemas, SharedSource, Watch};
#[cfg(feature = "postgres")]
#[doc(hidden)]
pub use self::pooler::pooler_problem;
#[cfg(feature = "postgres")]
pub(crate) use self::row_security::sees_all_rows;
#[cfg(feature = "postgres")]
#[doc(hidden)]
pub use self::search_path::enter_schema;
#[cfg(feature = "postgres")]
pub(crate) use self::writers::{named_open_writers, open_writers};

#[cfg(any(feature = "mysql", feature = "postgres", feature = "sqlite"))]
pub(crate) const BLOCKED: &str =
    "blocked: an earlier record of the same aggregate is a dead letter; requeue the aggregate";

#[cfg(any(feature = "mysql", feature = "postgres", feature = "sqlite"))]
pub(crate) const NO_TABLE: &str = "the table `outbox` does not exist here: run the migrations (`outbox migrate`, or \
                        `Migrations::new().run(..)`), or name the schema that holds the tables";

#[cfg(any(feature = "mysql", feature = "postgres", feature = "sqlite"))]
pub(crate) fn database_error(
    doing: &str,
    error: impl std::error::Error + Send + Sync + 'static,
) -> SourceError {
    let message = diesel_outbox_core::__private::one_line(&error.to_string());
    let advice = needed_grant(&message)
        .map(|(table, grant)| format!(". A relay's role needs GRANT {grant} ON {table}: see docs/roles.md"))
        .unwrap_or_default();
    SourceError::new(format!("the database failed while {doing}: {message}{advice}")).with_source(error)
}

/// What a relay's role needs on the table that it was denied, on PostgreSQL. MySQL names the privilege by itself.
#[cfg(any(feature = "mysql", feature = "postgres", feature = "sqlite"))]
fn needed_grant(message: &str) -> Option<(&str, &'static str)> {
    let (_, denied) = message.split_once("permission denied for ")?;
    let table = denied.split(' ').next_back()?;
    let grant = match table {
        "outbox" => "SELECT, UPDATE (seq, sent_at), DELETE",
        "outbox_scheduled" => "SELECT, UPDATE (seq), DELETE",
        "outbox_promotion" => "SELECT, UPDATE",
        "outbox_shard" | "outbox_seq_seq" | "outbox_slot" => "SELECT, UPDATE",
        "outbox_dead_letter" => "SELECT, INSERT",
        "outbox_requeued" => "SELECT, UPDATE (seq), DELETE",
        "outbox_reader" => "UPDATE",
        _ => return None,
    };
    Some((table, grant))
}

/// Wakes the relay that listens when the open transaction commits, because rows come back to the outbox.
#[cfg(feature = "postgres")]
pub(crate) fn wake(conn: &mut diesel::PgConnection) -> diesel::QueryResult<()> {
    use diesel::RunQueryDsl;
    let wake = format!("SELECT {}", diesel_outbox_core::advisory_locks::WAKE);
    diesel::sql_query(wake).execute(conn).map(drop)
}
