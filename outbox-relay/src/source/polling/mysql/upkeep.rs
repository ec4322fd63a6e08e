//! What the leading relay does now and then: it moves scheduled events that are due, measures the lag, and prunes what the retention no
//! longer covers.

use std::time::{Duration, Instant};

use diesel_outbox_core::Lag;
use mysql::Conn;

use super::bounds;
use super::connection::Statements;
use crate::source::interval::is_due;
use crate::source::promote::Promotion;
use crate::source::prune::{How, Limits, Steps};
use crate::source::{BLOCKED, SourceOptions};

/// Measuring the lag takes a fiftieth of the time at most.
const LONGEST_SHARE: u32 = 50;
/// Pruning takes this part of the time at most, and so long at once.
const PRUNE_SHARE: u32 = 4;
const LONGEST_PRUNING: Duration = Duration::from_millis(100);

pub(super) struct Upkeep {
    measured: Option<Instant>,
    /// How long it took last.
    measuring: Duration,
    pruning: Steps,
    promotion: Promotion,
    has_promoted: bool,
}

impl Default for Upkeep {
    fn default() -> Self {
        Self {
            measured: None,
            measuring: Duration::ZERO,
            pruning: Steps::new(PRUNE_SHARE, LONGEST_PRUNING, How::DeletesFree),
            promotion: Promotion::default(),
            has_promoted: false,
        }
    }
}

impl Upkeep {
    /// Returns whether the last run has moved scheduled events into the outbox.
    pub(super) fn has_promoted(&self) -> bool {
        self.has_promoted
    }

    /// What a relay does that does not lead: it moves scheduled events that the leader neglects.
    pub(super) fn help(&mut self, conn: &mut Conn) {
        self.promotion.run(conn, false);
    }

    pub(super) fn run(
        &mut self,
        conn: &mut Conn,
        options: &SourceOptions,
        bounds: &bounds::Claimed,
        was_large: bool,
    ) -> mysql::Result<Option<Lag>> {
        self.has_promoted = self.promotion.run(conn, true);
        self.pruning.run(conn, Limits::of(options));
        // A relay that begins with a backlog has better things to do first.
        if was_large {
            self.measured.get_or_insert_with(Instant::now);
        }
        // All unsent rows are counted: with millions of them that is done less often.
        if !is_due(&mut self.measured, options.lag_interval.max(self.measuring * LONGEST_SHARE)) {
            return Ok(None);
        }
        let began = Instant::now();
        let mut lag = lag(conn, bounds)?;
        self.promotion.measure(conn, &mut lag)?;
        self.measuring = began.elapsed();
        Ok(Some(lag))
    }
}

/// An aggregate type, a shard, how much of it is unsent there, and the age of the oldest in microseconds.
pub(crate) type UnsentShare = (Vec<u8>, i16, i64, i64);

pub(crate) fn unsent_of_shards(conn: &mut Conn, bounds: &bounds::Claimed) -> mysql::Result<Vec<UnsentShare>> {
    conn.load(&format!(
        "SELECT CAST(aggregatetype AS BINARY), shard, COUNT(*), TIMESTAMPDIFF(MICROSECOND, MIN(created_at), UTC_TIMESTAMP(3)) FROM {} \
         GROUP BY 1, shard ORDER BY 1, shard",
        unsent_rows(bounds, "aggregatetype, shard, created_at")
    ))
}

/// What is unsent lies after the bounds or is listed.
fn unsent_rows(bounds: &bounds::Claimed, columns: &str) -> String {
    let (lowest, list) = (bounds::lowest(bounds), bounds::unsent(bounds));
    format!(
        "((SELECT {columns} FROM outbox WHERE seq IN ({list}) AND seq <= {lowest} AND sent_at IS NULL) UNION ALL \
         (SELECT {columns} FROM outbox FORCE INDEX (PRIMARY) WHERE seq > {lowest} AND sent_at IS NULL)) AS unsent"
    )
}

pub(crate) fn lag(conn: &mut Conn, bounds: &bounds::Claimed) -> mysql::Result<Lag> {
    let row: Option<(u64, Option<i64>)> = conn.first(&format!(
        "SELECT COUNT(*), TIMESTAMPDIFF(MICROSECOND, MIN(created_at), UTC_TIMESTAMP(3)) FROM {}",
        unsent_rows(bounds, "created_at")
    ))?;
    let (unsent, oldest) = row.unwrap_or_default();
    let mut lag = Lag::default();
    lag.unsent = unsent;
    (lag.dead_letters, lag.blocked_aggregates) = conn
        .first(&format!(
            "SELECT COUNT(*), (SELECT COUNT(*) FROM (SELECT DISTINCT aggregatetype, aggregateid FROM outbox_dead_letter \
             WHERE reason = '{BLOCKED}') AS b) FROM outbox_dead_letter"
        ))?
        .unwrap_or_default();
    lag.oldest = Duration::from_micros(oldest.and_then(|age| u64::try_from(age).ok()).unwrap_or_default());
    Ok(lag)
}
