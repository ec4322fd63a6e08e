//! Assertions on the events that a function emits, for the tests of a service. Feature `testing`.
//!
//! The events are read on the connection that emitted them, so nothing has to be committed:
//!
//! ```
//! # use diesel::prelude::*;
//! # #[cfg(all(feature = "sqlite", feature = "migrations", feature = "derive"))]
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use diesel_outbox::testing::{Expected, ReadEmitted};
//! use diesel_outbox::{Emit, OutboxEvent};
//!
//! #[derive(serde::Serialize, OutboxEvent)]
//! #[outbox(aggregate = "order")]
//! struct OrderPlaced {
//!     #[outbox(id)]
//!     order_id: u64,
//!     total_cents: i64,
//! }
//!
//! fn place_order(conn: &mut SqliteConnection, total_cents: i64) -> QueryResult<()> {
//!     conn.transaction(|c| c.emit(&OrderPlaced { order_id: 7, total_cents }).map(drop))
//! }
//!
//! # let mut conn = SqliteConnection::establish(":memory:")?;
//! # diesel_outbox::Migrations::new().run(&mut conn)?;
//! conn.test_transaction(|c| {
//!     let before = c.emitted()?;
//!     place_order(c, 990)?;
//!     let emitted = c.emitted()?.since(&before);
//!     emitted.assert(&OrderPlaced { order_id: 7, total_cents: 990 });
//!     emitted.refute(Expected::event_type("OrderPaid"));
//!     QueryResult::Ok(())
//! });
//! # Ok(())
//! # }
//! # #[cfg(not(all(feature = "sqlite", feature = "migrations", feature = "derive")))]
//! # fn main() {}
//! ```
//!
//! What another connection commits to the same outbox between the two looks is among the events too. So give each test its own database
//! or schema, or a transaction and an outbox to which only transactions like it emit.

#[cfg(feature = "async")]
use std::future::Future;

use diesel::QueryResult;
use diesel::connection::Connection;
pub use diesel_outbox_core::testing::{Emitted, Expected};

#[cfg(feature = "async")]
use crate::backend::{Load, OutboxBackend};
use crate::backend::{LoadedRow, SelectRows, Table};
use crate::emit::record_of;
use crate::{Outbox, OutboxConnection};

/// The method `emitted` of every synchronous Diesel connection, pooled or not.
pub trait ReadEmitted: Connection {
    /// Returns all events in the outbox that this connection sees, in their order, those of its open transaction among them. An event
    /// that is scheduled is not among them: see [`Emit::scheduled`](crate::Emit::scheduled).
    ///
    /// # Errors
    /// The database's error, or a `DeserializationError` if another program has written a row that is no record.
    fn emitted(&mut self) -> QueryResult<Emitted>;
}

impl<C: OutboxConnection> ReadEmitted for C {
    fn emitted(&mut self) -> QueryResult<Emitted> {
        Outbox::new().emitted(self)
    }
}

/// The method `emitted` of every diesel-async connection, pooled or not: [`ReadEmitted`] with `.await`.
#[cfg(feature = "async")]
pub trait AsyncReadEmitted: diesel_async::AsyncConnection {
    /// Returns all events in the outbox that this connection sees: see [`ReadEmitted::emitted`].
    ///
    /// # Errors
    /// As for [`ReadEmitted::emitted`].
    fn emitted(&mut self) -> impl Future<Output = QueryResult<Emitted>> + Send;
}

#[cfg(feature = "async")]
impl<C> AsyncReadEmitted for C
where
    C: diesel_async::AsyncConnection<Backend: OutboxBackend>,
{
    async fn emitted(&mut self) -> QueryResult<Emitted> {
        Outbox::new().emitted_async(self).await
    }
}

impl Outbox {
    /// Returns all events in this outbox, for tests: see [`ReadEmitted::emitted`].
    ///
    /// # Errors
    /// As for [`ReadEmitted::emitted`].
    pub fn emitted<C: OutboxConnection>(&self, conn: &mut C) -> QueryResult<Emitted> {
        emitted(conn.load_rows(&SelectRows::new(Table::Outbox, self.in_schema()))?)
    }

    /// Returns all events in this outbox, on a diesel-async connection, for tests: see [`ReadEmitted::emitted`].
    ///
    /// # Errors
    /// As for [`ReadEmitted::emitted`].
    #[cfg(feature = "async")]
    pub async fn emitted_async<C>(&self, conn: &mut C) -> QueryResult<Emitted>
    where
        C: diesel_async::AsyncConnection<Backend: OutboxBackend>,
    {
        let select = SelectRows::new(Table::Outbox, self.in_schema());
        emitted(<C::Backend as Load>::load_async(conn, select).await?)
    }
}

fn emitted(rows: Vec<LoadedRow>) -> QueryResult<Emitted> {
    rows.into_iter().map(record_of).collect::<QueryResult<_>>().map(Emitted::new)
}
