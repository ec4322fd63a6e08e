//! Pruning on its own connection and thread, which exist only while there is something to prune. So pruning keeps up with a busy
//! relay and does not delay it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use diesel::connection::SimpleConnection;
use diesel::pg::{Pg, PgConnection};
use diesel::prelude::*;
use diesel::result::{DatabaseErrorKind, Error};
use diesel::sql_types::{BigInt, Bool, Double, Nullable};

use super::{PRUNE_CHUNK, PRUNE_INTERVAL};
use crate::source::database::PostgresDatabase;
use crate::source::interval::has_passed;
use crate::statement::statement;
use diesel_outbox_core::__private::one_line;

/// How often a round begins with the oldest row of all. Others begin where the last one came to recently sent rows. What lies
/// before that is a late commit's, was unsent then, or is an index entry of a deleted row.
const FULL_INTERVAL: Duration = Duration::from_secs(60 * 60);
/// A round pauses this many times as long as it works, until it has taken this long.
const PAUSES: u32 = 3;
const LEISURE: Duration = Duration::from_secs(30);
/// How soon a thread that pauses notices that it should end, and how often the relay looks whether it has.
const SLICE: Duration = Duration::from_millis(50);
/// After this many chunks without an expired row a round ends. The next one goes on there.
const IDLE_CHUNKS: usize = 100;
/// How long to wait for the end of a thread: for a chunk, or a lock. A thread that hangs on its connection ends when the connection
/// does, and until then other pruning passes over what it has locked.
const LONGEST_END: Duration = Duration::from_secs(2);
/// The name keeps the session apart from relays', for whoever counts those. A round waits no longer than this for somebody else's
/// lock on the table, such as that of an index being made, or on a row.
const SETTINGS: &str = "SET application_name = 'outbox pruning'; SET lock_timeout = '200ms'";

/// Rounds of pruning. The drop waits for the thread, but not for long: the relay should stop or reconnect.
#[derive(Default)]
pub(in super::super) struct PostgresPruning {
    begun: Option<Instant>,
    round: Option<JoinHandle<Round>>,
    place: Start,
    ends: Arc<AtomicBool>,
    /// Whether a round is due, and another outbox of the database is being pruned, or no connection is to be had.
    waits: bool,
}

/// If nothing has expired, how much of the retention passes until the next look, as one of so many parts.
const PARTS: u32 = 100;

/// Where rounds begin.
#[derive(Debug, Clone, Copy, Default)]
struct Start {
    cursor: i64,
    was_full: Option<Instant>,
    /// Whether a round ended there before it came to recently sent rows.
    is_on_its_way: bool,
}

/// What a round leaves behind.
struct Round {
    place: Start,
    /// Whether it could not get a connection.
    refused: bool,
}

impl PostgresPruning {
    /// Returns how soon an idle relay should run this again.
    pub(in super::super) fn pause(&self, retention: Duration) -> Duration {
        if self.waits {
            Duration::ZERO
        } else if self.round.is_some() || self.place.is_on_its_way {
            PRUNE_INTERVAL
        } else {
            (retention / PARTS).clamp(PRUNE_INTERVAL, FULL_INTERVAL)
        }
    }

