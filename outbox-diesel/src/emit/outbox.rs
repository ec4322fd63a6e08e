use diesel::QueryResult;
use diesel::connection::TransactionManager;
use diesel_outbox_core::__private::checked_record;
use diesel_outbox_core::__private::spans::Created;
use uuid::Uuid;

use super::error::{error_type, explained};
use super::{EmitError, chunks, require_transaction};
use crate::backend::{InsertMany, InsertOne};
use crate::{OutboxConnection, OutboxEvent, Record};

/// An outbox with settings: headers that every event gets, and the schema of its tables.
///
/// If you need neither, call `c.emit(&event)`. To send the tenant or the trace of a request with all of its events, make one
/// `Outbox` for each request. The events then need no fields for them:
///
/// ```
/// # use diesel::prelude::*;
/// # #[cfg(all(feature = "sqlite", feature = "migrations", feature = "derive"))]
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use diesel_outbox::{Outbox, OutboxEvent};
///
/// #[derive(serde::Serialize, OutboxEvent)]
/// #[outbox(aggregate = "order")]
/// struct OrderPlaced {
///     #[outbox(id)]
///     order_id: u64,
/// }
///
/// # let conn = &mut SqliteConnection::establish(":memory:")?;
/// # diesel_outbox::Migrations::new().run(conn)?;
/// # let (tenant, traceparent) = ("acme", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01");
/// // In a middleware, once for each request:
/// let outbox = Outbox::new().header("tenant", tenant).header("traceparent", traceparent);
///
/// // In the request's handler:
/// conn.transaction(|c| {
///     // ...
///     outbox.emit(c, &OrderPlaced { order_id: 7 })
/// })?;
/// # Ok(())
/// # }
/// # #[cfg(not(all(feature = "sqlite", feature = "migrations", feature = "derive")))]
/// # fn main() {}
/// ```
///
/// If the tables are in a schema that is not in the connection's `search_path`, or on MySQL and MariaDB in another database, name it:
/// `Outbox::new().schema("events")`.
#[derive(Clone, Default, PartialEq, Eq)]
#[must_use]
pub struct Outbox {
    headers: Vec<(String, String)>,
    schema: Option<String>,
}

impl Outbox {
    /// Returns an outbox without headers, whose table is in the connection's `search_path` or database.
    pub const fn new() -> Self {
        Self { headers: Vec::new(), schema: None }
    }

    /// Adds a header to every event that is emitted with this outbox, behind the event's own headers. If the event has a header of
    /// the same name, the event's header wins. Default: no headers.
    pub fn header(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.headers.push((name.into(), value.into()));
        self
    }

    /// Sets the schema of the table `outbox`, which is a database on MySQL and MariaDB. On SQLite, every emit then returns
    /// [`EmitError::NoSchemas`]. Default: the connection's `search_path` or database decides.
    ///
    /// Each schema costs a connection a prepared statement or two, which it keeps: for thousands of schemas set the `search_path`
    /// instead.
    pub fn schema(mut self, schema: impl Into<String>) -> Self {
        self.schema = Some(schema.into());
        self
    }

    /// Writes the event to this outbox and returns its id: see [`Emit::emit`](crate::Emit::emit).
    ///
    /// # Errors
    /// As for [`Emit::emit`](crate::Emit::emit).
    pub fn emit<C, E>(&self, conn: &mut C, event: &E) -> QueryResult<Uuid>
    where
        C: OutboxConnection,
        E: OutboxEvent + ?Sized,
    {
        require_transaction(C::TransactionManager::transaction_manager_status_mut(conn))?;
        let mut created = self.created(event)?;
        let insert = InsertOne::new(&created.records, self.schema.as_deref());
        let inserted = conn.execute_statement((&insert).into());
        created.stored(inserted, error_type).map_err(explained)?;
        Ok(created.records.id())
    }

    /// Writes any number of events to this outbox and returns their ids: see [`Emit::emit_all`](crate::Emit::emit_all).
    ///
    /// # Errors
    /// As for [`Emit::emit`](crate::Emit::emit).
    pub fn emit_all<C, I>(&self, conn: &mut C, events: I) -> QueryResult<Vec<Uuid>>
    where
        C: OutboxConnection,
        I: IntoIterator<Item: OutboxEvent>,
    {
        require_transaction(C::TransactionManager::transaction_manager_status_mut(conn))?;
        let mut created = self.all_created(events)?;
        let inserted = chunks(&created.records).try_for_each(|chunk| {
            let insert = InsertMany::new(chunk, self.schema.as_deref());
            conn.execute_statement((&insert).into()).map(drop)
        });
        created.stored(inserted, error_type).map_err(explained)?;
        Ok(created.records.iter().map(Record::id).collect())
    }

    pub(crate) fn in_schema(&self) -> Option<&str> {
        self.schema.as_deref()
    }

    pub(super) fn created<E: OutboxEvent + ?Sized>(&self, event: &E) -> Result<Created<Record>, EmitError> {
        Ok(Created::one(checked_record(event, &self.headers)?))
    }

    pub(super) fn all_created<I>(&self, events: I) -> Result<Created<Vec<Record>>, EmitError>
    where
        I: IntoIterator<Item: OutboxEvent>,
    {
        let records = events.into_iter().map(|event| checked_record(&event, &self.headers));
        Ok(Created::all(records.collect::<Result<_, _>>()?))
    }

    #[cfg(feature = "async")]
    pub(super) fn schema_name(&self) -> Option<String> {
        self.schema.clone()
    }
}

/// Shows only the names of the headers, because their values may be confidential.
impl std::fmt::Debug for Outbox {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let headers: Vec<&str> = self.headers.iter().map(|(name, _)| name.as_str()).collect();
        f.debug_struct("Outbox").field("headers", &headers).field("schema", &self.schema).finish()
    }
}
