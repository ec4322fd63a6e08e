//! The SQL of each database, behind one sealed trait. The statements are query fragments and not `sql_query`, because Diesel
//! caches a fragment as a prepared statement, which takes one round trip and is planned once.

#[cfg(feature = "mysql")]
pub(crate) mod mysql;
#[cfg(feature = "postgres")]
pub(crate) mod postgres;
mod rows;
pub(crate) mod scheduled;
#[cfg(feature = "sqlite")]
pub(crate) mod sqlite;

use diesel::QueryResult;
use diesel::backend::Backend;
use diesel::query_builder::{AstPass, QueryFragment, QueryId};
use uuid::Uuid;

pub(crate) use self::rows::{Load, Table};
pub use self::rows::{LoadedRow, SelectRows};
pub(crate) use self::scheduled::{CancelScheduled, InsertScheduled};
use crate::{Record, wire};

/// A database that can hold an outbox. It is implemented for Diesel's `Pg`, `Mysql` and `Sqlite`, each with the feature of that name:
/// `postgres`, `mysql` and `sqlite`. It is sealed.
#[diagnostic::on_unimplemented(
    message = "diesel-outbox does not support the database `{Self}`",
    note = "turn on the feature `postgres`, `mysql` or `sqlite` of diesel-outbox, or of diesel-outbox-kafka for a consumer",
    note = "for an enum with `#[derive(MultiConnection)]`, call `diesel_outbox::multi_connection!`"
)]
pub trait OutboxBackend: Backend + sealed::Statements {}

#[diagnostic::do_not_recommend]
impl<DB: Backend + sealed::Statements> OutboxBackend for DB {}

pub(crate) mod sealed {
    #[cfg(feature = "migrations")]
    use super::InsertVersion;
    use super::{
        AstPass, Backend, CancelScheduled, FindInbox, InsertMany, InsertMark, InsertOne, InsertScheduled,
        Load, PruneMarks, QueryResult, SelectRows, StillMarked,
    };

    pub trait Statements: Backend + Load {
        #[cfg(feature = "migrations")]
        const MIGRATIONS: diesel_migrations::EmbeddedMigrations;
        #[cfg(feature = "migrations")]
        const MIGRATING: super::Migrating;
        #[cfg(feature = "migrations")]
        fn insert_version<'b>(version: &'b InsertVersion<'_>, out: AstPass<'_, 'b, Self>) -> QueryResult<()>;
        fn insert_one<'b>(insert: &'b InsertOne<'_>, out: AstPass<'_, 'b, Self>) -> QueryResult<()>;
        fn insert_many<'b>(insert: &'b InsertMany<'_>, out: AstPass<'_, 'b, Self>) -> QueryResult<()>;
        fn insert_mark<'b>(mark: &'b InsertMark<'_>, out: AstPass<'_, 'b, Self>) -> QueryResult<()>;
        /// Affects one row as long as the transaction that inserted the mark is open and can be committed. If an error has aborted
        /// it, this fails, or affects none.
        fn still_marked<'b>(still: &'b StillMarked<'_>, out: AstPass<'_, 'b, Self>) -> QueryResult<()>;
        fn prune_marks<'b>(prune: &'b PruneMarks<'_>, out: AstPass<'_, 'b, Self>) -> QueryResult<()>;
        fn insert_scheduled<'b>(
            insert: &'b InsertScheduled<'_>,
            out: AstPass<'_, 'b, Self>,
        ) -> QueryResult<()>;
        fn cancel_scheduled<'b>(
            cancel: &'b CancelScheduled<'_>,
            out: AstPass<'_, 'b, Self>,
        ) -> QueryResult<()>;
        fn select_rows<'b>(select: &'b SelectRows<'_>, out: AstPass<'_, 'b, Self>) -> QueryResult<()>;
        /// Fails if the table does not exist, in a way that `has_table` recognizes whatever the language of the server's messages.
        fn find_inbox<'b>(find: &'b FindInbox<'_>, out: AstPass<'_, 'b, Self>) -> QueryResult<()>;
    }
}

macro_rules! backend_statement {
    ($name:ident, $method:ident, cached: $cached:literal) => {
        impl<DB: OutboxBackend> QueryFragment<DB> for $name<'_> {
            fn walk_ast<'b>(&'b self, out: AstPass<'_, 'b, DB>) -> QueryResult<()> {
                DB::$method(self, out)
            }
        }

        impl QueryId for $name<'_> {
            type QueryId = $name<'static>;
            const HAS_STATIC_QUERY_ID: bool = $cached;
        }

        /// Shows only the name of the statement, because its values may be confidential.
        impl std::fmt::Debug for $name<'_> {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.debug_struct(stringify!($name)).finish_non_exhaustive()
            }
        }
    };
}

/// A statement that names a schema. Its text varies, so its type alone cannot be the key in Diesel's cache.
pub(crate) struct InSchema<S>(pub(crate) S);

