//! A transactional outbox and inbox for Diesel: emit events in the transaction that caused them.
//!
//! Your service changes its tables and must tell others about it. [`emit`](Emit::emit) writes the event to the table
//! `outbox` in the same transaction, and a relay (`diesel-outbox-relay`) brings it to the broker afterwards, at least
//! once and in order for each aggregate. Consumers protect themselves with the [`Inbox`].
//!
//! ```
//! # #[cfg(all(feature = "sqlite", feature = "migrations", feature = "derive"))]
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use diesel::prelude::*;
//! use diesel_outbox::{Emit, Inbox, Migrations, Once, OutboxEvent};
//! use uuid::Uuid;
//!
//! #[derive(serde::Serialize, OutboxEvent)]
//! #[outbox(aggregate = "order")]
//! struct OrderPlaced {
//!     #[outbox(id)]
//!     order_id: Uuid,
//!     total_cents: i64,
//! }
//!
//! # let order_id = Uuid::nil();
//! let conn = &mut SqliteConnection::establish(":memory:")?;
//! Migrations::new().run(conn)?;
//!
//! // In the service: the change and its event, both or neither.
//! let event_id = conn.transaction(|c| {
//!     // diesel::insert_into(orders::table).values(&order).execute(c)?;
//!     c.emit(&OrderPlaced { order_id, total_cents: 990 })
//! })?;
//!
//! // In a consumer: the effect, once, however often the event is delivered.
//! let charge = |_: &mut SqliteConnection| QueryResult::Ok("receipt");
//! assert_eq!(Inbox::new("billing").once(conn, event_id, charge)?, Once::First("receipt"));
//! assert_eq!(Inbox::new("billing").once(conn, event_id, charge)?, Once::Duplicate);
//! # Ok(())
//! # }
//! # #[cfg(not(all(feature = "sqlite", feature = "migrations", feature = "derive")))]
//! # fn main() {}
//! ```
//!
//! # What there is
//!
//! - [`Emit`] and `AsyncEmit` put `emit` and `emit_all` on every Diesel and diesel-async connection, pooled or not. [`Outbox`] has
//!   headers that all events of a request carry, and names a schema.
//! - [`OutboxEvent`] makes a domain type an event, and [`InboxEvent`] decodes it in a consumer: derive them. If a type would be in
//!   the way, build a [`Record`] by hand.
//! - [`Inbox`] runs an effect once for each event.
//! - `Migrations` creates the tables. They are plain SQL, and a contract: Debezium reads them with its default column names,
//!   and programs in other languages may write to them. Those must compute `shard` as [`diesel_outbox_core::shard_of`] does,
//!   or an aggregate's events lose their order.
//! - [`multi_connection!`] does all of this for an enum of connections, of which the operator chooses one.
//!
//! # Order
//!
//! Update or lock the aggregate's row first, and then emit. Then each aggregate's events are sent in the order of its
//! commits.
//!
//! The relay sends events in the order of the column `seq`, which the database hands out at the insert. For one aggregate
//! that is the order of the commits only if its writers wait for each other before they emit.
//!
//! # Errors
//!
//! `emit` returns Diesel's error, so `?` works in every transaction in which it works for Diesel: with an error of your own that
//! has `From<diesel::result::Error>`, and with anyhow. [`EmitError::of`] finds out whether the event was refused. With
//! error-stack, change the context of the transaction's result:
//!
//! ```
//! # #[cfg(feature = "sqlite")]
//! # mod example {
//! use diesel::prelude::*;
//! use diesel_outbox::{Emit, Record};
//! use error_stack::{Report, ResultExt};
//!
//! #[derive(Debug, thiserror::Error)]
//! #[error("the order was not stored")]
//! struct StorageError;
//!
//! fn place(conn: &mut SqliteConnection) -> Result<(), Report<StorageError>> {
//!     conn.transaction(|c| {
//!         c.emit(&Record::new("order", "7", "OrderPlaced"))?;
//!         QueryResult::Ok(())
//!     })
//!     .change_context(StorageError)
//! }
//! # }
//! ```
//!
//! # A crate for the events
//!
//! Services that share events have them in a crate, which needs neither Diesel nor a database:
//!
//! ```toml
//! [dependencies]
//! diesel-outbox-core = "0.1"
//! diesel-outbox-derive = "0.1"
//! serde = { version = "1", features = ["derive"] }
//! ```
//!
//! ```
//! # #[cfg(feature = "derive")]
//! # mod events {
//! use diesel_outbox_derive::{InboxEvent, OutboxEvent};
//! use serde::{Deserialize, Serialize};
//!
//! #[derive(Serialize, Deserialize, OutboxEvent, InboxEvent)]
//! #[outbox(aggregate = "order", id(order_id), crate = diesel_outbox_core)]
//! pub enum OrderEvent {
//!     OrderPlaced { order_id: u64, total_cents: i64 },
//!     OrderPaid { order_id: u64 },
//! }
//! # }
//! ```
//!
//! # Migrations on an async connection
//!
//! `Migrations` takes a synchronous connection. Around an `AsyncPgConnection`, diesel-async's `AsyncConnectionWrapper` is one; turn
//! on the feature `async-connection-wrapper` of diesel-async. On a thread of its own it may block. Name the trait whose `establish`
//! you mean, because the wrapper has two:
//!
//! ```no_run
//! # #[cfg(all(feature = "async", feature = "postgres", feature = "migrations"))]
//! # mod example {
//! use diesel::Connection;
//! use diesel_async::AsyncPgConnection;
//! use diesel_async::async_connection_wrapper::AsyncConnectionWrapper;
//! use diesel_outbox::Migrations;
//!
//! type Wrapper = AsyncConnectionWrapper<AsyncPgConnection>;
//!
//! async fn migrate(database_url: String) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
//!     tokio::task::spawn_blocking(move || {
//!         let mut conn = <Wrapper as Connection>::establish(&database_url)?;
//!         Migrations::new().run(&mut conn)?;
//!         Ok(())
//!     })
//!     .await?
//! }
//! # }
//! ```
//!
//! # Features
//!
//! | feature | default | |
//! |---|---|---|
//! | `derive` | yes | `#[derive(OutboxEvent)]` and `#[derive(InboxEvent)]` |
//! | `migrations` | yes | the embedded migrations |
//! | `postgres` | | PostgreSQL. It needs no libpq itself; Diesel's feature `postgres` does |
//! | `sqlite` | | SQLite |
//! | `async` | | `emit` and the inbox on diesel-async's connections |
//!
//! # SQLite
//!
//! Set a `busy_timeout` on your connections, and emit in `conn.immediate_transaction(|c| ..)`.
//!
//! SQLite has one writer at a time, and the relay writes too, now and then. With the timeout, connections wait for their
//! turn. A plain `transaction` that reads first fails with "database is locked" when it emits, whatever the timeout, if
//! another connection has written meanwhile.

#![cfg_attr(docsrs, feature(doc_cfg))]

// Each database's statements read what they need of these.
#[cfg_attr(not(all(feature = "postgres", feature = "sqlite")), allow(dead_code))]
mod backend;
mod connection;
mod emit;
mod inbox;
#[cfg(feature = "migrations")]
mod migrate;
mod problem;

#[doc(hidden)]
pub use diesel_outbox_core::__private;
pub use diesel_outbox_core::{DecodeError, EncodedEvent, InboxEvent, OutboxEvent, Record, RecordError, wire};
#[cfg(feature = "derive")]
pub use diesel_outbox_derive::{InboxEvent, OutboxEvent};

pub use self::backend::OutboxBackend;
#[cfg(feature = "migrations")]
pub use self::connection::MigrateConnection;
pub use self::connection::OutboxConnection;
#[doc(hidden)]
pub use self::connection::Statement;
#[cfg(feature = "async")]
pub use self::emit::AsyncEmit;
pub use self::emit::{Emit, EmitError, Outbox};
pub use self::inbox::{Inbox, Once, Pruning};
#[cfg(feature = "migrations")]
pub use self::migrate::{MigrationError, Migrations};
pub use self::problem::connection_problem;
