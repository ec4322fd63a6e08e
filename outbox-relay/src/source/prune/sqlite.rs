//! Pruning on the relay's own connection, chunk by chunk. It only reads the rows that stay, because SQLite has one write lock and
//! emitters wait for it.

use std::time::{Duration, Instant};

use diesel::connection::DefaultLoadingMode;
use diesel::prelude::*;
use diesel::sql_types::{BigInt, Bool, Double, Text};
use diesel::sqlite::{Sqlite, SqliteConnection};

use super::{PRUNE_CHUNK, PRUNE_INTERVAL};
use crate::source::interval::is_due;
use crate::statement::statement;

/// How many bytes fill a chunk. `sent_at` lies behind the payload in a row, so SQLite reads the payload too.
const CHUNK_BYTES: i64 = 8 * 1024 * 1024;
/// Pruning takes at most this part of the time that the relay had for other things, and at most this long at once. A chunk may take
/// longer.
const SHARE: u32 = 2;
const LONGEST: Duration = Duration::from_secs(1);

/// After this many chunks without an expired row a round ends. The next one goes on there.
const IDLE_CHUNKS: usize = 10;

/// Rounds of pruning, each from the oldest row on.
#[derive(Default)]
pub(in super::super) struct SqlitePruning {
    begun: Option<Instant>,
    /// Where the next round begins.
    start: i64,
    /// How many chunks of this round had no expired row.
    idle: usize,
    /// Where the next chunk of this round begins. `None` between rounds.
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

/// The outcome of a chunk.
struct PrunedChunk {
    /// Where the next one begins. `None` if the round is over, because what comes next was emitted recently.
    next: Option<i64>,
    /// Whether none of it has expired. If Kafka does not take the records of a partition, their rows may be older than all that is
    /// sent.
    is_idle: bool,
}

/// Deletes the rows of one chunk that are too old. It takes the write lock only if there are such rows, and only to delete them.
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

/// Whether a time is longer ago than the retention. For an unsent row, which has no time, this is false.
macro_rules! is_old {
    ($time:literal) => {
        concat!("coalesce(", $time, " < strftime('%Y-%m-%dT%H:%M:%fZ', 'now', '-' || ? || ' seconds'), 0)")
    };
}

statement!(
    Sqlite,
    /// Rows in their order, whether each has expired, whether it was emitted that long ago, and the size of its payload.
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
    /// Deletes exactly these rows, and not one that has got such a number since.
    Expired { seqs: String => Text, retention: f64 => Double } -> Bool,
    concat!("DELETE FROM outbox WHERE seq IN (SELECT value FROM json_each(?)) AND ", is_old!("sent_at"))
);
