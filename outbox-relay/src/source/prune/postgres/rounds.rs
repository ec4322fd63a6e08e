//! Pruning on its own connection and thread, which exist only while there is something to prune. So pruning keeps up with a busy
//! relay and does not delay it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use diesel::connection::SimpleConnection;
use diesel::pg::{Pg, PgConnection};
use diesel::prelude::*;
use diesel::sql_types::BigInt;

use super::super::{
    Counting, Expiry, FULL_INTERVAL, How, LOWEST, Limits, PRUNE_CHUNK, PRUNE_INTERVAL, Prunable, Rhythm,
    Steps, first_dead_letter, warn, warn_of_dead_letters,
};
use super::{HasDeadLetters, IsWanted, SETTINGS};
use crate::source::database::PostgresDatabase;
use crate::statement::statement;

/// A round pauses this many times as long as it works, until it has taken this long.
const PAUSES: u32 = 3;
const LEISURE: Duration = Duration::from_secs(30);
/// How soon a thread that pauses notices that it should end, and how often the relay looks whether it has.
const SLICE: Duration = Duration::from_millis(50);
/// After this many chunks without an expired row a round ends. The next one goes on there.
const IDLE_CHUNKS: usize = 100;
/// How long to wait for the end of a thread: for a chunk, or a lock. A thread that hangs on its connection ends when the connection
/// does, and until then nobody else prunes.
const LONGEST_END: Duration = Duration::from_secs(2);
/// If no other connection is to be had, pruning takes this part of the relay's time, and so long at once.
const STEPS_SHARE: u32 = 4;
const LONGEST_STEP: Duration = Duration::from_millis(100);
/// A round makes no pauses if there is more beyond the number that is kept than at the last round, and so much: this part of it, but not a few
/// rows.
const EXCESS_PART: u64 = 4;
const FEW: i64 = 100_000;
/// If nothing has expired, how much of the retention passes until the next look, as one of so many parts.
const PARTS: u32 = 100;

/// Rounds of pruning. The drop waits for the thread, but not for long: the relay should stop or reconnect.
#[derive(Default)]
pub(in super::super::super) struct PostgresPruning {
    rhythm: Rhythm,
    round: Option<JoinHandle<Round>>,
    /// What prunes instead if no other connection is to be had.
    steps: Option<Steps>,
    place: Start,
    ends: Arc<AtomicBool>,
    /// Whether a round is due, and another outbox of the database is being pruned, or no connection is to be had.
    waits: bool,
}

/// Where rounds begin.
#[derive(Debug, Clone, Copy, Default)]
struct Start {
    cursor: i64,
    was_full: Option<Instant>,
    /// Whether a round ended there before it came to recently sent rows.
    is_on_its_way: bool,
    /// How much was beyond the number that is kept when a round began.
    excess: Option<i64>,
}

/// What a round leaves behind.
#[derive(Default)]
struct Round {
    place: Start,
    /// Whether it could not get a connection.
    refused: bool,
    /// Whether somebody else pruned.
    had_no_turn: bool,
    /// How long it has counted.
    counting: Duration,
    pruned: u64,
}

impl PostgresPruning {
    /// Returns how soon an idle relay should run this again.
    pub(in super::super::super) fn pause(&self, limits: Limits) -> Duration {
        if self.waits {
            Duration::ZERO
        } else if limits.sent.rows.is_some() {
            self.rhythm.pause
        } else if self.round.is_some() || self.place.is_on_its_way || limits.dead_letters.is_limited() {
            PRUNE_INTERVAL
        } else {
            limits.sent.age.map_or(Duration::MAX, |age| (age / PARTS).clamp(PRUNE_INTERVAL, FULL_INTERVAL))
        }
    }

    /// Begins a round if one is due. If it cannot get another connection, prunes on `conn` instead.
    pub(in super::super::super) fn run(
        &mut self,
        conn: &mut PgConnection,
        database: &PostgresDatabase,
        limits: Limits,
    ) -> QueryResult<()> {
        self.waits = false;
        if self.round.as_ref().is_some_and(JoinHandle::is_finished)
            && let Some(Ok(round)) = self.round.take().map(JoinHandle::join)
        {
            self.place = round.place;
            if round.had_no_turn {
                self.rhythm.wait_for_turn();
            } else {
                self.rhythm.end(limits.sent.rows.is_some(), round.counting, round.pruned);
            }
            // The relay must not wait for anybody's lock.
            self.steps = round.refused.then(|| Steps::new(STEPS_SHARE, LONGEST_STEP, How::DeletesFree));
        }
        if let Some(steps) = &mut self.steps {
            steps.run(conn, limits);
            self.waits = steps.is_at_work();
            self.steps.take_if(|_| !self.waits);
            return Ok(());
        }
        if self.round.is_some() || !self.rhythm.is_due() {
            return Ok(());
        }
        if database.is_pruned.load(Ordering::Relaxed) {
            self.waits = true;
            return Ok(());
        }
        self.rhythm.begin();
        ForgetRequeued::new().execute(conn)?;
        let is_long_ago = self.place.was_full.is_none_or(|full| full.elapsed() >= FULL_INTERVAL);
        if is_long_ago && !self.place.is_on_its_way {
            self.place = Start { cursor: 0, was_full: Some(Instant::now()), ..self.place };
        }
        if !self.is_wanted(conn, limits)? {
            (self.place.is_on_its_way, self.waits) = (false, false);
            return Ok(());
        }
        let Some(turn) = DatabaseTurn::take(&database.is_pruned) else {
            // Another outbox of the database was faster.
            (self.rhythm, self.waits) = (Rhythm::default(), true);
            return Ok(());
        };
        let (database, place, ends) = (database.clone(), self.place, self.ends.clone());
        let round = move || {
            let _turn = turn;
            Round { place, ..Round::default() }.run(&database, limits, &ends)
        };
        match thread::Builder::new().name("outbox-prune".into()).spawn(round) {
            Ok(round) => self.round = Some(round),
            Err(error) => {
                tracing::warn!(%error, "cannot start a thread that prunes expired rows; the relay tries again in a minute")
            }
        }
        Ok(())
    }

