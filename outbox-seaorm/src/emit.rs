//! Emitting an event: writing its row in the transaction that caused it.

mod error;
mod outbox;
mod scheduled;

use std::future::Future;
use std::time::{Duration, SystemTime};

use diesel_outbox_core::__private::spans::Created;
use diesel_outbox_core::__private::{Due, chunks};
pub use diesel_outbox_core::ScheduledEvent;
use sea_orm::{ConnectionTrait, DbErr, TransactionSession};
use uuid::Uuid;

pub use self::error::EmitError;
use self::error::{error_type, explained};
pub use self::outbox::Outbox;
#[cfg(feature = "testing")]
pub(crate) use self::scheduled::record_of;
use self::scheduled::{cancel, schedule, scheduled};
use crate::backend::Backend;
use crate::{OutboxEvent, Record};

/// The methods `emit` and `emit_all` of SeaORM's transactions. On a connection without a transaction, calling them does not compile.
///
/// See [`Outbox`] for headers that many events share, and for an outbox in a schema that is not in the connection's `search_path`.
///
/// ```
/// # #[cfg(all(feature = "sqlite", feature = "migrations"))]
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), sea_orm::DbErr> {
/// use sea_orm::{Database, TransactionTrait};
/// use sea_orm_outbox::{Emit, Record};
///
/// let db = Database::connect("sqlite::memory:").await?;
/// sea_orm_outbox::Migrations::new().run(&db).await?;
///
/// let txn = db.begin().await?;
/// // ... first the change to your own tables, then its event:
/// txn.emit(&Record::new("order", "7", "OrderPlaced").with_payload(*b"{}")).await?;
/// txn.commit().await?;
/// # Ok(())
/// # }
/// # #[cfg(not(all(feature = "sqlite", feature = "migrations")))]
/// # fn main() {}
/// ```
///
/// In the closure of [`transaction`](sea_orm::TransactionTrait::transaction), emit on the closure's argument. In a function that is
/// generic over transactions, ask for `C: InTransaction`, or for `ConnectionTrait + TransactionSession`.
///
/// # Role-based access control
///
/// On a `RestrictedTransaction`, the user's role needs the permission `insert` on the table `outbox`, and on PostgreSQL `select` too.
///
/// # SQLite
///
/// If a transaction reads before it emits, begin it as `SqliteTransactionMode::Immediate`: see the
/// [crate's documentation](crate#sqlite).
///
/// # Two-phase commit
///
/// On PostgreSQL, an emit notifies the relay if the relay sleeps, and PostgreSQL does not prepare a transaction that has notified.
/// Before you emit in a transaction that will be prepared, run `SET LOCAL outbox.notify = 'off'` in it, or run
/// `ALTER ROLE .. SET outbox.notify = 'off'` once. The relay finds such events within about a second of their commit, because a
/// sleeping relay looks once a second if `max_prepared_transactions` is above zero.
pub trait Emit: ConnectionTrait {
    /// Writes the event to the outbox in this transaction, and returns the event's id. It takes one statement and one round trip. If
    /// the transaction or a savepoint around the emit is rolled back, the event is never sent.
    ///
    /// # Errors
    /// An error that contains an [`EmitError`] if the event cannot be stored: see [`EmitError::of`]. Nothing was sent to the database
    /// then, and the transaction can go on. If the insert fails, the database's error, with advice if the cause is known.
    fn emit<E>(&self, event: &E) -> impl Future<Output = Result<Uuid, DbErr>> + Send
    where
        Self: InTransaction,
        E: OutboxEvent + ?Sized;

    /// Writes any number of events in their order, and returns their ids. Each statement writes up to 1,000 events and about 8 MiB
    /// of payload. All events are checked before the first one is written.
    ///
    /// # Errors
    /// As for [`emit`](Self::emit).
    fn emit_all<I>(&self, events: I) -> impl Future<Output = Result<Vec<Uuid>, DbErr>> + Send
    where
        Self: InTransaction,
        I: IntoIterator<Item: OutboxEvent>;

    /// Stores the event in this transaction, to be sent at this time or soon after it. Returns the event's id, with which you can
    /// [cancel](Self::cancel_scheduled) it.
    ///
    /// The database's clock counts. A time that has passed means at once, and one after the year 9999 means its end. The relay needs the
    /// table `outbox_scheduled`, which the migrations create.
    ///
    /// # Errors
    /// As for [`emit`](Self::emit). An event whose id is already scheduled is a unique violation.
    fn emit_at<E>(&self, event: &E, time: SystemTime) -> impl Future<Output = Result<Uuid, DbErr>> + Send
    where
        Self: InTransaction,
        E: OutboxEvent + ?Sized;

    /// Stores the event in this transaction, to be sent when this much time has passed since now, by the database's clock: see
    /// [`emit_at`](Self::emit_at). At most 100 years.
    ///
    /// # Errors
    /// As for [`emit_at`](Self::emit_at).
    fn emit_after<E>(&self, event: &E, time: Duration) -> impl Future<Output = Result<Uuid, DbErr>> + Send
    where
        Self: InTransaction,
        E: OutboxEvent + ?Sized;

    /// Cancels the scheduled event with this id, and returns whether it was there. If not, it is on its way, or was never scheduled. An
    /// event that was cancelled is never sent. If the transaction is rolled back, it is scheduled as before.
    ///
    /// If a relay is moving the event at this moment, this waits until that has been committed. On a `RestrictedTransaction`, the user's
    /// role needs the permissions `select` and `delete` on the table `outbox_scheduled`.
    ///
    /// # Errors
    /// The database's error.
    fn cancel_scheduled(&self, id: Uuid) -> impl Future<Output = Result<bool, DbErr>> + Send;

    /// Returns all scheduled events in the order of their times.
    ///
    /// # Errors
    /// The database's error, or a type error if another program has written a row that is no record.
    fn scheduled(&self) -> impl Future<Output = Result<Vec<ScheduledEvent>, DbErr>> + Send;
}

impl<C: ConnectionTrait> Emit for C {
    fn emit<E>(&self, event: &E) -> impl Future<Output = Result<Uuid, DbErr>> + Send
    where
        Self: InTransaction,
        E: OutboxEvent + ?Sized,
    {
        // Before the future starts, so that neither the event nor what it borrows has to be `Sync`
        let created = Outbox::new().created(event);
        insert_one(self, created, None)
    }

    fn emit_all<I>(&self, events: I) -> impl Future<Output = Result<Vec<Uuid>, DbErr>> + Send
    where
        Self: InTransaction,
        I: IntoIterator<Item: OutboxEvent>,
    {
        let created = Outbox::new().all_created(events);
        insert_all(self, created, None)
    }

    fn emit_at<E>(&self, event: &E, time: SystemTime) -> impl Future<Output = Result<Uuid, DbErr>> + Send
    where
        Self: InTransaction,
        E: OutboxEvent + ?Sized,
    {
        schedule(self, Outbox::new().created(event), Due::at(time), None)
    }

    fn emit_after<E>(&self, event: &E, time: Duration) -> impl Future<Output = Result<Uuid, DbErr>> + Send
    where
        Self: InTransaction,
        E: OutboxEvent + ?Sized,
    {
        schedule(self, Outbox::new().created(event), Due::after(time), None)
    }

    fn cancel_scheduled(&self, id: Uuid) -> impl Future<Output = Result<bool, DbErr>> + Send {
        cancel(self, id, None)
    }

    fn scheduled(&self) -> impl Future<Output = Result<Vec<ScheduledEvent>, DbErr>> + Send {
        scheduled(self, None)
    }
}

/// A connection that is in a transaction: SeaORM's `DatabaseTransaction` and `RestrictedTransaction`, whether they are a transaction
/// or a savepoint in one. It is sealed.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a transaction, so an event could be stored without the change that it reports",
    label = "events are emitted on a transaction",
    note = "put the change and the event into one: `let txn = db.begin().await?; ...; txn.emit(&event).await?; txn.commit().await?`"
)]
pub trait InTransaction: ConnectionTrait + sealed::Open {}

