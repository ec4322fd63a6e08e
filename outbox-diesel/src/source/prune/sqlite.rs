//! Pruning on the relay's own connection, chunk by chunk. What is kept is only read: SQLite has one write lock, and emitters wait for it.

use std::time::{Duration, Instant};

use diesel::connection::DefaultLoadingMode;
use diesel::prelude::*;
use diesel::sql_types::{BigInt, Bool, Double, Text};
use diesel::sqlite::{Sqlite, SqliteConnection};

use super::{PRUNE_CHUNK, PRUNE_INTERVAL, is_due};
use crate::statement::statement;

/// How many bytes a chunk has before it is not added to: `sent_at` lies behind the payload, which is read with it.
const CHUNK_BYTES: i64 = 8 * 1024 * 1024;
/// It takes this part of the time at most that the relay had for other things, and no longer than this at once. A chunk may take longer.
const SHARE: u32 = 2;
const LONGEST: Duration = Duration::from_secs(1);

/// Rounds of pruning, each from the oldest row on.
#[derive(Default)]
pub(in super::super) struct Pruning {
    begun: Option<Instant>,
    /// Where the next chunk of this round begins. Nothing between rounds.
    cursor: Option<i64>,
    ended: Option<Instant>,
}

impl Pruning {
    /// Begins a round if one is due, or goes on with the last one.
    pub(in super::super) fn run(
        &mut self,
        conn: &mut SqliteConnection,
        retention: Duration,
    ) -> QueryResult<()> {
        let began = Instant::now();
        let time = self.ended.map_or(Duration::ZERO, |ended| (ended.elapsed() / SHARE).min(LONGEST));
        if self.cursor.is_none() && is_due(&mut self.begun, PRUNE_INTERVAL) {
            self.cursor = Some(0);
        }
        while let Some(cursor) = self.cursor {
            self.cursor = chunk(conn, cursor, retention)?;
            if began.elapsed() >= time {
                break;
            }
        }
        self.ended = Some(Instant::now());
        Ok(())
    }
}

/// Deletes the rows of one chunk that are too old: where the next chunk begins, or nothing if the round is over. The write lock is taken
/// only if there are such rows, and only to delete them.
fn chunk(conn: &mut SqliteConnection, cursor: i64, retention: Duration) -> QueryResult<Option<i64>> {
    let retention = retention.as_secs_f64();
    let (mut expired, mut last, mut rows, mut bytes) = (Vec::new(), cursor, 0, 0);
    let oldest = Oldest::new(retention, cursor, PRUNE_CHUNK);
    for row in oldest.load_iter::<(i64, bool, i64), DefaultLoadingMode>(conn)? {
        let (seq, is_old, size) = row?;
        if is_old {
            expired.push(seq.to_string());
        }
        (last, rows, bytes) = (seq, rows + 1, bytes + size);
        if bytes >= CHUNK_BYTES {
            break;
        }
    }
    if expired.is_empty() {
        return Ok(None);
    }
    Expired::new(format!("[{}]", expired.join(",")), retention).execute(conn)?;
    Ok((rows == PRUNE_CHUNK || bytes >= CHUNK_BYTES).then_some(last))
}

/// Whether a row was sent too long ago. What is unsent never is.
macro_rules! is_old {
    () => {
        "coalesce(sent_at < strftime('%Y-%m-%dT%H:%M:%fZ', 'now', '-' || ? || ' seconds'), 0)"
    };
}

statement!(
    Sqlite,
    /// Rows in their order, whether each is too old, and the size of its payload.
    Oldest { retention: f64 => Double, cursor: i64 => BigInt, limit: i64 => BigInt } -> (BigInt, Bool, BigInt),
    concat!(
        "SELECT seq, ",
        is_old!(),
        ", coalesce(length(payload), 0) FROM outbox WHERE seq > ? ORDER BY seq LIMIT ?"
    )
);

statement!(
    Sqlite,
    /// Exactly these, and not what has come to such a number since.
    Expired { seqs: String => Text, retention: f64 => Double } -> Bool,
    concat!("DELETE FROM outbox WHERE seq IN (SELECT value FROM json_each(?)) AND ", is_old!())
);
