//! Emitting an event: writing its row in the transaction that caused it.

#[cfg(feature = "async")]
mod asynchronous;
mod error;
mod outbox;

use diesel::QueryResult;
use diesel::connection::{Connection, TransactionManagerStatus};
use diesel_outbox_core::__private::chunks;
use uuid::Uuid;

#[cfg(feature = "async")]
pub use self::asynchronous::AsyncEmit;
pub use self::error::EmitError;
pub use self::outbox::Outbox;
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
