//! One pass over the table: a transaction that holds the lock of each claimed shard.

use diesel::connection::{AnsiTransactionManager, TransactionManager};
use diesel::pg::{Pg, PgConnection};
use diesel::prelude::*;
use diesel::sql_types::{Array, BigInt, Bool, Oid, SmallInt, Text};
use diesel_outbox_core::SHARDS;

use super::batch_size::BatchSize;
use super::dead_letters;
use super::prefetch::Backlog;
use super::read::{ReadBatch, Unread};
use super::tuple_id::{TupleId, is_the_table};
use super::unsettled::Unsettled;
use super::wakeup;
use crate::source::bounds::{oldest_unsent, shards};
use crate::source::fence::{Bounds, OpenTransactions};
use crate::source::row::BlockedAggregates;
use crate::statement::statement;

/// How far a shard's lower bound may stay behind if the shard has nothing unsent. If it is farther behind, a pass claims the shard
/// all the same, so that the next claims need not pass over what it has sent since.
const LOWER_BOUND_LAG: i64 = 65_536;

/// How far a shard's lower bound must be able to move before it is written: about 64 rows of each shard, if events are spread
/// evenly.
const LOWER_BOUND_STEP: i64 = 1_024;

pub(super) struct PollingPass {
    /// The table's oid.
    table: u32,
    shards: Vec<Shard>,
    /// Up to where rows were visible at the last look at the table.
    bounds: Bounds,
    /// The last number that is polled. It changes only while nothing is claimed.
    polled_through: i64,
    /// The last row that was read. All earlier ones of these shards have been read too.
    last: i64,
    /// Whether there was nothing after it.
    exhausted: bool,
    has_read: bool,
    /// Whether a read found more than a batch.
    large: bool,
    unsettled: Unsettled,
    has_settled: bool,
    blocked: Option<BlockedAggregates>,
}

