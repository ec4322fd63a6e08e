//! One pass over the table: a transaction that holds the lock of each claimed shard.

use diesel::connection::{AnsiTransactionManager, TransactionManager};
use diesel::pg::{Pg, PgConnection};
use diesel::prelude::*;
use diesel::sql_types::{Array, BigInt, Bool, Oid, SmallInt, Text};
use diesel_outbox_core::SHARDS;

use super::batch_size::BatchSize;
use super::prefetch::Backlog;
use super::progress::{ClaimedShard, LOWER_BOUND_LAG, LOWER_BOUND_STEP, Moves, Progress};
use super::read::ReadBatch;
use super::tuple_id::is_the_table;
use super::wakeup;
use crate::source::bounds::{oldest_unsent, shards};
use crate::source::fence::Bounds;
use crate::statement::statement;

pub(super) struct PollingPass {
    /// The table's oid.
    table: u32,
    progress: Progress,
    has_read: bool,
    /// Whether a read found more than a batch.
    large: bool,
    /// Whether aggregates with dead letters are held back.
    blocks: bool,
}

/// The snapshot of this cursor lives as long as the pass. Until then, no row that was given moves.
pub(super) const BEGIN: &str = "BEGIN; DECLARE outbox_pass CURSOR FOR SELECT";

/// The same in a session that has a short lock timeout for the sake of other outboxes. It takes the tables' locks before anything is
/// published, because a pass that fails later has its records sent again. After that only single rows can be locked.
pub(super) const BEGIN_BESIDE_OTHERS: &str = "BEGIN; DECLARE outbox_pass CURSOR FOR SELECT; \
                                              LOCK TABLE outbox, outbox_shard IN ROW EXCLUSIVE MODE; \
                                              SET LOCAL lock_timeout = '5s'";

impl PollingPass {
    /// Locks this worker's part of the free shards that have unsent rows, or whose lower bound is far behind. With `all_or_none`, claims
    /// nothing if it cannot have all shards.
    pub(super) fn begin(
        conn: &mut PgConnection,
        begin: &str,
        table: u32,
        workers: usize,
        bounds: &Bounds,
        blocks: bool,
        all_or_none: bool,
    ) -> QueryResult<Option<Self>> {
        // If events come one by one, most looks find nothing. This takes one statement, and a pass that is rolled back takes three.
        if !IsWanted::new(bounds.passed, bounds.passed - LOWER_BOUND_LAG, LOWER_BOUND_STEP)
            .get_result(conn)?
        {
            return Ok(None);
        }
        AnsiTransactionManager::begin_transaction_sql(conn, begin)?;
        let mut pass =
            Self { table, progress: Progress::begin(bounds), has_read: false, large: false, blocks };
        let is_wanted = pass.claim(conn, workers, bounds.passed, bounds.passed - LOWER_BOUND_LAG)?;
        if !is_wanted || (all_or_none && pass.progress.shards().len() < SHARDS.unsigned_abs().into()) {
            Self::roll_back(conn)?;
            return Ok(None);
        }
        Ok(Some(pass))
    }

    /// Claims a shard without unsent rows only in two cases: its lower bound lies before `quiet_since` and can move, or a
    /// transaction that was open has ended and `passed` has reached the shard's second bound. Returns whether any of the claimed
    /// shards was wanted: somebody who does not count as a worker may have locked those that are.
    fn claim(
        &mut self,
        conn: &mut PgConnection,
        workers: usize,
        passed: i64,
        quiet_since: i64,
    ) -> QueryResult<bool> {
        let share = (SHARDS.unsigned_abs() as usize).div_ceil(workers.max(1));
        let claimed = self.progress.shards();
        let Some(free @ 1..) = share.checked_sub(claimed.len()) else { return Ok(false) };
        let shards = Claim::new(
            quiet_since,
            LOWER_BOUND_STEP,
            passed,
            claimed,
            share as i16,
            workers <= 1,
            self.table,
            free as i64,
        )
        .load::<(i16, i64, i64, i64, i64, Vec<i64>, Vec<i64>, bool)>(conn)?;
        let mut any_wanted = false;
        for (number, sent_through, polled_through, passed, begin, open, open_after, is_wanted) in shards {
            any_wanted |= is_wanted;
            let open = open.into_iter().zip(open_after).collect();
            self.progress.claimed(ClaimedShard { number, sent_through, polled_through, passed, begin, open });
        }
        Ok(any_wanted)
    }

    /// Claims, and reads what was committed since the last read: of all that is unsent and was not given yet, the oldest rows, up
    /// to `limit`. A snapshot that has an aggregate's later event has its earlier ones too, and each read begins anew at the
    /// oldest, so the order is kept.
    pub(super) fn read(
        &mut self,
        conn: &mut PgConnection,
        batch_size: &mut BatchSize,
        limit: usize,
        workers: usize,
        bounds: &Bounds,
    ) -> QueryResult<ReadBatch> {
        self.progress.given_up_to_here();
        // What the first read reads was claimed a moment ago.
        if std::mem::replace(&mut self.has_read, true) {
            self.claim(conn, workers, bounds.passed, i64::MIN)?;
        }
        self.progress.look_with(bounds);
        let batch = self.progress.unread(self.table).read(conn, batch_size, limit, self.blocks)?;
        self.large |= !batch.exhausts;
        self.progress.give(&batch.given, batch.exhausts);
        Ok(batch)
    }

    /// Returns what was claimed and not read, if that is more than a batch and may be read ahead.
    pub(super) fn backlog(
        &mut self,
        conn: &mut PgConnection,
        batch_size: BatchSize,
        limit: usize,
    ) -> QueryResult<Option<Backlog>> {
        if !self.progress.may_have_backlog() {
            return Ok(None);
        }
        let snapshot = ExportSnapshot::new().get_result(conn)?;
        let (unread, blocks) = (self.progress.unread(self.table), self.blocks);
        Ok(Some(Backlog { schema: None, snapshot, unread, blocks, batch_size, limit }))
    }

