//! The insert fence: up to which `seq` every row is visible or never will be.
//!
//! A transaction that took a low `seq` may commit late. It took its lock on the table before its `seq`, and keeps it until it ends.
//! So: read the sequence's last value, then list the transactions that hold that lock. When all of those have ended, no row up to
//! that value can appear any more. Transactions that do not insert into the outbox play no part.
//!
//! Some may stay open for hours. If the relay waited for them, each look would pass over all that was sent since. So the fence has
//! two bounds. Up to `safe` nothing can appear any more. Up to `passed` only rows of the transactions in `open` can: those that
//! were on the list for longer than others take. Each look asks by transaction id whether one of them has ended, in its own
//! snapshot: if the snapshot holds a transaction to be at work, it cannot see rows of it. The list of locks would not do for that,
//! because a transaction becomes visible before it releases its locks.
//!
//! A transaction that holds the lock may have no id, for example after `DELETE FROM outbox WHERE false`, or before the first row of
//! an `INSERT .. SELECT`. Then there is nothing to ask snapshots for. It has inserted nothing, and what it inserts later matters
//! only if it has already taken the number. Whoever takes a number first locks the sequence, and keeps that lock until it ends. So
//! if a transaction has neither an id nor that lock, looked up after the last number was read, there are two cases. Either it has
//! taken no number up to that one, and its rows will have later ones. Or it has ended in that moment, and every later look sees its
//! rows. In both cases the fence leaves it out. If it holds the lock on the sequence, the fence waits for it.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::{Duration, Instant};

use diesel::pg::{Pg, PgConnection};
use diesel::prelude::*;
use diesel::sql_types::{BigInt, Bool, Integer, Nullable, Text};

use super::sequence::Sequence;
use crate::statement::statement;
use diesel_outbox_core::advisory_locks;

/// How often to put up a new fence, or to look at the present one.
const INTERVAL: Duration = Duration::from_millis(25);
/// How long to wait for a transaction before it counts as one that stays open. Passes of other workers, which hold the lock too,
/// end sooner.
const PATIENCE: Duration = Duration::from_secs(1);
/// If more than this many stay open, the fence waits for all of them: each look asks, for each shard, whether one has ended. For a
/// thousand that takes some milliseconds, and their ids take 8 kB in each shard's row.
const MOST_OPEN: usize = 1_000;

/// The beginning of the names of transactions that wait for COMMIT PREPARED.
pub(super) const PREPARED: &str = "-1/";

pub(crate) struct Fence {
    sequence: Sequence,
    bounds: Bounds,
    /// The names of the transactions in `bounds.open`.
    open: BTreeMap<String, i64>,
    first: First,
    pending: Option<Pending>,
    looked: Option<Instant>,
}

/// Up to which numbers the rows are reliable.
#[derive(Debug, Clone, Default)]
pub(crate) struct Bounds {
    /// Every row up to here is visible, or never will be.
    pub(crate) safe: i64,
    /// Every row up to here is visible, or never will be, or belongs to one of `open`.
    pub(crate) passed: i64,
    pub(crate) open: OpenTransactions,
}

/// Transaction ids, each with a number after which all of its rows lie. Once it has ended, the relay looks for its rows after that
/// number.
pub(crate) type OpenTransactions = BTreeMap<i64, i64>;

/// What a fence asks the database. Each answer is of a statement of its own, later than the one before.
pub(crate) trait Transactions {
    /// Returns how far the sequence is.
    fn sequence(&mut self) -> QueryResult<Sequence>;

    /// Returns the names of the other open transactions that may have inserted into the outbox, and the number of workers at work.
    fn holders(&mut self) -> QueryResult<(HashSet<String>, usize)>;

    /// Returns the names of those transactions, each with its id, if it has one, and whether it may have taken a number.
    fn ids(&mut self) -> QueryResult<Vec<(String, Option<i64>, bool)>>;
}