    /// Begins a round if one is due. If it cannot get another connection, prunes one chunk on `conn` instead.
    pub(in super::super) fn run(
        &mut self,
        conn: &mut PgConnection,
        database: &PostgresDatabase,
        retention: Duration,
    ) -> QueryResult<()> {
        self.waits = false;
        if self.round.as_ref().is_some_and(JoinHandle::is_finished)
            && let Some(Ok(Round { place, refused })) = self.round.take().map(JoinHandle::join)
        {
            self.place = place;
            if refused {
                // The relay must not wait for anybody's lock.
                let chunk = chunk_beside_locks(conn, self.place.cursor, retention)?;
                self.place.cursor = if chunk.is_last { 0 } else { chunk.next };
                if !chunk.is_last && !chunk.is_idle {
                    // The next chunk is due as soon as another attempt to connect has failed.
                    (self.begun, self.waits) = (None, true);
                }
            }
        }
        if self.round.is_some() || !has_passed(self.begun, PRUNE_INTERVAL) {
            return Ok(());
        }
        if database.is_pruned.load(Ordering::Relaxed) {
            self.waits = true;
            return Ok(());
        }
        self.begun = Some(Instant::now());
        ForgetRequeued::new().execute(conn)?;
        let is_long_ago = self.place.was_full.is_none_or(|full| full.elapsed() >= FULL_INTERVAL);
        if is_long_ago && !self.place.is_on_its_way {
            self.place = Start { cursor: 0, was_full: Some(Instant::now()), is_on_its_way: false };
        }
        if !IsWanted::new(retention.as_secs_f64(), self.place.cursor, PRUNE_CHUNK, PRUNE_CHUNK)
            .get_result::<bool>(conn)?
        {
            (self.place.is_on_its_way, self.waits) = (false, false);
            return Ok(());
        }
        let Some(turn) = Turn::take(&database.is_pruned) else {
            // Another outbox of the database was faster.
            (self.begun, self.waits) = (None, true);
            return Ok(());
        };
        let (database, place, ends) = (database.clone(), self.place, self.ends.clone());
        let round = move || {
            let _turn = turn;
            round(&database, place, retention, &ends)
        };
        match thread::Builder::new().name("outbox-prune".into()).spawn(round) {
            Ok(round) => self.round = Some(round),
            Err(error) => {
                tracing::warn!(%error, "cannot start a thread that prunes sent rows; the relay tries again in a minute")
            }
        }
        Ok(())
    }
}

impl Drop for PostgresPruning {
    fn drop(&mut self) {
        self.ends.store(true, Ordering::Relaxed);
        let until = Instant::now() + LONGEST_END;
        while self.round.as_ref().is_some_and(|round| !round.is_finished()) && Instant::now() < until {
            thread::sleep(SLICE);
        }
    }
}

/// The only connection that prunes in a database, until this is dropped.
struct Turn(Arc<AtomicBool>);

impl Turn {
    fn take(is_pruned: &Arc<AtomicBool>) -> Option<Self> {
        (!is_pruned.swap(true, Ordering::Relaxed)).then(|| Self(is_pruned.clone()))
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Relaxed);
    }
}

