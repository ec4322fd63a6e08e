//! The slot as the server has it.

use std::collections::VecDeque;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use diesel::pg::{Pg, PgConnection};
use diesel::prelude::*;
use diesel::sql_types::{BigInt, Bool, Integer, Nullable, Text};
use diesel_outbox_core::{SourceError, WalLag};

use super::division;
use super::options::WalOptions;
use super::place::{Lsn, Place, shown};
use crate::source::database_error;
use crate::statement::statement;

/// What is known of a slot.
#[derive(Debug, Clone)]
pub(super) struct Slot {
    /// Whether it is one of this database and of the right kind.
    pub(super) fits: bool,
    /// Whether somebody reads it.
    pub(super) is_active: bool,
    /// `reserved`, `extended`, `unreserved` or `lost`.
    pub(super) status: String,
    pub(super) confirmed: Lsn,
    /// How many bytes of the log are kept for it.
    pub(super) retained: u64,
}

type Row = (bool, bool, Option<String>, i64, i64);

impl Slot {
    pub(super) fn find(conn: &mut PgConnection, name: &str) -> QueryResult<Option<Self>> {
        let row = Find::new(name.to_owned()).get_result::<Row>(conn).optional()?;
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

    /// Whether the log can be read from it.
    pub(super) fn is_usable(&self) -> bool {
        self.fits && !self.is_lost()
    }
}

/// The slots but this one that the table names, if they are there. One of another database came here with a copy of its tables.
pub(super) fn others(conn: &mut PgConnection, name: &str) -> QueryResult<Vec<(String, Option<Slot>)>> {
    let names = Others::new(name.to_owned()).load::<String>(conn)?;
    names.into_iter().map(|other| Slot::find(conn, &other).map(|slot| (other, slot))).collect()
}

/// A name that no slot of the server has.
pub(super) fn free_name(conn: &mut PgConnection) -> QueryResult<String> {
    let name = OwnName::new().get_result::<String>(conn)?;
    let (mut free, mut n) = (name.clone(), 1);
    while Slot::find(conn, &free)?.is_some() {
        n += 1;
        free = format!("{name}_{n}");
    }
    Ok(free)
}

/// Whether the slot can be read; an error that cannot be mended by trying again where it cannot.
pub(super) fn check(conn: &mut PgConnection, options: &WalOptions) -> Result<(), SourceError> {
    let failed = |error| database_error("looking for the replication slot", error);
    let name = &options.slot;
    let setup = options.command("setup", name);
    if !division::is_made(conn).map_err(failed)? {
        return Err(SourceError::permanent(format!(
            "the outbox is polled as a whole, and nothing is to be read from the write-ahead log: run `{setup}` first"
        )));
    }
    let resend = "which makes a new slot and sends what is not known to be sent, some of it perhaps twice; what is not in the table any \
                  more, as the service deleted it unsent, is not sent";
    if Place::load(conn, name).map_err(failed)?.is_none() {
        let others = others(conn, name).map_err(failed)?;
        let usable = others.iter().find(|(_, slot)| slot.as_ref().is_some_and(Slot::is_usable));
        return Err(SourceError::permanent(match usable {
            Some((other, _)) => format!(
                "this outbox is read from the slot `{other}`, and not from `{name}`: start the relay with `--slot {other}`"
            ),
            None => format!(
                "the slot `{name}` is not the one from which this outbox was read, and that one is gone: run `{setup}`, {resend}"
            ),
        }));
    }
    let Some(slot) = Slot::find(conn, name).map_err(failed)? else {
        return Err(SourceError::permanent(format!(
            "the replication slot `{name}` does not exist any more: run `{setup}`, {resend}"
        )));
    };
    if !slot.fits {
        let free = free_name(conn).map_err(failed)?;
        return Err(SourceError::permanent(format!(
            "the replication slot `{name}` is of another database or another kind (this one needs plugin pgoutput), as where this \
             database is a copy of that one: run `{setup}` and start relays with `--slot {free}`, or run `{drop}` and poll. Either \
             leaves that slot alone, and what is not known to be sent is sent, some of it perhaps twice",
            setup = options.command("setup", &free),
            drop = options.command("drop", name)
        )));
    }
    if slot.is_lost() {
        return Err(SourceError::permanent(format!(
            "the server has given up the replication slot `{name}`, which was confirmed up to {}, as it retained more than \
             max_slot_wal_keep_size allows or was invalidated: run `{setup}`, {resend}",
            shown(slot.confirmed)
        )));
    }
    Ok(())
}

/// While nobody reads the slot its part of the log grows.
pub(super) fn warn_of_no_limit(conn: &mut PgConnection, options: &WalOptions) -> Result<(), SourceError> {
    let limit = KeepSize::new().get_result::<i64>(conn);
    if limit.map_err(|error| database_error("looking up max_slot_wal_keep_size", error))? < 0 {
        tracing::warn!(
            slot = options.slot,
            "max_slot_wal_keep_size is not set: while no relay reads the slot the server keeps all of its log, until the \
             disk is full"
        );
    }
    Ok(())
}

/// Up to where the log reaches. What is committed by now lies before it.
pub(super) fn end_of_log(conn: &mut PgConnection) -> QueryResult<Lsn> {
    Ok(EndOfLog::new().get_result::<i64>(conn)?.unsigned_abs())
}

/// Moves a slot up to this place, if it is not there yet.
pub(super) fn move_up(conn: &mut PgConnection, slot: &str, to: Lsn) -> QueryResult<()> {
    MoveUp::new(to as i64, slot.to_owned()).execute(conn).map(drop)
}

/// Makes a temporary copy of a slot, which goes with this connection, and returns its name: it has the server's number of the session, and
/// the label.
pub(super) fn copy(conn: &mut PgConnection, slot: &str, label: &str) -> QueryResult<String> {
    let copy = format!("outbox_{}_{label}", session(conn)?);
    Copy::new(slot.to_owned(), copy.clone()).get_result::<bool>(conn)?;
    Ok(copy)
}

/// The server's number of this session.
pub(super) fn session(conn: &mut PgConnection) -> QueryResult<i32> {
    Session::new().get_result(conn)
}

/// How old something is that was made at this time, in milliseconds since 1970.
pub(super) fn age(created_at_ms: i64) -> Duration {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    now.saturating_sub(Duration::from_millis(created_at_ms.unsigned_abs()))
}

/// Watches how far the slot is behind.
#[derive(Default)]
pub(super) struct Watch {
    /// Where the log ended, and when.
    ends: VecDeque<(Lsn, Instant)>,
    warned: bool,
}

impl Watch {
    pub(super) fn look(
        &mut self,
        conn: &mut PgConnection,
        options: &WalOptions,
        confirmed: Lsn,
    ) -> QueryResult<WalLag> {
        let (end, now) = (end_of_log(conn)?, Instant::now());
        let slot = Slot::find(conn, &options.slot)?;
        let confirmed = confirmed.max(slot.as_ref().map_or(0, |slot| slot.confirmed));
        self.ends.push_back((end, now));
        while self.ends.get(1).is_some_and(|(end, _)| *end <= confirmed) {
            self.ends.pop_front();
        }
        let since = self.ends.front().filter(|(then, _)| *then < end && confirmed < end);
        let (status, retained) = slot.map_or(("lost".to_owned(), 0), |slot| (slot.status, slot.retained));
        let too_much = retained >= options.slot_size_warning || matches!(&*status, "unreserved" | "lost");
        if too_much && !self.warned {
            tracing::warn!(
                slot = options.slot,
                retained,
                status,
                "the slot retains much of the write-ahead log"
            );
        }
        self.warned = too_much;
        let mut lag = WalLag::default();
        lag.bytes = end.saturating_sub(confirmed);
        lag.time = Some(since.map_or(Duration::ZERO, |(_, then)| now.duration_since(*then)));
        lag.retained_bytes = retained;
        lag.status = status;
        Ok(lag)
    }
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
    /// Of lower-case letters, digits and underscores, 63 at most, as a slot's name has to be.
    OwnName {} -> Text,
    "SELECT 'outbox_' || left(regexp_replace(lower(current_database()), '[^a-z0-9_]', '_', 'g'), 50)"
);

statement!(Pg, EndOfLog {} -> BigInt, "SELECT (pg_current_wal_insert_lsn() - '0/0')::bigint");

statement!(
    Pg,
    /// In megabytes; -1 for no limit.
    KeepSize {} -> BigInt,
    "SELECT setting::bigint FROM pg_settings WHERE name = 'max_slot_wal_keep_size'"
);

statement!(Pg, Session {} -> Integer, "SELECT pg_backend_pid()");

statement!(
    Pg,
    Copy { slot: String => Text, copy: String => Text } -> Bool,
    "SELECT true FROM pg_copy_logical_replication_slot(?, ?, true)"
);

statement!(
    Pg,
    MoveUp { to: i64 => BigInt, slot: String => Text } -> Bool,
    "SELECT pg_replication_slot_advance(slot_name, place) IS NOT NULL FROM (SELECT slot_name, confirmed_flush_lsn, \
     '0/0'::pg_lsn + ?::numeric AS place FROM pg_replication_slots WHERE slot_name = ?) AS slot \
     WHERE confirmed_flush_lsn < place"
);
