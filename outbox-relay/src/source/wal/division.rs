//! Where the table is divided: rows up to a number are polled, later ones are read from the log.
//!
//! The division is exact because of two locks. With all shards locked no worker has claimed anything. With the table locked no
//! transaction that has inserted is open, and those that come after take higher numbers. In that moment the slot is moved to
//! the log's end: what is in the table is behind it, what comes is before it.

use std::time::{Duration, Instant};

use diesel::connection::SimpleConnection;
use diesel::pg::{Pg, PgConnection};
use diesel::prelude::*;
use diesel::result::{DatabaseErrorKind, Error as DieselError};
use diesel::sql_types::{BigInt, Bool, Text};

use super::options::WalOptions;
use super::origin;
use super::place::{Lsn, Place, shown};
use super::slot::{Slot, end_of_log, free_name, move_up, others};
use super::{publication, role, unread};
use crate::source::bounds::{LOCK_SHARDS, oldest_unsent, shards};
use crate::source::check::check_table;
use crate::source::sequence::Sequence;
use crate::source::wake;
use crate::statement::statement;
use diesel_outbox_core::__private::one_line;

/// Why the slot could not be set up or taken down. Nothing was changed for the relays then.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WalError {
    /// The server does not write what is needed into its log.
    #[error(
        "the server's wal_level is `{level}`: run ALTER SYSTEM SET wal_level = 'logical' and restart the server (on a \
         managed server its logical replication setting)"
    )]
    Level {
        /// What it is.
        level: String,
    },
    /// A relay reads the slot.
    #[error("a relay reads the write-ahead log now: stop it first, and those that stand by")]
    Active,
    /// The outbox is read from the log already.
    #[error("the outbox is read from the slot `{slot}` already; it is confirmed up to {confirmed}")]
    Exists {
        /// The slot.
        slot: String,
        /// Up to where it is confirmed.
        confirmed: String,
    },
    /// A slot of that name is used by somebody else, as by the database that this one is a copy of.
    #[error(
        "the replication slot `{slot}` is not one of this outbox, but of another one, another database or another kind: run \
         `{command}` and start relays with `--slot {free}`"
    )]
    Taken {
        /// The slot.
        slot: String,
        /// A name that no slot has.
        free: String,
        /// The command with that name.
        command: String,
    },
    /// The outbox is read from another slot.
    #[error("this outbox is read from the slot `{slot}`: run `{command}`")]
    OtherSlot {
        /// The other slot.
        slot: String,
        /// The command with its name.
        command: String,
    },
    /// The outbox is read from no slot, and the one of that name is somebody else's.
    #[error(
        "the outbox is polled as a whole, and the replication slot `{slot}` is not one of it: nothing is to be dropped"
    )]
    NothingToDrop {
        /// The slot.
        slot: String,
    },
    /// The slot is read with another publication.
    #[error(
        "the slot `{slot}` is read with the publication `{publication}`: name that (`--publication {publication}`)"
    )]
    OtherPublication {
        /// The slot.
        slot: String,
        /// The other publication.
        publication: String,
    },
    /// A publication of that name is there, without what is needed.
    #[error("the publication `{publication}` does not have what is inserted into the table outbox: {advice}")]
    Publication {
        /// The publication.
        publication: String,
        /// What to do, and what that costs.
        advice: String,
    },
    /// Some events are in the log only, as their rows were deleted.
    #[error(
        "{count} events are in the log and no more in the table: let a relay send them first, and take the slot down after it"
    )]
    OnlyInLog {
        /// How many those are.
        count: usize,
    },
    /// The log is not understood.
    #[error("{0}")]
    Log(String),
    /// The database refused.
    #[error("the database refused: {}", one_line(&.0.to_string()))]
    Database(#[from] DieselError),
}

/// For the shards nobody waits who writes.
const LOCK_SETTINGS: &str = "SET LOCAL lock_timeout = '10s'; SET LOCAL synchronous_commit = local";
/// How often the lock on the table is tried.
const TRIES: usize = 120;
const PAUSE: Duration = Duration::from_millis(500);
/// An attempt that was killed has ended by then.
const LAST_ONE_ENDS: Duration = Duration::from_secs(5);
/// The lock is held for as long as it takes.
const NO_IDLE_LIMIT: &str = "SET LOCAL idle_in_transaction_session_timeout = 0";

