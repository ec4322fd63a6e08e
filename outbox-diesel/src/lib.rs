//! A transactional outbox and inbox for Diesel.
//!
//! Your service changes its tables and must tell other services about it. [`emit`](Emit::emit) writes the event to the table
//! `outbox` in the transaction that makes the change. A relay (`diesel-outbox-relay`) then sends it to Kafka, at least once and in
//! order for each aggregate. In a consumer, the [`Inbox`] makes sure that an event that arrives twice takes effect once.
//!
//! ```toml
//! [dependencies]
//! diesel-outbox = { version = "0.1", features = ["postgres"] } # or "mysql" or "sqlite"; add "async" for diesel-async
//! ```
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
//! // In the service: the change and its event are committed together, or neither is.
//! let event_id = conn.transaction(|c| {
//!     // diesel::insert_into(orders::table).values(&order).execute(c)?;
//!     c.emit(&OrderPlaced { order_id, total_cents: 990 })
//! })?;
//!
//! // In a consumer: the effect runs once, however often the event is delivered.
//! let charge = |_: &mut SqliteConnection| QueryResult::Ok("receipt");
//! assert_eq!(Inbox::new("billing").once(conn, event_id, charge)?, Once::First("receipt"));
//! assert_eq!(Inbox::new("billing").once(conn, event_id, charge)?, Once::Duplicate);
//! # Ok(())
//! # }
//! # #[cfg(not(all(feature = "sqlite", feature = "migrations", feature = "derive")))]
//! # fn main() {}
//! ```
//!
//! On a diesel-async connection, import `AsyncEmit` and add `.await`:
//!
//! ```no_run
//! # #[cfg(all(feature = "async", feature = "postgres"))]
//! # mod example {
//! # use diesel::QueryResult;
//! use diesel_async::{AsyncConnection, AsyncPgConnection};
//! use diesel_outbox::{AsyncEmit, Record};
//!
//! async fn place(conn: &mut AsyncPgConnection) -> QueryResult<()> {
//!     conn.transaction(async |c| {
//!         // diesel::insert_into(orders::table).values(&order).execute(c).await?;
//!         c.emit(&Record::new("order", "7", "OrderPlaced")).await?;
//!         Ok(())
//!     })
//!     .await
//! }
//! # }
//! ```
//!
//! # Overview
//!
//! | item | what it does |
//! |---|---|
//! | [`OutboxEvent`] | makes a domain type an event: derive it, or build a [`Record`] by hand |
//! | [`Emit`], `AsyncEmit` | add `emit` and `emit_all` to every Diesel and diesel-async connection, pooled or not |
//! | [`Outbox`] | emits with [headers that all events of a request share](#headers-for-a-whole-request), or into [a named schema](#a-schema-of-its-own) |
//! | [`ScheduledEvent`] | an event that is to be sent later: see [`emit_at`](Emit::emit_at), [`emit_after`](Emit::emit_after) and [`cancel_scheduled`](Emit::cancel_scheduled) |
//! | [`InboxEvent`] | decodes an event in a consumer: derive it |
//! | [`Inbox`] | runs an effect once for each event |
//! | `Migrations` | creates the tables |
//! | [`multi_connection!`] | does all of this for [an enum of connections](#a-database-chosen-at-run-time) |
//!
//! The tables are plain SQL, and a contract: Debezium reads them with its default column names, and programs in other languages may
//! write to them. Such programs must compute the column `shard` as [`diesel_outbox_core::shard_of`] does. Otherwise an aggregate's
//! events lose their order.
//!
//! # Order
//!
//! Update or lock the aggregate's row first, and then emit. The events of each aggregate are then sent in the order of its commits.
//!
//! The relay sends events in the order of the column `seq`, whose value the database assigns at the insert. For one aggregate, that is
//! the order of the commits only if its writers wait for each other before they emit.
//!
//! # Errors
//!
//! `emit` returns Diesel's error, so `?` works in every transaction in which it works for Diesel: with anyhow, and with your own error
//! if it implements `From<diesel::result::Error>`. [`EmitError::of`] returns the reason if the event was refused. With error-stack,
//! change the context of the transaction's result:
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
//! # Headers for a whole request
//!
//! [`Outbox`] adds headers such as the tenant or the `traceparent` to every event that it emits, so the events need no fields for
//! them:
//!
//! ```
//! # #[cfg(feature = "sqlite")]
//! # mod example {
//! # use diesel::prelude::*;
//! # use diesel_outbox::{Outbox, OutboxEvent};
//! fn place(conn: &mut SqliteConnection, tenant: &str, event: impl OutboxEvent) -> QueryResult<()> {
//!     let outbox = Outbox::new().header("tenant", tenant);
//!     conn.transaction(|c| {
//!         outbox.emit(c, &event)?;
//!         Ok(())
//!     })
//! }
//! # }
//! ```
//!
//! # A schema of its own
//!
//! The tables may be in a schema that is not in your `search_path`, or on MySQL and MariaDB in another database. Name it everywhere,
//! also in the relay's configuration:
//!
//! ```
//! # #[cfg(feature = "migrations")]
//! # {
//! use diesel_outbox::{Inbox, Migrations, Outbox};
//!
//! let migrations = Migrations::new().schema("events"); // PostgreSQL: on MySQL and MariaDB connect to that database instead
//! let outbox = Outbox::new().schema("events");
//! let inbox = Inbox::new("billing").schema("events");
//! # }
//! ```
//!
//! # A database chosen at run time
//!
//! For an enum with Diesel's `#[derive(MultiConnection)]`, list its variants once. Then it emits like any other connection:
//!
//! ```
//! # #[cfg(feature = "sqlite")]
//! # mod example {
//! use diesel::prelude::*;
//!
//! #[derive(diesel::MultiConnection)]
//! pub enum DbConn {
//! #   #[cfg(any())]
//!     Pg(PgConnection),
//!     Sqlite(SqliteConnection),
//! }
//!
//! diesel_outbox::multi_connection!(DbConn {
//! #   #[cfg(any())]
//!     Pg,
//!     Sqlite,
//! });
//! # }
//! ```
//!
//! # A crate for the events
//!
//! Services that share events can define them in a crate of their own, which needs neither Diesel nor a database:
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
//! `Migrations` needs a synchronous connection. If your service has only async ones, wrap one in diesel-async's
//! `AsyncConnectionWrapper` (feature `async-connection-wrapper` of diesel-async). It blocks, so use it in `spawn_blocking`. The wrapper
//! has two `establish` methods, so name the trait:
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
//! | feature | default | what it adds |
//! |---|---|---|
//! | `derive` | yes | `#[derive(OutboxEvent)]` and `#[derive(InboxEvent)]` |
//! | `migrations` | yes | `Migrations`, which creates the tables with one call |
//! | `postgres` | no | PostgreSQL. For Diesel's `PgConnection`, also turn on the feature `postgres` of Diesel, which needs libpq |
//! | `mysql` | no | MySQL and MariaDB. For Diesel's `MysqlConnection`, also turn on the feature `mysql` of Diesel, which needs libmysqlclient or libmariadb |
//! | `sqlite` | no | SQLite |
//! | `async` | no | `AsyncEmit`, and the methods of [`Outbox`] and [`Inbox`] for diesel-async's connections |
//! | `opentelemetry` | no | a span of OpenTelemetry for each emitted event, whose context the event carries: `docs/tracing.md` in the repository |
//! | `testing` | no | assertions on emitted events, for your tests: `testing` |
//!
//! Turn on `postgres`, `mysql` or `sqlite`, or several of them. Without any of the three, no connection can emit.
//!
//! # SQLite
//!
//! Set a `busy_timeout` on your connections, and emit in `conn.immediate_transaction(|c| ..)`.
//!
//! SQLite has one writer at a time, and the relay also writes. With a `busy_timeout`, connections wait for their turn. If a plain
//! `transaction` reads first and another connection has written since, an emit fails at once with "database is locked", whatever the
//! timeout.

