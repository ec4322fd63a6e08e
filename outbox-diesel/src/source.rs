//! The tables as a source of records: claim, read, settle, release. A relay drives it.

#[cfg(feature = "postgres-source")]
mod postgres;
#[cfg(feature = "sqlite-source")]
mod sqlite;

use std::time::{Duration, Instant};

pub use diesel_outbox_core::DeadLetterPolicy;
use diesel_outbox_core::{Claimed, Record, SourceError, wire};
use uuid::Uuid;

#[cfg(feature = "postgres-source")]
pub use self::postgres::PostgresSource;
#[cfg(feature = "sqlite-source")]
pub use self::sqlite::SqliteSource;

/// How a source treats the table. The defaults suit most services.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct SourceOptions {
    /// The schema that holds the tables (PostgreSQL). Default: what the connection's `search_path` says.
    pub schema: Option<String>,
    /// What becomes of rows that were sent. Default: kept for 7 days.
    pub sent_rows: SentRows,
    /// What happens to the later records of an aggregate one of whose records became a dead letter. Default: go on.
    pub dead_letter_policy: DeadLetterPolicy,
    /// How often a source that is not notified looks at the table, and how often one that stands by looks whether the
    /// listening relay is gone. Default: 15 s on PostgreSQL; SQLite looks at the file's change counter every 10 ms in
    /// any case.
    pub poll_interval: Duration,
    /// How often the number and age of the unsent rows is measured. Default: 15 s.
    pub lag_interval: Duration,
}

impl Default for SourceOptions {
    fn default() -> Self {
        Self {
            schema: None,
            sent_rows: SentRows::default(),
            dead_letter_policy: DeadLetterPolicy::default(),
            poll_interval: Duration::from_secs(15),
            lag_interval: Duration::from_secs(15),
        }
    }
}

/// What becomes of rows that were sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum SentRows {
    /// They get a `sent_at`, and are pruned when that is longer ago than this.
    Keep {
        /// How long they are kept.
        retention: Duration,
    },
    /// They are deleted as soon as they are sent. Somewhat faster, and the table stays small.
    Delete,
}

impl Default for SentRows {
    /// Kept for 7 days.
    fn default() -> Self {
        Self::Keep { retention: Duration::from_secs(7 * 24 * 60 * 60) }
    }
}

const PRUNE_INTERVAL: Duration = Duration::from_secs(60);
const PRUNE_CHUNK: i64 = 5_000;
const BLOCKED: &str =
    "blocked: an earlier record of the same aggregate is a dead letter; requeue the aggregate";

/// A row of the outbox table, as both databases give it but for the id.
struct StoredRow {
    seq: i64,
    id: Result<Uuid, String>,
    aggregate_type: String,
    aggregate_id: String,
    event_type: String,
    payload: Option<Vec<u8>>,
    headers: Option<String>,
    created_at_ms: i64,
}

impl StoredRow {
    fn bytes(&self) -> usize {
        self.payload.as_ref().map_or(0, Vec::len) + self.headers.as_ref().map_or(0, String::len)
    }

    fn claimed(self) -> Claimed {
        Claimed { ticket: self.seq.unsigned_abs(), record: self.record() }
    }

    fn record(self) -> Result<Record, String> {
        let headers = match &self.headers {
            Some(json) => wire::decode_headers(json).map_err(|error| error.to_string())?,
            None => Vec::new(),
        };
        let record = Record::with_id(self.id?, self.aggregate_type, self.aggregate_id, self.event_type)
            .with_headers(headers)
            .with_created_at_ms(self.created_at_ms);
        Ok(match self.payload {
            Some(payload) => record.with_payload(payload),
            None => record,
        })
    }
}

/// How many rows to read at once, so that a chunk has about the same number of bytes whatever the payloads' size.
struct ChunkSize {
    row_bytes: usize,
}

impl ChunkSize {
    const TARGET_BYTES: usize = 8 * 1024 * 1024;
    /// Before anything was read the rows might be large.
    const UNKNOWN: usize = 64 * 1024;

    fn new() -> Self {
        Self { row_bytes: Self::UNKNOWN }
    }

    fn rows(&self, limit: usize) -> usize {
        (Self::TARGET_BYTES / self.row_bytes.max(1)).clamp(1, limit.max(1))
    }

    fn learn(&mut self, rows: usize, bytes: usize) {
        if rows > 0 {
            self.row_bytes = bytes / rows;
        }
    }
}

fn is_due(last: &mut Option<Instant>, interval: Duration) -> bool {
    let due = last.is_none_or(|last| last.elapsed() >= interval);
    if due {
        *last = Some(Instant::now());
    }
    due
}

fn database_error(doing: &str, error: diesel::result::Error) -> SourceError {
    SourceError::because(format!("the database failed while {doing}: {error}"), error)
}
