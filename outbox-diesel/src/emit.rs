//! Emitting: the event's row is written in the transaction that caused it.

#[cfg(feature = "async")]
mod asynchronous;
mod error;
mod outbox;

use diesel::QueryResult;
use diesel::connection::{Connection, TransactionManagerStatus};
use uuid::Uuid;

#[cfg(feature = "async")]
pub use self::asynchronous::AsyncEmit;
pub use self::error::EmitError;
pub use self::outbox::Outbox;
use crate::{OutboxConnection, OutboxEvent, Record};

/// Emits events from a synchronous Diesel connection, pooled or not. See [`Outbox`] for headers that many events share, and for
/// an outbox in a schema that the connection's `search_path` does not have.
///
/// In tests, a connection on which `begin_test_transaction` was called is always in a transaction: there an `emit` that has
/// none of its own is not noticed.
///
/// On PostgreSQL an emit notifies the relay if that sleeps, and PostgreSQL prepares no transaction that has notified. For two-phase
/// commit run `SET LOCAL outbox.notify = 'off'` in the transaction before it emits, or `ALTER ROLE .. SET outbox.notify = 'off'` once. The
/// relay finds such events within about a second of their commit, by looking once a second while it sleeps; it does so if
/// `max_prepared_transactions` is above zero.
///
/// On SQLite a transaction that reads before it emits should be an `immediate_transaction`: see the [crate](crate#sqlite).
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
///     // ... the change to your own tables, then the event that tells of it:
///     c.emit(&Record::new("order", "7", "OrderPlaced").with_payload(*b"{}"))?;
///     diesel::QueryResult::Ok(())
/// })?;
/// # Ok(())
/// # }
/// # #[cfg(not(all(feature = "sqlite", feature = "migrations")))]
/// # fn main() {}
/// ```
pub trait Emit: Connection {
    /// Writes the event into the outbox, in the transaction that is open, and returns the event's id. One statement,
    /// one round trip. What is rolled back, be it to a savepoint, was never emitted.
    ///
    /// # Errors
    /// An error that holds an [`EmitError`], for which see [`EmitError::of`], outside a transaction and for an event that
    /// cannot be stored: in both cases nothing was sent to the database and the transaction can go on. If the insert
    /// failed, the database's error, with what to do about it.
    fn emit<E: OutboxEvent + ?Sized>(&mut self, event: &E) -> QueryResult<Uuid>;

    /// Writes any number of events, in their order, in as few statements as their size allows (up to 1,000 events
    /// each), and returns their ids. All are checked before the first is written.
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

/// Diesel counts the transactions itself, so this asks nobody.
fn require_transaction(status: &TransactionManagerStatus) -> Result<(), EmitError> {
    match status {
        TransactionManagerStatus::Valid(status) if status.transaction_depth().is_none() => {
            Err(EmitError::NotInTransaction)
        }
        // A broken transaction is the database's to report.
        _ => Ok(()),
    }
}

const CHUNK_RECORDS: usize = 1_000;
const CHUNK_BYTES: usize = 16 * 1024 * 1024;

fn chunks(records: &[Record]) -> impl Iterator<Item = &[Record]> {
    let mut rest = records;
    std::iter::from_fn(move || {
        let mut bytes = 0;
        let fitting = rest.iter().take(CHUNK_RECORDS).take_while(|record| {
            let before = bytes;
            bytes += record.payload().map_or(0, <[u8]>::len);
            before == 0 || bytes <= CHUNK_BYTES
        });
        let (chunk, after) = rest.split_at(fitting.count());
        rest = after;
        (!chunk.is_empty()).then_some(chunk)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_are_bounded_in_number_and_bytes_and_lose_nothing() {
        let record = |bytes: usize| Record::new("a", "1", "E").with_payload(vec![0; bytes]);
        let small: Vec<Record> = (0..2_500).map(|_| record(1)).collect();
        assert_eq!(chunks(&small).map(<[Record]>::len).collect::<Vec<_>>(), [1_000, 1_000, 500]);
        let large: Vec<Record> = [20, 9, 6, 6, 20].map(|mega| record(mega << 20)).into();
        assert_eq!(chunks(&large).map(<[Record]>::len).collect::<Vec<_>>(), [1, 2, 1, 1]);
        assert_eq!(chunks(&[]).count(), 0);
    }
}
