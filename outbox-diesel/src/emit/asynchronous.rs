use std::future::Future;
use std::time::{Duration, SystemTime};

use diesel::QueryResult;
use diesel_async::{AsyncConnection, TransactionManager};
use diesel_outbox_core::__private::Due;
use diesel_outbox_core::__private::spans::Created;
use uuid::Uuid;

use super::error::{error_type, explained};
use super::scheduled::scheduled_events;
use super::{EmitError, Outbox, ScheduledEvent, chunks, require_transaction};
use crate::backend::{
    CancelScheduled, InSchema, InsertMany, InsertOne, InsertScheduled, Load, OutboxBackend, SelectRows, Table,
};
use crate::{OutboxEvent, Record};

/// The methods `emit` and `emit_all` of every diesel-async connection, pooled or not: [`Emit`](crate::Emit) with `.await`.
///
/// ```no_run
/// use diesel_async::{AsyncConnection, AsyncPgConnection};
/// use diesel_outbox::{AsyncEmit, Record};
///
/// # async fn f(conn: &mut AsyncPgConnection) -> diesel::QueryResult<()> {
/// conn.transaction(async |c| {
///     // ... first the change to your own tables, then its event:
///     c.emit(&Record::new("order", "7", "OrderPlaced").with_payload(*b"{}")).await?;
///     diesel::QueryResult::Ok(())
/// })
/// .await
/// # }
/// ```
pub trait AsyncEmit: AsyncConnection {
    /// Writes the event to the outbox and returns its id: see [`Emit::emit`](crate::Emit::emit).
    ///
    /// # Errors
    /// As for [`Emit::emit`](crate::Emit::emit).
    fn emit<E: OutboxEvent + ?Sized>(&mut self, event: &E) -> impl Future<Output = QueryResult<Uuid>> + Send;

    /// Writes any number of events and returns their ids: see [`Emit::emit_all`](crate::Emit::emit_all).
    ///
    /// # Errors
    /// As for [`Emit::emit`](crate::Emit::emit).
    fn emit_all<I>(&mut self, events: I) -> impl Future<Output = QueryResult<Vec<Uuid>>> + Send
    where
        I: IntoIterator<Item: OutboxEvent>;

    /// Stores the event to be sent at this time: see [`Emit::emit_at`](crate::Emit::emit_at).
    ///
    /// # Errors
    /// As for [`Emit::emit_at`](crate::Emit::emit_at).
    fn emit_at<E: OutboxEvent + ?Sized>(
        &mut self,
        event: &E,
        time: SystemTime,
    ) -> impl Future<Output = QueryResult<Uuid>> + Send;

    /// Stores the event to be sent when this much time has passed: see [`Emit::emit_after`](crate::Emit::emit_after).
    ///
    /// # Errors
    /// As for [`Emit::emit_at`](crate::Emit::emit_at).
    fn emit_after<E: OutboxEvent + ?Sized>(
        &mut self,
        event: &E,
        time: Duration,
    ) -> impl Future<Output = QueryResult<Uuid>> + Send;

    /// Cancels a scheduled event, and returns whether it was there: see
    /// [`Emit::cancel_scheduled`](crate::Emit::cancel_scheduled).
    ///
    /// # Errors
    /// The database's error.
    fn cancel_scheduled(&mut self, id: Uuid) -> impl Future<Output = QueryResult<bool>> + Send;

    /// Returns all scheduled events: see [`Emit::scheduled`](crate::Emit::scheduled).
    ///
    /// # Errors
    /// As for [`Emit::scheduled`](crate::Emit::scheduled).
    fn scheduled(&mut self) -> impl Future<Output = QueryResult<Vec<ScheduledEvent>>> + Send;
}