    fn is_wanted(&self, conn: &mut PgConnection, limits: Limits) -> QueryResult<bool> {
        if limits.sent.rows.is_some() {
            // Only counting tells.
            return Ok(true);
        }
        if limits.dead_letters.is_limited() && HasDeadLetters::new().get_result(conn)? {
            return Ok(true);
        }
        if limits.sent.age.is_none() {
            return Ok(false);
        }
        let (seconds, cursor) = (limits.sent.seconds(), self.place.cursor);
        IsWanted::new(LOWEST, LOWEST, seconds, cursor, PRUNE_CHUNK, PRUNE_CHUNK).get_result(conn)
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

/// The only connection of this process that prunes in a database, until this is dropped.
struct DatabaseTurn(Arc<AtomicBool>);

impl DatabaseTurn {
    fn take(is_pruned: &Arc<AtomicBool>) -> Option<Self> {
        (!is_pruned.swap(true, Ordering::Relaxed)).then(|| Self(is_pruned.clone()))
    }
}

impl Drop for DatabaseTurn {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Relaxed);
    }
}

impl Round {
    fn run(mut self, database: &PostgresDatabase, limits: Limits, ends: &AtomicBool) -> Self {
        let Ok(mut conn) = database.connect() else { return Self { refused: true, ..self } };
        if let Err(error) = self.prune(&mut conn, limits, &Pace { began: Instant::now(), ends }) {
            warn(error);
        }
        self
    }

    /// Deletes what has expired, chunk by chunk. The end of the session ends its turn.
    fn prune(&mut self, conn: &mut PgConnection, limits: Limits, pace: &Pace<'_>) -> QueryResult<()> {
        conn.batch_execute(SETTINGS)?;
        if conn.take_turn()?.is_none() {
            self.had_no_turn = true;
            return Ok(());
        }
        if limits.dead_letters.is_limited() {
            prune_dead_letters(conn, limits, pace).unwrap_or_else(warn_of_dead_letters);
        }
        if !limits.sent.is_limited() || pace.ends() {
            return Ok(());
        }
        let through = match limits.sent.rows {
            Some(rows) => self.count(conn, rows, pace)?,
            None => LOWEST,
        };
        let longest = limits
            .sent
            .rows
            .map_or(i64::MAX, |rows| i64::try_from(rows / EXCESS_PART).unwrap_or(i64::MAX).max(FEW));
        let excess = through.saturating_sub(self.place.cursor);
        let keeps_up = self.place.excess.replace(excess).is_none_or(|before| excess <= before);
        let has_time = keeps_up || excess < longest;
        let mut idle = 0;
        loop {
            let since = Instant::now();
            let chunk =
                conn.sent_chunk(self.place.cursor, Expiry::new(limits.sent, through), How::Deletes)?;
            self.place.cursor = chunk.next;
            self.place.is_on_its_way = !chunk.is_last;
            self.pruned += chunk.expired;
            idle += usize::from(chunk.expired == 0);
            if chunk.is_last || idle == IDLE_CHUNKS || pace.ends() {
                return Ok(());
            }
            if has_time {
                pace.pause(since.elapsed());
            }
        }
    }

    /// Returns the number up to which sent rows are beyond those that are kept.
    fn count(&mut self, conn: &mut PgConnection, rows: u64, pace: &Pace<'_>) -> QueryResult<i64> {
        let mut counting = Counting::of(rows);
        loop {
            let since = Instant::now();
            let through = counting.step(conn)?;
            self.counting += since.elapsed();
            match through {
                Some(through) => return Ok(through),
                None if pace.ends() => return Ok(LOWEST),
                None => pace.pause(since.elapsed()),
            }
        }
    }
}

fn prune_dead_letters(conn: &mut PgConnection, limits: Limits, pace: &Pace<'_>) -> QueryResult<()> {
    let before = conn.dead_letters_expire_before(limits.dead_letters.into())?;
    let mut next = Some(first_dead_letter());
    while let Some(after) = next.filter(|_| !pace.ends()) {
        let since = Instant::now();
        next = conn.dead_letter_chunk(&after, &before, true)?.next;
        pace.pause(since.elapsed());
    }
    Ok(())
}

/// How fast a round goes on.
struct Pace<'a> {
    began: Instant,
    ends: &'a AtomicBool,
}

impl Pace<'_> {
    fn ends(&self) -> bool {
        self.ends.load(Ordering::Relaxed)
    }

    /// Pauses after so much work.
    fn pause(&self, work: Duration) {
        if self.began.elapsed() < LEISURE {
            pause(work * PAUSES, self.ends);
        }
    }
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

statement!(
    Pg,
    /// Notes of requeued rows that are sent. Where the sequence was set back, numbers say nothing, but nothing is lost by a note that goes early
    /// either.
    ForgetRequeued {} -> BigInt,
    "DELETE FROM outbox_requeued WHERE seq <= (SELECT min(sent_through) FROM outbox_shard)"
);
