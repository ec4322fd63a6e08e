use std::future::Future;

use diesel::QueryResult;
use diesel_async::{AsyncConnection, TransactionManager};
use uuid::Uuid;

use super::{all_checked, checked, chunks, explained, require_transaction};
use crate::backend::{InsertMany, InsertOne, OutboxBackend};
use crate::{OutboxEvent, Record};

/// Emits events from a diesel-async connection, pooled or not: [`Emit`](crate::Emit) with `.await`.
///
/// ```no_run
/// use diesel_async::{AsyncConnection, AsyncPgConnection};
/// use diesel_outbox::{AsyncEmit, Record};
///
/// # async fn f(conn: &mut AsyncPgConnection) -> diesel::QueryResult<()> {
/// conn.transaction(async |c| {
///     // ... the change to your own tables, then the event that tells of it:
///     c.emit(&Record::new("order", "7", "OrderPlaced").with_payload(*b"{}")).await?;
///     diesel::QueryResult::Ok(())
/// })
/// .await
/// # }
/// ```
pub trait AsyncEmit: AsyncConnection {
    /// Writes the event into the outbox: see [`Emit::emit`](crate::Emit::emit).
    ///
    /// # Errors
    /// As there.
    fn emit<E: OutboxEvent + ?Sized>(&mut self, event: &E) -> impl Future<Output = QueryResult<Uuid>> + Send;

    /// Writes any number of events: see [`Emit::emit_all`](crate::Emit::emit_all).
    ///
    /// # Errors
    /// As there.
    fn emit_all<I>(&mut self, events: I) -> impl Future<Output = QueryResult<Vec<Uuid>>> + Send
    where
        I: IntoIterator<Item: OutboxEvent>;
}

impl<C> AsyncEmit for C
where
    C: AsyncConnection<Backend: OutboxBackend>,
{
    fn emit<E: OutboxEvent + ?Sized>(&mut self, event: &E) -> impl Future<Output = QueryResult<Uuid>> + Send {
        // Done before the future starts: neither the event nor what it borrows has to be Sync.
        let record = require_transaction(C::TransactionManager::transaction_manager_status_mut(self))
            .and_then(|()| checked(event));
        async move {
            let record = record?;
            self.execute_returning_count(InsertOne::new(&record)).await.map_err(explained)?;
            Ok(record.id())
        }
    }

    fn emit_all<I>(&mut self, events: I) -> impl Future<Output = QueryResult<Vec<Uuid>>> + Send
    where
        I: IntoIterator<Item: OutboxEvent>,
    {
        let records = require_transaction(C::TransactionManager::transaction_manager_status_mut(self))
            .and_then(|()| all_checked(events));
        async move {
            let records = records?;
            for chunk in chunks(&records) {
                self.execute_returning_count(InsertMany::new(chunk)).await.map_err(explained)?;
            }
            Ok(records.iter().map(Record::id).collect())
        }
    }
}
