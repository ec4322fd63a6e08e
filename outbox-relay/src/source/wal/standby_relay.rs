//! The relays that stand by. Of several relays, the one that has locked the view `outbox_reader` reads the slot. Only a role with
//! UPDATE on the view may lock it. The next relay in line looks each second whether the lock is free, and the others much less
//! often, so that more relays do not mean more queries. They have nothing to do with standby servers: for those see
//! `synchronous_standbys.rs`.
//!
//! An open transaction on its own connection holds the lock. It has neither a transaction id nor a snapshot, so it holds nothing
//! back however long it lasts, and nobody vacuums or analyzes a view.
//!
//! To be the next in line is an advisory lock, which any role may take. If a stranger holds it, all relays look at the longer
//! interval.

use std::ops::{Deref, DerefMut};
use std::thread;
use std::time::{Duration, Instant};

use diesel::connection::SimpleConnection;
use diesel::pg::{Pg, PgConnection};
use diesel::prelude::*;
use diesel::sql_types::Bool;
use diesel_outbox_core::SourceError;

use crate::source::advisory_lock::{Lock, Unlock, table_oid};
use crate::source::database::PostgresDatabase;
use crate::source::database_error;
use crate::source::interval::{has_passed, is_due};
use crate::statement::statement;
use diesel_outbox_core::advisory_locks;

const NEXT_INTERVAL: Duration = Duration::from_secs(1);
const OTHERS_INTERVAL: Duration = Duration::from_secs(15);

/// Keeps no snapshot between two statements.
const BEGIN: &str = "BEGIN ISOLATION LEVEL READ COMMITTED; LOCK TABLE outbox_reader IN EXCLUSIVE MODE NOWAIT";
/// How often the relay asks the server something meanwhile, so that the server knows that this process goes on.
const STAY_INTERVAL: Duration = Duration::from_secs(5);
/// A process that is frozen loses its lock when it has asked nothing for this long.
const IDLE_LIMIT: &str = "SET LOCAL idle_in_transaction_session_timeout = '30s'";

/// A relay that waits to become the active one.
pub(super) struct StandbyRelay {
    conn: PgConnection,
    database: PostgresDatabase,
    is_next: bool,
    tried: Option<Instant>,
}

/// The connection of the active relay, and the one that holds its lock.
pub(super) struct ActiveRelay {
    conn: PgConnection,
    lock: PgConnection,
    /// When the lock's connection was last used.
    stayed: Option<Instant>,
}

/// The role that a relay has by now.
pub(super) enum Role {
    Active(Box<ActiveRelay>),
    Standby(Box<StandbyRelay>),
}

impl StandbyRelay {
    pub(super) fn new(conn: PgConnection, database: PostgresDatabase) -> Box<Self> {
        Box::new(Self { conn, database, is_next: false, tried: None })
    }

    /// Becomes the active relay if there is none.
    pub(super) fn take_over(mut self: Box<Self>) -> Result<Role, SourceError> {
        self.tried = Some(Instant::now());
        let failed = |error| database_error("looking whether another relay is active", error);
        if !self.is_next {
            self.is_next = table_oid(&mut self.conn)
                .and_then(|table| Lock::new(advisory_locks::NEXT_READER, table).get_result(&mut self.conn))
                .map_err(failed)?;
        }
        // The lock's connection is made only if it is likely to be needed.
        if IsHeld::new().get_result(&mut self.conn).map_err(failed)? {
            return Ok(Role::Standby(self));
        }
        let mut lock = self.database.connect()?;
        let taken = take_lock(&mut lock).map_err(|error| {
            database_error("locking outbox_reader, on which the relay's role needs UPDATE", error)
        })?;
        if !taken {
            return Ok(Role::Standby(self));
        }
        lock.batch_execute(IDLE_LIMIT).map_err(failed)?;
        if self.is_next {
            table_oid(&mut self.conn)
                .and_then(|table| {
                    Unlock::new(advisory_locks::NEXT_READER, table).get_result::<bool>(&mut self.conn)
                })
                .map_err(failed)?;
        }
        Ok(Role::Active(Box::new(ActiveRelay { conn: self.conn, lock, stayed: None })))
    }

    /// Waits, but no longer than `limit`, and becomes the active relay if there is none any more.
    pub(super) fn wait(self: Box<Self>, limit: Duration) -> Result<Role, SourceError> {
        let interval = if self.is_next { NEXT_INTERVAL } else { OTHERS_INTERVAL };
        if has_passed(self.tried, interval) {
            return self.take_over();
        }
        thread::sleep(limit);
        Ok(Role::Standby(self))
    }
}

impl Deref for ActiveRelay {
    type Target = PgConnection;

    fn deref(&self) -> &PgConnection {
        &self.conn
    }
}

impl DerefMut for ActiveRelay {
    fn deref_mut(&mut self) -> &mut PgConnection {
        &mut self.conn
    }
}

/// Takes the lock of the active relay in a transaction that stays open, unless somebody has it.
pub(super) fn take_lock(conn: &mut PgConnection) -> QueryResult<bool> {
    // A lock that is tried in vain is an error in the server's log.
    if IsHeld::new().get_result(conn)? {
        return Ok(false);
    }
    let Err(error) = conn.batch_execute(BEGIN) else { return Ok(true) };
    give_lock_back(conn)?;
    // Another may have been faster.
    if IsHeld::new().get_result(conn)? { Ok(false) } else { Err(error) }
}

/// Ends the transaction that holds the lock.
pub(super) fn give_lock_back(conn: &mut PgConnection) -> QueryResult<()> {
    conn.batch_execute("ROLLBACK")
}

/// Lets the server know that this process goes on, if it has not done so for a while, because a pass may take long if a broker is
/// slow. Returns an error if the lock was lost.
pub(super) fn stay(active: &mut ActiveRelay) -> Result<(), SourceError> {
    if is_due(&mut active.stayed, STAY_INTERVAL) { is_active(active) } else { Ok(()) }
}

/// Returns an error if the lock was lost, for example because this process was frozen.
pub(super) fn is_active(active: &mut ActiveRelay) -> Result<(), SourceError> {
    active.lock.batch_execute("SELECT 1").map_err(|error| database_error("staying active", error))
}

statement!(
    Pg,
    IsHeld {} -> Bool,
    "SELECT EXISTS (SELECT FROM pg_locks WHERE locktype = 'relation' AND relation = 'outbox_reader'::regclass::oid \
     AND database = (SELECT oid FROM pg_database WHERE datname = current_database()) \
     AND mode = 'ExclusiveLock' AND granted)"
);
