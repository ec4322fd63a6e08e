//! Prunes by hand what a relay prunes by itself: sent rows, dead letters, and the marks of an inbox.
//!
//! It never deletes what was not sent. While it works, no relay prunes, and the other way round.

use std::time::{Duration, Instant};

use diesel::QueryResult;

pub use crate::source::prune::Prunable;
use crate::source::prune::{Counting, Expiry, How, LOWEST, Retention, Turn, first_dead_letter};

/// How often it looks whether a relay still prunes.
const LOOK_PAUSE: Duration = Duration::from_millis(100);
/// How many marks are deleted at once.
const MARKS: i64 = 1_000;

/// What to prune, and how much to keep.
///
/// ```no_run
/// # #[cfg(feature = "postgres")]
/// # fn f(conn: &mut diesel::PgConnection) -> diesel::QueryResult<()> {
/// use std::time::Duration;
/// use diesel_outbox_relay::operate::prune::{Prune, PruneTable};
///
/// let prune = Prune::of(PruneTable::SentRows).older_than(Duration::from_secs(24 * 60 * 60));
/// println!("{} rows have expired", prune.count(conn)?);
/// prune.run(conn, &mut |_| true)?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
#[must_use]
pub struct Prune {
    table: PruneTable,
    retention: Retention,
}

/// Where to prune.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum PruneTable {
    /// The rows of the outbox that were sent.
    SentRows,
    /// The dead letters, whose events are lost then. Those of an aggregate of which some were held back by the policy `block` stay. If a relay
    /// has that policy now, prune none: to prune the only dead letter of an aggregate would release it.
    DeadLetters,
    /// The marks in the inbox of this consumer, or of all. An event that is delivered again after its mark is gone takes effect again.
    Inbox(Option<String>),
}

/// How far it has come.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Pruned {
    /// How many rows it has deleted.
    pub rows: u64,
    /// Whether it waits for somebody else who prunes.
    pub waits: bool,
}

impl Prune {
    /// Returns what prunes nothing, until it has a limit.
    pub fn of(table: PruneTable) -> Self {
        Self { table, retention: Retention::default() }
    }

    /// Prunes what is older than this, counted from when it was sent, became a dead letter, or was handled. Default: nothing.
    pub fn older_than(mut self, age: Duration) -> Self {
        self.retention.age = Some(age);
        self
    }

    /// Prunes what is beyond this number, and keeps the newest rows; in an inbox those of each consumer. Default: any number is kept.
    pub fn keep(mut self, rows: u64) -> Self {
        self.retention.rows = Some(rows);
        self
    }

    /// Returns how many rows it would delete. It reads those and what it keeps by number.
    ///
    /// # Errors
    /// Returns the database's error.
    pub fn count(&self, conn: &mut dyn Prunable) -> QueryResult<u64> {
        if !self.retention.is_limited() {
            return Ok(0);
        }
        conn.prepare(self.is_of_outbox())?;
        let counted = self.count_prepared(conn);
        conn.restore()?;
        counted
    }

    fn count_prepared(&self, conn: &mut dyn Prunable) -> QueryResult<u64> {
        match &self.table {
            PruneTable::Inbox(consumer) => {
                let mut count = 0;
                each_consumer(conn, consumer.as_deref(), |conn, consumer| {
                    let before = conn.marks_expire_before(consumer, self.retention.into())?;
                    count += conn.count_marks(consumer, &before)?;
                    Ok(true)
                })?;
                Ok(count)
            }
            _ => self.walk(conn, How::Counts, &mut |_| true),
        }
    }

    /// Deletes the rows in small chunks, with a pause after each that is as long as the chunk took. It calls `goes_on` after each chunk, and
    /// ends early if that returns `false`. To go on, run it again. Returns how many rows it has deleted.
    ///
    /// It waits while somebody else prunes the outbox.
    ///
    /// # Errors
    /// Returns the database's error. What was deleted stays deleted.
    pub fn run(&self, conn: &mut dyn Prunable, goes_on: &mut dyn FnMut(&Pruned) -> bool) -> QueryResult<u64> {
        if !self.retention.is_limited() {
            return Ok(0);
        }
        conn.prepare(self.is_of_outbox())?;
        let pruned = self.run_prepared(conn, goes_on);
        conn.restore()?;
        pruned
    }

