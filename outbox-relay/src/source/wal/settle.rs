//! Settling: stores in the table up to where all is sent, and lets the server forget what lies before.

use std::time::{Duration, Instant};

use diesel::connection::{AnsiTransactionManager, TransactionManager};
use diesel::pg::PgConnection;
use diesel::prelude::*;
use diesel_outbox_core::SourceError;

use super::confirm_bound::ConfirmBound;
use super::position::{Lsn, Position};
use super::{origin, slot};
use crate::source::database_error;
use crate::source::interval::{has_passed, is_due};

/// Up to where all is sent, as the table and the server know it.
pub(super) struct Settling {
    slot: String,
    /// The position that the table has, and since when.
    kept: Position,
    /// The bound that the table has beside it.
    kept_bound: Lsn,
    kept_at: Option<Instant>,
    bound: ConfirmBound,
    /// Whether to store nothing once somebody else has stored a position, because records are sent exactly once.
    is_exclusive: bool,
}

impl Settling {
    /// Begins at the position that the table has, for a WAL that ends at `end`. Notes which server and slot this is.
    pub(super) fn begin(
        conn: &mut PgConnection,
        slot: &str,
        kept: Position,
        start: Lsn,
        end: Lsn,
        is_exclusive: bool,
    ) -> QueryResult<Self> {
        let bound = ConfirmBound::at(start).ahead_of(end);
        origin::note(conn, slot, bound)?;
        let slot = slot.to_owned();
        Ok(Self {
            slot,
            kept,
            kept_bound: bound,
            kept_at: None,
            bound: ConfirmBound::at(bound),
            is_exclusive,
        })
    }

    /// Stores the same position with another bound. Whoever stored or loaded it before cannot store anything any more. Returns an error if
    /// the table has another position by now.
    pub(super) fn take_over(&mut self, conn: &mut PgConnection) -> Result<(), SourceError> {
        let end = slot::end_of_wal(conn).map_err(failed)?;
        let bound = self.bound.ahead_of(end).max(self.kept_bound + 1);
        self.store(conn, self.kept, bound)?;
        self.wrote(conn, self.kept, bound)
    }

    /// Returns up to where the server may forget if all is sent up to this position. First stores the position if the bound
    /// requires that, but no more often than `interval`.
    pub(super) fn confirm(
        &mut self,
        conn: &mut PgConnection,
        position: Position,
        interval: Duration,
    ) -> Result<Lsn, SourceError> {
        if self.bound.is_short_of(position.start) && has_passed(self.kept_at, interval) {
            self.write(conn, position)?;
        }
        Ok(self.confirmable(position))
    }

    /// Does the same with what is stored by now.
    pub(super) fn confirmable(&mut self, position: Position) -> Lsn {
        self.bound.confirmable(position.start)
    }

    /// Returns whether it is time to store the position, once in each interval.
    pub(super) fn is_due(&mut self, interval: Duration) -> bool {
        is_due(&mut self.kept_at, interval)
    }

    /// Stores the position, unless the table has it.
    pub(super) fn keep(&mut self, conn: &mut PgConnection, position: Position) -> Result<(), SourceError> {
        if position == self.kept { Ok(()) } else { self.write(conn, position) }
    }

    fn write(&mut self, conn: &mut PgConnection, position: Position) -> Result<(), SourceError> {
        let bound = self.bound.ahead_of(slot::end_of_wal(conn).map_err(failed)?);
        self.store(conn, position, bound)?;
        self.wrote(conn, position, bound)
    }

    /// Stores the position in the transaction in which this is done, too.
    pub(super) fn write_with(
        &mut self,
        conn: &mut PgConnection,
        position: Position,
        done: impl FnOnce(&mut PgConnection) -> QueryResult<()>,
    ) -> Result<(), SourceError> {
        let bound = self.bound.ahead_of(slot::end_of_wal(conn).map_err(failed)?);
        AnsiTransactionManager::begin_transaction(conn).map_err(failed)?;
        let stored = done(conn).map_err(failed).and_then(|()| self.store(conn, position, bound));
        match stored {
            Ok(()) => AnsiTransactionManager::commit_transaction(conn).map_err(failed)?,
            Err(error) => {
                // The connection is given up if this fails, too.
                let _ = AnsiTransactionManager::rollback_transaction(conn);
                return Err(error);
            }
        }
        self.wrote(conn, position, bound)
    }

    fn store(&self, conn: &mut PgConnection, position: Position, bound: Lsn) -> Result<(), SourceError> {
        if !self.is_exclusive {
            return position.keep(conn, &self.slot, bound).map_err(failed);
        }
        match position.keep_after((self.kept, self.kept_bound), conn, &self.slot, bound) {
            Ok(true) => Ok(()),
            Ok(false) => Err(overtaken()),
            Err(error) => Err(failed(error)),
        }
    }

    fn wrote(&mut self, conn: &mut PgConnection, position: Position, bound: Lsn) -> Result<(), SourceError> {
        self.bound.wrote(bound, slot::end_of_wal(conn).map_err(failed)?);
        (self.kept, self.kept_bound, self.kept_at) = (position, bound, Some(Instant::now()));
        Ok(())
    }

    /// Stores the position for the last time. The server hears nothing later, so a slot that is further is another one.
    pub(super) fn end(&mut self, conn: &mut PgConnection, position: Position) {
        let confirmed = self.confirmable(position);
        if let Err(error) = self.store(conn, position, confirmed) {
            tracing::warn!(
                %error,
                "cannot store up to where events were sent, so some may be sent again; nothing is lost. If each stop logs this, correct \
                 the error"
            );
        }
    }
}

fn failed(error: diesel::result::Error) -> SourceError {
    database_error("storing up to where the WAL was sent", error)
}

fn overtaken() -> SourceError {
    SourceError::new("another relay has sent from the slot since this one looked how far it was sent")
}
