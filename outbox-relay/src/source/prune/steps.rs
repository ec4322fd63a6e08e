//! Pruning on the relay's own connection, in small steps between passes.

use std::time::{Duration, Instant};

use diesel::QueryResult;

use super::{
    Counting, Expiry, FULL_INTERVAL, How, LOWEST, Limits, Prunable, PrunedDeadLetters, Rhythm,
    first_dead_letter, warn, warn_of_dead_letters,
};
use crate::source::interval::is_due;

/// After this many chunks without an expired row a round ends. The next one goes on there.
const IDLE_CHUNKS: usize = 10;

/// Rounds of pruning, each from the oldest row on.
#[derive(Debug)]
pub(in super::super) struct Steps {
    /// Pruning takes at most this part of the time that the relay had for other things, and at most this long at once. A chunk may take
    /// longer.
    share: u32,
    longest: Duration,
    how: How,
    rhythm: Rhythm,
    stage: Stage,
    /// Where the next round begins, and whether the last one ended there before it came to rows that are kept.
    start: i64,
    is_on_its_way: bool,
    was_full: Option<Instant>,
    /// What the round has done: how long it has counted, how many rows it has deleted, and how many chunks had none to delete.
    counting: Duration,
    pruned: u64,
    idle: usize,
    ended: Option<Instant>,
}

/// What a round does next.
#[derive(Debug)]
enum Stage {
    Rests,
    DeadLetters { after: (i64, String), before: String },
    Counts(Counting),
    Sent { after: i64, through: i64 },
}

impl Steps {
    pub(in super::super) fn new(share: u32, longest: Duration, how: How) -> Self {
        Self {
            share,
            longest,
            how,
            rhythm: Rhythm::default(),
            stage: Stage::Rests,
            start: 0,
            is_on_its_way: false,
            was_full: None,
            counting: Duration::ZERO,
            pruned: 0,
            idle: 0,
            ended: None,
        }
    }

    /// Returns whether a round goes on.
    #[cfg(feature = "postgres")]
    pub(super) fn is_at_work(&self) -> bool {
        !matches!(self.stage, Stage::Rests)
    }

    /// Begins a round if one is due, or goes on with the last one. If that fails, it warns, and the relay goes on.
    pub(in super::super) fn run(&mut self, conn: &mut impl Prunable, limits: Limits) {
        if !matches!(self.stage, Stage::Rests) || (limits.are_any() && self.rhythm.is_due()) {
            self.take_turn(conn, limits).unwrap_or_else(|error| {
                warn(error);
                self.rhythm.begin();
                self.end(false);
            });
        }
        self.ended = Some(Instant::now());
    }

    fn take_turn(&mut self, conn: &mut impl Prunable, limits: Limits) -> QueryResult<()> {
        let Some(turn) = conn.take_turn()? else {
            self.rhythm.wait_for_turn();
            self.stage = Stage::Rests;
            return Ok(());
        };
        let worked = self.work(conn, limits);
        // A session that keeps its turn would keep it from everybody else.
        conn.end_turn(turn)?;
        worked
    }

    fn work(&mut self, conn: &mut impl Prunable, limits: Limits) -> QueryResult<()> {
        let began = Instant::now();
        let time =
            self.ended.map_or(Duration::ZERO, |ended| (ended.elapsed() / self.share).min(self.longest));
        if matches!(self.stage, Stage::Rests) {
            self.begin(conn, limits)?;
        }
        while !matches!(self.stage, Stage::Rests) {
            self.step(conn, limits)?;
            if began.elapsed() >= time {
                break;
            }
        }
        Ok(())
    }

    fn begin(&mut self, conn: &mut impl Prunable, limits: Limits) -> QueryResult<()> {
        self.rhythm.begin();
        (self.counting, self.pruned, self.idle) = (Duration::ZERO, 0, 0);
        if !self.is_on_its_way && is_due(&mut self.was_full, FULL_INTERVAL) {
            self.start = 0;
        }
        if limits.dead_letters.is_limited() {
            let before = conn.dead_letters_expire_before(limits.dead_letters.into())?;
            self.stage = Stage::DeadLetters { after: first_dead_letter(), before };
        } else {
            self.begin_sent(limits);
        }
        Ok(())
    }

    fn begin_sent(&mut self, limits: Limits) {
        self.stage = match limits.sent.rows {
            _ if !limits.sent.is_limited() => Stage::Rests,
            Some(rows) => Stage::Counts(Counting::of(rows)),
            None => Stage::Sent { after: self.start, through: LOWEST },
        };
    }

    fn step(&mut self, conn: &mut impl Prunable, limits: Limits) -> QueryResult<()> {
        match &mut self.stage {
            Stage::Rests => {}
            Stage::DeadLetters { after, before } => match conn.dead_letter_chunk(after, before, true) {
                Ok(PrunedDeadLetters { next: Some(next), .. }) => *after = next,
                Ok(PrunedDeadLetters { next: None, .. }) => self.begin_sent(limits),
                Err(error) => {
                    warn_of_dead_letters(error);
                    self.begin_sent(limits);
                }
            },
            Stage::Counts(counting) => {
                let began = Instant::now();
                let through = counting.step(conn)?;
                self.counting += began.elapsed();
                if let Some(through) = through {
                    self.stage = Stage::Sent { after: self.start, through };
                }
            }
            Stage::Sent { after, through } => {
                let chunk = conn.sent_chunk(*after, Expiry::new(limits.sent, *through), self.how)?;
                *after = chunk.next;
                self.pruned += chunk.expired;
                self.idle += usize::from(chunk.expired == 0);
                if chunk.is_last || self.idle == IDLE_CHUNKS {
                    self.start = chunk.next;
                    self.is_on_its_way = !chunk.is_last;
                    self.end(limits.sent.rows.is_some());
                }
            }
        }
        Ok(())
    }

    fn end(&mut self, is_by_number: bool) {
        self.rhythm.end(is_by_number, self.counting, self.pruned);
        self.stage = Stage::Rests;
    }
}