    fn run_prepared(
        &self,
        conn: &mut dyn Prunable,
        goes_on: &mut dyn FnMut(&Pruned) -> bool,
    ) -> QueryResult<u64> {
        let turn = match self.is_of_outbox() {
            true => match self.wait_for_turn(conn, goes_on)? {
                None => return Ok(0),
                turn => turn,
            },
            // A consumer prunes the marks of its own, and several may do so at the same time.
            false => None,
        };
        let mut since = Instant::now();
        let mut paced = |rows| {
            let goes_on = goes_on(&Pruned { rows, waits: false });
            if goes_on {
                std::thread::sleep(since.elapsed());
            }
            since = Instant::now();
            goes_on
        };
        let pruned = match &self.table {
            PruneTable::Inbox(consumer) => self.prune_marks(conn, consumer.as_deref(), &mut paced),
            _ => self.walk(conn, How::Deletes, &mut paced),
        };
        if let Some(turn) = turn {
            conn.end_turn(turn)?;
        }
        pruned
    }

    fn is_of_outbox(&self) -> bool {
        !matches!(self.table, PruneTable::Inbox(_))
    }

    /// Returns `None` if it should not go on.
    fn wait_for_turn(
        &self,
        conn: &mut dyn Prunable,
        goes_on: &mut dyn FnMut(&Pruned) -> bool,
    ) -> QueryResult<Option<Turn>> {
        loop {
            if let Some(turn) = conn.take_turn()? {
                return Ok(Some(turn));
            }
            if !goes_on(&Pruned { rows: 0, waits: true }) {
                return Ok(None);
            }
            std::thread::sleep(LOOK_PAUSE);
        }
    }

    /// Walks through the outbox or the dead letters, and returns how many rows have expired there.
    fn walk(
        &self,
        conn: &mut dyn Prunable,
        how: How,
        goes_on: &mut dyn FnMut(u64) -> bool,
    ) -> QueryResult<u64> {
        let mut expired = 0;
        if self.table == PruneTable::DeadLetters {
            let before = conn.dead_letters_expire_before(self.retention.into())?;
            let mut next = Some(first_dead_letter());
            while let Some(after) = next {
                let chunk = conn.dead_letter_chunk(&after, &before, how != How::Counts)?;
                expired += chunk.expired;
                next = chunk.next.filter(|_| goes_on(expired));
            }
            return Ok(expired);
        }
        let through = match self.retention.rows {
            Some(rows) => {
                let mut counting = Counting::of(rows);
                loop {
                    if let Some(through) = counting.step(conn)? {
                        break through;
                    }
                    if !goes_on(0) {
                        return Ok(0);
                    }
                }
            }
            None => LOWEST,
        };
        let expiry = Expiry::new(self.retention, through);
        let mut after = LOWEST;
        loop {
            let chunk = conn.sent_chunk(after, expiry, how)?;
            expired += chunk.expired;
            after = chunk.next;
            if chunk.is_last || !goes_on(expired) {
                return Ok(expired);
            }
        }
    }

    fn prune_marks(
        &self,
        conn: &mut dyn Prunable,
        consumer: Option<&str>,
        goes_on: &mut dyn FnMut(u64) -> bool,
    ) -> QueryResult<u64> {
        let mut pruned = 0;
        each_consumer(conn, consumer, |conn, consumer| {
            let before = conn.marks_expire_before(consumer, self.retention.into())?;
            loop {
                let chunk = conn.prune_marks(consumer, &before, MARKS)?;
                pruned += chunk;
                if !goes_on(pruned) {
                    return Ok(false);
                }
                if chunk < MARKS.unsigned_abs() {
                    return Ok(true);
                }
            }
        })?;
        Ok(pruned)
    }
}

/// Does this for one consumer, or for each that has marks, until it returns `false`.
fn each_consumer(
    conn: &mut dyn Prunable,
    only: Option<&str>,
    mut work: impl FnMut(&mut dyn Prunable, &str) -> QueryResult<bool>,
) -> QueryResult<()> {
    if let Some(consumer) = only {
        return work(conn, consumer).map(drop);
    }
    let mut next = conn.consumer_after(None)?;
    while let Some(consumer) = next {
        if !work(conn, &consumer)? {
            break;
        }
        next = conn.consumer_after(Some(&consumer))?;
    }
    Ok(())
}
