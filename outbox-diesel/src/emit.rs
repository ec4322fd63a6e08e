//! Emitting an event: writing its row in the transaction that caused it.

#[cfg(feature = "async")]
mod asynchronous;
mod error;
mod outbox;
mod scheduled;

use std::time::{Duration, SystemTime};

use diesel::QueryResult;
use diesel::connection::{Connection, TransactionManagerStatus};
use diesel_outbox_core::__private::chunks;
pub use diesel_outbox_core::ScheduledEvent;
use uuid::Uuid;

#[cfg(feature = "async")]
pub use self::asynchronous::AsyncEmit;
pub use self::error::EmitError;
pub use self::outbox::Outbox;
#[cfg(feature = "testing")]
pub(crate) use self::scheduled::record_of;
use crate::{OutboxConnection, OutboxEvent};

/// The methods `emit` and `emit_all` of every synchronous Diesel connection, pooled or not.
///
/// See [`Outbox`] for headers that many events share, and for an outbox in a schema that is not in the connection's `search_path`.
///
/// ```
/// # use diesel::prelude::*;
/// # #[cfg(all(feature = "sqlite", feature = "migrations"))]
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use diesel_outbox::{Emit, Record};
///
/// let conn = &mut SqliteConnection::establish(":memory:")?;
/// diesel_outbox::Migrations::new().run(conn)?;
///
/// conn.transaction(|c| {
///     // ... first the change to your own tables, then its event:
///     c.emit(&Record::new("order", "7", "OrderPlaced").with_payload(*b"{}"))?;
///     diesel::QueryResult::Ok(())
/// })?;
/// # Ok(())
/// # }
/// # #[cfg(not(all(feature = "sqlite", feature = "migrations")))]
/// # fn main() {}
/// ```
///
/// # Tests
///
/// A connection after `begin_test_transaction` is always in a transaction. On such a connection `emit` cannot notice that your code
/// has opened none.
///
/// # SQLite
///
/// If a transaction reads before it emits, make it an `immediate_transaction`: see the [crate's documentation](crate#sqlite).
///
/// # Two-phase commit
///
/// On PostgreSQL, an emit notifies the relay if the relay sleeps, and PostgreSQL does not prepare a transaction that has notified.
/// Before you emit in a transaction that will be prepared, run `SET LOCAL outbox.notify = 'off'` in it, or run
/// `ALTER ROLE .. SET outbox.notify = 'off'` once. The relay finds such events within about a second of their commit, because a
/// sleeping relay looks once a second if `max_prepared_transactions` is above zero.
pub trait Emit: Connection {
    /// Writes the event to the outbox in the open transaction, and returns the event's id. It takes one statement and one round
    /// trip. If the transaction or a savepoint around the emit is rolled back, the event is never sent.
    ///
    /// # Errors
    /// An error that contains an [`EmitError`] if no transaction is open or the event cannot be stored: see [`EmitError::of`].
    /// Nothing was sent to the database then, and the transaction can go on. If the insert fails, the database's error. If its cause
    /// is known, its message ends with advice, and its [`hint`](diesel::result::DatabaseErrorInformation::hint) explains that.
    fn emit<E: OutboxEvent + ?Sized>(&mut self, event: &E) -> QueryResult<Uuid>;

    /// Writes any number of events in their order, and returns their ids. Each statement writes up to 1,000 events and
    /// about 8 MiB of payload. All events are checked before the first one is written.
    ///
    /// # Errors
    /// As for [`emit`](Self::emit).
    fn emit_all<I>(&mut self, events: I) -> QueryResult<Vec<Uuid>>
    where
        I: IntoIterator<Item: OutboxEvent>;

    /// Stores the event in the open transaction, to be sent at this time or soon after it. Returns the event's id, with which you can
    /// [cancel](Self::cancel_scheduled) it.
    ///
    /// The database's clock counts. A time that has passed means at once, and one after the year 9999 means its end. The relay needs the
    /// table `outbox_scheduled`, which the migrations create.
    ///
    /// # Errors
    /// As for [`emit`](Self::emit). An event whose id is already scheduled is a unique violation.
    fn emit_at<E: OutboxEvent + ?Sized>(&mut self, event: &E, time: SystemTime) -> QueryResult<Uuid>;