impl<DB: OutboxBackend, S: QueryFragment<DB>> QueryFragment<DB> for InSchema<S> {
    fn walk_ast<'b>(&'b self, out: AstPass<'_, 'b, DB>) -> QueryResult<()> {
        self.0.walk_ast(out)
    }
}

impl<S> QueryId for InSchema<S> {
    type QueryId = ();
    const HAS_STATIC_QUERY_ID: bool = false;
}

backend_statement!(InsertOne, insert_one, cached: true);
backend_statement!(InsertMany, insert_many, cached: false);
backend_statement!(InsertMark, insert_mark, cached: true);
backend_statement!(StillMarked, still_marked, cached: true);
backend_statement!(PruneMarks, prune_marks, cached: true);
backend_statement!(FindInbox, find_inbox, cached: true);
backend_statement!(InsertScheduled, insert_scheduled, cached: false);
backend_statement!(CancelScheduled, cancel_scheduled, cached: true);
backend_statement!(SelectRows, select_rows, cached: false);
#[cfg(feature = "migrations")]
backend_statement!(InsertVersion, insert_version, cached: true);

/// The statement that inserts one record into the outbox.
pub struct InsertOne<'a> {
    row: OutboxRow<'a>,
    pub(crate) schema: Option<&'a str>,
}

impl<'a> InsertOne<'a> {
    pub(crate) fn new(record: &'a Record, schema: Option<&'a str>) -> Self {
        Self { row: OutboxRow::new(record), schema }
    }
}

/// The statement that inserts several records into the outbox in their order.
pub struct InsertMany<'a> {
    rows: Vec<OutboxRow<'a>>,
    pub(crate) schema: Option<&'a str>,
    #[cfg(feature = "postgres")]
    columns: postgres::Columns<'a>,
}

impl<'a> InsertMany<'a> {
    pub(crate) fn new(records: &'a [Record], schema: Option<&'a str>) -> Self {
        let rows: Vec<OutboxRow<'a>> = records.iter().map(OutboxRow::new).collect();
        Self {
            #[cfg(feature = "postgres")]
            columns: postgres::Columns::new(&rows),
            rows,
            schema,
        }
    }
}

/// The statement that inserts an event's id into the inbox, unless it is already there.
pub struct InsertMark<'a> {
    pub(crate) consumer: &'a str,
    pub(crate) schema: Option<&'a str>,
    event_id: Uuid,
    event_id_text: String,
}

impl<'a> InsertMark<'a> {
    pub(crate) fn new(consumer: &'a str, event_id: Uuid, schema: Option<&'a str>) -> Self {
        Self { consumer, schema, event_id, event_id_text: event_id.to_string() }
    }
}

/// The statement that looks whether the mark can still be committed.
pub struct StillMarked<'a> {
    mark: &'a InsertMark<'a>,
    pub(crate) schema: Option<&'a str>,
}

impl<'a> StillMarked<'a> {
    pub(crate) fn new(mark: &'a InsertMark<'a>) -> Self {
        Self { mark, schema: mark.schema }
    }
}

/// The statement that deletes some of the inbox's rows that are older than the retention, the oldest first.
pub struct PruneMarks<'a> {
    pub(crate) consumer: &'a str,
    pub(crate) schema: Option<&'a str>,
    pub(crate) retention_seconds: f64,
    /// Rows older than this are skipped.
    pub(crate) oldest_seconds: f64,
    pub(crate) limit: i64,
}

/// The statement that looks for the inbox's table.
pub struct FindInbox<'a> {
    pub(crate) schema: Option<&'a str>,
}

/// How migrations run, and how a second process is kept from running them at the same time.
#[cfg(feature = "migrations")]
#[derive(Debug)]
pub enum Migrating {
    /// In one transaction that is the database's writer from its beginning.
    AsWriter {
        begin: &'static str,
        /// Selects a row if there is a record of what has run.
        find_record: &'static str,
    },
    /// In one transaction that begins with this statement, in the schema that was set.
    InSchema(fn() -> String),
    /// One by one, because each statement commits, under a lock of the session.
    UnderLock {
        /// Selects a row once it has the lock.
        lock: &'static str,
        unlock: &'static str,
        /// Selects a row if there is a record of what has run.
        find_record: &'static str,
    },
}

/// The statement that records a migration, unless it has already run.
#[cfg(feature = "migrations")]
pub struct InsertVersion<'a> {
    pub(crate) version: &'a str,
}

/// A record's columns, some of them converted for the database.
struct OutboxRow<'a> {
    record: &'a Record,
    id: Uuid,
    payload: Option<&'a [u8]>,
    headers: Option<String>,
    shard: i16,
    #[cfg(any(feature = "mysql", feature = "sqlite"))]
    id_text: String,
}

impl<'a> OutboxRow<'a> {
    fn new(record: &'a Record) -> Self {
        Self {
            record,
            id: record.id(),
            payload: record.payload(),
            headers: wire::encode_headers(record.headers()),
            shard: record.shard(),
            #[cfg(any(feature = "mysql", feature = "sqlite"))]
            id_text: record.id().to_string(),
        }
    }
}
