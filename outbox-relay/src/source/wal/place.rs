//! Places in the write-ahead log, and the one from which a slot is read on.

use diesel::pg::{Pg, PgConnection};
use diesel::prelude::*;
use diesel::sql_types::{BigInt, Nullable, Text};

use crate::statement::statement;

/// A place in the write-ahead log: so many bytes after its beginning.
pub(super) type Lsn = u64;

/// As PostgreSQL writes it.
pub(super) fn shown(lsn: Lsn) -> String {
    format!("{:X}/{:X}", lsn >> 32, lsn & 0xffff_ffff)
}

/// Up to where a slot's log has been sent, as the table has it. The server is told too, but it may not hear the last of it, and
/// it can be told of whole transactions only.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Place {
    pub(super) start: Lsn,
    pub(super) part: Option<Part>,
}

/// How much of the transaction that commits at this place has been sent: its first events.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Part {
    pub(super) commit: Lsn,
    pub(super) sent: u64,
}

impl Place {
    /// Nothing where the slot is not one of this outbox.
    pub(super) fn load(conn: &mut PgConnection, slot: &str) -> QueryResult<Option<Self>> {
        let place = Load::new(slot.to_owned()).get_result::<(i64, Option<i64>, i64)>(conn).optional()?;
        Ok(place.map(|(start, commit, sent)| {
            let part = commit.map(|commit| Part { commit: commit.unsigned_abs(), sent: sent.unsigned_abs() });
            Self { start: start.unsigned_abs(), part }
        }))
    }

    /// With a bound up to which the server may be told that all is sent.
    pub(super) fn keep(self, conn: &mut PgConnection, slot: &str, bound: Lsn) -> QueryResult<()> {
        let (commit, sent) = self.part.map(|part| (part.commit as i64, part.sent as i64)).unzip();
        let (start, sent) = (self.start as i64, sent.unwrap_or_default());
        Keep::new(start, commit, sent, bound as i64, slot.to_owned()).execute(conn).map(drop)
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
        sent: i64 => BigInt,
        bound: i64 => BigInt,
        slot: String => Text
    } -> BigInt,
    "UPDATE outbox_slot SET start_lsn = greatest(start_lsn, '0/0'::pg_lsn + ?::numeric), \
     commit_lsn = '0/0'::pg_lsn + ?::numeric, sent_events = ?, bound_lsn = '0/0'::pg_lsn + ?::numeric, transactions = \
     coalesce((SELECT total_txns FROM pg_stat_replication_slots WHERE slot_name = slot), 0) WHERE slot = ?"
);
