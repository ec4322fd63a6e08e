//! The slot as the server has it.

use diesel::pg::{Pg, PgConnection};
use diesel::prelude::*;
use diesel::sql_types::{BigInt, Bool, Integer, Nullable, Text};
use diesel_outbox_core::SourceError;

use super::error::RESENDS;
use super::options::WalOptions;
use super::polled;
use super::position::{Lsn, Position, shown};
use crate::source::database_error;
use crate::statement::statement;

/// What the server knows of a slot.
#[derive(Debug, Clone)]
pub(super) struct ReplicationSlot {
    /// Whether it belongs to this database and is of the right kind.
    pub(super) fits: bool,
    /// Whether somebody reads it.
    pub(super) is_active: bool,
    /// `reserved`, `extended`, `unreserved` or `lost`.
    pub(super) status: String,
    pub(super) confirmed: Lsn,
    /// How many bytes of the WAL the server keeps for it.
    pub(super) retained: u64,
}

type ReplicationSlotRow = (bool, bool, Option<String>, i64, i64);

impl ReplicationSlot {
    pub(super) fn find(conn: &mut PgConnection, name: &str) -> QueryResult<Option<Self>> {
        let row = Find::new(name.to_owned()).get_result::<ReplicationSlotRow>(conn).optional()?;
        Ok(row.map(|(fits, is_active, status, confirmed, retained)| Self {
            fits,
            is_active,
            status: status.unwrap_or_else(|| "lost".into()),
            confirmed: confirmed.unsigned_abs(),
            retained: u64::try_from(retained).unwrap_or_default(),
        }))
    }

    pub(super) fn is_lost(&self) -> bool {
        self.status == "lost"
    }

    /// Returns whether the WAL can be read from it.
    pub(super) fn is_usable(&self) -> bool {
        self.fits && !self.is_lost()
    }
}

/// Returns the slots that the table names, except this one, with what the server knows of them. A slot of another database came
/// here with a copy of its tables.
pub(super) fn others(
    conn: &mut PgConnection,
    name: &str,
) -> QueryResult<Vec<(String, Option<ReplicationSlot>)>> {
    let names = Others::new(name.to_owned()).load::<String>(conn)?;
    names.into_iter().map(|other| ReplicationSlot::find(conn, &other).map(|slot| (other, slot))).collect()
}

/// Returns a name that no slot of the server has.
pub(super) fn free_name(conn: &mut PgConnection) -> QueryResult<String> {
    let name = OwnName::new().get_result::<String>(conn)?;
    let (mut free, mut n) = (name.clone(), 1);
    while ReplicationSlot::find(conn, &free)?.is_some() {
        n += 1;
        free = format!("{name}_{n}");
    }
    Ok(free)
}

/// Checks that the slot can be read. Trying again cannot correct the errors that this returns.
pub(super) fn check(conn: &mut PgConnection, options: &WalOptions) -> Result<(), SourceError> {
    let failed = |error| database_error("looking for the replication slot", error);
    let name = &options.slot;
    let setup = options.command("setup", name);
    if polled::is_whole_table(conn).map_err(failed)? {
        return Err(SourceError::permanent(format!(
            "the whole outbox is polled, so there is nothing to read from the write-ahead log: run `{setup}` first"
        )));
    }
    let run_setup = format!("run `{setup}`, which makes a new slot. {RESENDS}");
    if Position::load(conn, name).map_err(failed)?.is_none() {
        let others = others(conn, name).map_err(failed)?;
        let usable = others.iter().find(|(_, slot)| slot.as_ref().is_some_and(ReplicationSlot::is_usable));
        return Err(SourceError::permanent(match usable {
            Some((other, _)) => format!(
                "this outbox is read from the slot `{other}`, not from `{name}`: start the relay with `--slot {other}`"
            ),
            None => format!(
                "this outbox was read from a slot that is gone, and `{name}` is another one: {run_setup}"
            ),
        }));
    }
    let Some(slot) = ReplicationSlot::find(conn, name).map_err(failed)? else {
        return Err(SourceError::permanent(format!(
            "the replication slot `{name}` no longer exists: {run_setup}"
        )));
    };
    if !slot.fits {
        let free = free_name(conn).map_err(failed)?;
        return Err(SourceError::permanent(format!(
            "the replication slot `{name}` belongs to another database, perhaps one that this database is a copy of, or is of another \
             kind (the relay needs the plugin pgoutput): run `{setup}` and start relays with `--slot {free}`, or run `{drop}` and poll. \
             Either leaves that slot alone. {RESENDS}",
            setup = options.command("setup", &free),
            drop = options.command("drop", name)
        )));
    }
    if slot.is_lost() {
        return Err(SourceError::permanent(format!(
            "the server has given up the replication slot `{name}`, confirmed up to {}, because the slot retained more WAL than \
             max_slot_wal_keep_size allows or was invalidated: {run_setup}",
            shown(slot.confirmed)
        )));
    }
    Ok(())
}

