//! Deletes what the retention no longer covers: sent rows, dead letters, and the marks of an inbox, by age and by number.
//!
//! It goes chunk by chunk, and deletes exactly the rows that it has found expired, never a range. Relays do it in rounds, and an operator by
//! [`operate::prune`](crate::operate::prune); a lock keeps them from doing it at the same time.

#[cfg(feature = "mysql")]
mod mysql;
#[cfg(feature = "postgres")]
mod postgres;
#[cfg(feature = "sqlite")]
mod sqlite;
mod steps;

use std::fs::File;
use std::time::{Duration, Instant};

use diesel::QueryResult;
use diesel_outbox_core::__private::one_line;
use diesel_outbox_core::DeadLetterPolicy;

#[cfg(feature = "postgres")]
pub(super) use self::postgres::PostgresPruning;
pub(super) use self::steps::Steps;
use super::interval::has_passed;
use super::{SentRows, SourceOptions, database_error};

const PRUNE_INTERVAL: Duration = Duration::from_secs(60);
pub(crate) const PRUNE_CHUNK: i64 = 5_000;
/// How many rows are counted at once.
const COUNT_CHUNK: i64 = 10_000;
/// If rows are kept by number: how soon a round follows one that has pruned something, how soon one that has not, because much may come at any
/// time, and which part of the time counting may take.
const SHORTEST_INTERVAL: Duration = Duration::from_secs(1);
const LONGEST_INTERVAL: Duration = Duration::from_secs(10);
/// How often a round begins with the oldest row of all. Others begin where the last one came to rows that are kept. What lies before that is a
/// late commit's, was unsent then, or is what is left of deleted rows.
const FULL_INTERVAL: Duration = Duration::from_secs(60 * 60);
/// How soon a relay that leads tries again if somebody else prunes: perhaps it is a relay that has just died.
const TURN_INTERVAL: Duration = Duration::from_secs(2);
const COUNT_SHARE: u32 = 20;
/// Three hundred years: older than any row.
const UNBOUNDED: f64 = 1e10;
/// Below each number that a row can have. MySQL reads it as a number, and not so the lowest of all.
pub(crate) const LOWEST: i64 = -i64::MAX;

/// How much is kept. What is beyond either limit has expired.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Retention {
    /// For how long.
    pub(crate) age: Option<Duration>,
    /// How many, the newest ones.
    pub(crate) rows: Option<u64>,
}

impl Retention {
    fn seconds(self) -> f64 {
        if self.rows == Some(0) { 0.0 } else { self.age.map_or(UNBOUNDED, |age| age.as_secs_f64()) }
    }

    /// Returns how many others are newer than the oldest that is kept by number, or -1 if none is.
    fn newer(self) -> i64 {
        self.rows.map_or(-1, |rows| i64::try_from(rows).unwrap_or(i64::MAX) - 1)
    }

    pub(crate) fn is_limited(self) -> bool {
        self != Self::default()
    }
}

/// How much a relay keeps.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    pub(super) sent: Retention,
    pub(super) dead_letters: Retention,
}

impl Limits {
    pub(super) fn of(options: &SourceOptions) -> Self {
        let sent = match options.sent_rows {
            SentRows::Keep { retention } => Retention { age: Some(retention), rows: options.keep_sent_rows },
            SentRows::Delete => Retention::default(),
        };
        // Each dead letter holds its aggregate back then.
        let dead_letters = match options.dead_letter_policy {
            DeadLetterPolicy::Continue => {
                Retention { age: options.keep_dead_letters, rows: options.keep_dead_letter_rows }
            }
            _ => Retention::default(),
        };
        Self { sent, dead_letters }
    }

    pub(super) fn are_any(self) -> bool {
        self.sent.is_limited() || self.dead_letters.is_limited()
    }

    /// The same for a relay that reads the write-ahead log: rows that it should delete are still there.
    #[cfg(feature = "postgres-wal")]
    pub(super) fn of_wal(options: &SourceOptions) -> Self {
        let limits = Self::of(options);
        match options.sent_rows {
            SentRows::Delete => Self { sent: Retention { age: Some(Duration::ZERO), rows: None }, ..limits },
            SentRows::Keep { .. } => limits,
        }
    }
}