/// Makes the publication and the slot, and divides the table: rows that are there are polled, by the relay that reads the log
/// or by one that polls, and later ones are read from the log. Where the slot has been lost a new one takes its place, of the same
/// name or of another. So it does where the slot is of another database, which this one is a copy of; that slot is left alone.
///
/// The other connection, to the same database and schema, holds the lock that keeps relays from the slot meanwhile.
///
/// Making a slot waits for all transactions of the database that are open. Dividing the table makes writers wait for a moment,
/// and waits for transactions that have emitted and are still open.
///
/// # Errors
/// See [`WalError`]. It can be run again.
pub fn setup(conn: &mut PgConnection, lock: &mut PgConnection, options: &WalOptions) -> Result<(), WalError> {
    let level = WalLevel::new().get_result::<String>(conn)?;
    if level != "logical" {
        return Err(WalError::Level { level });
    }
    exclusively(conn, lock, &options.slot, |conn| {
        check_table(conn).map_err(|error| WalError::Log(error.to_string()))?;
        let name = &options.slot;
        let lost = lost_others(conn, options, "setup")?;
        let slot = match Slot::find(conn, name)? {
            Some(slot) if !slot.fits || Place::load(conn, name)?.is_none() => {
                let (slot, free) = (name.clone(), free_name(conn)?);
                let command = options.command("setup", &free);
                return Err(WalError::Taken { slot, free, command });
            }
            slot => slot,
        };
        for named in lost.iter().chain([name]) {
            check_publication(conn, named, &options.publication)?;
        }
        // Before anything is given up.
        make_publication(conn, options)?;
        let healthy = match slot {
            // Whatever was sent of another slot's log, or of another server's, or of what a changed publication has shown, the
            // table tells what is not known to be sent.
            Some(slot) if !is_reliable(conn, &slot, options)? => {
                DropSlot::new(name.clone()).execute(conn)?;
                false
            }
            // The last of an attempt that was interrupted: see below.
            Some(slot) if is_made(conn)? && is_behind(conn, name, &slot)? => return Ok(()),
            Some(slot) if is_made(conn)? => {
                return Err(WalError::Exists { slot: name.clone(), confirmed: shown(slot.confirmed) });
            }
            slot => slot.is_some(),
        };
        own(conn, name, &lost)?;
        if !healthy {
            // Until the table is divided anew nobody is to take it for the slot that was read up to the stored place.
            Unknown::new(name.clone()).execute(conn)?;
            make_slot(conn, name)?;
        }
        let (end, _) = locked(conn, |conn, end, last| {
            SetPolledThrough::new(last).execute(conn)?;
            publication::note(conn, name, &options.publication)?;
            Begin::new(end as i64, name.clone()).execute(conn).map(|_| ())
        })?;
        // A relay begins there by itself; whoever else reads the slot is to do so too.
        move_up(conn, name, end)?;
        Ok(())
    })
}

/// Takes the division back and drops the slot and the publication: all rows are polled from then on. What was sent from the log is
/// marked as sent. The relays that read the log must have been stopped. A slot that is of another database is left alone, and all that
/// is not known to be sent is polled.
///
/// Writers wait for a moment, as for [`setup`], and the other connection is the same.
///
/// # Errors
/// See [`WalError`]. It can be run again.
pub fn drop(conn: &mut PgConnection, lock: &mut PgConnection, options: &WalOptions) -> Result<(), WalError> {
    exclusively(conn, lock, &options.slot, |conn| {
        check_table(conn).map_err(|error| WalError::Log(error.to_string()))?;
        let name = &options.slot;
        let is_named = Place::load(conn, name)?.is_some();
        let lost = lost_others(conn, options, "drop")?;
        if let (false, Some(slot)) = (is_named, lost.first()) {
            let command = options.command("drop", slot);
            return Err(WalError::OtherSlot { slot: slot.clone(), command });
        }
        let found = Slot::find(conn, name)?;
        let is_made = is_made(conn)?;
        if !is_named && !is_made && found.is_some() {
            return Err(WalError::NothingToDrop { slot: name.clone() });
        }
        // Somebody else's slot is left alone, and tells nothing of what was sent here.
        let slot = found.filter(|slot| is_named && slot.fits);
        check_publication(conn, name, &options.publication)?;
        if is_made {
            // What comes after this is unsent, as nobody reads the log now. What came before is unsent if it is in the log
            // still; where that cannot be relied on, if it is not below the shards' lower bounds.
            let (end, last) = locked(conn, |_, _, _| Ok(()))?;
            match &slot {
                Some(slot) if is_reliable(conn, slot, options)? => {
                    let mut unsent = unread::unsent_in_log(conn, options, end)?;
                    unsent.retain(|seq| *seq <= last);
                    mark_and_poll_all(conn, name, last, &unsent)?;
                }
                _ => _ = poll_all(conn, i64::MAX, true)?,
            }
        }
        if slot.is_some() {
            DropSlot::new(name.clone()).execute(conn)?;
        }
        // Only now, and all at once: what nobody owns could not be dropped where this is run again.
        let publication = quoted(&options.publication);
        conn.transaction(|conn| {
            for named in lost.iter().chain([name]) {
                Forget::new(named.clone()).execute(conn)?;
            }
            conn.batch_execute(&format!("DROP PUBLICATION IF EXISTS {publication}"))
        })?;
        Ok(())
    })
}

