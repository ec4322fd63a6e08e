//! The inbox: each event takes effect once, however often it is delivered.

use std::time::{Duration, Instant};

#[doc(inline)]
pub use diesel_outbox_core::__private::Pruning;
use diesel_outbox_core::__private::ROLLED_BACK;
use sea_orm::{ConnectionTrait, DbErr, RuntimeErr, TransactionSession, TransactionTrait};
use uuid::Uuid;

use crate::backend::{Backend, Mark, OldMarks};

/// One consumer's record of the events that it has handled.
///
/// [`once`](Self::once) inserts the event's id, and then runs the effect in the same transaction: both are committed, or neither.
/// If one event is delivered twice at the same time, the second delivery waits for the first one and then finds its mark.
///
/// ```
/// # #[cfg(all(feature = "sqlite", feature = "migrations"))]
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), sea_orm::DbErr> {
/// use sea_orm::{Database, DatabaseTransaction, DbErr};
/// use sea_orm_outbox::{Inbox, Once};
///
/// let db = Database::connect("sqlite::memory:").await?;
/// sea_orm_outbox::Migrations::new().run(&db).await?;
/// let inbox = Inbox::new("billing");
/// let event_id = uuid::Uuid::now_v7();
///
/// let charge = async |_txn: &DatabaseTransaction| Ok::<_, DbErr>("receipt 1");
/// assert_eq!(inbox.once(&db, event_id, charge).await?, Once::First("receipt 1"));
/// assert_eq!(inbox.once(&db, event_id, charge).await?, Once::Duplicate);
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

const PRUNE_CHUNK: u64 = 10_000;

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

    /// Runs the effect in a transaction, unless this consumer has handled the event before. On a transaction, it uses a savepoint.
    ///
    /// Make all of the effect's changes on the transaction that it gets, which is what commits them together with the mark. The effect
    /// may emit events on it. If the future is dropped before it completes, the transaction is rolled back.
    ///
    /// On SQLite it waits for other writers for up to the connection's `busy_timeout`, because it begins with a write.
    ///
    /// # Errors
    /// The effect's error or the database's. The mark and the effect are both rolled back, and the event can be delivered again. It is
    /// also an error if the effect ignored one of the database's that has aborted the transaction, because nothing of it could be
    /// committed: on PostgreSQL every error does that, on MySQL and MariaDB a deadlock. Put a statement that may fail into a transaction
    /// of its own (`txn.begin()`), which is a savepoint.
    pub async fn once<C, T, E>(
        &self,
        db: &C,
        event_id: Uuid,
        effect: impl AsyncFnOnce(&C::Transaction) -> Result<T, E>,
    ) -> Result<Once<T>, E>
    where
        C: TransactionTrait,
        E: From<DbErr>,
    {
        let txn = db.begin().await?;
        match self.mark_then(&txn, event_id, effect).await {
            Ok(once) => {
                txn.commit().await?;
                Ok(once)
            }
            Err(error) => {
                // If it fails too, the connection is lost, and the transaction with it.
                let _ = txn.rollback().await;
                Err(error)
            }
        }
    }

    async fn mark_then<C, T, E>(
        &self,
        txn: &C,
        event_id: Uuid,
        effect: impl AsyncFnOnce(&C) -> Result<T, E>,
    ) -> Result<Once<T>, E>
    where
        C: ConnectionTrait,
        E: From<DbErr>,
    {
        let backend = self.backend(txn)?;
        let mark = Mark { consumer: &self.consumer, event_id };
        if !backend.insert_mark(txn, mark).await? {
            return Ok(Once::Duplicate);
        }
        let done = effect(txn).await?;
        // The last thing before the commit. If an error has aborted the transaction, an effect that ignored the error would count as
        // done.
        if !backend.is_marked(txn, mark).await? {
            return Err(E::from(DbErr::Exec(RuntimeErr::Internal(ROLLED_BACK.to_owned()))));
        }
        Ok(Once::First(done))
    }

    /// Deletes the marks of events that this consumer handled longer ago than `retention`, and returns their number.
    ///
    /// `retention` must be longer than the longest time after which an event may be delivered again. An event that comes back after
    /// its mark was deleted takes effect again.
    ///
    /// # Errors
    /// The database's error. Marks that were already deleted stay deleted, unless `db` is a transaction.
    pub async fn prune<C: ConnectionTrait>(&self, db: &C, retention: Duration) -> Result<u64, DbErr> {
        let backend = self.backend(db)?;
        let (retention, oldest, _) = Pruning::new(retention).step(Instant::now());
        let mut pruned = 0;
        loop {
            let count = backend.delete_marks(db, self.old_marks(retention, oldest, PRUNE_CHUNK)).await?;
            pruned += count;
            if count < PRUNE_CHUNK {
                return Ok(pruned);
            }
        }
    }

    /// Does a small part of the work of [`prune`](Self::prune), in a few hundredths of a second, and returns whether another step soon
    /// is worthwhile. It is for a consumer that has other work to do in between. Even after `false`, do a step now and then.
    ///
    /// # Errors
    /// The database's error. The step has deleted nothing.
    pub async fn prune_step<C: ConnectionTrait>(&self, db: &C, pruning: &mut Pruning) -> Result<bool, DbErr> {
        let began = Instant::now();
        let (retention, oldest, limit) = pruning.step(began);
        let marks = self.old_marks(retention, oldest, limit.unsigned_abs());
        let deleted = self.backend(db)?.delete_marks(db, marks).await?;
        Ok(pruning.stepped(usize::try_from(deleted).unwrap_or(usize::MAX), began.elapsed()))
    }

    /// Returns whether the table `inbox` exists, so that a consumer can fail at its start if it does not.
    ///
    /// # Errors
    /// The database's error.
    pub async fn has_table<C: ConnectionTrait>(&self, db: &C) -> Result<bool, DbErr> {
        self.backend(db)?.has_inbox(db).await
    }

    fn backend<C: ConnectionTrait>(&self, c: &C) -> Result<Backend<'_>, DbErr> {
        Ok(Backend::of(c, self.schema.as_deref())?)
    }

    fn old_marks(&self, retention_seconds: f64, oldest_seconds: f64, limit: u64) -> OldMarks<'_> {
        OldMarks { consumer: &self.consumer, retention_seconds, oldest_seconds, limit }
    }
}
