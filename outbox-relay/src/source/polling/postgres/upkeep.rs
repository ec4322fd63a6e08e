//! What the leading relay does now and then: it moves scheduled events that are due, measures the lag, and prunes what the retention no
//! longer covers.

use std::time::{Duration, Instant};

use diesel::pg::PgConnection;
use diesel::prelude::*;
use diesel_outbox_core::Lag;

use crate::operate::Operate;
use crate::source::database::PostgresDatabase;
use crate::source::interval::is_due;
use crate::source::promote::Promotion;
use crate::source::prune::{Limits, PostgresPruning};
use crate::source::writers::Writers;

/// Measuring the lag takes at most a fiftieth of the time.
const LONGEST_SHARE: u32 = 50;

#[derive(Default)]
pub(super) struct Upkeep {
    measured: Option<Instant>,
    /// How long the last measuring took.
    measuring: Duration,
    reported_wal: bool,
    pruning: PostgresPruning,
    writers: Writers,
    promotion: Promotion,
    has_promoted: bool,
}

impl Upkeep {
    /// Returns whether the last run has moved scheduled events into the outbox.
    pub(super) fn has_promoted(&self) -> bool {
        self.has_promoted
    }

    /// Returns how soon an idle relay should look again whether something has expired.
    pub(super) fn prune_pause(&self, database: &PostgresDatabase) -> Duration {
        self.pruning.pause(Limits::of(&database.options))
    }

    /// What a relay does that does not lead: it moves scheduled events that the leader neglects.
    pub(super) fn help(&mut self, conn: &mut PgConnection) {
        self.promotion.run(conn, false);
    }

    pub(super) fn run(
        &mut self,
        conn: &mut PgConnection,
        database: &PostgresDatabase,
        was_large: bool,
        lag_interval: Duration,
    ) -> QueryResult<Option<Lag>> {
        let options = &database.options;
        self.has_promoted = self.promotion.run(conn, true);
        let limits = Limits::of(options);
        if limits.are_any() {
            self.pruning.run(conn, database, limits)?;
        }
        // A relay that begins with a backlog has better things to do first.
        if was_large {
            self.measured.get_or_insert_with(Instant::now);
        }
        // This counts all unsent rows. With millions of them, it happens less often.
        if !is_due(&mut self.measured, lag_interval.max(self.measuring * LONGEST_SHARE)) {
            return Ok(None);
        }
        let began = Instant::now();
        let mut lag = conn.lag()?;
        self.promotion.measure(conn, &mut lag)?;
        self.measuring = began.elapsed();
        lag.oldest_writer = self.writers.look(conn)?;
        if lag.wal.is_some() && !std::mem::replace(&mut self.reported_wal, true) {
            tracing::info!(
                "the relay polls only the events from before `outbox wal setup`: later ones are read from the write-ahead log"
            );
        }
        Ok(Some(lag))
    }
}