/// Deletes what is too old, chunk by chunk.
fn round(database: &PostgresDatabase, mut place: Start, retention: Duration, ends: &AtomicBool) -> Round {
    let Ok(mut conn) = database.connect() else { return Round { place, refused: true } };
    let begun = Instant::now();
    let set = conn.batch_execute(SETTINGS);
    let mut next = set.and_then(|()| chunk(&mut conn, place.cursor, retention));
    let (mut since, mut idle) = (begun, 0);
    loop {
        match next {
            Ok(chunk) => {
                place.cursor = chunk.next;
                idle += usize::from(chunk.is_idle);
                place.is_on_its_way = !chunk.is_last;
                if chunk.is_last || idle == IDLE_CHUNKS || ends.load(Ordering::Relaxed) {
                    break;
                }
            }
            Err(error) => {
                let error = one_line(&error.to_string());
                tracing::warn!(error, "sent rows could not be pruned; the relay tries again in a minute");
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

/// The outcome of a chunk.
struct PrunedChunk {
    /// Where the next one begins.
    next: i64,
    /// Whether the round is over, because what comes next was emitted recently.
    is_last: bool,
    /// Whether none of it has expired. If Kafka does not take the records of a partition, their rows may be older than all that is
    /// sent.
    is_idle: bool,
}

/// The last number, the first one that has not expired, how many rows there are, how many of them have expired, and whether all
/// were emitted long ago.
type Counted = (Option<i64>, Option<i64>, i64, i64, bool);

impl PrunedChunk {
    fn after(cursor: i64, (last, first_kept, rows, expired, is_old): Counted) -> Self {
        let last = last.unwrap_or(cursor);
        let is_idle = expired == 0;
        let is_last = rows < PRUNE_CHUNK || (is_idle && !is_old);
        // The next round looks again at what this one keeps, if it may have expired by then.
        let next = if is_last { first_kept.map_or(last, |kept| kept - 1) } else { last };
        Self { next, is_last, is_idle }
    }
}

/// Deletes the rows of one chunk that are too old. It deletes exactly those rows, never a range, which could contain the row of a
/// late commit.
fn chunk(conn: &mut PgConnection, cursor: i64, retention: Duration) -> QueryResult<PrunedChunk> {
    match Prune::new(retention.as_secs_f64(), cursor, PRUNE_CHUNK).get_result(conn) {
        // Perhaps because somebody has locked a row.
        Err(Error::DatabaseError(DatabaseErrorKind::Unknown, _)) => {
            chunk_beside_locks(conn, cursor, retention)
        }
        counted => Ok(PrunedChunk::after(cursor, counted?)),
    }
}

/// Does the same as [`chunk()`], except for rows that somebody has locked. To find those, it locks each row before it deletes it,
/// which takes twice as long.
fn chunk_beside_locks(conn: &mut PgConnection, cursor: i64, retention: Duration) -> QueryResult<PrunedChunk> {
    let counted = PruneBesideLocks::new(retention.as_secs_f64(), cursor, PRUNE_CHUNK).get_result(conn)?;
    Ok(PrunedChunk::after(cursor, counted))
}

/// A chunk in the order of `seq`: where each row lies, whether it has expired, and whether it was emitted long enough ago that later rows
/// may have expired too. Rows that were read from the write-ahead log are sent, though nothing marks them: up to their shard's lower bound
/// while the WAL is read, and later up to `unmarked`.
macro_rules! chunk {
    () => {
        "chunk AS MATERIALIZED (SELECT seq, place, coalesce(sent < expiry, false) AS expired, created < expiry AS is_old FROM \
         (SELECT o.seq, o.ctid AS place, o.created_at AT TIME ZONE 'utc' AS created, coalesce(o.sent_at, CASE WHEN o.seq <= \
         CASE WHEN s.polled_through < 9223372036854775807 THEN s.sent_through ELSE s.unmarked END THEN o.created_at AT TIME ZONE 'utc' END) AS sent, \
         now() - pg_catalog.make_interval(secs => ?) AS expiry FROM ONLY outbox AS o JOIN outbox_shard AS s ON s.shard = o.shard \
         WHERE o.seq > ? ORDER BY o.seq LIMIT ?) AS o)"
    };
}

macro_rules! counted {
    () => {
        "SELECT max(seq), min(seq) FILTER (WHERE NOT expired), count(*), count(*) FILTER (WHERE expired), \
         coalesce(bool_and(is_old), false) FROM chunk"
    };
}

statement!(
    Pg,
    /// Notes of requeued rows that are sent. Where the sequence was set back, numbers say nothing, but nothing is lost by a note that goes early
    /// either.
    ForgetRequeued {} -> BigInt,
    "DELETE FROM outbox_requeued WHERE seq <= (SELECT min(sent_through) FROM outbox_shard)"
);

statement!(
    Pg,
    /// Whether a round has something to do: its first chunk has expired rows, or there may be some behind it.
    IsWanted { retention: f64 => Double, cursor: i64 => BigInt, limit: i64 => BigInt, all: i64 => BigInt } -> Bool,
    concat!("WITH ", chunk!(), " SELECT coalesce(bool_or(expired) OR bool_and(is_old) AND count(*) = ?, false) FROM chunk")
);

statement!(
    Pg,
    /// Leaves alone a row that was changed since the statement began, because it lies elsewhere then.
    Prune {
        retention: f64 => Double, cursor: i64 => BigInt, limit: i64 => BigInt
    } -> (Nullable<BigInt>, Nullable<BigInt>, BigInt, BigInt, Bool),
    concat!(
        "WITH ",
        chunk!(),
        ", pruned AS (DELETE FROM ONLY outbox AS o USING chunk AS c WHERE o.ctid = c.place AND c.expired) ",
        counted!()
    )
);

statement!(
    Pg,
    /// Does the same, except for rows that somebody has locked.
    PruneBesideLocks {
        retention: f64 => Double, cursor: i64 => BigInt, limit: i64 => BigInt
    } -> (Nullable<BigInt>, Nullable<BigInt>, BigInt, BigInt, Bool),
    concat!(
        "WITH ",
        chunk!(),
        ", free AS MATERIALIZED (SELECT o.ctid AS place FROM ONLY outbox AS o JOIN chunk AS c ON o.ctid = c.place WHERE c.expired \
         FOR UPDATE OF o SKIP LOCKED), pruned AS (DELETE FROM ONLY outbox AS o USING free AS f WHERE o.ctid = f.place) ",
        counted!()
    )
);
