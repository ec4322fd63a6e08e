//! Which of several relays reads the slot: the one that holds a lock. The next in line tries to get it each second, and the
//! others to become the next in line much less often, so that more relays do not mean more queries.

use std::thread;
use std::time::{Duration, Instant};

use diesel::connection::SimpleConnection;
use diesel::pg::{Pg, PgConnection};
use diesel::prelude::*;
use diesel::sql_types::{Bool, Integer};
use diesel_outbox_core::SourceError;

use super::has_passed;
use crate::backend::postgres::locks;
use crate::source::database_error;
use crate::statement::statement;

const NEXT_INTERVAL: Duration = Duration::from_secs(1);
const OTHERS_INTERVAL: Duration = Duration::from_secs(15);

/// A process that was frozen loses its locks when it has asked nothing for so long.
const IDLE_LIMIT: &str = "SET idle_session_timeout = '30s'";

pub(super) struct Standby {
    conn: PgConnection,
    is_next: bool,
    tried: Option<Instant>,
}

impl Standby {
    pub(super) fn new(conn: PgConnection) -> Self {
        Self { conn, is_next: false, tried: None }
    }

    /// Whether this relay is the active one from now on.
    pub(super) fn take_over(&mut self) -> Result<bool, SourceError> {
        self.tried = Some(Instant::now());
        self.try_locks().map_err(|error| database_error("looking whether another relay is active", error))
    }

    fn try_locks(&mut self) -> QueryResult<bool> {
        self.is_next = self.is_next || Lock::new(locks::NEXT_READER).get_result(&mut self.conn)?;
        if !self.is_next || !Lock::new(locks::READER).get_result(&mut self.conn)? {
            return Ok(false);
        }
        self.conn.batch_execute(IDLE_LIMIT)?;
        Unlock::new(locks::NEXT_READER).get_result(&mut self.conn)
    }

    /// Waits, but no longer than `limit`: `true` where this relay is the active one from now on.
    pub(super) fn wait(&mut self, limit: Duration) -> Result<bool, SourceError> {
        let interval = if self.is_next { NEXT_INTERVAL } else { OTHERS_INTERVAL };
        if has_passed(self.tried, interval) {
            return self.take_over();
        }
        thread::sleep(limit);
        Ok(false)
    }

    pub(super) fn into_connection(self) -> PgConnection {
        self.conn
    }
}

/// Lets the server know that this process goes on.
pub(super) fn stay(conn: &mut PgConnection) -> QueryResult<()> {
    conn.batch_execute("SELECT 1")
}

statement!(
    Pg,
    pub(super) Lock { key: i32 => Integer } -> Bool,
    "SELECT pg_try_advisory_lock(?, 'outbox'::regclass::oid::int4)"
);

statement!(
    Pg,
    pub(super) Unlock { key: i32 => Integer } -> Bool,
    "SELECT pg_advisory_unlock(?, 'outbox'::regclass::oid::int4)"
);
