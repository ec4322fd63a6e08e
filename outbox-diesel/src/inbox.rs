//! The inbox: each event takes effect once, however often it is delivered.

#[cfg(feature = "async")]
mod asynchronous;

use std::time::{Duration, Instant};

use diesel::QueryResult;
use diesel::result::{DatabaseErrorKind, Error};
#[doc(inline)]
pub use diesel_outbox_core::__private::Pruning;
use diesel_outbox_core::__private::ROLLED_BACK;
use uuid::Uuid;

use crate::OutboxConnection;
use crate::backend::{FindInbox, InsertMark, PruneMarks, StillMarked};

/// One consumer's record of the events that it has handled.
///
/// [`once`](Self::once) inserts the event's id, and then runs the effect in the same transaction: both are committed, or neither.
/// If one event is delivered twice at the same time, the second delivery waits for the first one and then finds its mark.
///
/// ```
/// # use diesel::prelude::*;
/// # #[cfg(all(feature = "sqlite", feature = "migrations"))]
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use diesel_outbox::{Inbox, Once};
///
/// let conn = &mut SqliteConnection::establish(":memory:")?;
/// diesel_outbox::Migrations::new().run(conn)?;
/// let inbox = Inbox::new("billing");
/// let event_id = uuid::Uuid::now_v7();
///
/// let charge = |_: &mut SqliteConnection| diesel::QueryResult::Ok("receipt 1");
/// assert_eq!(inbox.once(conn, event_id, charge)?, Once::First("receipt 1"));
/// assert_eq!(inbox.once(conn, event_id, charge)?, Once::Duplicate);
/// # Ok(())
/// # }
/// # #[cfg(not(all(feature = "sqlite", feature = "migrations")))]
/// # fn main() {}
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use]
pub struct Inbox {
    consumer: String,
    schema: Option<String>,
}

/// The result of [`Inbox::once`]: whether the event was handled now or earlier.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Once<T> {
    /// This is the first delivery. The effect ran and returned this value.
    First(T),
    /// The event had been handled before. The effect did not run.
    Duplicate,
}

const PRUNE_CHUNK: i64 = 10_000;

impl Inbox {
    /// Returns the inbox of the consumer with this name. Consumers with different names each handle every event.
    pub fn new(consumer: impl Into<String>) -> Self {
        Self { consumer: consumer.into(), schema: None }
    }

    /// Sets the schema of the table `inbox`, which is a database on MySQL and MariaDB. On SQLite, every call then returns
    /// [`EmitError::NoSchemas`](crate::EmitError::NoSchemas). Default: the connection's `search_path` or database decides.
    pub fn schema(mut self, schema: impl Into<String>) -> Self {
        self.schema = Some(schema.into());
        self
    }

    /// Returns the consumer's name.
    pub fn consumer(&self) -> &str {
        &self.consumer
    }

    /// Runs the effect, unless this consumer has handled the event before. If a transaction is already open, it uses a savepoint.
    ///
    /// On SQLite it waits for other writers for up to the connection's `busy_timeout`, because it begins with a write. A transaction
    /// that you open around it and that reads first should be an `immediate_transaction`.
    ///
    /// # Errors
    /// The effect's error or the database's. The mark and the effect are both rolled back, and the event can be delivered again. On
    /// PostgreSQL it is also an error if the effect ignored one of the database's: such an error aborts the transaction, so that
    /// nothing of it could be committed. Put a statement that may fail into a `transaction` of its own, which is a savepoint.
    pub fn once<C, T, E>(
        &self,
        conn: &mut C,
        event_id: Uuid,
        effect: impl FnOnce(&mut C) -> Result<T, E>,
    ) -> Result<Once<T>, E>
    where
        C: OutboxConnection,
        E: From<diesel::result::Error>,
    {
        let mark = self.mark(event_id);
        conn.transaction(|c| match c.execute_statement((&mark).into())? {
            0 => Ok(Once::Duplicate),
            _ => {
                let done = effect(c)?;
                require_mark(c.execute_statement((&StillMarked::new(&mark)).into()))?;
                Ok(Once::First(done))
            }
        })
    }

