//! Measures the lag of the outboxes that are led here, some at a time, so that the watch hears notifications in between.

use std::collections::HashSet;

use diesel::prelude::*;

use super::super::survey::AT_ONCE;
use super::{Place, Session, Watch};
use crate::source::interval::is_due;
use crate::source::polling::postgres::wakeup::inserting_into_any;

/// One measuring of all outboxes.
pub(super) struct Measuring {
    /// The tables of those that are still to be measured.
    left: Vec<u32>,
    /// Those into which a transaction may have inserted that was open at the last measuring too. Most last for a moment.
    stay_open: HashSet<u32>,
    outboxes: usize,
    without_lag: usize,
}

impl Watch {
    /// Begins to measure if that is due, or goes on. Reports the lag of the outboxes that have none, and lets workers measure that of the
    /// others.
    pub(super) fn measure(&mut self, session: &mut Session) -> QueryResult<()> {
        if session.measuring.is_none() && is_due(&mut session.measured, self.database.options.lag_interval) {
            session.measuring = self.begin_measuring(session)?;
        }
        let Some(mut measuring) = session.measuring.take() else { return Ok(()) };
        let next = measuring.left.split_off(measuring.left.len().saturating_sub(AT_ONCE));
        // The others are looked at by workers anyway.
        let waits = |table: &u32| {
            self.outboxes.get(table).is_some_and(|watched| matches!(watched.place, Place::Waits(_)))
        };
        let seen = self.survey(session, &next.iter().copied().filter(waits).collect::<Vec<_>>());
        for table in &next {
            let Some(watched) = self.outboxes.get_mut(table) else { continue };
            if !watched.outbox.is_led() {
                continue;
            }
            measuring.outboxes += 1;
            let seen = seen.get(table);
            let is_quiet = seen.is_some_and(|seen| {
                !seen.is_unsent
                    && !seen.has_slot
                    && !seen.has_dead_letters
                    && watched.outbox.goes_on(seen.sequence)
                    && !measuring.stay_open.contains(table)
            });
            if is_quiet {
                measuring.without_lag += 1;
                watched.outbox.report_no_lag();
            } else {
                watched.let_look_after(&self.queue);
            }
            if let Some(seen) = seen {
                watched.outbox.see(seen.sequence);
            }
        }
        if measuring.left.is_empty() {
            let Measuring { outboxes, without_lag, .. } = measuring;
            tracing::info!(outboxes, without_lag, "outbox lag");
        } else {
            session.measuring = Some(measuring);
        }
        Ok(())
    }

    fn begin_measuring(&self, session: &mut Session) -> QueryResult<Option<Measuring>> {
        let led = self.outboxes.iter().filter(|(_, watched)| watched.outbox.is_led());
        let left: Vec<u32> = led.map(|(table, _)| *table).collect();
        if left.is_empty() {
            return Ok(None);
        }
        let writers = inserting_into_any(&mut session.conn, left.clone())?;
        let stay_open = writers.intersection(&session.writers).map(|(table, _)| *table).collect();
        session.writers = writers;
        Ok(Some(Measuring { left, stay_open, outboxes: 0, without_lag: 0 }))
    }
}
