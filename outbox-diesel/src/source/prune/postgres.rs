//! Pruning on a connection and a thread of its own, which are there while there is something to prune, so that it keeps up with a
//! relay that is at work and does not hold it up.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use diesel::connection::SimpleConnection;
use diesel::pg::{Pg, PgConnection};
use diesel::prelude::*;
use diesel::result::{DatabaseErrorKind, Error};
use diesel::sql_types::{Array, BigInt, Bool, Double, Nullable};

use super::{PRUNE_CHUNK, PRUNE_INTERVAL, is_due};
use crate::problem::one_line;
use crate::source::database::Database;
use crate::statement::statement;

/// How often a round begins with the oldest row of all. Others begin where the last one came to rows that are kept: what lies before is
/// a late commit's, or an index entry of a row that is gone.
const FULL_INTERVAL: Duration = Duration::from_secs(60 * 60);
/// It pauses so many times as long as it works, until it has worked for so long.
const PAUSES: u32 = 3;
const LEISURE: Duration = Duration::from_secs(30);
/// How soon a thread that pauses notices that it is to end, and how often it is asked whether it has.
const SLICE: Duration = Duration::from_millis(50);
/// How long the end of a thread is waited for: a chunk, or a lock. One that hangs on its connection ends by itself when that does, and
/// whoever prunes meanwhile passes over what it has locked.
const LONGEST_END: Duration = Duration::from_secs(2);
/// It is no relay's session, for those who count them. Somebody else's lock on the table, as for an index that is made, is waited for
/// no longer than this, and neither is one on a row.
const SETTINGS: &str = "SET application_name = 'outbox pruning'; SET lock_timeout = '200ms'";

/// Rounds of pruning. The thread is waited for when this is dropped, but not for long: the relay is to stop, or to connect anew.
#[derive(Default)]
pub(in super::super) struct Pruning {
    begun: Option<Instant>,
    round: Option<JoinHandle<Round>>,
    place: Place,
    ends: Arc<AtomicBool>,
}

/// Where rounds begin.
#[derive(Debug, Clone, Copy, Default)]
struct Place {
    cursor: i64,
    was_full: Option<Instant>,
}

/// What a round has left behind.
struct Round {
    place: Place,
    /// Whether it could not have a connection.
    refused: bool,
}

impl Pruning {
    /// Begins a round where one is due. `conn` prunes one chunk instead where no other connection can be had.
    pub(in super::super) fn run(
        &mut self,
        conn: &mut PgConnection,
        database: &Database,
        retention: Duration,
    ) -> QueryResult<()> {
        if self.round.as_ref().is_some_and(JoinHandle::is_finished)
            && let Some(Ok(Round { place, refused })) = self.round.take().map(JoinHandle::join)
        {
            self.place = place;
            if refused {
                let (cursor, is_over) = chunk(conn, self.place.cursor, retention)?;
                self.place.cursor = if is_over { 0 } else { cursor };
                // The next chunk is due at once.
                self.begun = is_over.then_some(self.begun).flatten();
            }
        }
        if self.round.is_some() || !is_due(&mut self.begun, PRUNE_INTERVAL) {
            return Ok(());
        }
        if self.place.was_full.is_none_or(|full| full.elapsed() >= FULL_INTERVAL) {
            self.place = Place { cursor: 0, was_full: Some(Instant::now()) };
        }
        if !HasOld::new(retention.as_secs_f64(), self.place.cursor, PRUNE_CHUNK).get_result::<bool>(conn)? {
            return Ok(());
        }
        let (database, place, ends) = (database.clone(), self.place, self.ends.clone());
        let round = move || round(&database, place, retention, &ends);
        match thread::Builder::new().name("outbox-prune".into()).spawn(round) {
            Ok(round) => self.round = Some(round),
            Err(error) => {
                tracing::warn!(%error, "no thread to prune sent rows; it is tried again in a minute")
            }
        }
        Ok(())
    }
}

impl Drop for Pruning {
    fn drop(&mut self) {
        self.ends.store(true, Ordering::Relaxed);
        let until = Instant::now() + LONGEST_END;
        while self.round.as_ref().is_some_and(|round| !round.is_finished()) && Instant::now() < until {
            thread::sleep(SLICE);
        }
    }
}

/// Deletes what is too old, chunk by chunk.
fn round(database: &Database, mut place: Place, retention: Duration, ends: &AtomicBool) -> Round {
    let Ok(mut conn) = database.connect() else { return Round { place, refused: true } };
    let begun = Instant::now();
    let set = conn.batch_execute(SETTINGS);
    let mut next = set.and_then(|()| chunk(&mut conn, place.cursor, retention));
    let mut since = begun;
    loop {
        match next {
            Ok((cursor, is_over)) => {
                place.cursor = cursor;
                if is_over || ends.load(Ordering::Relaxed) {
                    break;
                }
            }
            Err(error) => {
                let error = one_line(&error.to_string());
                tracing::warn!(error, "sent rows could not be pruned; it is tried again in a minute");
                break;
            }
        }
        if begun.elapsed() < LEISURE {
            pause(since.elapsed() * PAUSES, ends);
        }
        since = Instant::now();
        next = chunk(&mut conn, place.cursor, retention);
    }
    Round { place, refused: false }
}

