//! The rows that an outbox keeps: what was sent, for `keep_sent`, and what waits.

#[cfg(feature = "mysql")]
mod mysql;
#[cfg(feature = "postgres")]
mod postgres;
#[cfg(feature = "sqlite")]
mod sqlite;

use std::time::SystemTime;

use bytes::Bytes;
use diesel::QueryResult;
use diesel_outbox_core::__private::from_unix_ms;
use diesel_outbox_core::Record;
use uuid::Uuid;

use crate::source::row::StoredRow;

/// The rows that an outbox keeps, on a plain `PgConnection`, a plain `SqliteConnection`, or a `Conn` of the crate `mysql`.
pub trait Kept {
    /// Returns how many rows were emitted in a time.
    ///
    /// # Errors
    /// Returns the database's error.
    fn count(&mut self, window: &Window) -> QueryResult<u64>;

    /// Returns the rows that were emitted in a time, in the order of `seq`: the first ones after this number, up to `limit`.
    ///
    /// # Errors
    /// Returns the database's error.
    fn rows(&mut self, window: &Window, after: i64, limit: i64) -> QueryResult<Vec<KeptRow>>;

    /// Returns the rows and the dead letters that have one of these ids, whenever they were emitted.
    ///
    /// # Errors
    /// Returns the database's error.
    fn find(&mut self, ids: &[Uuid]) -> QueryResult<Vec<KeptRow>>;

    /// Returns how many sent rows a selection has.
    ///
    /// # Errors
    /// Returns the database's error.
    fn count_sent(&mut self, selection: &Selection) -> QueryResult<u64>;

    /// Returns the sent rows of a selection with all that they hold, in the order of `seq`: the first ones after this number, up to `limit`, and
    /// fewer if their payloads are large. There are no more if it returns none.
    ///
    /// # Errors
    /// Returns the database's error.
    fn sent(&mut self, selection: &Selection, after: i64, limit: i64) -> QueryResult<Vec<KeptRecord>>;
}

/// A time: from its beginning until before its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Window {
    /// Its beginning.
    pub since: SystemTime,
    /// Its end.
    pub until: SystemTime,
}

/// Which rows are meant: those that meet all conditions.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Selection {
    /// When they were emitted.
    pub window: Window,
    /// The event's id, if it matters.
    pub id: Option<Uuid>,
    /// The event's type, if it matters.
    pub event_type: Option<String>,
    /// The aggregate's type, if it matters.
    pub aggregate_type: Option<String>,
    /// The aggregate's id, if it matters.
    pub aggregate_id: Option<String>,
}

/// A row of the outbox, without what the event holds.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct KeptRow {
    /// Its place in the order.
    pub seq: i64,
    /// The event's id, if it is a UUID: SQLite's column can hold any text.
    pub id: Option<Uuid>,
    /// The aggregate's type.
    pub aggregate_type: String,
    /// The aggregate's id.
    pub aggregate_id: String,
    /// When it was emitted.
    pub created_at: SystemTime,
    /// Whether it is known to have been sent.
    pub is_sent: bool,
}

type Row = (i64, String, String, String, i64, bool);

fn kept((seq, id, aggregate_type, aggregate_id, created_at, is_sent): Row) -> KeptRow {
    let created_at = from_unix_ms(created_at);
    KeptRow { seq, id: id.parse().ok(), aggregate_type, aggregate_id, created_at, is_sent }
}

/// A row of the outbox as a record.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct KeptRecord {
    /// Its place in the order.
    pub seq: i64,
    /// The record, or why there is none.
    pub record: Result<Record, String>,
}

/// How many bytes of payloads are read at once, unless the first one alone is larger.
const BYTES: i64 = 16 << 20;

type RecordRow = (i64, String, String, String, String, Option<Vec<u8>>, Option<String>, i64);

fn kept_record(row: RecordRow) -> KeptRecord {
    let (seq, id, aggregate_type, aggregate_id, event_type, payload, headers, created_at_ms) = row;
    let row = StoredRow {
        ticket: 0,
        seq,
        id: id.parse().map_err(|_| format!("the column `id` holds {id:?}, which is not a UUID")),
        aggregate_type: aggregate_type.into(),
        aggregate_id: aggregate_id.into(),
        event_type: event_type.into(),
        payload: payload.map(Bytes::from),
        headers: headers.map(Bytes::from),
        created_at_ms,
    };
    KeptRecord { seq, record: row.claimed().record }
}