/// Warns if nothing limits the WAL that the server keeps while nobody reads the slot.
pub(super) fn warn_of_no_limit(conn: &mut PgConnection, options: &WalOptions) -> Result<(), SourceError> {
    let limit = KeepSize::new().get_result::<i64>(conn);
    if limit.map_err(|error| database_error("looking up max_slot_wal_keep_size", error))? < 0 {
        tracing::warn!(
            slot = options.slot,
            "max_slot_wal_keep_size is not set: while no relay reads the slot, the server keeps all WAL that is written, until \
             the disk is full; set it to what the disk has room for"
        );
    }
    Ok(())
}

/// Returns where the WAL ends. Everything that is committed by now lies before that.
pub(super) fn end_of_wal(conn: &mut PgConnection) -> QueryResult<Lsn> {
    Ok(EndOfWal::new().get_result::<i64>(conn)?.unsigned_abs())
}

/// Makes a slot. On PostgreSQL 17 and later, standbys of the server keep it too, so that a relay can go on there.
pub(super) fn make(conn: &mut PgConnection, name: &str) -> QueryResult<()> {
    if Version::new().get_result::<i64>(conn)? >= 170_000 {
        MakeForFailover::new(name.to_owned()).execute(conn)?;
    } else {
        Make::new(name.to_owned()).execute(conn)?;
    }
    Ok(())
}

/// Drops a slot.
pub(super) fn remove(conn: &mut PgConnection, name: &str) -> QueryResult<()> {
    Remove::new(name.to_owned()).execute(conn).map(drop)
}

/// Moves a slot up to this position, if it is not there yet.
pub(super) fn move_up(conn: &mut PgConnection, slot: &str, to: Lsn) -> QueryResult<()> {
    MoveUp::new(to as i64, slot.to_owned()).execute(conn).map(drop)
}

/// Makes a temporary copy of a slot and returns its name, which has the server's number of the session and the label. The copy ends
/// with this connection.
pub(super) fn copy(conn: &mut PgConnection, slot: &str, label: &str) -> QueryResult<String> {
    let copy = format!("outbox_{}_{label}", session_pid(conn)?);
    Copy::new(slot.to_owned(), copy.clone()).get_result::<bool>(conn)?;
    Ok(copy)
}

/// Returns the server's number of this session.
pub(super) fn session_pid(conn: &mut PgConnection) -> QueryResult<i32> {
    SessionPid::new().get_result(conn)
}

statement!(
    Pg,
    Find { name: String => Text } -> (Bool, Bool, Nullable<Text>, BigInt, BigInt),
    "SELECT coalesce(slot_type = 'logical' AND plugin = 'pgoutput' AND database = current_database(), false), active, wal_status, \
     coalesce(confirmed_flush_lsn - '0/0', 0)::bigint, \
     coalesce(pg_current_wal_insert_lsn() - restart_lsn, 0)::bigint FROM pg_replication_slots WHERE slot_name = ?"
);

statement!(
    Pg,
    Others { slot: String => Text } -> Text,
    "SELECT slot FROM outbox_slot WHERE slot <> ? ORDER BY slot"
);

statement!(
    Pg,
    /// A name for a slot of this database. Like every slot's name, it has only lower-case letters, digits and underscores, 63 at most.
    OwnName {} -> Text,
    "SELECT 'outbox_' || left(regexp_replace(lower(current_database()::text), '[^a-z0-9_]', '_', 'g'), 50)"
);

statement!(Pg, EndOfWal {} -> BigInt, "SELECT (pg_current_wal_insert_lsn() - '0/0')::bigint");

statement!(
    Pg,
    /// In megabytes; -1 for no limit.
    KeepSize {} -> BigInt,
    "SELECT setting::bigint FROM pg_settings WHERE name = 'max_slot_wal_keep_size'"
);

statement!(Pg, SessionPid {} -> Integer, "SELECT pg_backend_pid()");

statement!(Pg, Version {} -> BigInt, "SELECT current_setting('server_version_num')::bigint");

statement!(
    Pg,
    Make { name: String => Text } -> Bool,
    "SELECT true FROM pg_catalog.pg_create_logical_replication_slot(?, 'pgoutput')"
);

statement!(
    Pg,
    MakeForFailover { name: String => Text } -> Bool,
    "SELECT true FROM pg_catalog.pg_create_logical_replication_slot(?, 'pgoutput', failover => true)"
);

statement!(Pg, Remove { name: String => Text } -> Bool, "SELECT true FROM pg_catalog.pg_drop_replication_slot(?)");

statement!(
    Pg,
    Copy { slot: String => Text, copy: String => Text } -> Bool,
    "SELECT true FROM pg_catalog.pg_copy_logical_replication_slot(?, ?, true)"
);

statement!(
    Pg,
    MoveUp { to: i64 => BigInt, slot: String => Text } -> Bool,
    "SELECT pg_replication_slot_advance(slot_name, place) IS NOT NULL FROM (SELECT slot_name, confirmed_flush_lsn, \
     '0/0'::pg_lsn + ?::numeric AS place FROM pg_replication_slots WHERE slot_name = ?) AS slot \
     WHERE confirmed_flush_lsn < place"
);
