use std::time::{Duration, Instant};

/// The progress of pruning an inbox in steps, for `Inbox::prune_step`.
///
/// Each step deletes as many marks as it can in a few hundredths of a second. Keep one `Pruning` for each inbox. You may start over
/// with a new one at any time: then the first step takes longer if there are many deleted rows that the database has not yet cleaned
/// up.
#[derive(Debug, Clone)]
#[must_use]
pub struct Pruning {
    retention: Duration,
    rows: i64,
    /// The start of the last round that left nothing old behind, and the start of the present round.
    complete: Option<Instant>,
    began: Option<Instant>,
}

impl Pruning {
    const FIRST_ROWS: i64 = 200;
    const MOST_ROWS: i64 = 10_000;
    /// A step has fixed costs that do not depend on its rows, such as the round trip to the database.
    const FEWEST_ROWS: i64 = 100;
    const TARGET: Duration = Duration::from_millis(25);
    /// A step takes this long only if there are many deleted rows that the database cannot clean up yet. More steps would not help.
    const LONGEST: Duration = Duration::from_millis(400);
    /// How far the database's clock may have been set back, and how long transactions may have been open, in seconds.
    const MARGIN: f64 = 24.0 * 60.0 * 60.0;
    /// Three hundred years in seconds: older than any mark.
    const UNBOUNDED: f64 = 1e10;

    /// Returns the state before the first step that deletes the marks of events handled longer ago than `retention`.
    pub fn new(retention: Duration) -> Self {
        Self { retention, rows: Self::FIRST_ROWS, complete: None, began: None }
    }

    /// Returns the ages in seconds between which a step deletes marks, and the maximum number of marks.
    #[doc(hidden)]
    pub fn step(&mut self, now: Instant) -> (f64, f64, i64) {
        self.began.get_or_insert(now);
        let retention = self.retention.as_secs_f64();
        // Deleted marks stay in PostgreSQL's index until it is vacuumed. A step should not scan all of them again.
        let oldest = self.complete.map_or(Self::UNBOUNDED, |complete| {
            retention + now.duration_since(complete).as_secs_f64() + Self::MARGIN
        });
        (retention, oldest, self.rows)
    }

    /// Records the result of a step, and returns whether another step soon is worthwhile.
    #[doc(hidden)]
    pub fn stepped(&mut self, deleted: usize, time: Duration) -> bool {
        let more = deleted as i64 >= self.rows;
        if more {
            let fitting = self.rows as f64 * Self::TARGET.as_secs_f64() / time.as_secs_f64().max(1e-6);
            self.rows = (fitting as i64).min(self.rows * 2).clamp(Self::FEWEST_ROWS, Self::MOST_ROWS);
        } else {
            self.complete = self.began.take();
        }
        more && time < Self::LONGEST
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_take_about_as_long_as_they_should() {
        let mut pruning = Pruning::new(Duration::from_secs(60));
        for milliseconds_per_row in [0.1, 0.005, 0.03] {
            let mut rows = 0;
            for _ in 0..20 {
                rows = pruning.step(Instant::now()).2;
                assert!(pruning.stepped(
                    rows as usize,
                    Duration::from_secs_f64(rows as f64 * milliseconds_per_row / 1e3)
                ));
            }
            let expected = (25.0 / milliseconds_per_row) as i64;
            assert_eq!(rows, expected.min(Pruning::MOST_ROWS));
        }
    }

    #[test]
    fn steps_stay_large_enough_for_a_distant_database() {
        let mut pruning = Pruning::new(Duration::from_secs(60));
        for _ in 0..20 {
            let rows = pruning.step(Instant::now()).2;
            assert!(rows >= Pruning::FEWEST_ROWS);
            assert!(pruning.stepped(rows as usize, Duration::from_millis(80)));
        }
    }

    #[test]
    fn a_step_that_takes_too_long_is_the_last_for_now() {
        let mut pruning = Pruning::new(Duration::from_secs(60));
        assert!(!pruning.stepped(Pruning::FIRST_ROWS as usize, Pruning::LONGEST));
        let (_, oldest, rows) = pruning.step(Instant::now());
        assert!(oldest == Pruning::UNBOUNDED && rows < Pruning::FIRST_ROWS);
    }

    #[test]
    fn a_round_after_a_complete_one_begins_where_that_one_did() {
        let mut pruning = Pruning::new(Duration::from_secs(60));
        let now = Instant::now();
        assert_eq!(pruning.step(now), (60.0, Pruning::UNBOUNDED, Pruning::FIRST_ROWS));
        assert!(pruning.stepped(Pruning::FIRST_ROWS as usize, Pruning::TARGET));
        assert!(!pruning.stepped(1, Pruning::TARGET));
        assert_eq!(pruning.step(now + Duration::from_secs(7)).1, 60.0 + 7.0 + Pruning::MARGIN);
    }
}
