//! The inbox: each event has its effect once, however often it is delivered.

#[cfg(feature = "async")]
mod asynchronous;
mod pruning;

use std::time::{Duration, Instant};

use diesel::QueryResult;
use diesel::result::Error;
use uuid::Uuid;

pub use self::pruning::Pruning;
use crate::OutboxConnection;
use crate::backend::{FindInbox, InsertMark, PruneMarks, quoted};

/// One consumer's memory of the events that it has handled.
///
/// The event's id is inserted first, the effect follows in the same transaction: either both last or neither. Two
/// deliveries of one event at the same time wait for each other, and the second finds the first one's mark.
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
pub struct Inbox {
    consumer: String,
    /// Quoted already.
    schema: Option<String>,
}

/// Whether an event was handled now or earlier.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum Once<T> {
    /// It is the first delivery; this is what the effect returned.
    First(T),
    /// It had been handled before; the effect was not run.
    Duplicate,
}

const PRUNE_CHUNK: i64 = 10_000;

impl Inbox {
    /// The inbox of the consumer of this name. Consumers with different names each handle every event.
    pub fn new(consumer: impl Into<String>) -> Self {
        Self { consumer: consumer.into(), schema: None }
    }

    /// Sets the schema that the table `inbox` is in (PostgreSQL), if the connection's `search_path` does not have it. On SQLite
    /// each call is an error then.
    #[must_use]
    pub fn schema(mut self, schema: impl AsRef<str>) -> Self {
        self.schema = Some(quoted(schema.as_ref()));
        self
    }

    /// The consumer's name.
    pub fn consumer(&self) -> &str {
        &self.consumer
    }

    /// Runs the effect, unless this consumer has handled the event before. Within an open transaction it uses a
    /// savepoint. As it writes first, on SQLite it waits for other writers as long as the connection's `busy_timeout` says; an open
    /// transaction that has read before should be an `immediate_transaction`.
    ///
    /// # Errors
    /// What the effect returned, or the database's error: mark and effect are both undone, and the event can be
    /// delivered again.
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
        conn.transaction(|c| match c.execute_statement((&self.mark(event_id)).into())? {
            0 => Ok(Once::Duplicate),
            _ => effect(c).map(Once::First),
        })
    }

    /// Forgets the events that this consumer handled longer ago than `retention`, and returns how many those were.
    /// Retention must be longer than the longest time after which an event may be delivered again.
    ///
    /// # Errors
    /// The database's error; what was deleted before stays deleted, unless a transaction is open.
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

    /// Does a part of what [`prune`](Self::prune) does, in a few hundredths of a second, and returns whether it is
    /// worth while to do more soon: for a consumer that has other things to do meanwhile. Do a step now and then in any case.
    ///
    /// # Errors
    /// The database's error; the step has deleted nothing.
    pub fn prune_step<C>(&self, conn: &mut C, pruning: &mut Pruning) -> QueryResult<bool>
    where
        C: OutboxConnection,
    {
        let began = Instant::now();
        let deleted = conn.execute_statement((&self.prune_part(pruning, began)).into())?;
        Ok(pruning.stepped(deleted, began.elapsed()))
    }

    /// Returns whether the table `inbox` is there: for a consumer that should fail at its start if it is not.
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
        Err(Error::DatabaseError(_, information)) if information.message().starts_with("no such table") => {
            Ok(false)
        }
        Err(error) => Err(error),
    }
}
