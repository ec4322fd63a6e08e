//! Whether the position in the table belongs to this server's WAL, and whether the slot is the one that was read up to there. The
//! table may come from elsewhere, for example with a dump, and somebody may have made a new slot of the same name.

use diesel::connection::SimpleConnection;
use diesel::pg::{Pg, PgConnection};
use diesel::prelude::*;
use diesel::sql_types::{BigInt, Bool, Text};
use diesel_outbox_core::SourceError;

use super::error::RESENDS;
use super::options::WalOptions;
use super::position::{Lsn, shown};
use crate::source::database_error;
use crate::statement::statement;

/// Returns why not to trust a stored position or the slot, if there is a reason.
pub(super) fn doubt(conn: &mut PgConnection, slot: &str) -> QueryResult<Option<String>> {
    type OriginRow = (i64, i64, i64, bool, bool);
    let row = Look::new(slot.to_owned()).get_result::<OriginRow>(conn).optional()?;
    let Some((start, end, confirmed, is_here, is_same)) = row else { return Ok(None) };
    let is_beyond = start > end;
    let [start, end, confirmed] = [start, end, confirmed].map(|lsn| shown(lsn.unsigned_abs()));
    Ok(if is_beyond {
        Some(format!("the relay has sent the WAL up to {start}, beyond the end of this server's WAL ({end})"))
    } else if !is_here {
        Some(format!("the relay sent the WAL up to {start} on another server"))
    } else if !is_same {
        Some(format!(
            "it is at {confirmed}, a position that no relay has confirmed, so somebody has recreated it"
        ))
    } else {
        None
    })
}

/// Returns an error if there is a reason not to trust them.
pub(super) fn check(conn: &mut PgConnection, options: &WalOptions) -> Result<(), SourceError> {
    let failed = |error| database_error("looking where the slot comes from", error);
    match doubt(conn, &options.slot).map_err(failed)? {
        Some(doubt) => Err(SourceError::permanent(format!(
            "the replication slot `{}` is not the one from which this outbox was read: {doubt}. The relay would miss events: run \
             `{}`, which makes a new slot. {RESENDS}",
            options.slot,
            options.command("setup", &options.slot)
        ))),
        None => Ok(()),
    }
}

/// Notes which server and slot this is, and a bound up to which the relay may confirm to the server that all is sent. The bound is
/// on the disk when this returns.
pub(super) fn note(conn: &mut PgConnection, slot: &str, bound: Lsn) -> QueryResult<()> {
    conn.transaction(|conn| {
        conn.batch_execute("SET LOCAL synchronous_commit = local")?;
        Note::new(bound as i64, slot.to_owned()).execute(conn)
    })
    .map(drop)
}

statement!(
    Pg,
    /// The stored position, the end of the WAL, the slot's position, whether the first belongs to this server, and whether the slot is the
    /// same. It is if its position is one that a relay confirmed to it, or if its statistics go on, because somebody else has read it since.
    Look { slot: String => Text } -> (BigInt, BigInt, BigInt, Bool, Bool),
    "SELECT (o.start_lsn - '0/0')::bigint, (pg_current_wal_insert_lsn() - '0/0')::bigint, \
     (s.confirmed_flush_lsn - '0/0')::bigint, \
     o.system_id IS NULL OR o.system_id = (SELECT system_identifier FROM pg_control_system()), \
     o.bound_lsn IS NULL OR s.confirmed_flush_lsn <= o.bound_lsn OR coalesce(t.total_txns, 0) > 0 AND t.total_txns >= o.transactions \
     FROM outbox_slot AS o JOIN pg_replication_slots AS s ON s.slot_name = o.slot \
     LEFT JOIN pg_stat_replication_slots AS t ON t.slot_name = o.slot \
     WHERE o.slot = ? AND s.confirmed_flush_lsn IS NOT NULL"
);

statement!(
    Pg,
    Note { bound: i64 => BigInt, slot: String => Text } -> BigInt,
    "UPDATE outbox_slot SET system_id = (SELECT system_identifier FROM pg_control_system()), \
     bound_lsn = '0/0'::pg_lsn + ?::numeric, transactions = \
     coalesce((SELECT total_txns FROM pg_stat_replication_slots WHERE slot_name = slot), 0) WHERE slot = ?"
);