    /// Stores the event in the open transaction, to be sent when this much time has passed since now, by the database's clock: see
    /// [`emit_at`](Self::emit_at). At most 100 years.
    ///
    /// ```
    /// # use diesel::prelude::*;
    /// # #[cfg(all(feature = "sqlite", feature = "migrations"))]
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use std::time::Duration;
    ///
    /// use diesel_outbox::{Emit, Record};
    ///
    /// # let conn = &mut SqliteConnection::establish(":memory:")?;
    /// # diesel_outbox::Migrations::new().run(conn)?;
    /// const DAY: Duration = Duration::from_secs(24 * 60 * 60);
    /// let reminder = conn.transaction(|c| c.emit_after(&Record::new("order", "7", "PaymentReminderDue"), 3 * DAY))?;
    /// assert_eq!(conn.scheduled()?.len(), 1);
    ///
    /// // The order is paid in time:
    /// let was_there = conn.transaction(|c| c.cancel_scheduled(reminder))?;
    /// assert!(was_there && conn.scheduled()?.is_empty());
    /// # Ok(())
    /// # }
    /// # #[cfg(not(all(feature = "sqlite", feature = "migrations")))]
    /// # fn main() {}
    /// ```
    ///
    /// # Errors
    /// As for [`emit_at`](Self::emit_at).
    fn emit_after<E: OutboxEvent + ?Sized>(&mut self, event: &E, time: Duration) -> QueryResult<Uuid>;

    /// Cancels the scheduled event with this id, and returns whether it was there. If not, it is on its way, or was never scheduled. An
    /// event that was cancelled is never sent. If the transaction is rolled back, it is scheduled as before.
    ///
    /// If a relay is moving the event at this moment, this waits until that has been committed.
    ///
    /// # Errors
    /// The database's error.
    fn cancel_scheduled(&mut self, id: Uuid) -> QueryResult<bool>;

    /// Returns all scheduled events in the order of their times.
    ///
    /// # Errors
    /// The database's error, or a `DeserializationError` if another program has written a row that is no record.
    fn scheduled(&mut self) -> QueryResult<Vec<ScheduledEvent>>;
}

impl<C: OutboxConnection> Emit for C {
    fn emit<E: OutboxEvent + ?Sized>(&mut self, event: &E) -> QueryResult<Uuid> {
        Outbox::new().emit(self, event)
    }

    fn emit_all<I>(&mut self, events: I) -> QueryResult<Vec<Uuid>>
    where
        I: IntoIterator<Item: OutboxEvent>,
    {
        Outbox::new().emit_all(self, events)
    }

    fn emit_at<E: OutboxEvent + ?Sized>(&mut self, event: &E, time: SystemTime) -> QueryResult<Uuid> {
        Outbox::new().emit_at(self, event, time)
    }

    fn emit_after<E: OutboxEvent + ?Sized>(&mut self, event: &E, time: Duration) -> QueryResult<Uuid> {
        Outbox::new().emit_after(self, event, time)
    }

    fn cancel_scheduled(&mut self, id: Uuid) -> QueryResult<bool> {
        Outbox::new().cancel_scheduled(self, id)
    }

    fn scheduled(&mut self) -> QueryResult<Vec<ScheduledEvent>> {
        Outbox::new().scheduled(self)
    }
}

/// Checks that a transaction is open. Diesel counts transactions itself, so this sends nothing to the database.
fn require_transaction(status: &TransactionManagerStatus) -> Result<(), EmitError> {
    match status {
        TransactionManagerStatus::Valid(status) if status.transaction_depth().is_none() => {
            Err(EmitError::NotInTransaction)
        }
        // The database itself reports a broken transaction.
        _ => Ok(()),
    }
}