/// A fence whose transactions have not all ended.
struct Pending {
    last: i64,
    listed: HashSet<String>,
    since: Instant,
}

impl Fence {
    /// Returns a fence whose numbers come from this sequence.
    pub(crate) fn after(sequence: Sequence) -> Self {
        Self {
            sequence,
            bounds: Bounds::default(),
            open: BTreeMap::new(),
            first: First::default(),
            pending: None,
            looked: None,
        }
    }

    pub(crate) fn bounds(&self) -> &Bounds {
        &self.bounds
    }

    /// Returns how far its sequence was when it last looked.
    pub(super) fn sequence(&self) -> Sequence {
        self.sequence
    }

    /// Learns how far its sequence was when somebody else last looked. If that one had not gone on from what this fence has seen, neither
    /// has the sequence, and the next look finds out.
    pub(super) fn see_sequence(&mut self, sequence: Sequence) {
        if sequence.goes_on_from(self.sequence) {
            self.sequence = sequence;
        }
    }

    /// Moves the fence on if that is due `now`. If it looked, returns how many workers are at work.
    pub(crate) fn advance(
        &mut self,
        now: Instant,
        transactions: &mut impl Transactions,
    ) -> QueryResult<Option<usize>> {
        if self.looked.is_some_and(|looked| now.duration_since(looked) < INTERVAL) {
            return Ok(None);
        }
        self.looked = Some(now);
        // Read before the holders are listed: see above.
        let last = self.sequence.go_on(transactions.sequence()?)?;
        let pending = self.pending.take();
        let (mut holders, workers) = transactions.holders()?;
        self.first.look(&holders, last);
        self.leave_out_ended(&holders);
        let (last, since) = match &pending {
            // One that was prepared meanwhile has another name since.
            Some(Pending { last, listed, since }) => {
                holders.retain(|name| listed.contains(name) || name.starts_with(PREPARED));
                (*last, *since)
            }
            None => (last, now),
        };
        if holders.iter().all(|name| self.open.contains_key(name)) {
            self.is_passed(last);
        } else if now.duration_since(since) < PATIENCE {
            self.pending = Some(Pending { last, listed: holders, since });
        } else {
            // These stay open. One without a transaction id that has taken a number may be about to insert.
            let ids: BTreeMap<String, Option<i64>> = transactions
                .ids()?
                .into_iter()
                .filter_map(|(name, id, is_numbered)| (id.is_some() || is_numbered).then_some((name, id)))
                .collect();
            // If one has just been prepared, look for it again under its new name.
            let is_new = |name: &String| !holders.contains(name) && !self.open.contains_key(name);
            if ids.keys().any(|name| name.starts_with(PREPARED) && is_new(name)) {
                self.pending = Some(Pending { last, listed: holders, since });
                return Ok(Some(workers));
            }
            holders.retain(|name| ids.contains_key(name));
            let open: Option<BTreeMap<String, i64>> =
                holders.iter().map(|name| Some((name.clone(), ids.get(name).copied().flatten()?))).collect();
            match open.filter(|open| open.len() <= MOST_OPEN) {
                Some(open) => {
                    self.open = open;
                    self.is_passed(last);
                }
                None => self.pending = Some(Pending { last, listed: holders, since }),
            }
        }
        Ok(Some(workers))
    }

    /// Leaves out those of `open` that have ended, because every look sees their rows from now on. One that was prepared may have
    /// another name since.
    fn leave_out_ended(&mut self, holders: &HashSet<String>) {
        if holders.iter().any(|name| name.starts_with(PREPARED) && !self.open.contains_key(name)) {
            return;
        }
        let before = self.open.len();
        self.open.retain(|name, _| holders.contains(name));
        if self.open.len() < before {
            self.is_passed(self.bounds.passed);
        }
    }