fn pause(time: Duration, ends: &AtomicBool) {
    let until = Instant::now() + time;
    while !ends.load(Ordering::Relaxed) {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            break;
        }
        thread::sleep(left.min(SLICE));
    }
}

/// Deletes the rows of one chunk that are too old: where the next one begins, and whether the round is over. Exactly those rows are
/// deleted, never a range: a late commit's row would be in it.
fn chunk(conn: &mut PgConnection, cursor: i64, retention: Duration) -> QueryResult<(i64, bool)> {
    let chunk = Chunk::new(retention.as_secs_f64(), cursor, PRUNE_CHUNK).get_result::<(_, _, i64, i64)>(conn);
    // Perhaps because somebody has locked a row.
    if let Err(Error::DatabaseError(DatabaseErrorKind::Unknown, _)) = chunk {
        return chunk_beside_locks(conn, cursor, retention);
    }
    let (last, first_kept, rows, expired): (Option<i64>, Option<i64>, _, _) = chunk?;
    let last = last.unwrap_or(cursor);
    // What is kept is looked at again.
    let next = first_kept.map_or(last, |kept| kept - 1);
    Ok(if rows == PRUNE_CHUNK && expired > 0 { (last, false) } else { (next, true) })
}

/// The same, but for rows that somebody has locked. To find them, each is locked before it is deleted, which takes twice as long.
fn chunk_beside_locks(
    conn: &mut PgConnection,
    cursor: i64,
    retention: Duration,
) -> QueryResult<(i64, bool)> {
    let chunk = Oldest::new(retention.as_secs_f64(), cursor, PRUNE_CHUNK).load::<(i64, bool)>(conn)?;
    let is_full = chunk.len() as i64 == PRUNE_CHUNK;
    // What is kept is looked at again.
    let next = chunk.iter().take_while(|(_, old)| *old).last().map_or(cursor, |(seq, _)| *seq);
    let last = chunk.last().map_or(cursor, |(seq, _)| *seq);
    let expired: Vec<i64> = chunk.into_iter().filter_map(|(seq, old)| old.then_some(seq)).collect();
    if expired.is_empty() {
        return Ok((next, true));
    }
    Expired::new(retention.as_secs_f64(), expired).execute(conn)?;
    Ok(if is_full { (last, false) } else { (next, true) })
}

/// Whether a row `o` of a shard `s` is too old. What was read from the write-ahead log is sent though nothing marks it: up to its shard's
/// lower bound while the log is read, and later up to `unmarked`.
macro_rules! is_old {
    () => {
        "coalesce(coalesce(o.sent_at, CASE WHEN o.seq <= CASE WHEN s.high < 9223372036854775807 THEN s.low ELSE s.unmarked END \
         THEN o.created_at AT TIME ZONE 'utc' END) < now() - make_interval(secs => ?), false)"
    };
}

/// Rows in their order, where they lie, and whether each is too old.
macro_rules! oldest {
    () => {
        concat!(
            "(SELECT o.seq, o.ctid AS place, ",
            is_old!(),
            " AS old FROM ONLY outbox AS o JOIN outbox_shard AS s ON s.shard = o.shard WHERE o.seq > ? ORDER BY o.seq LIMIT ?)"
        )
    };
}

statement!(
    Pg,
    /// One that was changed since the statement began lies elsewhere, and is left alone.
    Chunk {
        retention: f64 => Double, cursor: i64 => BigInt, limit: i64 => BigInt
    } -> (Nullable<BigInt>, Nullable<BigInt>, BigInt, BigInt),
    concat!(
        "WITH chunk AS MATERIALIZED ",
        oldest!(),
        ", expired AS (DELETE FROM ONLY outbox AS o USING chunk AS c WHERE o.ctid = c.place AND c.old) \
         SELECT max(seq), min(seq) FILTER (WHERE NOT old), count(*), count(*) FILTER (WHERE old) FROM chunk"
    )
);

statement!(
    Pg,
    Oldest { retention: f64 => Double, cursor: i64 => BigInt, limit: i64 => BigInt } -> (BigInt, Bool),
    concat!("SELECT seq, old FROM ", oldest!(), " AS o")
);

statement!(
    Pg,
    HasOld { retention: f64 => Double, cursor: i64 => BigInt, limit: i64 => BigInt } -> Bool,
    concat!("SELECT coalesce(bool_or(old), false) FROM ", oldest!(), " AS o")
);

statement!(
    Pg,
    /// By `seq`, as there is no snapshot that keeps these rows in their places; and nothing that has come to such a number since. Rows
    /// that somebody has locked are left for a later round.
    Expired { retention: f64 => Double, seqs: Vec<i64> => Array<BigInt> } -> Bool,
    concat!(
        "WITH free AS MATERIALIZED (SELECT o.seq, o.shard FROM outbox AS o JOIN outbox_shard AS s ON s.shard = o.shard WHERE ",
        is_old!(),
        " AND o.seq = ANY (?) FOR UPDATE OF o SKIP LOCKED) \
         DELETE FROM outbox AS o USING free AS f WHERE o.seq = f.seq AND o.shard = f.shard"
    )
);
