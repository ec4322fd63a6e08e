//! What can go wrong with an outbox, looked at before it does. Nothing here changes anything, and nothing waits for a lock for long.

#[cfg(feature = "kafka")]
mod kafka;
#[cfg(feature = "mysql")]
mod mysql;
#[cfg(feature = "postgres")]
mod postgres;
#[cfg(feature = "sqlite")]
mod sqlite;

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use diesel::QueryResult;
use diesel_outbox_core::__private::one_line;
use diesel_outbox_core::Lag;

#[cfg(feature = "kafka")]
pub use self::kafka::examine_kafka;
#[cfg(feature = "postgres")]
pub use self::postgres::examine_wal;

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Finding {
    /// What was looked at: a word that stays the same, such as `slot`.
    pub check: &'static str,
    /// How it is.
    pub verdict: Verdict,
    /// What was found, and what to do.
    pub text: String,
}

/// How something is that was looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Verdict {
    /// As it should be.
    Ok,
    /// The relay works, but something should be looked after.
    Warn,
    /// The relay does not work, or will soon not.
    Fail,
}

/// An examination of the tables and their database, on the connections of [`Operate`](super::Operate).
pub trait Examine {
    /// Looks at everything, and returns a finding for each thing. What cannot be looked at is a finding too. Connect as the relay does.
    fn examine(&mut self) -> Vec<Finding>;

    /// Returns the aggregate types of recent events, by which topics are named.
    ///
    /// # Errors
    /// Returns the database's error.
    fn recent_aggregate_types(&mut self) -> QueryResult<Vec<String>>;
}

/// How long an event may wait before it is worth a warning, and how long a transaction may stay open or prepared.
const LONG_WAIT: Duration = Duration::from_secs(60);
#[cfg(feature = "postgres")]
const LONG_PREPARED: Duration = Duration::from_secs(60);
#[cfg(any(feature = "mysql", feature = "postgres"))]
const LONG_OPEN: Duration = Duration::from_secs(5);
/// How long a scheduled event may be due. A relay moves it within two seconds.
const LONG_OVERDUE: Duration = Duration::from_secs(30);
/// By how much two clocks may differ.
const CLOCKS_DIFFER: Duration = Duration::from_secs(1);

impl Finding {
    /// Returns a finding.
    pub fn new(check: &'static str, verdict: Verdict, text: impl Into<String>) -> Self {
        Self { check, verdict, text: text.into() }
    }

    fn ok(check: &'static str, text: impl Into<String>) -> Self {
        Self::new(check, Verdict::Ok, text)
    }

    fn warn(check: &'static str, text: impl Into<String>) -> Self {
        Self::new(check, Verdict::Warn, text)
    }

    fn fail(check: &'static str, text: impl Into<String>) -> Self {
        Self::new(check, Verdict::Fail, text)
    }

    /// `Ok` if nothing is wrong, and else this verdict.
    fn of(check: &'static str, problem: Option<(Verdict, String)>, fine: impl Into<String>) -> Self {
        problem.map_or_else(|| Self::ok(check, fine), |(verdict, problem)| Self::new(check, verdict, problem))
    }
}

/// The findings of a look that may fail.
fn looked<E: std::fmt::Display>(check: &'static str, looked: Result<Vec<Finding>, E>) -> Vec<Finding> {
    looked.unwrap_or_else(|error| {
        vec![Finding::fail(check, format!("cannot be checked: {}", one_line(&error.to_string())))]
    })
}

/// How far the relays are behind, and what is kept.
fn lag_findings(lag: &Lag) -> Vec<Finding> {
    let seconds = lag.oldest.as_secs();
    let waits = if lag.oldest >= LONG_WAIT {
        Finding::warn(
            "lag",
            format!(
                "{} events wait, the oldest for {seconds} s: look whether a relay runs, and at its log and /readyz",
                lag.unsent
            ),
        )
    } else {
        Finding::ok("lag", format!("{} events wait, the oldest for {seconds} s", lag.unsent))
    };
    let dead = match lag.dead_letters {
        0 => Finding::ok("dead_letters", "there are none"),
        count => Finding::warn(
            "dead_letters",
            format!(
                "there are {count}: `outbox dead-letters` lists them with their reasons; then run `outbox requeue`"
            ),
        ),
    };
    let blocked = match lag.blocked_aggregates {
        0 => Finding::ok("blocked", "no aggregate is held back"),
        count => Finding::warn(
            "blocked",
            format!(
                "{count} aggregates are held back behind a dead letter: requeue each with `outbox requeue --aggregate TYPE ID`"
            ),
        ),
    };
    let overdue = lag.overdue.as_secs();
    let scheduled = if lag.overdue >= LONG_OVERDUE {
        Finding::warn(
            "scheduled",
            format!(
                "a scheduled event has been due for {overdue} s: look whether a relay runs, and at its log"
            ),
        )
    } else {
        Finding::ok(
            "scheduled",
            format!("{} events are scheduled for later, and none is overdue", lag.scheduled),
        )
    };
    vec![waits, dead, blocked, scheduled]
}

/// Compares the database's clock, in milliseconds since 1970, with ours, which was read before and after.
fn clock_finding(before: SystemTime, theirs_ms: i64) -> Finding {
    let after = SystemTime::now();
    let ms = |at: SystemTime| {
        i64::try_from(at.duration_since(UNIX_EPOCH).unwrap_or_default().as_millis()).unwrap_or(i64::MAX)
    };
    let (before, after) = (ms(before), ms(after));
    // All that is known is that it was read in between.
    let off = if theirs_ms < before { theirs_ms - before } else { (theirs_ms - after).max(0) };
    if u128::from(off.unsigned_abs()) < CLOCKS_DIFFER.as_millis() {
        return Finding::ok("clock", "the database's clock and this machine's agree to a second");
    }
    let which = if off < 0 { "behind" } else { "ahead of" };
    Finding::warn(
        "clock",
        format!(
            "the database's clock is {} ms {which} this machine's: ages and latencies are wrong by that. Let both follow one time server",
            off.unsigned_abs()
        ),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clocks_that_agree_within_a_second_are_fine_and_others_are_not() {
        let now = SystemTime::now();
        let ms = now.duration_since(UNIX_EPOCH).unwrap().as_millis() as i64;
        assert_eq!(clock_finding(now, ms - 900).verdict, Verdict::Ok);
        let behind = clock_finding(now, ms - 5_000);
        assert!(behind.verdict == Verdict::Warn && behind.text.contains("5000 ms behind"), "{behind:?}");
        let ahead = clock_finding(now, ms + 60_000);
        assert!(ahead.verdict == Verdict::Warn && ahead.text.contains("ms ahead of"), "{ahead:?}");
    }
}
