//! Positions in the write-ahead log (WAL), and the position from which a slot is read on.

use diesel::pg::{Pg, PgConnection};
use diesel::prelude::*;
use diesel::sql_types::{BigInt, Nullable, Text};

use crate::statement::statement;

/// A place in the WAL: the number of bytes before it.
pub(crate) type Lsn = u64;

/// Returns the place as PostgreSQL writes it.
pub(crate) fn shown(lsn: Lsn) -> String {
    format!("{:X}/{:X}", lsn >> 32, lsn & 0xffff_ffff)
}

/// A position in what the WAL has for an outbox. The table stores the position up to which all is sent. The server hears of it too,
/// but perhaps not of the last one, and it knows only whole transactions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Position {
    /// All transactions that end up to here lie before the position.
    pub(crate) start: Lsn,
    /// What lies before it of the transaction that comes next, whose commit is not before `start`.
    pub(crate) part: Option<TransactionPart>,
}

/// The first events of the transaction that commits here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TransactionPart {
    pub(crate) commit: Lsn,
    pub(crate) events: u64,
}

impl Position {
    /// Returns the position this many events further in the same transaction.
    pub(crate) fn after_events(self, events: u64) -> Self {
        let part = self.part.map(|part| TransactionPart { events: part.events + events, ..part });
        Self { part, ..self }
    }

    /// Returns the position after all that ends up to here. A transaction that commits there or later has not ended by then.
    pub(crate) fn after_end(self, end: Lsn) -> Self {
        let start = self.start.max(end);
        Self { start, part: self.part.filter(|part| start <= part.commit) }
    }

    /// Loads the stored position. Returns `None` if the slot does not belong to this outbox.
    pub(crate) fn load(conn: &mut PgConnection, slot: &str) -> QueryResult<Option<Self>> {
        let row = Load::new(slot.to_owned()).get_result::<(i64, Option<i64>, i64)>(conn).optional()?;
        Ok(row.map(|(start, commit, events)| {
            let part = commit.map(|commit| TransactionPart {
                commit: commit.unsigned_abs(),
                events: events.unsigned_abs(),
            });
            Self { start: start.unsigned_abs(), part }
        }))
    }

    /// Stores the position, with a bound up to which the relay may confirm to the server that all is sent.
    pub(crate) fn keep(self, conn: &mut PgConnection, slot: &str, bound: Lsn) -> QueryResult<()> {
        let (start, commit, events) = self.columns();
        Keep::new(start, commit, events, bound as i64, slot.to_owned()).execute(conn).map(drop)
    }

    /// Does the same if the stored position is still `kept`, with this bound. Returns whether it was.
    pub(crate) fn keep_after(
        self,
        (kept, kept_bound): (Self, Lsn),
        conn: &mut PgConnection,
        slot: &str,
        bound: Lsn,
    ) -> QueryResult<bool> {
        let ((start, commit, events), kept) = (self.columns(), kept.columns());
        KeepAfter::new(
            start,
            commit,
            events,
            bound as i64,
            slot.to_owned(),
            kept.0,
            kept.1,
            kept.2,
            kept_bound as i64,
        )
        .execute(conn)
        .map(|rows| rows > 0)
    }

    fn columns(self) -> (i64, Option<i64>, i64) {
        let (commit, events) = self.part.map(|part| (part.commit as i64, part.events as i64)).unzip();
        (self.start as i64, commit, events.unwrap_or_default())
    }
}

macro_rules! keep {
    () => {
        "UPDATE outbox_slot SET start_lsn = greatest(start_lsn, '0/0'::pg_lsn + ?::numeric), \
         commit_lsn = '0/0'::pg_lsn + ?::numeric, sent_events = ?, bound_lsn = '0/0'::pg_lsn + ?::numeric, transactions = \
         coalesce((SELECT total_txns FROM pg_stat_replication_slots WHERE slot_name = slot), 0) WHERE slot = ?"
    };
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
    keep!()
);

statement!(
    Pg,
    KeepAfter {
        start: i64 => BigInt,
        commit: Option<i64> => Nullable<BigInt>,
        events: i64 => BigInt,
        bound: i64 => BigInt,
        slot: String => Text,
        kept_start: i64 => BigInt,
        kept_commit: Option<i64> => Nullable<BigInt>,
        kept_events: i64 => BigInt,
        kept_bound: i64 => BigInt
    } -> BigInt,
    concat!(
        keep!(),
        " AND start_lsn = '0/0'::pg_lsn + ?::numeric AND commit_lsn IS NOT DISTINCT FROM '0/0'::pg_lsn + ?::numeric AND sent_events = ? \
         AND bound_lsn = '0/0'::pg_lsn + ?::numeric"
    )
);
