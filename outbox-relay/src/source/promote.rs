//! Moves scheduled events into the outbox when they are due.
//!
//! The relay that leads does it, between passes, on the connection that it has. Each step is one transaction that inserts what it deletes, so
//! an event is in one of the two tables, whoever dies. It locks the row of `outbox_promotion`: two relays that both take themselves for the
//! leader do not mix up the order. An event that somebody is cancelling at the moment is left for the next step.

#[cfg(feature = "mysql")]
mod mysql;
#[cfg(feature = "postgres")]
mod postgres;
#[cfg(feature = "sqlite")]
mod sqlite;

use std::time::{Duration, Instant};

use diesel_outbox_core::__private::one_line;
use diesel_outbox_core::Lag;

#[cfg(feature = "postgres")]
pub(crate) use self::postgres::DueSchemas;

/// How often the relay looks if it knows of nothing that is due sooner. So an event that is scheduled at short notice is late by this time
/// at most.
const LOOK_INTERVAL: Duration = Duration::from_secs(2);
/// How soon the relay tries again after a failure, or looks again for tables that are missing.
const RETRY_INTERVAL: Duration = Duration::from_secs(15);
/// A relay that does not lead moves an event that has been due for this long: perhaps the leader hangs. It looks this often.
const NEGLECTED: f64 = 10.0;
const HELP_INTERVAL: Duration = Duration::from_secs(15);
/// How many events one transaction moves.
const CHUNK: i64 = 500;

/// A connection to a database whose scheduled events can be moved.
pub(crate) trait Promote {
    type Error: std::error::Error;

    /// Returns whether the database has the tables. Those of an earlier version do not.
    fn has_schedule(&mut self) -> Result<bool, Self::Error>;

    /// Returns in how many seconds the next event is due, by the database's clock, or `None` if none is scheduled.
    fn next_due(&mut self) -> Result<Option<f64>, Self::Error>;

    /// Moves the events that are due, up to this many, in the order of their times. Returns how many, or `None` if another process is doing
    /// it at this moment.
    fn promote(&mut self, limit: i64) -> Result<Option<usize>, Self::Error>;

    /// Returns how many events are scheduled.
    fn count_scheduled(&mut self) -> Result<u64, Self::Error>;
}

/// Moves all events that are due, and returns how many.
pub(crate) fn promote_all<C: Promote>(conn: &mut C) -> Result<usize, C::Error> {
    let mut moved = 0;
    while let Some(step) = conn.promote(CHUNK)?.filter(|step| *step > 0) {
        moved += step;
    }
    Ok(moved)
}

/// What a relay knows of the scheduled events of an outbox.
#[derive(Debug, Default)]
pub(super) struct Promotion {
    /// When to look. `None` before the first look.
    look_at: Option<Instant>,
    /// Whether the tables are there, as of the last look for them.
    has_schedule: bool,
    led: bool,
    warned: bool,
}

impl Promotion {
    /// Moves events if some are due, one step at most, or if it does not lead those that the leader neglects. Returns whether it has moved any. If that fails, it warns, and the relay goes on:
    /// events that are not scheduled must not wait. If it is the connection that has failed, its next use fails too.
    pub(super) fn run<C: Promote>(&mut self, conn: &mut C, leads: bool) -> bool {
        if leads && !std::mem::replace(&mut self.led, leads) {
            // It may have looked seldom until now.
            self.look_at = None;
        }
        self.led = leads;
        if self.look_at.is_some_and(|look_at| Instant::now() < look_at) {
            return false;
        }
        let (moved, pause) = self.step(conn, leads).unwrap_or_else(|error| {
            let error = one_line(&error.to_string());
            tracing::warn!(
                error,
                retry_in_s = RETRY_INTERVAL.as_secs(),
                "scheduled events that are due could not be moved into the outbox; other events are sent meanwhile. If this says that \
                 permission was denied, give the relay's role the grants in docs/roles.md"
            );
            // The tables may have been dropped.
            self.has_schedule = false;
            (false, RETRY_INTERVAL)
        });
        self.look_at = Some(Instant::now() + pause);
        moved
    }

    /// Returns whether it has moved events, and how long to wait before the next step.
    fn step<C: Promote>(&mut self, conn: &mut C, leads: bool) -> Result<(bool, Duration), C::Error> {
        if !self.has_schedule {
            self.has_schedule = conn.has_schedule()?;
        }
        if !self.has_schedule {
            if leads && !std::mem::replace(&mut self.warned, true) {
                tracing::warn!(
                    "the table `outbox_scheduled` is missing, so no event can be scheduled; all others are sent. Run the migrations \
                     (`outbox migrate`) to create it"
                );
            }
            return Ok((false, RETRY_INTERVAL));
        }
        self.warned = false;
        match conn.next_due()? {
            Some(seconds) if seconds <= if leads { 0.0 } else { -NEGLECTED } => {}
            _ if !leads => return Ok((false, HELP_INTERVAL)),
            next => return Ok((false, pause_until(next))),
        }
        let moved = conn.promote(CHUNK)?.unwrap_or(0);
        // There may be more. If others hold what is due, it waits.
        let pause = if moved > 0 { Duration::ZERO } else { LOOK_INTERVAL };
        Ok((moved > 0, pause))
    }

