//! Positions in the write-ahead log (WAL), and the one from which a slot is read on.

use diesel::pg::{Pg, PgConnection};
use diesel::prelude::*;
use diesel::sql_types::{BigInt, Nullable, Text};

use crate::statement::statement;

/// A place in the WAL: so many bytes after its beginning.
pub(super) type Lsn = u64;

/// As PostgreSQL writes it.
pub(super) fn shown(lsn: Lsn) -> String {
    format!("{:X}/{:X}", lsn >> 32, lsn & 0xffff_ffff)
}

/// A position in what the WAL has for an outbox. The table keeps the one up to where all is sent. The server hears of it too, but it may
/// not hear the last of it, and it knows whole transactions only.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Position {
    /// All that ends up to here lies before it.
    pub(super) start: Lsn,
    /// Of the transaction that comes next, what lies before it. The commit is not before `start`.
    pub(super) part: Option<TransactionPart>,
}

/// The first events of the transaction that commits here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct TransactionPart {
    pub(super) commit: Lsn,
    pub(super) events: u64,
}

impl Position {
    /// So many events further in the same transaction.
    pub(super) fn after_events(self, events: u64) -> Self {
        let part = self.part.map(|part| TransactionPart { events: part.events + events, ..part });
        Self { part, ..self }
    }

    /// After all that ends up to here. A transaction that commits there or later has not ended by then.
    pub(super) fn after_end(self, end: Lsn) -> Self {
        let start = self.start.max(end);
        Self { start, part: self.part.filter(|part| start <= part.commit) }
    }

    /// Nothing if the slot is not one of this outbox.
    pub(super) fn load(conn: &mut PgConnection, slot: &str) -> QueryResult<Option<Self>> {
        let row = Load::new(slot.to_owned()).get_result::<(i64, Option<i64>, i64)>(conn).optional()?;
        Ok(row.map(|(start, commit, events)| {
            let part = commit.map(|commit| TransactionPart {
                commit: commit.unsigned_abs(),
                events: events.unsigned_abs(),
            });
            Self { start: start.unsigned_abs(), part }
        }))
    }

    /// With a bound up to which the server may hear that all is sent.
    pub(super) fn keep(self, conn: &mut PgConnection, slot: &str, bound: Lsn) -> QueryResult<()> {
        let (commit, events) = self.part.map(|part| (part.commit as i64, part.events as i64)).unzip();
        let (start, events) = (self.start as i64, events.unwrap_or_default());
        Keep::new(start, commit, events, bound as i64, slot.to_owned()).execute(conn).map(drop)
    }
}

statement!(
    Pg,
    Load { slot: String => Text } -> (BigInt, Nullable<BigInt>, BigInt),
    "SELECT (start_lsn - '0/0')::bigint, (commit_lsn - '0/0')::bigint, sent_events FROM outbox_slot WHERE slot = ?"
);

statement!(
    Pg,
    Keep {
        start: i64 => BigInt,
        commit: Option<i64> => Nullable<BigInt>,
        events: i64 => BigInt,
        bound: i64 => BigInt,
        slot: String => Text
    } -> BigInt,
    "UPDATE outbox_slot SET start_lsn = greatest(start_lsn, '0/0'::pg_lsn + ?::numeric), \
     commit_lsn = '0/0'::pg_lsn + ?::numeric, sent_events = ?, bound_lsn = '0/0'::pg_lsn + ?::numeric, transactions = \
     coalesce((SELECT total_txns FROM pg_stat_replication_slots WHERE slot_name = slot), 0) WHERE slot = ?"
);