#[diagnostic::do_not_recommend]
impl<C: ConnectionTrait + TransactionSession> InTransaction for C {}

mod sealed {
    use sea_orm::{ConnectionTrait, TransactionSession};

    pub trait Open {}

    #[diagnostic::do_not_recommend]
    impl<C: ConnectionTrait + TransactionSession> Open for C {}
}

async fn insert_one<C: ConnectionTrait>(
    txn: &C,
    created: Result<Created<Record>, EmitError>,
    schema: Option<&str>,
) -> Result<Uuid, DbErr> {
    let mut created = created?;
    let inserted = match Backend::of(txn, schema) {
        Ok(backend) => backend.insert_one(txn, &created.records).await,
        Err(error) => Err(error.into()),
    };
    created.stored(inserted, error_type).map_err(explained)?;
    Ok(created.records.id())
}

async fn insert_all<C: ConnectionTrait>(
    txn: &C,
    created: Result<Created<Vec<Record>>, EmitError>,
    schema: Option<&str>,
) -> Result<Vec<Uuid>, DbErr> {
    let mut created = created?;
    let backend = Backend::of(txn, schema)?;
    let mut inserted = Ok(());
    for chunk in chunks(&created.records) {
        inserted = backend.insert_many(txn, chunk).await;
        if inserted.is_err() {
            break;
        }
    }
    created.stored(inserted, error_type).map_err(explained)?;
    Ok(created.records.iter().map(Record::id).collect())
}
