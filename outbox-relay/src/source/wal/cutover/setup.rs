//! `outbox wal setup`: from polling to the WAL.

use diesel::connection::SimpleConnection;
use diesel::pg::{Pg, PgConnection};
use diesel::prelude::*;
use diesel::result::Error as DieselError;
use diesel::sql_types::{BigInt, Text};
use diesel_outbox_core::__private::quoted_identifier;

use super::{check_publication, exclusively, forget, is_reliable, locked, lost_others};
use crate::source::check::check_table;
use crate::source::wal::error::{RESENDS, WalError};
use crate::source::wal::options::WalOptions;
use crate::source::wal::position::{Position, shown};
use crate::source::wal::slot::{self, ReplicationSlot};
use crate::source::wal::{polled, publication};
use crate::statement::statement;

/// Makes the publication, the slot and the cutover: the rows that are in the table are polled, by the relay that reads the WAL or by one
/// that polls, and later ones are read from the WAL.
///
/// If the slot was lost, this makes a new one in its place, which may have another name. It does the same if the slot belongs to another
/// database, which this one is a copy of, and leaves that slot alone.
///
/// `lock` is a second connection to the same database and schema. It holds the lock that keeps relays from the slot meanwhile.
///
/// Making a slot waits for all open transactions of the database. The cutover makes writers wait for a moment, and waits for
/// transactions that have emitted and are still open.
///
/// # Errors
/// See [`WalError`]. You can run it again.
pub fn setup(conn: &mut PgConnection, lock: &mut PgConnection, options: &WalOptions) -> Result<(), WalError> {
    let level = WalLevel::new().get_result::<String>(conn)?;
    if level != "logical" {
        return Err(WalError::Level { level });
    }
    exclusively(conn, lock, &options.slot, |conn| {
        check_table(conn).map_err(|error| WalError::Unusable(error.to_string()))?;
        let name = &options.slot;
        let lost = lost_others(conn, options, "setup")?;
        let slot = match ReplicationSlot::find(conn, name)? {
            Some(slot) if !slot.fits || Position::load(conn, name)?.is_none() => {
                let (slot, free) = (name.clone(), slot::free_name(conn)?);
                let command = options.command("setup", &free);
                return Err(WalError::Taken { slot, free, command });
            }
            slot => slot,
        };
        for named in lost.iter().chain([name]) {
            check_publication(conn, named, &options.publication)?;
        }
        // Done before anything is given up.
        make_publication(conn, options)?;
        let healthy = match slot {
            // Whatever was sent of another slot's WAL, of another server's, or of what a changed publication has shown, the table
            // has every event that is not known to have been sent.
            Some(slot) if !is_reliable(conn, &slot, options)? => {
                slot::remove(conn, name)?;
                false
            }
            Some(slot) if !polled::is_whole_table(conn)? => {
                // This completes an attempt that was interrupted: see below.
                if is_behind(conn, name, &slot)? {
                    return Ok(());
                }
                return Err(WalError::Exists { slot: name.clone(), confirmed: shown(slot.confirmed) });
            }
            slot => slot.is_some(),
        };
        own(conn, name, &lost)?;
        if !healthy {
            // Until the new cutover nobody must take it for the slot that was read up to the stored position.
            Unknown::new(name.clone()).execute(conn)?;
            slot::make(conn, name)?;
        }
        let (end, _) = locked(conn, |conn, end, last| {
            SetPolledThrough::new(last).execute(conn)?;
            publication::note(conn, name, &options.publication)?;
            Begin::new(end as i64, name.clone()).execute(conn).map(drop)
        })?;
        // A relay begins there by itself, and so should whoever else reads the slot.
        slot::move_up(conn, name, end)?;
        Ok(())
    })
}

/// Makes the publication, unless it already has all inserts.
fn make_publication(conn: &mut PgConnection, options: &WalOptions) -> Result<(), WalError> {
    let name = &options.publication;
    if publication::is_whole(conn, name)? {
        return Ok(());
    }
    let advice = if polled::is_whole_table(conn)? {
        "name another one (`--publication NAME`), or drop this one if nobody else reads it".to_owned()
    } else {
        format!(
            "somebody has changed it, and the write-ahead log does not show what was emitted since. Nothing was done: stop the relays that \
             stand by, and run `{}` and then `{}`. {RESENDS}",
            options.command("drop", &options.slot),
            options.command("setup", &options.slot)
        )
    };
    let publication = quoted_identifier(name);
    let make = format!("CREATE PUBLICATION {publication} FOR TABLE outbox WITH (publish = 'insert')");
    conn.batch_execute(&make).map_err(|error| match error {
        DieselError::DatabaseError(_, information) if information.message().contains("already exists") => {
            WalError::Publication { publication: name.clone(), advice }
        }
        error => error.into(),
    })
}

/// Moves a slot up to the position from which it is read, and returns whether it was behind that.
fn is_behind(conn: &mut PgConnection, name: &str, slot: &ReplicationSlot) -> QueryResult<bool> {
    let start = Position::load(conn, name)?.unwrap_or_default().start;
    slot::move_up(conn, name, start)?;
    Ok(slot.confirmed < start)
}

/// Names this slot in the table instead of those that are lost. First drops what the server still has of those, because nobody
/// would know of it afterwards.
fn own(conn: &mut PgConnection, name: &str, lost: &[String]) -> QueryResult<()> {
    for other in lost {
        if ReplicationSlot::find(conn, other)?.is_some_and(|slot| slot.fits) {
            slot::remove(conn, other)?;
        }
    }
    conn.transaction(|conn| {
        for other in lost {
            forget(conn, other)?;
        }
        Own::new(name.to_owned()).execute(conn).map(drop)
    })
}

statement!(Pg, WalLevel {} -> Text, "SELECT current_setting('wal_level')");

statement!(
    Pg,
    /// If rows were read from a slot that was lost, those between the bounds are sent and not marked.
    SetPolledThrough { polled_through: i64 => BigInt } -> BigInt,
    "UPDATE outbox_shard SET polled_through = ?, unmarked = CASE WHEN sent_through > polled_through THEN sent_through ELSE unmarked END, \
     unmarked_until = CASE WHEN sent_through > polled_through THEN clock_timestamp() ELSE unmarked_until END"
);

statement!(
    Pg,
    Own { slot: String => Text } -> BigInt,
    "INSERT INTO outbox_slot (slot, start_lsn) VALUES (?, '0/0') ON CONFLICT (slot) DO NOTHING"
);

statement!(
    Pg,
    Unknown { slot: String => Text } -> BigInt,
    "UPDATE outbox_slot SET bound_lsn = '0/0' WHERE slot = ?"
);

statement!(
    Pg,
    Begin { start: i64 => BigInt, slot: String => Text } -> BigInt,
    "UPDATE outbox_slot SET start_lsn = place, commit_lsn = NULL, sent_events = 0, bound_lsn = place, transactions = 0, \
     system_id = (SELECT system_identifier FROM pg_control_system()) \
     FROM (SELECT '0/0'::pg_lsn + ?::numeric AS place) AS given WHERE slot = ?"
);