/// A table that can be pruned, with the advisory lock of its pruning. A plain `PgConnection`, a plain `SqliteConnection`, or a `Conn` of the
/// crate `mysql`.
pub trait Prunable {
    /// Prepares the session of an operator, and makes sure that it sees all rows of the outbox. A relay's has its own settings.
    #[doc(hidden)]
    fn prepare(&mut self, of_outbox: bool) -> QueryResult<()> {
        let _ = of_outbox;
        Ok(())
    }

    /// Gives the session back what it had before [`prepare`](Self::prepare).
    #[doc(hidden)]
    fn restore(&mut self) -> QueryResult<()> {
        Ok(())
    }

    /// Returns `None` if somebody else prunes.
    #[doc(hidden)]
    fn take_turn(&mut self) -> QueryResult<Option<Turn>>;

    #[doc(hidden)]
    fn end_turn(&mut self, turn: Turn) -> QueryResult<()>;

    /// Counts the next rows below a number, from the highest down.
    #[doc(hidden)]
    fn count_down(&mut self, below: i64, limit: i64) -> QueryResult<CountedDown>;

    /// Returns the number of a sent row below a number, after so many others, from the highest down.
    #[doc(hidden)]
    fn sent_below(&mut self, below: i64, others: i64) -> QueryResult<Option<i64>>;

    /// Looks at the next rows after a number, and deletes those that have expired, or only counts them.
    #[doc(hidden)]
    fn sent_chunk(&mut self, after: i64, expiry: Expiry, how: How) -> QueryResult<PrunedChunk>;

    /// Returns the time before which dead letters have expired, as the database writes it: they are older than that, or so many are newer.
    #[doc(hidden)]
    fn dead_letters_expire_before(&mut self, expiry: TimedExpiry) -> QueryResult<String>;

    /// Looks at the next dead letters, and deletes those that have expired, or only counts them. Leaves those of aggregates that were held
    /// back.
    #[doc(hidden)]
    fn dead_letter_chunk(
        &mut self,
        after: &(i64, String),
        before: &str,
        deletes: bool,
    ) -> QueryResult<PrunedDeadLetters>;

    /// Returns the name of the first consumer with marks whose name comes after this one.
    #[doc(hidden)]
    fn consumer_after(&mut self, consumer: Option<&str>) -> QueryResult<Option<String>>;

    /// Returns the time before which a consumer's marks have expired, as the database writes it.
    #[doc(hidden)]
    fn marks_expire_before(&mut self, consumer: &str, expiry: TimedExpiry) -> QueryResult<String>;

    #[doc(hidden)]
    fn count_marks(&mut self, consumer: &str, before: &str) -> QueryResult<u64>;

    /// Deletes the oldest marks from before a time, up to so many, and returns how many.
    #[doc(hidden)]
    fn prune_marks(&mut self, consumer: &str, before: &str, limit: i64) -> QueryResult<u64>;
}

/// The right to prune, of one process at a time.
#[derive(Debug)]
pub struct Turn {
    /// What is locked on SQLite.
    _file: Option<File>,
}

/// What becomes of expired rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum How {
    /// They are only counted.
    Counts,
    /// They are deleted. It may wait for a moment for whoever has locked one.
    Deletes,
    /// They are deleted, except for those that somebody has locked.
    DeletesFree,
}

/// What has expired, if it was sent.
#[derive(Debug, Clone, Copy)]
pub struct Expiry {
    /// What was sent longer ago than this.
    seconds: f64,
    /// What has no greater number than this.
    through: i64,
}

impl Expiry {
    pub(crate) fn new(retention: Retention, through: i64) -> Self {
        Self { seconds: retention.seconds(), through }
    }
}

/// What has expired of rows that have a time: what is older than this, and what has so many newer ones beside itself. If that is negative, the
/// number does not matter.
#[derive(Debug, Clone, Copy)]
pub struct TimedExpiry {
    seconds: f64,
    newer: i64,
}

impl From<Retention> for TimedExpiry {
    fn from(retention: Retention) -> Self {
        Self { seconds: retention.seconds(), newer: retention.newer() }
    }
}

/// How many rows there were, how many of them are known to be sent, and the lowest number.
type CountedDown = (i64, i64, Option<i64>);

/// Warns, and the relay goes on. If it is the connection that has failed, its next use fails too.
fn warn(error: diesel::result::Error) {
    let error = database_error("pruning", error);
    tracing::warn!(%error, "expired rows could not be pruned; the relay tries again in a minute");
}