/// Of the rows that were read from the log these are unsent, up to the last number; those that were polled before tell it
/// themselves. Where the sequence was restarted some of the unsent have numbers among those.
fn mark_and_poll_all(conn: &mut PgConnection, slot: &str, last: i64, unsent: &[i64]) -> Result<(), WalError> {
    let sent_up_to = unsent.first().map_or(last, |first| first - 1);
    loop {
        let rows_wait = polled_rows_wait(conn)?;
        // The lower bounds stay where they are then, and all that was read from the log lies behind them.
        let from =
            if rows_wait { sent_up_to.min(PolledThrough::new().get_result(conn)?) } else { sent_up_to };
        unread::mark_others(conn, slot, from, last, unsent)?;
        if poll_all(conn, sent_up_to, rows_wait)? {
            return Ok(());
        }
    }
}

/// Polls the whole table again: from this number on, or from the lower bounds on where those are to stay. Nothing is done and
/// `false` returned where rows wait of which that was not known.
fn poll_all(conn: &mut PgConnection, sent_up_to: i64, lows_stay: bool) -> QueryResult<bool> {
    conn.transaction(|conn| {
        conn.batch_execute(LOCK_SHARDS)?;
        if !lows_stay && polled_rows_wait(conn)? {
            return Ok(false);
        }
        PollAll::new(lows_stay, sent_up_to).execute(conn)?;
        wake(conn)?;
        Ok(true)
    })
}

/// Whether a part of the table is read from the log.
pub(super) fn is_made(conn: &mut PgConnection) -> QueryResult<bool> {
    PolledThrough::new().get_result::<i64>(conn).map(|polled_through| polled_through < i64::MAX)
}

/// Whether some of the rows that are polled are unsent, or claimed by somebody.
pub(super) fn polled_rows_wait(conn: &mut PgConnection) -> QueryResult<bool> {
    PolledWait::new().get_result(conn)
}

/// All of them are sent.
pub(super) fn polled_rows_are_sent(conn: &mut PgConnection) -> QueryResult<()> {
    let polled_through = PolledThrough::new().get_result(conn)?;
    sent_up_to(conn, polled_through)
}

/// No row up to this number is unsent, or ever will be.
pub(super) fn sent_up_to(conn: &mut PgConnection, sent_through: i64) -> QueryResult<()> {
    RaiseSentThrough::new(sent_through).execute(conn).map(|_| ())
}

/// Does this while no relay reads the log: the other connection holds the lock of the active relay.
fn exclusively(
    conn: &mut PgConnection,
    lock: &mut PgConnection,
    slot: &str,
    work: impl FnOnce(&mut PgConnection) -> Result<(), WalError>,
) -> Result<(), WalError> {
    // Where the server can, it looks whether its client is still there: the last statement of one that was killed ends soon.
    // Where it cannot, it says so and goes on.
    let _ = conn.batch_execute("SET client_connection_check_interval = '1s'");
    let began = Instant::now();
    while !role::take(lock)? {
        if began.elapsed() >= LAST_ONE_ENDS {
            return Err(WalError::Active);
        }
        std::thread::sleep(PAUSE);
    }
    // That statement may have the slot. Whoever has it for longer is told of by the server.
    while Slot::find(conn, slot)?.is_some_and(|slot| slot.fits && slot.is_active)
        && began.elapsed() < LAST_ONE_ENDS
    {
        std::thread::sleep(PAUSE);
    }
    let done = lock.batch_execute(NO_IDLE_LIMIT).map_err(WalError::from).and_then(|()| work(conn));
    // A connection that is lost has lost its lock too.
    done.and(role::give_back(lock).map_err(WalError::from))
}