    /// Notes that these rows were given to the relay, and whether there were no more after them.
    pub(super) fn give(&mut self, rows: &[(u64, i64)], exhausts: bool) {
        self.progress.give(rows, exhausts);
    }

    /// Returns up to which number no row of the claimed shards is unsent.
    pub(super) fn sent_through(&self) -> i64 {
        self.progress.sent_through()
    }

    /// Returns whether other workers would have found something to do.
    pub(super) fn was_large(&self) -> bool {
        self.large
    }

    pub(super) fn settled(&mut self, tickets: &[u64]) {
        self.progress.settled(tickets);
    }

    /// Returns whether aggregates with dead letters are held back.
    pub(super) fn holds_back(&self) -> bool {
        self.blocks
    }

    /// Moves the lower bounds to what was given and is settled, calls the other relays to a backlog, and commits.
    pub(super) fn end(self, conn: &mut PgConnection, call_for_help: bool) -> QueryResult<()> {
        let Moves { shards, lower_bounds, passed, open } = self.progress.end();
        if !shards.is_empty() {
            let (open, after) = open.into_iter().unzip();
            MoveLowerBounds::new(shards, lower_bounds, passed, open, after, self.table).execute(conn)?;
        }
        if call_for_help {
            wakeup::call_for_help(conn)?;
        }
        AnsiTransactionManager::commit_transaction(conn)
    }

    pub(super) fn roll_back(conn: &mut PgConnection) -> QueryResult<()> {
        AnsiTransactionManager::rollback_transaction(conn)
    }
}

statement!(Pg, ExportSnapshot {} -> Text, "SELECT pg_export_snapshot()");

/// The shards with their oldest unsent rows.
///
/// If a transaction that had been open for long has ended, a pass claims its shard in any case, because the shard begins before its own
/// second bound. Only that pass's read goes through all rows since the transaction began. The pass moves the bounds, so there is only one
/// such pass. It cannot do so if this fence has not yet come to the second bound, for example after a start beside an open transaction. Until then
/// each look goes through all those rows itself, and finds something or does not.
macro_rules! shards_to_claim {
    () => {
        concat!(
            "(SELECT shard, polled_through, start AS begin, greatest(sent_through, passed) AS second, CASE WHEN greatest(sent_through, passed) <= ? \
             THEN greatest(sent_through, passed) ELSE start END AS start FROM ",
            shards!(),
            " AS s OFFSET 0) AS s LEFT ",
            oldest_unsent!()
        )
    };
}

macro_rules! is_to_be_claimed {
    () => {
        "(oldest.seq IS NOT NULL OR s.begin < s.start OR s.second <= least(?, s.polled_through - ?))"
    };
}

statement!(
    Pg,
    /// Whether there is a shard that `Claim` would claim if it were free.
    IsWanted { passed: i64 => BigInt, quiet_since: i64 => BigInt, step: i64 => BigInt } -> Bool,
    concat!(
        "SELECT EXISTS (SELECT FROM ",
        shards_to_claim!(),
        " WHERE ",
        is_to_be_claimed!(),
        ")"
    )
);

statement!(
    Pg,
    /// Claims the shard with the oldest row, and with it its neighbours, because shards that lie together are read fastest. For that, the
    /// shards are split into parts of a worker's share. If other workers hold some of a part, the oldest of the next part make up for it. A
    /// single worker claims all shards, so that it need not claim those that get events later.
    Claim {
        quiet_since: i64 => BigInt,
        step: i64 => BigInt,
        passed: i64 => BigInt,
        claimed: Vec<i16> => Array<SmallInt>,
        share: i16 => SmallInt,
        all: bool => Bool,
        table: u32 => Oid,
        limit: i64 => BigInt
    } -> (SmallInt, BigInt, BigInt, BigInt, BigInt, Array<BigInt>, Array<BigInt>, Bool),
    concat!(
        "WITH looked AS MATERIALIZED (SELECT s.shard, oldest.seq, ",
        is_to_be_claimed!(),
        " AS wanted, s.begin FROM ",
        shards_to_claim!(),
        " WHERE s.shard <> ALL (?)), unsent AS MATERIALIZED \
         (SELECT shard, seq, wanted, begin, min(seq) OVER (PARTITION BY shard / ?) AS first FROM looked WHERE wanted OR ?) \
         SELECT s.shard, s.sent_through, s.polled_through, s.passed, unsent.begin, s.open, s.open_after, unsent.wanted FROM outbox_shard AS s JOIN unsent USING (shard) WHERE ",
        is_the_table!(),
        " ORDER BY unsent.first, unsent.seq LIMIT ? FOR UPDATE OF s SKIP LOCKED"
    )
);

statement!(
    Pg,
    MoveLowerBounds {
        shards: Vec<i16> => Array<SmallInt>,
        lower_bounds: Vec<i64> => Array<BigInt>,
        passed: Vec<i64> => Array<BigInt>,
        open: Vec<i64> => Array<BigInt>,
        open_after: Vec<i64> => Array<BigInt>,
        table: u32 => Oid
    } -> BigInt,
    concat!(
        "UPDATE outbox_shard AS s SET sent_through = moved.sent_through, passed = moved.passed, open = o.open, open_after = o.open_after \
         FROM unnest(?, ?, ?) AS moved (shard, sent_through, passed), (SELECT ?::bigint[] AS open, ?::bigint[] AS open_after) AS o \
         WHERE s.shard = moved.shard AND ",
        is_the_table!()
    )
);