    /// Sets the bounds: every row up to `passed` is visible, or never will be, or belongs to one of `open`. So no row can appear up
    /// to the number at which the first of those began.
    fn is_passed(&mut self, passed: i64) {
        let open: OpenTransactions =
            self.open.iter().map(|(name, id)| (*id, self.first.after(name))).collect();
        let safe = open.values().min().map_or(passed, |first| passed.min(*first));
        self.bounds = Bounds { safe: safe.max(self.bounds.safe), passed, open };
    }
}

/// After which number each listed transaction took its first. One that is listed now and was not in the look before has taken its
/// lock since, and its numbers after its lock. So they are higher than the last number of that look, which was read before its
/// list.
#[derive(Default)]
struct First {
    after: HashMap<String, i64>,
    last: i64,
}

impl First {
    fn look(&mut self, holders: &HashSet<String>, last: i64) {
        self.after.retain(|name, _| holders.contains(name));
        for name in holders {
            // One that was prepared had another name before.
            let after = if name.starts_with(PREPARED) { 0 } else { self.last };
            self.after.entry(name.clone()).or_insert(after);
        }
        self.last = last;
    }

    fn after(&self, name: &str) -> i64 {
        self.after.get(name).copied().unwrap_or_default()
    }
}

impl Transactions for PgConnection {
    fn sequence(&mut self) -> QueryResult<Sequence> {
        Sequence::load(self)
    }

    fn holders(&mut self) -> QueryResult<(HashSet<String>, usize)> {
        let rows = Holders::new(advisory_locks::WORKING).load::<(bool, String)>(self)?;
        let workers = rows.iter().filter(|(inserting, _)| !inserting).count();
        let inserting = rows.into_iter().filter_map(|(inserting, id)| inserting.then_some(id)).collect();
        Ok((inserting, workers))
    }

    fn ids(&mut self) -> QueryResult<Vec<(String, Option<i64>, bool)>> {
        TransactionIds::new().load(self)
    }
}

statement!(
    Pg,
    Holders { working: i32 => Integer } -> (Bool, Text),
    "SELECT locktype = 'relation', virtualtransaction FROM pg_locks \
     WHERE database = (SELECT oid FROM pg_database WHERE datname = current_database()) \
     AND (locktype = 'relation' AND relation = 'outbox'::regclass::oid AND mode = 'RowExclusiveLock' \
     AND pid IS DISTINCT FROM pg_backend_pid() \
     OR locktype = 'advisory' AND classid = ?::oid AND objid = 'outbox'::regclass::oid AND objsubid = 2)"
);

statement!(
    Pg,
    /// The transaction ids of those that hold the lock, and whether they may have taken a number. Subtransactions have ids too, but the
    /// snapshot has only the outermost one.
    TransactionIds {} -> (Text, Nullable<BigInt>, Bool),
    "WITH locks AS MATERIALIZED (SELECT locktype, database, relation, mode, granted, pid, virtualtransaction, transactionid FROM pg_locks), \
     running AS MATERIALIZED (SELECT x::text::bigint AS id FROM pg_snapshot_xip(pg_current_snapshot()) AS x) \
     SELECT h.virtualtransaction, min(r.id), EXISTS (SELECT FROM locks AS n WHERE n.locktype = 'relation' \
     AND n.relation = 'outbox_seq_seq'::regclass::oid AND n.mode <> 'AccessShareLock' AND n.database = h.database \
     AND n.virtualtransaction = h.virtualtransaction) FROM locks AS h LEFT JOIN locks AS t ON t.locktype = 'transactionid' \
     AND t.granted AND t.mode = 'ExclusiveLock' AND t.virtualtransaction = h.virtualtransaction \
     LEFT JOIN running AS r ON r.id % 4294967296 = t.transactionid::text::bigint \
     WHERE h.database = (SELECT oid FROM pg_database WHERE datname = current_database()) AND h.locktype = 'relation' \
     AND h.relation = 'outbox'::regclass::oid AND h.mode = 'RowExclusiveLock' AND h.pid IS DISTINCT FROM pg_backend_pid() \
     GROUP BY h.virtualtransaction, h.database"
);