/// The slots but the given one that the table names, none of which can be read: they are not there, the server has given them up, or
/// they are of another database. An error if one can be.
fn lost_others(conn: &mut PgConnection, options: &WalOptions, verb: &str) -> Result<Vec<String>, WalError> {
    let (usable, lost): (Vec<_>, Vec<_>) = others(conn, &options.slot)?
        .into_iter()
        .partition(|(_, slot)| slot.as_ref().is_some_and(Slot::is_usable));
    match usable.into_iter().next() {
        Some((slot, _)) => {
            let command = options.command(verb, &slot);
            Err(WalError::OtherSlot { slot, command })
        }
        None => Ok(lost.into_iter().map(|(slot, _)| slot).collect()),
    }
}

/// Names this slot in the table, instead of those that are lost. What the server still has of those is dropped first, as nobody would
/// know of it afterwards.
fn own(conn: &mut PgConnection, name: &str, lost: &[String]) -> QueryResult<()> {
    for other in lost {
        if Slot::find(conn, other)?.is_some_and(|slot| slot.fits) {
            DropSlot::new(other.clone()).execute(conn)?;
        }
    }
    conn.transaction(|conn| {
        for other in lost {
            Forget::new(other.clone()).execute(conn)?;
        }
        Own::new(name.to_owned()).execute(conn).map(|_| ())
    })
}

/// Nobody is to give up a slot because of a name that was mistyped.
fn check_publication(conn: &mut PgConnection, slot: &str, name: &str) -> Result<(), WalError> {
    match publication::other(conn, slot, name)? {
        Some(publication) => Err(WalError::OtherPublication { slot: slot.to_owned(), publication }),
        None => Ok(()),
    }
}

/// Whether the slot shows all that was emitted since its place: it is there, it is the one that was read up to it, and its publication
/// has had all inserts since the table was divided.
fn is_reliable(conn: &mut PgConnection, slot: &Slot, options: &WalOptions) -> QueryResult<bool> {
    Ok(!slot.is_lost()
        && origin::doubt(conn, &options.slot)?.is_none()
        && (!is_made(conn)? || publication::is_same(conn, options)?))
}

/// Moves a slot up to the place from which it is read, and says whether it was behind that.
fn is_behind(conn: &mut PgConnection, name: &str, slot: &Slot) -> QueryResult<bool> {
    let start = Place::load(conn, name)?.unwrap_or_default().start;
    move_up(conn, name, start)?;
    Ok(slot.confirmed < start)
}

fn make_publication(conn: &mut PgConnection, options: &WalOptions) -> Result<(), WalError> {
    let name = &options.publication;
    if publication::is_whole(conn, name)? {
        return Ok(());
    }
    let advice = if is_made(conn)? {
        format!(
            "the write-ahead log does not show what was emitted since it was changed, and nothing was done. Stop the relays that stand by, \
             and run `{}` and then `{}`: what is not known to be sent is sent then, some of it perhaps twice",
            options.command("drop", &options.slot),
            options.command("setup", &options.slot)
        )
    } else {
        "choose another one (`--publication NAME`), or drop it if nobody else reads it".to_owned()
    };
    let publication = quoted(name);
    let make = format!("CREATE PUBLICATION {publication} FOR TABLE outbox WITH (publish = 'insert')");
    conn.batch_execute(&make).map_err(|error| match error {
        DieselError::DatabaseError(_, information) if information.message().contains("already exists") => {
            WalError::Publication { publication: name.clone(), advice }
        }
        error => error.into(),
    })
}