    /// Deletes the marks of events that this consumer handled longer ago than `retention`, and returns their number.
    ///
    /// `retention` must be longer than the longest time after which an event may be delivered again. An event that comes back after
    /// its mark was deleted takes effect again.
    ///
    /// # Errors
    /// The database's error. Marks that were already deleted stay deleted, unless a transaction is open around the call.
    pub fn prune<C>(&self, conn: &mut C, retention: Duration) -> QueryResult<usize>
    where
        C: OutboxConnection,
    {
        let mut pruned = 0;
        loop {
            let count = conn.execute_statement((&self.prune_chunk(retention)).into())?;
            pruned += count;
            if (count as i64) < PRUNE_CHUNK {
                return Ok(pruned);
            }
        }
    }

    /// Does a small part of the work of [`prune`](Self::prune), in a few hundredths of a second, and returns whether another step soon
    /// is worthwhile. It is for a consumer that has other work to do in between. Even after `false`, do a step now and then.
    ///
    /// # Errors
    /// The database's error. The step has deleted nothing.
    pub fn prune_step<C>(&self, conn: &mut C, pruning: &mut Pruning) -> QueryResult<bool>
    where
        C: OutboxConnection,
    {
        let began = Instant::now();
        let deleted = conn.execute_statement((&self.prune_part(pruning, began)).into())?;
        Ok(pruning.stepped(deleted, began.elapsed()))
    }

    /// Returns whether the table `inbox` exists, so that a consumer can fail at its start if it does not.
    ///
    /// # Errors
    /// The database's error.
    pub fn has_table<C>(&self, conn: &mut C) -> QueryResult<bool>
    where
        C: OutboxConnection,
    {
        found(conn.execute_statement((&self.find()).into()))
    }

    fn find(&self) -> FindInbox<'_> {
        FindInbox { schema: self.schema.as_deref() }
    }

    fn mark(&self, event_id: Uuid) -> InsertMark<'_> {
        InsertMark::new(&self.consumer, event_id, self.schema.as_deref())
    }

    fn prune_chunk(&self, retention: Duration) -> PruneMarks<'_> {
        let (retention_seconds, oldest_seconds, _) = Pruning::new(retention).step(Instant::now());
        self.prune_marks(retention_seconds, oldest_seconds, PRUNE_CHUNK)
    }

    fn prune_part(&self, pruning: &mut Pruning, now: Instant) -> PruneMarks<'_> {
        let (retention_seconds, oldest_seconds, limit) = pruning.step(now);
        self.prune_marks(retention_seconds, oldest_seconds, limit)
    }

    fn prune_marks(&self, retention_seconds: f64, oldest_seconds: f64, limit: i64) -> PruneMarks<'_> {
        let schema = self.schema.as_deref();
        PruneMarks { consumer: &self.consumer, schema, retention_seconds, oldest_seconds, limit }
    }
}

fn found(outcome: QueryResult<usize>) -> QueryResult<bool> {
    match outcome {
        Ok(_) => Ok(true),
        Err(Error::DatabaseError(_, information)) if is_missing(information.message()) => Ok(false),
        Err(error) => Err(error),
    }
}

/// MySQL and MariaDB name the table as `'database.inbox'` in every language.
fn is_missing(message: &str) -> bool {
    message.starts_with("no such table") || message.contains(".inbox'")
}

/// The last thing before the commit. If an error has aborted the transaction, an effect that ignored the error would count as done.
fn require_mark(marked: QueryResult<usize>) -> QueryResult<()> {
    match marked? {
        0 => Err(Error::DatabaseError(
            DatabaseErrorKind::SerializationFailure,
            Box::new(ROLLED_BACK.to_owned()),
        )),
        _ => Ok(()),
    }
}
