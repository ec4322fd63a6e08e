//! The insert fence: up to which `seq` every row is visible or never will be.
//!
//! A transaction that took a low `seq` may commit late. It took its lock on the table before its `seq` and keeps it to
//! its end. So: read the sequence's last value, then list the transactions that hold that lock. When all of those have
//! ended, every row up to that value is settled history. Transactions that do not insert into the outbox play no part.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use diesel::pg::{Pg, PgConnection};
use diesel::prelude::*;
use diesel::sql_types::{BigInt, Bool, Integer, Text};
use diesel_outbox_core::SourceError;

use super::database_error;
use crate::backend::postgres::locks;
use crate::statement::statement;

/// How often a new fence is put up, or the present one looked at.
const INTERVAL: Duration = Duration::from_millis(25);

/// What the names of transactions begin with that wait for COMMIT PREPARED.
pub(super) const PREPARED: &str = "-1/";

#[derive(Default)]
pub(super) struct Fence {
    safe: i64,
    pending: Option<(i64, HashSet<String>)>,
    looked: Option<Instant>,
}

impl Fence {
    pub(super) fn safe(&self) -> i64 {
        self.safe
    }

    /// Moves on where that is due, and tells how many workers are at work if it looked.
    pub(super) fn advance(&mut self, conn: &mut PgConnection) -> QueryResult<Option<usize>> {
        if self.looked.is_some_and(|looked| looked.elapsed() < INTERVAL) {
            return Ok(None);
        }
        self.looked = Some(Instant::now());
        let (last, listed) = match self.pending.take() {
            Some((last, listed)) => (last, Some(listed)),
            // Read before the holders are listed: see above.
            None => (last_value(conn)?, None),
        };
        let (mut pending, workers) = holders(conn)?;
        if let Some(listed) = listed {
            // One that was prepared meanwhile has another name since.
            pending.retain(|transaction| listed.contains(transaction) || transaction.starts_with(PREPARED));
        }
        if pending.is_empty() {
            self.safe = last;
        } else {
            self.pending = Some((last, pending));
        }
        Ok(Some(workers))
    }
}

/// The last number that the sequence has given.
pub(super) fn last_value(conn: &mut PgConnection) -> QueryResult<i64> {
    LastValue::new().get_result(conn)
}

/// The other transactions that may have inserted into the outbox and are still open, and the number of workers at work.
pub(super) fn holders(conn: &mut PgConnection) -> QueryResult<(HashSet<String>, usize)> {
    let rows = Holders::new(locks::WORKING).load::<(bool, String)>(conn)?;
    let workers = rows.iter().filter(|(inserting, _)| !inserting).count();
    let inserting = rows.into_iter().filter_map(|(inserting, id)| inserting.then_some(id)).collect();
    Ok((inserting, workers))
}

/// The fence holds only where a session takes each number when it inserts, and does not keep some for later; and no number
/// may come a second time, as lower bounds have gone past it. Rows are known by their place, which is one in a single table.
pub(super) fn check_table(conn: &mut PgConnection) -> Result<(), SourceError> {
    let failed = |error| database_error("looking for the outbox table", error);
    match CacheSize::new().get_result::<i64>(conn).optional().map_err(failed)? {
        Some(1) => {}
        Some(cache) => {
            return Err(SourceError::new(format!(
                "the sequence of outbox.seq has CACHE {cache}, with which events could be overlooked: \
                 run ALTER SEQUENCE outbox_seq_seq CACHE 1"
            )));
        }
        None => {
            return Err(SourceError::new(
                "there is no outbox table here: run the migrations (`outbox migrate`, or \
                 `Migrations::new().run(..)`), and name the schema if the tables live in one of their own",
            ));
        }
    }
    if HasParts::new().get_result::<bool>(conn).map_err(failed)? {
        return Err(SourceError::new(
            "the table outbox is partitioned, or other tables inherit from it, which the relay cannot read: use one \
             plain table, or several in schemas of their own with a relay each",
        ));
    }
    let low = HighestLow::new().get_result::<i64>(conn).map_err(failed)?;
    let highest = HighestSeq::new().get_result::<i64>(conn).map_err(failed)?;
    let last = last_value(conn).map_err(failed)?;
    if highest > last {
        return Err(SourceError::new(format!(
            "the sequence of outbox.seq stands at {last}, below {highest}, which the table has already: was it restarted? \
             Numbers would come a second time: run SELECT setval('outbox_seq_seq', {highest})"
        )));
    }
    if low > last {
        return Err(SourceError::new(format!(
            "the sequence of outbox.seq stands at {last}, below {low}, up to which the relay has sent everything: was it \
             restarted? Events would be overlooked: run UPDATE outbox_shard SET low = 0"
        )));
    }
    Ok(())
}

statement!(
    Pg,
    HasParts {} -> Bool,
    "SELECT relkind <> 'r' OR EXISTS (SELECT FROM pg_inherits WHERE inhparent = 'outbox'::regclass) \
     FROM pg_class WHERE oid = 'outbox'::regclass"
);

statement!(Pg, HighestSeq {} -> BigInt, "SELECT coalesce(max(seq), 0) FROM outbox");

statement!(Pg, HighestLow {} -> BigInt, "SELECT coalesce(max(low), 0) FROM outbox_shard");

statement!(
    Pg,
    LastValue {} -> BigInt,
    "SELECT CASE WHEN is_called THEN last_value ELSE last_value - 1 END FROM outbox_seq_seq"
);

statement!(
    Pg,
    Holders { working: i32 => Integer } -> (Bool, Text),
    "SELECT locktype = 'relation', virtualtransaction FROM pg_locks \
     WHERE database = (SELECT oid FROM pg_database WHERE datname = current_database()) \
     AND (locktype = 'relation' AND relation = 'outbox'::regclass AND mode = 'RowExclusiveLock' \
     AND pid IS DISTINCT FROM pg_backend_pid() \
     OR locktype = 'advisory' AND classid = ?::oid AND objid = 'outbox'::regclass::oid AND objsubid = 2)"
);

statement!(
    Pg,
    CacheSize {} -> BigInt,
    "SELECT seqcache FROM pg_sequence WHERE seqrelid = to_regclass('outbox_seq_seq')"
);