impl<C> AsyncEmit for C
where
    C: AsyncConnection<Backend: OutboxBackend>,
{
    fn emit<E: OutboxEvent + ?Sized>(&mut self, event: &E) -> impl Future<Output = QueryResult<Uuid>> + Send {
        let outbox = Outbox::new();
        let created = outbox.ready(self, |outbox| outbox.created(event));
        insert_one(self, created, None)
    }

    fn emit_all<I>(&mut self, events: I) -> impl Future<Output = QueryResult<Vec<Uuid>>> + Send
    where
        I: IntoIterator<Item: OutboxEvent>,
    {
        let outbox = Outbox::new();
        let created = outbox.ready(self, |outbox| outbox.all_created(events));
        insert_all(self, created, None)
    }

    fn emit_at<E: OutboxEvent + ?Sized>(
        &mut self,
        event: &E,
        time: SystemTime,
    ) -> impl Future<Output = QueryResult<Uuid>> + Send {
        let outbox = Outbox::new();
        let created = outbox.ready(self, |outbox| outbox.created(event));
        schedule(self, created, Due::at(time), None)
    }

    fn emit_after<E: OutboxEvent + ?Sized>(
        &mut self,
        event: &E,
        time: Duration,
    ) -> impl Future<Output = QueryResult<Uuid>> + Send {
        let outbox = Outbox::new();
        let created = outbox.ready(self, |outbox| outbox.created(event));
        schedule(self, created, Due::after(time), None)
    }

    fn cancel_scheduled(&mut self, id: Uuid) -> impl Future<Output = QueryResult<bool>> + Send {
        cancel(self, id, None)
    }

    fn scheduled(&mut self) -> impl Future<Output = QueryResult<Vec<ScheduledEvent>>> + Send {
        scheduled(self, None)
    }
}

impl Outbox {
    /// Writes the event to this outbox on a diesel-async connection: see [`emit`](Self::emit).
    ///
    /// ```no_run
    /// use diesel_async::{AsyncConnection, AsyncPgConnection};
    /// use diesel_outbox::{Outbox, Record};
    ///
    /// # async fn f(conn: &mut AsyncPgConnection) -> diesel::QueryResult<()> {
    /// let outbox = Outbox::new().header("tenant", "acme").schema("events");
    /// conn.transaction(async |c| {
    ///     outbox.emit_async(c, &Record::new("order", "7", "OrderPlaced")).await?;
    ///     diesel::QueryResult::Ok(())
    /// })
    /// .await
    /// # }
    /// ```
    ///
    /// # Errors
    /// As for [`Emit::emit`](crate::Emit::emit).
    pub fn emit_async<C, E>(&self, conn: &mut C, event: &E) -> impl Future<Output = QueryResult<Uuid>> + Send
    where
        C: AsyncConnection<Backend: OutboxBackend>,
        E: OutboxEvent + ?Sized,
    {
        let created = self.ready(conn, |outbox| outbox.created(event));
        insert_one(conn, created, self.schema_name())
    }

    /// Writes any number of events to this outbox on a diesel-async connection: see [`emit_all`](Self::emit_all).
    ///
    /// # Errors
    /// As for [`Emit::emit`](crate::Emit::emit).
    pub fn emit_all_async<C, I>(
        &self,
        conn: &mut C,
        events: I,
    ) -> impl Future<Output = QueryResult<Vec<Uuid>>> + Send
    where
        C: AsyncConnection<Backend: OutboxBackend>,
        I: IntoIterator<Item: OutboxEvent>,
    {
        let created = self.ready(conn, |outbox| outbox.all_created(events));
        insert_all(conn, created, self.schema_name())
    }

    /// Stores the event to be sent at this time, on a diesel-async connection: see [`Emit::emit_at`](crate::Emit::emit_at).
    ///
    /// # Errors
    /// As for [`Emit::emit_at`](crate::Emit::emit_at).
    pub fn emit_at_async<C, E>(
        &self,
        conn: &mut C,
        event: &E,
        time: SystemTime,
    ) -> impl Future<Output = QueryResult<Uuid>> + Send
    where
        C: AsyncConnection<Backend: OutboxBackend>,
        E: OutboxEvent + ?Sized,
    {
        let created = self.ready(conn, |outbox| outbox.created(event));
        schedule(conn, created, Due::at(time), self.schema_name())
    }

    /// Stores the event to be sent when this much time has passed, on a diesel-async connection: see
    /// [`Emit::emit_after`](crate::Emit::emit_after).
    ///
    /// # Errors
    /// As for [`Emit::emit_at`](crate::Emit::emit_at).
    pub fn emit_after_async<C, E>(
        &self,
        conn: &mut C,
        event: &E,
        time: Duration,
    ) -> impl Future<Output = QueryResult<Uuid>> + Send
    where
        C: AsyncConnection<Backend: OutboxBackend>,
        E: OutboxEvent + ?Sized,
    {
        let created = self.ready(conn, |outbox| outbox.created(event));
        schedule(conn, created, Due::after(time), self.schema_name())
    }