#![cfg_attr(docsrs, feature(doc_cfg))]

// Each database's statements use only some of the fields, so with one database others are unused.
#[cfg_attr(not(all(feature = "postgres", feature = "sqlite")), allow(dead_code))]
mod backend;
mod connection;
mod emit;
mod inbox;
#[cfg(feature = "migrations")]
mod migrate;
mod problem;
#[cfg(feature = "testing")]
pub mod testing;

#[doc(hidden)]
pub use diesel_outbox_core::__private;
pub use diesel_outbox_core::{DecodeError, EncodedEvent, InboxEvent, OutboxEvent, Record, RecordError, wire};
#[cfg(feature = "derive")]
pub use diesel_outbox_derive::{InboxEvent, OutboxEvent};

pub use self::backend::OutboxBackend;
#[doc(hidden)]
pub use self::backend::{LoadedRow, SelectRows};
pub use self::connection::OutboxConnection;
#[doc(hidden)]
pub use self::connection::Statement;
#[cfg(feature = "async")]
pub use self::emit::AsyncEmit;
pub use self::emit::{Emit, EmitError, Outbox, ScheduledEvent};
pub use self::inbox::{Inbox, Once, Pruning};
#[cfg(all(feature = "migrations", feature = "mysql"))]
#[doc(hidden)]
pub use self::migrate::MysqlMigration;
#[cfg(feature = "migrations")]
pub use self::migrate::{MigrateConnection, MigrationError, Migrations};
#[doc(hidden)]
pub use self::problem::{connection_problem, is_malformed_url};
