use std::time::{Duration, Instant};

use diesel::pg::{Pg, PgConnection};
use diesel::prelude::*;
use diesel::sql_types::{Array, BigInt, Bool, Double};

use super::{PRUNE_CHUNK, PRUNE_INTERVAL, is_due};
use crate::statement::statement;

/// Rounds of pruning, chunk by chunk.
#[derive(Default)]
pub(in super::super) struct Pruning {
    begun: Option<Instant>,
    /// Up to where the present round has come.
    cursor: i64,
}

impl Pruning {
    /// One chunk of a round where one is due; a round goes on as long as it finds something to delete. Exactly the rows
    /// that are too old are deleted, never a range: a late commit's row would be in it.
    pub(in super::super) fn run(&mut self, conn: &mut PgConnection, retention: Duration) -> QueryResult<()> {
        if self.cursor == 0 && !is_due(&mut self.begun, PRUNE_INTERVAL) {
            return Ok(());
        }
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
    /// Up to its shard's lower bound a row has been sent even where nothing marks it, as with the write-ahead log.
    Oldest { retention: f64 => Double, cursor: i64 => BigInt, limit: i64 => BigInt } -> (BigInt, Bool),
    "SELECT o.seq, coalesce(coalesce(o.sent_at, CASE WHEN o.seq <= s.low THEN o.created_at AT TIME ZONE 'utc' END) \
     < now() - make_interval(secs => ?), false) FROM outbox AS o JOIN outbox_shard AS s ON s.shard = o.shard \
     WHERE o.seq > ? ORDER BY o.seq LIMIT ?"
);

statement!(
    Pg,
    /// By `seq`, as there is no snapshot that keeps these rows in their places.
    Expired { seqs: Vec<i64> => Array<BigInt> } -> Bool,
    "DELETE FROM outbox WHERE seq = ANY (?)"
);
