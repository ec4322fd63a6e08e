use std::time::{Duration, Instant};

use diesel::QueryResult;
use diesel::query_builder::{QueryFragment, QueryId};
use diesel_async::{AsyncConnection, TransactionManager};
use uuid::Uuid;

use super::{Inbox, Once, PRUNE_CHUNK, Pruning, found, require_mark};
use crate::backend::{InSchema, OutboxBackend, StillMarked};

impl Inbox {
    /// Runs the effect on a diesel-async connection, unless this consumer has handled the event before: see [`once`](Self::once).
    ///
    /// ```no_run
    /// use diesel_async::AsyncPgConnection;
    /// use diesel_outbox::{Inbox, Once};
    ///
    /// # async fn f(conn: &mut AsyncPgConnection, event_id: uuid::Uuid) -> diesel::QueryResult<()> {
    /// match Inbox::new("billing").once_async(conn, event_id, async |c| diesel::QueryResult::Ok("receipt")).await? {
    ///     Once::First(receipt) => println!("{receipt}"),
    ///     Once::Duplicate => println!("handled before"),
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// If the future is dropped before it completes, its transaction stays open, as with diesel-async's own transactions. Close such
    /// a connection. Pools do so by themselves.
    ///
    /// # Errors
    /// As for [`once`](Self::once).
    pub async fn once_async<C, T, E>(
        &self,
        conn: &mut C,
        event_id: Uuid,
        effect: impl AsyncFnOnce(&mut C) -> Result<T, E>,
    ) -> Result<Once<T>, E>
    where
        C: AsyncConnection<Backend: OutboxBackend>,
        E: From<diesel::result::Error>,
    {
        // Not `conn.transaction`, which would require a `Send` future from the effect.
        C::TransactionManager::begin_transaction(conn).await?;
        let handled = self.mark_then(conn, event_id, effect).await;
        end(conn, handled).await
    }

    async fn mark_then<C, T, E>(
        &self,
        conn: &mut C,
        event_id: Uuid,
        effect: impl AsyncFnOnce(&mut C) -> Result<T, E>,
    ) -> Result<Once<T>, E>
    where
        C: AsyncConnection<Backend: OutboxBackend>,
        E: From<diesel::result::Error>,
    {
        let mark = self.mark(event_id);
        match self.execute(conn, &mark).await? {
            0 => Ok(Once::Duplicate),
            _ => {
                let done = effect(conn).await?;
                require_mark(self.execute(conn, StillMarked::new(&mark)).await)?;
                Ok(Once::First(done))
            }
        }
    }

    /// Returns whether the table `inbox` exists, on a diesel-async connection: see [`has_table`](Self::has_table).
    ///
    /// # Errors
    /// As for [`has_table`](Self::has_table).
    pub async fn has_table_async<C>(&self, conn: &mut C) -> QueryResult<bool>
    where
        C: AsyncConnection<Backend: OutboxBackend>,
    {
        found(self.execute_alone(conn, self.find()).await)
    }

    /// Deletes old marks on a diesel-async connection: see [`prune`](Self::prune).
    ///
    /// # Errors
    /// As for [`prune`](Self::prune).
    pub async fn prune_async<C>(&self, conn: &mut C, retention: Duration) -> QueryResult<usize>
    where
        C: AsyncConnection<Backend: OutboxBackend>,
    {
        let mut pruned = 0;
        loop {
            let count = self.execute_alone(conn, self.prune_chunk(retention)).await?;
            pruned += count;
            if (count as i64) < PRUNE_CHUNK {
                return Ok(pruned);
            }
        }
    }

    /// Deletes some old marks on a diesel-async connection: see [`prune_step`](Self::prune_step).
    ///
    /// # Errors
    /// As for [`prune_step`](Self::prune_step).
    pub async fn prune_step_async<C>(&self, conn: &mut C, pruning: &mut Pruning) -> QueryResult<bool>
    where
        C: AsyncConnection<Backend: OutboxBackend>,
    {
        let began = Instant::now();
        let deleted = self.execute_alone(conn, self.prune_part(pruning, began)).await?;
        Ok(pruning.stepped(deleted, began.elapsed()))
    }

    /// Runs a statement in a transaction of its own. diesel-async prepares a statement before it runs it, and without a transaction a
    /// pooler may give each of the two another session.
    async fn execute_alone<'a, C, S>(&'a self, conn: &mut C, statement: S) -> QueryResult<usize>
    where
        C: AsyncConnection<Backend: OutboxBackend>,
        S: QueryFragment<C::Backend> + QueryId + Send + 'a,
    {
        C::TransactionManager::begin_transaction(conn).await?;
        let done = self.execute(conn, statement).await;
        end(conn, done).await
    }

    async fn execute<'a, C, S>(&'a self, conn: &mut C, statement: S) -> QueryResult<usize>
    where
        C: AsyncConnection<Backend: OutboxBackend>,
        S: QueryFragment<C::Backend> + QueryId + Send + 'a,
    {
        match self.schema {
            None => conn.execute_returning_count(statement).await,
            Some(_) => conn.execute_returning_count(InSchema(statement)).await,
        }
    }
}

/// Commits the transaction if this has succeeded, and else rolls it back.
async fn end<C, T, E>(conn: &mut C, done: Result<T, E>) -> Result<T, E>
where
    C: AsyncConnection,
    E: From<diesel::result::Error>,
{
    match done {
        Ok(done) => {
            C::TransactionManager::commit_transaction(conn).await?;
            Ok(done)
        }
        Err(error) => match C::TransactionManager::rollback_transaction(conn).await {
            Ok(()) | Err(diesel::result::Error::BrokenTransactionManager) => Err(error),
            Err(rollback_error) => Err(rollback_error.into()),
        },
    }
}
