use diesel::QueryResult;
use diesel::connection::TransactionManager;
use uuid::Uuid;

use super::error::explained;
use super::{EmitError, chunks, require_transaction};
use crate::backend::{InsertMany, InsertOne, quoted};
use crate::{OutboxConnection, OutboxEvent, Record};

/// An outbox with settings: headers that every event carries, and the schema that its tables are in.
///
/// `c.emit(&event)` needs none of this. Make an `Outbox` once for each request, so that all that it emits carries its tenant and
/// its trace, and no event needs a field for them:
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
/// // Where the request comes in:
/// let outbox = Outbox::new().header("tenant", tenant).header("traceparent", traceparent);
///
/// // Where it does its work:
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
/// A service whose connections do not have the outbox's schema in their `search_path` names it (PostgreSQL):
/// `Outbox::new().schema("events")`.
#[derive(Clone, Default, PartialEq, Eq)]
#[must_use]
pub struct Outbox {
    headers: Vec<(String, String)>,
    /// Quoted already.
    schema: Option<String>,
}

impl Outbox {
    /// The outbox that the connection's `search_path` finds, without headers.
    pub const fn new() -> Self {
        Self { headers: Vec::new(), schema: None }
    }

    /// Adds a header to every event that is emitted with this, behind the event's own. An event's own header of the same name
    /// comes first.
    pub fn header(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.headers.push((name.into(), value.into()));
        self
    }

    /// Sets the schema that the table `outbox` is in (PostgreSQL). On SQLite an emit is an error then.
    pub fn schema(mut self, schema: impl AsRef<str>) -> Self {
        self.schema = Some(quoted(schema.as_ref()));
        self
    }

    /// Writes the event into this outbox: see [`Emit::emit`](crate::Emit::emit).
    ///
    /// # Errors
    /// As there.
    pub fn emit<C, E>(&self, conn: &mut C, event: &E) -> QueryResult<Uuid>
    where
        C: OutboxConnection,
        E: OutboxEvent + ?Sized,
    {
        require_transaction(C::TransactionManager::transaction_manager_status_mut(conn))?;
        let record = self.checked(event)?;
        let insert = InsertOne::new(&record, self.schema.as_deref());
        conn.execute_statement((&insert).into()).map_err(explained)?;
        Ok(record.id())
    }

    /// Writes any number of events into this outbox: see [`Emit::emit_all`](crate::Emit::emit_all).
    ///
    /// # Errors
    /// As there.
    pub fn emit_all<C, I>(&self, conn: &mut C, events: I) -> QueryResult<Vec<Uuid>>
    where
        C: OutboxConnection,
        I: IntoIterator<Item: OutboxEvent>,
    {
        require_transaction(C::TransactionManager::transaction_manager_status_mut(conn))?;
        let records = self.all_checked(events)?;
        for chunk in chunks(&records) {
            let insert = InsertMany::new(chunk, self.schema.as_deref());
            conn.execute_statement((&insert).into()).map_err(explained)?;
        }
        Ok(records.iter().map(Record::id).collect())
    }

    pub(super) fn checked<E: OutboxEvent + ?Sized>(&self, event: &E) -> Result<Record, EmitError> {
        let mut record = event.to_record()?;
        let own = record.headers().len();
        for (name, value) in &self.headers {
            if record.headers()[..own].iter().all(|(other, _)| other != name) {
                record = record.header(name, value);
            }
        }
        record.check()?;
        Ok(record)
    }

    pub(super) fn all_checked<I>(&self, events: I) -> Result<Vec<Record>, EmitError>
    where
        I: IntoIterator<Item: OutboxEvent>,
    {
        events.into_iter().map(|event| self.checked(&event)).collect()
    }

    #[cfg(feature = "async")]
    pub(super) fn quoted_schema(&self) -> Option<String> {
        self.schema.clone()
    }
}

/// Shows the headers' names only, because their values may be confidential.
impl std::fmt::Debug for Outbox {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let headers: Vec<&str> = self.headers.iter().map(|(name, _)| name.as_str()).collect();
        f.debug_struct("Outbox").field("headers", &headers).field("schema", &self.schema).finish()
    }
}
