//! The cutover from polling to the WAL and back. Rows up to a number are polled, and later ones are read from the WAL.
//!
//! Two locks make the cut exact. While all shards are locked, no worker has claimed anything. While the table is locked, no
//! transaction that has inserted is open, and later ones take higher numbers. In that moment the slot moves to the end of the WAL:
//! what is in the table lies before it, and what comes lies after it.

mod drop;
mod setup;
mod unread;

use std::time::{Duration, Instant};

use diesel::connection::SimpleConnection;
use diesel::pg::{Pg, PgConnection};
use diesel::prelude::*;
use diesel::result::{DatabaseErrorKind, Error as DieselError};
use diesel::sql_types::Text;

pub use self::drop::drop;
pub use self::setup::setup;
use super::error::WalError;
use super::options::WalOptions;
use super::position::Lsn;
use super::slot::{self, ReplicationSlot};
use super::{origin, polled, publication, standby_relay};
use crate::source::bounds::lock_shards_and_table;
use crate::source::pooler::pooler_problem;
use crate::source::sequence::Sequence;
use crate::statement::statement;

const COMMIT_SETTING: &str = "SET LOCAL synchronous_commit = local";
/// How often to try the lock on the table.
const TRIES: usize = 120;
const PAUSE: Duration = Duration::from_millis(500);
/// How long an attempt that was killed may still hold something.
const LAST_ONE_ENDS: Duration = Duration::from_secs(5);
/// The lock is held for as long as the work takes.
const NO_IDLE_LIMIT: &str = "SET LOCAL idle_in_transaction_session_timeout = 0";

/// Does this while no relay reads the WAL: the second connection holds the lock of the active relay.
fn exclusively(
    conn: &mut PgConnection,
    lock: &mut PgConnection,
    slot: &str,
    work: impl FnOnce(&mut PgConnection) -> Result<(), WalError>,
) -> Result<(), WalError> {
    if let Some(problem) = pooler_problem(conn, lock)? {
        return Err(WalError::Pooler(problem));
    }
    // If the server can, it checks whether its client is still there, so the last statement of a killed attempt ends soon. If it
    // cannot, it says so and goes on.
    let _ = conn.batch_execute("SET client_connection_check_interval = '1s'");
    let began = Instant::now();
    while !standby_relay::take_lock(lock)? {
        if began.elapsed() >= LAST_ONE_ENDS {
            return Err(WalError::Active);
        }
        std::thread::sleep(PAUSE);
    }
    // That statement may hold the slot. If somebody holds it for longer, the server's error names them.
    while ReplicationSlot::find(conn, slot)?.is_some_and(|slot| slot.fits && slot.is_active)
        && began.elapsed() < LAST_ONE_ENDS
    {
        std::thread::sleep(PAUSE);
    }
    let done = lock.batch_execute(NO_IDLE_LIMIT).map_err(WalError::from).and_then(|()| work(conn));
    // If the connection is lost, so is its lock.
    done.and(standby_relay::give_lock_back(lock).map_err(WalError::from))
}

/// Does this in a transaction while nothing is claimed and nobody inserts. Returns the end of the WAL and the last number that was
/// taken: what is in the table was committed before that end, and has numbers up to that one. Afterwards the WAL is on the disk up
/// to that end; before it is, a slot cannot be moved or read there. Writers wait behind the lock, so this does not wait for it
/// long, but tries again.
fn locked(
    conn: &mut PgConnection,
    work: impl Fn(&mut PgConnection, Lsn, i64) -> QueryResult<()>,
) -> Result<(Lsn, i64), WalError> {
    let mut tries = 0;
    loop {
        // Now and then long enough that the server ends a vacuum for it.
        let limit = if tries % 4 == 3 { "1500ms" } else { "500ms" };
        let done = conn.transaction(|conn| {
            conn.batch_execute(COMMIT_SETTING)?;
            lock_shards_and_table(conn, "10s", limit)?;
            let (end, last) = (slot::end_of_wal(conn)?, Sequence::load(conn)?.last);
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

/// Returns the slots that the table names, except the given one, if none of them can be read: they do not exist, the server has
/// given them up, or they belong to another database. Returns an error if one can be read.
fn lost_others(conn: &mut PgConnection, options: &WalOptions, verb: &str) -> Result<Vec<String>, WalError> {
    let (usable, lost): (Vec<_>, Vec<_>) = slot::others(conn, &options.slot)?
        .into_iter()
        .partition(|(_, slot)| slot.as_ref().is_some_and(ReplicationSlot::is_usable));
    match usable.into_iter().next() {
        Some((slot, _)) => {
            let command = options.command(verb, &slot);
            Err(WalError::OtherSlot { slot, command })
        }
        None => Ok(lost.into_iter().map(|(slot, _)| slot).collect()),
    }
}

/// Refuses another publication than the one that the slot is read with, so that nobody gives up a slot because of a mistyped name.
fn check_publication(conn: &mut PgConnection, slot: &str, name: &str) -> Result<(), WalError> {
    match publication::other(conn, slot, name)? {
        Some(publication) => Err(WalError::OtherPublication { slot: slot.to_owned(), publication }),
        None => Ok(()),
    }
}

/// Returns whether the slot shows everything that was emitted since its position: it exists, it is the one that was read up to
/// there, and its publication has had all inserts since the cutover.
fn is_reliable(conn: &mut PgConnection, slot: &ReplicationSlot, options: &WalOptions) -> QueryResult<bool> {
    Ok(!slot.is_lost()
        && origin::doubt(conn, &options.slot)?.is_none()
        && (polled::is_whole_table(conn)? || publication::is_same(conn, options)?))
}

/// Removes a slot's name from the table.
fn forget(conn: &mut PgConnection, slot: &str) -> QueryResult<()> {
    Forget::new(slot.to_owned()).execute(conn).map(std::mem::drop)
}

statement!(Pg, Forget { slot: String => Text } -> Text, "DELETE FROM outbox_slot WHERE slot = ?");
