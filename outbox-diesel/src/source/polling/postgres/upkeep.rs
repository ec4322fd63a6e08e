//! What the leading relay does now and then: measure the lag, prune what retention no longer covers.

use std::time::{Duration, Instant};

use diesel::pg::{Pg, PgConnection};
use diesel::prelude::*;
use diesel::sql_types::{Array, BigInt, Bool, Double};
use diesel_outbox_core::Lag;

use super::super::upkeep::{PRUNE_CHUNK, PRUNE_INTERVAL, is_due};
use crate::observe::Observe;
use crate::source::{SentRows, SourceOptions};
use crate::statement::statement;

/// Measuring the lag takes a fiftieth of the time at most.
const LONGEST_SHARE: u32 = 50;

#[derive(Default)]
pub(super) struct Upkeep {
    measured: Option<Instant>,
    /// How long it took last.
    measuring: Duration,
    pruned: Option<Instant>,
    /// Up to where the present round of pruning has come.
    cursor: i64,
}

impl Upkeep {
    pub(super) fn run(
        &mut self,
        conn: &mut PgConnection,
        options: &SourceOptions,
        was_large: bool,
    ) -> QueryResult<Option<Lag>> {
        if let SentRows::Keep { retention } = options.sent_rows
            && (self.cursor > 0 || is_due(&mut self.pruned, PRUNE_INTERVAL))
        {
            self.prune(conn, retention)?;
        }
        // A relay that begins with a backlog has better things to do first.
        if was_large {
            self.measured.get_or_insert_with(Instant::now);
        }
        // All unsent rows are counted: with millions of them that is done less often.
        if !is_due(&mut self.measured, options.lag_interval.max(self.measuring * LONGEST_SHARE)) {
            return Ok(None);
        }
        let began = Instant::now();
        let lag = conn.lag()?;
        self.measuring = began.elapsed();
        Ok(Some(lag))
    }

    /// One chunk of a round, which goes on as long as it finds something to delete. Exactly the rows that are too old
    /// are deleted, never a range: a late commit's row would be in it.
    fn prune(&mut self, conn: &mut PgConnection, retention: Duration) -> QueryResult<()> {
        let chunk =
            Oldest::new(retention.as_secs_f64(), self.cursor, PRUNE_CHUNK).load::<(i64, bool)>(conn)?;
        let last = chunk.last().map_or(0, |(seq, _)| *seq);
        let full = chunk.len() as i64 == PRUNE_CHUNK;
        let expired: Vec<i64> = chunk.into_iter().filter_map(|(seq, old)| old.then_some(seq)).collect();
        self.cursor = if expired.is_empty() || !full { 0 } else { last };
        if !expired.is_empty() {
            Expired::new(expired).execute(conn)?;
        }
        Ok(())
    }
}

statement!(
    Pg,
    Oldest { retention: f64 => Double, cursor: i64 => BigInt, limit: i64 => BigInt } -> (BigInt, Bool),
    "SELECT seq, coalesce(sent_at < now() - make_interval(secs => ?), false) FROM outbox WHERE seq > ? \
     ORDER BY seq LIMIT ?"
);

statement!(
    Pg,
    /// By `seq`, as there is no snapshot that keeps these rows in their places.
    Expired { seqs: Vec<i64> => Array<BigInt> } -> Bool,
    "DELETE FROM outbox WHERE seq = ANY (?)"
);