/// A claimed shard.
struct Shard {
    number: i16,
    /// Its bounds, as the table has them.
    sent_through: i64,
    passed: i64,
    /// The relay has been given all of its rows up to here, or they will never exist.
    given: i64,
    /// The same, except for rows of transactions that were open.
    given_of_ended: i64,
    open: OpenTransactions,
    /// Whether the table has other transactions there.
    open_changed: bool,
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
        block: bool,
        all_or_none: bool,
    ) -> QueryResult<Option<Self>> {
        // If events come one by one, most looks find nothing. This takes one statement, and a pass that is rolled back takes three.
        if !IsWanted::new(bounds.passed, bounds.passed - LOWER_BOUND_LAG, LOWER_BOUND_STEP)
            .get_result(conn)?
        {
            return Ok(None);
        }
        AnsiTransactionManager::begin_transaction_sql(conn, begin)?;
        let mut pass = Self {
            table,
            shards: Vec::new(),
            bounds: bounds.clone(),
            polled_through: i64::MAX,
            last: 0,
            exhausted: false,
            has_read: false,
            large: false,
            unsettled: Unsettled::default(),
            has_settled: false,
            blocked: block.then(BlockedAggregates::new),
        };
        let is_wanted = pass.claim(conn, workers, bounds.passed, bounds.passed - LOWER_BOUND_LAG)?;
        if !is_wanted || (all_or_none && pass.shards.len() < SHARDS.unsigned_abs().into()) {
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
        let Some(free @ 1..) = share.checked_sub(self.shards.len()) else { return Ok(false) };
        let claimed = self.shards.iter().map(|shard| shard.number).collect();
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
        if let Some(blocked) = &mut self.blocked
            && !shards.is_empty()
        {
            let claimed = shards.iter().map(|(number, ..)| *number).collect();
            blocked.extend(dead_letters::blocked(conn, claimed)?);
        }
        let mut any_wanted = false;
        for (number, sent_through, polled_through, passed, begin, open, open_after, is_wanted) in shards {
            any_wanted |= is_wanted;
            self.polled_through = polled_through;
            self.shards.push(Shard {
                number,
                sent_through,
                passed,
                given: sent_through,
                // The rows of a transaction that has ended may be many, and the next pass need not go past those again that this
                // pass gives. The bounds are those of the locked row: somebody may have lowered them since the snapshot that
                // `begin` comes from.
                given_of_ended: begin.min(passed.max(sent_through)),
                open: open.into_iter().zip(open_after).collect(),
                open_changed: false,
            });
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
        self.given_up_to_here();
        // What the first read reads was claimed a moment ago.
        if std::mem::replace(&mut self.has_read, true) {
            self.claim(conn, workers, bounds.passed, i64::MIN)?;
        }
        self.bounds.clone_from(bounds);
        let batch = self.unread().read(conn, batch_size, limit, self.blocked.as_ref())?;
        self.large |= !batch.exhausts;
        self.give(&batch.given, batch.exhausts);
        Ok(batch)
    }

    /// Returns what was claimed and not read, if that is more than a batch. Another connection does not see what this pass has
    /// settled, and would read it again, so there is no backlog once something was settled.
    pub(super) fn backlog(
        &mut self,
        conn: &mut PgConnection,
        batch_size: BatchSize,
        limit: usize,
    ) -> QueryResult<Option<Backlog>> {
        if self.exhausted || self.has_settled {
            return Ok(None);
        }
        let snapshot = ExportSnapshot::new().get_result(conn)?;
        let (unread, blocked) = (self.unread(), self.blocked.clone());
        Ok(Some(Backlog { schema: None, snapshot, unread, blocked, batch_size, limit }))
    }

    fn unread(&mut self) -> Unread {
        let last_given = self.unsettled.newest().unwrap_or(i64::MIN);
        let given = self.unsettled.tickets().map(TupleId::from).collect();
        let mut open = OpenTransactions::new();
        self.shards.iter().for_each(|shard| merge(&mut open, &shard.open));
        Unread {
            table: self.table,
            shards: self.shards.iter().map(|shard| shard.number).collect(),
            lower_bounds: self.shards.iter().map(|shard| shard.given).collect(),
            passed: self.shards.iter().map(|shard| shard.given.max(shard.given_of_ended)).collect(),
            open,
            polled_through: self.polled_through,
            given,
            last_given,
        }
    }

    /// Notes that these rows were given to the relay, and whether there were no more after them.
    pub(super) fn give(&mut self, rows: &[(u64, i64)], exhausts: bool) {
        self.unsettled.give(rows);
        self.last = rows.last().map_or(self.last, |(_, seq)| *seq);
        self.exhausted = exhausts;
    }

    /// Learns up to which number the relay has been given all rows of the claimed shards.
    ///
    /// Its inputs belong to the last read: `self.bounds` was set just before it, and `self.last` and `self.exhausted` come from it,
    /// or from the last batch that was read ahead in a later snapshot. So this runs before the next read sets the bounds anew, and
    /// at the end. Before the first read `self.last` is 0, and this learns nothing.
    ///
    /// Why it is right up to `safe`. The bounds are older than the read's snapshot, so the read saw each row up to `safe` that will
    /// ever be visible. It began at the oldest unsent row of all shards claimed by then, took the oldest first, and stopped at
    /// `last`, or at the end if it was exhausted. So of the rows up to both, it gave all that were unsent and not given before.
    /// None becomes unsent behind its back, because whoever puts dead letters back must lock the shard.
    ///
    /// Up to `passed` the same holds except for rows of the transactions in `bounds.open`, so the second bound comes with those. If
    /// the shard has a transaction that the bounds do not have, it had ended before the read, which saw its rows. So it is left out
    /// once the read has come as far as the second bound, and not before.
    fn given_up_to_here(&mut self) {
        let read = if self.exhausted { self.polled_through } else { self.last };
        let (given, of_ended) = (read.min(self.bounds.safe), read.min(self.bounds.passed));
        for shard in &mut self.shards {
            shard.given = shard.given.max(given);
            if of_ended >= shard.given_of_ended {
                shard.given_of_ended = of_ended;
                shard.open_changed |= !shard.open.keys().eq(self.bounds.open.keys());
                shard.open.retain(|id, _| self.bounds.open.contains_key(id));
                merge(&mut shard.open, &self.bounds.open);
            }
        }
    }

    /// Returns up to which number no row of the claimed shards is unsent.
    pub(super) fn sent_through(&self) -> i64 {
        self.shards.iter().map(|shard| shard.sent_through).min().unwrap_or_default()
    }

    /// Returns whether other workers would have found something to do.
    pub(super) fn was_large(&self) -> bool {
        self.large
    }

    pub(super) fn settled(&mut self, tickets: &[u64]) {
        self.has_settled = true;
        self.unsettled.settle(tickets);
    }

    /// Returns whether aggregates with dead letters are held back.
    pub(super) fn holds_back(&self) -> bool {
        self.blocked.is_some()
    }

    /// Moves the lower bounds to what was given and is settled, calls the other relays to a backlog, and commits.
    pub(super) fn end(mut self, conn: &mut PgConnection, call_for_help: bool) -> QueryResult<()> {
        self.given_up_to_here();
        // What was given and not settled is unsent.
        let sent = self.unsettled.oldest().map_or(i64::MAX, |oldest| oldest - 1);
        let (mut shards, mut lower_bounds, mut passed, mut open) =
            (Vec::new(), Vec::new(), Vec::new(), OpenTransactions::new());
        for shard in self.shards {
            let (sent_through, of_ended) = (shard.given.min(sent), shard.given_of_ended.min(sent));
            // If a transaction has ended, the next look would begin at `sent_through` again.
            let has_moved = sent_through >= shard.sent_through + LOWER_BOUND_STEP
                || of_ended >= shard.sent_through.max(shard.passed) + LOWER_BOUND_STEP
                || (shard.open_changed && (of_ended > sent_through || shard.passed > shard.sent_through));
            if has_moved {
                shards.push(shard.number);
                lower_bounds.push(sent_through);
                passed.push(of_ended);
                merge(&mut open, &shard.open);
            }
        }
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

/// Adds what is known of transactions. If two numbers of one are known, both hold, and the higher one says more.
fn merge(open: &mut OpenTransactions, more: &OpenTransactions) {
    for (&id, &after) in more {
        let known = open.entry(id).or_insert(after);
        *known = after.max(*known);
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