/// Warns of dead letters, which a relay's role may not delete unless somebody has granted it that.
fn warn_of_dead_letters(error: diesel::result::Error) {
    let error = one_line(&error.to_string());
    tracing::warn!(
        error,
        "expired dead letters could not be pruned, for which the relay's role needs GRANT DELETE ON outbox_dead_letter; \
         the relay tries again in a minute"
    );
}

/// The outcome of a chunk.
#[derive(Debug, Clone, Copy)]
pub struct PrunedChunk {
    /// Where the next one begins.
    pub(crate) next: i64,
    /// Whether the round is over, because what comes next was emitted recently.
    pub(crate) is_last: bool,
    /// How many rows had expired. If Kafka does not take the records of a partition, their rows may be older than all that is sent, and none
    /// of them has expired.
    pub(crate) expired: u64,
}

impl PrunedChunk {
    /// The first number that has not expired is where the next round begins if this one ends here: it may have expired by then.
    fn new(last: i64, first_kept: Option<i64>, is_last: bool, expired: u64) -> Self {
        let next = if is_last { first_kept.map_or(last, |kept| kept - 1) } else { last };
        Self { next, is_last, expired }
    }
}

/// The outcome of a chunk of dead letters.
#[derive(Debug, Clone)]
pub struct PrunedDeadLetters {
    /// Behind which the next one begins. `None` if there are no more.
    pub(crate) next: Option<(i64, String)>,
    /// How many had expired.
    pub(crate) expired: u64,
}

/// Counts from the newest rows down until so many are found that were sent: what is below has expired.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Counting {
    below: i64,
    left: i64,
}

impl Counting {
    pub(crate) fn of(rows: u64) -> Self {
        Self { below: i64::MAX, left: i64::try_from(rows).unwrap_or(i64::MAX) }
    }

    /// Returns the number up to which rows have expired, once that is known. If none have, it is the lowest of all.
    pub(crate) fn step(&mut self, conn: &mut (impl Prunable + ?Sized)) -> QueryResult<Option<i64>> {
        let (rows, sent, lowest) = conn.count_down(self.below, COUNT_CHUNK)?;
        if sent > self.left {
            return Ok(Some(conn.sent_below(self.below, self.left)?.unwrap_or(LOWEST)));
        }
        self.left -= sent;
        match lowest {
            Some(lowest) if rows == COUNT_CHUNK => {
                self.below = lowest;
                Ok(None)
            }
            _ => Ok(Some(LOWEST)),
        }
    }
}

/// Where a walk through the dead letters begins.
pub(crate) fn first_dead_letter() -> (i64, String) {
    (LOWEST, uuid::Uuid::nil().to_string())
}

/// When rounds begin.
#[derive(Debug)]
struct Rhythm {
    begun: Option<Instant>,
    pause: Duration,
}

impl Default for Rhythm {
    fn default() -> Self {
        Self { begun: None, pause: PRUNE_INTERVAL }
    }
}

impl Rhythm {
    fn is_due(&self) -> bool {
        has_passed(self.begun, self.pause)
    }

    fn begin(&mut self) {
        self.begun = Some(Instant::now());
    }

    /// Notes that somebody else prunes.
    fn wait_for_turn(&mut self) {
        self.begin();
        self.pause = TURN_INTERVAL;
    }

    /// Notes the end of a round. While there is something to prune by number, the next one follows soon.
    fn end(&mut self, is_by_number: bool, counting: Duration, pruned: u64) {
        let longest = LONGEST_INTERVAL.max(counting * COUNT_SHARE);
        let shortest = SHORTEST_INTERVAL.max(counting * COUNT_SHARE);
        self.pause = match (is_by_number, pruned) {
            (false, _) => PRUNE_INTERVAL,
            (true, 0) => (self.pause * 2).clamp(shortest, longest),
            (true, _) => shortest,
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounds_follow_each_other_soon_while_rows_are_pruned_by_number_and_seldom_else() {
        let mut rhythm = Rhythm::default();
        rhythm.end(false, Duration::ZERO, 100);
        assert_eq!(rhythm.pause, PRUNE_INTERVAL);
        rhythm.end(true, Duration::from_millis(300), 100);
        assert_eq!(rhythm.pause, Duration::from_secs(6));
        rhythm.end(true, Duration::from_millis(300), 0);
        assert_eq!(rhythm.pause, LONGEST_INTERVAL);
        rhythm.end(true, Duration::from_secs(1), 0);
        assert_eq!(rhythm.pause, Duration::from_secs(20));
    }
}