    /// Cancels a scheduled event on a diesel-async connection: see [`Emit::cancel_scheduled`](crate::Emit::cancel_scheduled).
    ///
    /// # Errors
    /// The database's error.
    pub fn cancel_scheduled_async<C>(
        &self,
        conn: &mut C,
        id: Uuid,
    ) -> impl Future<Output = QueryResult<bool>> + Send
    where
        C: AsyncConnection<Backend: OutboxBackend>,
    {
        cancel(conn, id, self.schema_name())
    }

    /// Returns all scheduled events, on a diesel-async connection: see [`Emit::scheduled`](crate::Emit::scheduled).
    ///
    /// # Errors
    /// As for [`Emit::scheduled`](crate::Emit::scheduled).
    pub fn scheduled_async<C>(
        &self,
        conn: &mut C,
    ) -> impl Future<Output = QueryResult<Vec<ScheduledEvent>>> + Send
    where
        C: AsyncConnection<Backend: OutboxBackend>,
    {
        scheduled(conn, self.schema_name())
    }

    /// Checks before the future starts, so that neither the event nor what it borrows has to be `Sync`.
    fn ready<C: AsyncConnection, T>(
        &self,
        conn: &mut C,
        check: impl FnOnce(&Self) -> Result<T, EmitError>,
    ) -> Result<T, EmitError> {
        require_transaction(C::TransactionManager::transaction_manager_status_mut(conn))
            .and_then(|()| check(self))
    }
}

async fn insert_one<C>(
    conn: &mut C,
    created: Result<Created<Record>, EmitError>,
    schema: Option<String>,
) -> QueryResult<Uuid>
where
    C: AsyncConnection<Backend: OutboxBackend>,
{
    let mut created = created?;
    let insert = InsertOne::new(&created.records, schema.as_deref());
    let inserted = match schema {
        None => conn.execute_returning_count(insert).await,
        Some(_) => conn.execute_returning_count(InSchema(insert)).await,
    };
    created.stored(inserted, error_type).map_err(explained)?;
    Ok(created.records.id())
}

async fn schedule<C>(
    conn: &mut C,
    created: Result<Created<Record>, EmitError>,
    due: Due,
    schema: Option<String>,
) -> QueryResult<Uuid>
where
    C: AsyncConnection<Backend: OutboxBackend>,
{
    let mut created = created?;
    let insert = InsertScheduled::new(&created.records, due, schema.as_deref());
    let inserted = match schema {
        None => conn.execute_returning_count(insert).await,
        Some(_) => conn.execute_returning_count(InSchema(insert)).await,
    };
    created.stored(inserted, error_type).map_err(explained)?;
    Ok(created.records.id())
}

async fn cancel<C>(conn: &mut C, id: Uuid, schema: Option<String>) -> QueryResult<bool>
where
    C: AsyncConnection<Backend: OutboxBackend>,
{
    let cancel = CancelScheduled::new(id, schema.as_deref());
    let cancelled = match schema {
        None => conn.execute_returning_count(cancel).await,
        Some(_) => conn.execute_returning_count(InSchema(cancel)).await,
    };
    Ok(cancelled.map_err(explained)? > 0)
}

async fn scheduled<C>(conn: &mut C, schema: Option<String>) -> QueryResult<Vec<ScheduledEvent>>
where
    C: AsyncConnection<Backend: OutboxBackend>,
{
    let select = SelectRows::new(Table::Scheduled, schema.as_deref());
    scheduled_events(<C::Backend as Load>::load_async(conn, select).await.map_err(explained)?)
}

async fn insert_all<C>(
    conn: &mut C,
    created: Result<Created<Vec<Record>>, EmitError>,
    schema: Option<String>,
) -> QueryResult<Vec<Uuid>>
where
    C: AsyncConnection<Backend: OutboxBackend>,
{
    let mut created = created?;
    let mut inserted = Ok(0);
    for chunk in chunks(&created.records) {
        let insert = InsertMany::new(chunk, schema.as_deref());
        inserted = match schema {
            None => conn.execute_returning_count(insert).await,
            Some(_) => conn.execute_returning_count(InSchema(insert)).await,
        };
        if inserted.is_err() {
            break;
        }
    }
    created.stored(inserted, error_type).map_err(explained)?;
    Ok(created.records.iter().map(Record::id).collect())
}
