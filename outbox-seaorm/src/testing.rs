//! Assertions on the events that a function emits, for the tests of a service. Feature `testing`.
//!
//! The events are read in the transaction that emitted them, so nothing has to be committed:
//!
//! ```
//! # #[cfg(all(feature = "sqlite", feature = "migrations", feature = "derive"))]
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), sea_orm::DbErr> {
//! use sea_orm::{Database, TransactionTrait};
//! use sea_orm_outbox::testing::{Expected, ReadEmitted};
//! use sea_orm_outbox::{Emit, OutboxEvent};
//!
//! #[derive(serde::Serialize, OutboxEvent)]
//! #[outbox(aggregate = "order")]
//! struct OrderPlaced {
//!     #[outbox(id)]
//!     order_id: u64,
//!     total_cents: i64,
//! }
//!
//! # let db = Database::connect("sqlite::memory:").await?;
//! # sea_orm_outbox::Migrations::new().run(&db).await?;
//! let txn = db.begin().await?;
//! let before = txn.emitted().await?;
//! // place_order(&txn).await?, which emits:
//! txn.emit(&OrderPlaced { order_id: 7, total_cents: 990 }).await?;
//! let emitted = txn.emitted().await?.since(&before);
//! emitted.assert(&OrderPlaced { order_id: 7, total_cents: 990 });
//! emitted.refute(Expected::event_type("OrderPaid"));
//! txn.rollback().await
//! # }
//! # #[cfg(not(all(feature = "sqlite", feature = "migrations", feature = "derive")))]
//! # fn main() {}
//! ```
//!
//! What another connection commits to the same outbox between the two looks is among the events too. So give each test its own database
//! or schema, or a transaction and an outbox to which only transactions like it emit.

use std::future::Future;

pub use diesel_outbox_core::testing::{Emitted, Expected};
use sea_orm::{ConnectionTrait, DbErr};

use crate::Outbox;
use crate::backend::{Backend, Stored};
use crate::emit::record_of;

/// The method `emitted` of SeaORM's connections and transactions.
pub trait ReadEmitted: ConnectionTrait {
    /// Returns all events in the outbox that this connection or transaction sees, in their order. An event that is scheduled is not among
    /// them: see [`Emit::scheduled`](crate::Emit::scheduled).
    ///
    /// # Errors
    /// The database's error, or a type error if another program has written a row that is no record.
    fn emitted(&self) -> impl Future<Output = Result<Emitted, DbErr>> + Send;
}

impl<C: ConnectionTrait> ReadEmitted for C {
    async fn emitted(&self) -> Result<Emitted, DbErr> {
        Outbox::new().emitted(self).await
    }
}

impl Outbox {
    /// Returns all events in this outbox, for tests: see [`ReadEmitted::emitted`].
    ///
    /// # Errors
    /// As for [`ReadEmitted::emitted`].
    pub async fn emitted<C: ConnectionTrait>(&self, c: &C) -> Result<Emitted, DbErr> {
        let rows = Backend::of(c, self.in_schema())?.load(c, Stored::Outbox).await?;
        rows.into_iter().map(record_of).collect::<Result<_, _>>().map(Emitted::new)
    }
}
