//! Pruning on the relay's own connection, chunk by chunk. What is kept is only read: SQLite has one write lock, and emitters wait for it.

use std::time::{Duration, Instant};

use diesel::connection::DefaultLoadingMode;
use diesel::prelude::*;
use diesel::sql_types::{BigInt, Bool, Double, Text};
use diesel::sqlite::{Sqlite, SqliteConnection};

use super::{PRUNE_CHUNK, PRUNE_INTERVAL};
use crate::source::interval::is_due;
use crate::statement::statement;

/// How many bytes a chunk has before it is not added to: `sent_at` lies behind the payload, which is read with it.
const CHUNK_BYTES: i64 = 8 * 1024 * 1024;
/// It takes this part of the time at most that the relay had for other things, and no longer than this at once. A chunk may take longer.
const SHARE: u32 = 2;
const LONGEST: Duration = Duration::from_secs(1);

/// After so many chunks without an expired row a round ends; the next one goes on there.
const IDLE_CHUNKS: usize = 10;

/// Rounds of pruning, each from the oldest row on.
#[derive(Default)]
pub(in super::super) struct SqlitePruning {
    begun: Option<Instant>,
    /// Where the next round begins.
    start: i64,
    /// How many chunks of this round had no expired row.
    idle: usize,
    /// Where the next chunk of this round begins. Nothing between rounds.
    cursor: Option<i64>,
    ended: Option<Instant>,
}

impl SqlitePruning {
    /// Begins a round if one is due, or goes on with the last one.
    pub(in super::super) fn run(
        &mut self,
        conn: &mut SqliteConnection,
        retention: Duration,
    ) -> QueryResult<()> {
        let began = Instant::now();
        let time = self.ended.map_or(Duration::ZERO, |ended| (ended.elapsed() / SHARE).min(LONGEST));
        if self.cursor.is_none() && is_due(&mut self.begun, PRUNE_INTERVAL) {
            (self.cursor, self.idle) = (Some(self.start), 0);
        }
        while let Some(cursor) = self.cursor {
            let chunk = chunk(conn, cursor, retention)?;
            self.idle += usize::from(chunk.is_idle);
            self.start = chunk.next.filter(|_| self.idle == IDLE_CHUNKS).unwrap_or_default();
            self.cursor = chunk.next.filter(|_| self.idle < IDLE_CHUNKS);
            if began.elapsed() >= time {
                break;
            }
        }
        self.ended = Some(Instant::now());
        Ok(())
    }
}

/// What came of a chunk.
struct PrunedChunk {
    /// Where the next one begins. Nothing if the round is over: what comes after was emitted of late.
    next: Option<i64>,
    /// Whether none of it has expired. The rows of a partition that Kafka does not take may be older than all that is sent.
    is_idle: bool,
}

/// Deletes the rows of one chunk that are too old. The write lock is taken only if there are such rows, and only to delete them.
fn chunk(conn: &mut SqliteConnection, cursor: i64, retention: Duration) -> QueryResult<PrunedChunk> {
    let retention = retention.as_secs_f64();
    let (mut expired, mut last, mut rows, mut bytes, mut is_old) = (Vec::new(), cursor, 0, 0, true);
    let oldest = Oldest::new(retention, retention, cursor, PRUNE_CHUNK);
    for row in oldest.load_iter::<(i64, bool, bool, i64), DefaultLoadingMode>(conn)? {
        let (seq, has_expired, was_emitted_long_ago, size) = row?;
        is_old &= was_emitted_long_ago;
        if has_expired {
            expired.push(seq.to_string());
        }
        (last, rows, bytes) = (seq, rows + 1, bytes + size);
        if bytes >= CHUNK_BYTES {
            break;
        }
    }
    if !expired.is_empty() {
        Expired::new(format!("[{}]", expired.join(",")), retention).execute(conn)?;
    }
    let is_full = rows == PRUNE_CHUNK || bytes >= CHUNK_BYTES;
    let is_idle = expired.is_empty();
    let goes_on = is_full && (is_old || !is_idle);
    Ok(PrunedChunk { next: goes_on.then_some(last), is_idle })
}

/// Whether a time is longer ago than the retention. That of what is unsent never is.
macro_rules! is_old {
    ($time:literal) => {
        concat!("coalesce(", $time, " < strftime('%Y-%m-%dT%H:%M:%fZ', 'now', '-' || ? || ' seconds'), 0)")
    };
}

statement!(
    Sqlite,
    /// Rows in their order, whether each has expired and was emitted as long ago, and the size of its payload.
    Oldest { retention: f64 => Double, same_retention: f64 => Double, cursor: i64 => BigInt, limit: i64 => BigInt } -> (BigInt, Bool, Bool, BigInt),
    concat!(
        "SELECT seq, ",
        is_old!("sent_at"),
        ", ",
        is_old!("created_at"),
        ", coalesce(length(payload), 0) FROM outbox WHERE seq > ? ORDER BY seq LIMIT ?"
    )
);

statement!(
    Sqlite,
    /// Exactly these, and not what has come to such a number since.
    Expired { seqs: String => Text, retention: f64 => Double } -> Bool,
    concat!("DELETE FROM outbox WHERE seq IN (SELECT value FROM json_each(?)) AND ", is_old!("sent_at"))
);