/// Does this in a transaction while nothing is claimed and nobody inserts, and returns the end of the log and the last number
/// that was taken: what is in the table has commits before that end, and numbers up to that one. Afterwards the log is on the
/// disk up to that end, before which a slot cannot be moved or read. Writers wait for the lock behind it, so it is not waited for
/// long, but tried again.
fn locked(
    conn: &mut PgConnection,
    work: impl Fn(&mut PgConnection, Lsn, i64) -> QueryResult<()>,
) -> Result<(Lsn, i64), WalError> {
    let mut tries = 0;
    loop {
        // Now and then long enough that the server ends a vacuum for it.
        let limit = if tries % 4 == 3 { 1_500 } else { 500 };
        let done = conn.transaction(|conn| {
            conn.batch_execute(LOCK_SETTINGS)?;
            conn.batch_execute(LOCK_SHARDS)?;
            conn.batch_execute(&format!(
                "SET LOCAL lock_timeout = {limit}; LOCK TABLE outbox IN SHARE ROW EXCLUSIVE MODE"
            ))?;
            let (end, last) = (end_of_log(conn)?, Sequence::load(conn)?.last);
            work(conn, end, last)?;
            Ok((end, last))
        });
        tries += 1;
        match done {
            Err(ref error) if is_lock_timeout(error) && tries < TRIES => std::thread::sleep(PAUSE),
            done => return Ok(done?),
        }
    }
}

fn is_lock_timeout(error: &DieselError) -> bool {
    matches!(error, DieselError::DatabaseError(DatabaseErrorKind::Unknown, information)
        if information.message().contains("lock timeout"))
}

/// On PostgreSQL 17 and later standbys of the server keep it too, so that a relay can go on there.
fn make_slot(conn: &mut PgConnection, name: &str) -> QueryResult<()> {
    if Version::new().get_result::<i64>(conn)? >= 170_000 {
        MakeFailoverSlot::new(name.to_owned()).execute(conn)?;
    } else {
        MakeSlot::new(name.to_owned()).execute(conn)?;
    }
    Ok(())
}

pub(super) fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

statement!(Pg, WalLevel {} -> Text, "SELECT current_setting('wal_level')");

statement!(Pg, Version {} -> BigInt, "SELECT current_setting('server_version_num')::bigint");

statement!(
    Pg,
    MakeSlot { name: String => Text } -> Bool,
    "SELECT true FROM pg_create_logical_replication_slot(?, 'pgoutput')"
);

statement!(
    Pg,
    MakeFailoverSlot { name: String => Text } -> Bool,
    "SELECT true FROM pg_create_logical_replication_slot(?, 'pgoutput', failover => true)"
);

statement!(Pg, pub(super) DropSlot { name: String => Text } -> Bool, "SELECT true FROM pg_drop_replication_slot(?)");

statement!(Pg, PolledThrough {} -> BigInt, "SELECT coalesce(min(polled_through), 9223372036854775807) FROM outbox_shard");

statement!(
    Pg,
    /// Where rows were read from a slot that was lost, those between the bounds are sent and not marked.
    SetPolledThrough { polled_through: i64 => BigInt } -> BigInt,
    "UPDATE outbox_shard SET polled_through = ?, unmarked = CASE WHEN sent_through > polled_through THEN sent_through ELSE unmarked END, \
     unmarked_until = CASE WHEN sent_through > polled_through THEN clock_timestamp() ELSE unmarked_until END"
);

statement!(
    Pg,
    /// Rows after the last that was polled, up to the lower bound, are sent and not marked.
    PollAll { lows_stay: bool => Bool, sent_up_to: i64 => BigInt } -> BigInt,
    "UPDATE outbox_shard AS s SET sent_through = new.sent_through, polled_through = 9223372036854775807, passed = 0, open = '{}', open_after = '{}', \
     unmarked = CASE WHEN new.sent_through > s.polled_through THEN new.sent_through ELSE least(s.unmarked, new.sent_through) END, \
     unmarked_until = CASE WHEN new.sent_through > s.polled_through THEN clock_timestamp() ELSE s.unmarked_until END FROM (SELECT o.shard, CASE WHEN given.lows_stay THEN least(o.sent_through, given.sent_through) ELSE given.sent_through END AS sent_through \
     FROM outbox_shard AS o, (SELECT ?::bool AS lows_stay, ?::bigint AS sent_through) AS given) AS new WHERE new.shard = s.shard"
);

statement!(
    Pg,
    RaiseSentThrough { sent_through: i64 => BigInt } -> BigInt,
    "UPDATE outbox_shard AS s SET sent_through = given.sent_through FROM (SELECT ?::bigint AS sent_through) AS given WHERE s.sent_through < given.sent_through"
);

statement!(
    Pg,
    PolledWait {} -> Bool,
    concat!("SELECT EXISTS (SELECT FROM ", shards!(), " AS s ", oldest_unsent!(), ")")
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

statement!(Pg, Forget { slot: String => Text } -> BigInt, "DELETE FROM outbox_slot WHERE slot = ?");