    /// Adds to the lag what is scheduled and overdue.
    pub(super) fn measure<C: Promote>(&self, conn: &mut C, lag: &mut Lag) -> Result<(), C::Error> {
        if self.has_schedule {
            lag.scheduled = conn.count_scheduled()?;
            lag.overdue = overdue(conn.next_due()?);
        }
        Ok(())
    }
}

/// Returns for how long an event has been due that is due in so many seconds.
pub(crate) fn overdue(next_due: Option<f64>) -> Duration {
    next_due.and_then(|seconds| Duration::try_from_secs_f64(-seconds).ok()).unwrap_or_default()
}

fn pause_until(next_due: Option<f64>) -> Duration {
    let next = next_due.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    next.map_or(LOOK_INTERVAL, |next| next.min(LOOK_INTERVAL))
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::io::Error;

    use super::*;

    /// Answers from what it is given, and counts what it is asked.
    #[derive(Default)]
    struct Played {
        has_schedule: bool,
        next: VecDeque<Option<f64>>,
        promoted: VecDeque<Result<Option<usize>, ()>>,
        asked: usize,
    }

    impl Promote for Played {
        type Error = Error;

        fn has_schedule(&mut self) -> Result<bool, Error> {
            self.asked += 1;
            Ok(self.has_schedule)
        }

        fn next_due(&mut self) -> Result<Option<f64>, Error> {
            self.asked += 1;
            Ok(self.next.pop_front().flatten())
        }

        fn promote(&mut self, _: i64) -> Result<Option<usize>, Error> {
            self.asked += 1;
            self.promoted.pop_front().unwrap_or(Ok(None)).map_err(|()| Error::other("refused"))
        }

        fn count_scheduled(&mut self) -> Result<u64, Error> {
            Ok(0)
        }
    }

    fn pause(promotion: &Promotion) -> Duration {
        promotion.look_at.unwrap().saturating_duration_since(Instant::now())
    }

    #[test]
    fn a_relay_looks_again_when_the_next_event_is_due_and_asks_nothing_before() {
        let mut conn = Played { has_schedule: true, next: [Some(0.3), None].into(), ..Played::default() };
        let mut promotion = Promotion::default();
        assert!(!promotion.run(&mut conn, true));
        assert!((0.2..=0.3).contains(&pause(&promotion).as_secs_f64()));
        let asked = conn.asked;
        assert!(!promotion.run(&mut conn, true) && conn.asked == asked);
        promotion.look_at = None;
        promotion.run(&mut conn, true);
        assert!(pause(&promotion) > LOOK_INTERVAL - Duration::from_millis(100));
    }

    #[test]
    fn a_relay_goes_on_at_once_while_it_moves_events_and_waits_while_another_one_does() {
        let next = [Some(-1.0), Some(-1.0)].into();
        let mut conn =
            Played { has_schedule: true, next, promoted: [Ok(Some(500)), Ok(None)].into(), asked: 0 };
        let mut promotion = Promotion::default();
        assert!(promotion.run(&mut conn, true) && pause(&promotion).is_zero());
        assert!(!promotion.run(&mut conn, true) && !pause(&promotion).is_zero());
    }

    #[test]
    fn neither_missing_tables_nor_a_failure_stop_a_relay() {
        let mut conn = Played::default();
        let mut promotion = Promotion::default();
        assert!(!promotion.run(&mut conn, true) && pause(&promotion) > LOOK_INTERVAL);
        conn = Played { has_schedule: true, next: [Some(-1.0)].into(), promoted: [Err(())].into(), asked: 0 };
        promotion.look_at = None;
        assert!(!promotion.run(&mut conn, true) && pause(&promotion) > LOOK_INTERVAL);
    }

    #[test]
    fn a_relay_that_does_not_lead_moves_only_what_the_leader_neglects_and_looks_at_once_when_it_leads() {
        let next = [Some(-1.0), Some(-11.0), Some(0.5)].into();
        let mut conn = Played { has_schedule: true, next, promoted: [Ok(Some(1))].into(), asked: 0 };
        let mut promotion = Promotion::default();
        assert!(!promotion.run(&mut conn, false) && pause(&promotion) > LOOK_INTERVAL);
        promotion.look_at = None;
        assert!(promotion.run(&mut conn, false));
        promotion.look_at = Some(Instant::now() + HELP_INTERVAL);
        assert!(!promotion.run(&mut conn, true) && pause(&promotion) < LOOK_INTERVAL);
    }
}
