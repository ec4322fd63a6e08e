//! A transactional outbox and inbox for SeaORM 2.
//!
//! Your service changes its tables and must tell other services about it. [`emit`](Emit::emit) writes the event to the table
//! `outbox` in the transaction that makes the change. A relay (`diesel-outbox-relay`) then sends it to Kafka, at least once and in
//! order for each aggregate. In a consumer, the [`Inbox`] makes sure that an event that arrives twice takes effect once.
//!
//! ```toml
//! [dependencies]
//! sea-orm-outbox = { version = "0.1", features = ["postgres"] } # or "mysql", or "sqlite"
//! ```
//!
//! It needs Rust 1.94, as SeaORM does.
//!
//! SeaORM logs every statement at the level `INFO`, those of this crate too. To have them at `DEBUG`, connect with
//! `ConnectOptions::new(url).sqlx_logging_level(log::LevelFilter::Debug)`, or turn them off with `sqlx_logging(false)`.
//!
//! ```
//! # #[cfg(all(feature = "sqlite", feature = "migrations", feature = "derive"))]
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), sea_orm::DbErr> {
//! use sea_orm::{Database, DatabaseTransaction, DbErr, TransactionTrait};
//! use sea_orm_outbox::{Emit, Inbox, Migrations, Once, OutboxEvent};
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
//! let db = Database::connect("sqlite::memory:").await?;
//! Migrations::new().run(&db).await?;
//!
//! // In the service: the change and its event are committed together, or neither is.
//! let txn = db.begin().await?;
//! // order.insert(&txn).await?;
//! let event_id = txn.emit(&OrderPlaced { order_id, total_cents: 990 }).await?;
//! txn.commit().await?;
//!
//! // In a consumer: the effect runs once, however often the event is delivered.
//! let charge = async |_txn: &DatabaseTransaction| Ok::<_, DbErr>("receipt");
//! assert_eq!(Inbox::new("billing").once(&db, event_id, charge).await?, Once::First("receipt"));
//! assert_eq!(Inbox::new("billing").once(&db, event_id, charge).await?, Once::Duplicate);
//! # Ok(())
//! # }
//! # #[cfg(not(all(feature = "sqlite", feature = "migrations", feature = "derive")))]
//! # fn main() {}
//! ```
//!
//! Only a transaction can emit. On a connection, `emit` does not compile, and the compiler says what to do instead.
//!
//! # Overview
//!
//! | item | what it does |
//! |---|---|
//! | [`OutboxEvent`] | makes a domain type an event: derive it, or build a [`Record`] by hand |
//! | [`Emit`] | adds `emit` and `emit_all` to SeaORM's transactions |
//! | [`Outbox`] | emits with [headers that all events of a request share](#headers-for-a-whole-request), or into [a named schema](#a-schema-of-its-own) |
//! | [`ScheduledEvent`] | an event that is to be sent later: see [`emit_at`](Emit::emit_at), [`emit_after`](Emit::emit_after) and [`cancel_scheduled`](Emit::cancel_scheduled) |
//! | [`InboxEvent`] | decodes an event in a consumer: derive it |
//! | [`Inbox`] | runs an effect once for each event: see [how a service consumes](#consume) |
//! | `Migrations` | creates the tables, by itself or [with sea-orm-migration](#migrations) |
//!
//! The tables are plain SQL, and a contract: Debezium reads them with its default column names, services on Diesel use the same ones
//! (`diesel-outbox`), and programs in other languages may write to them. Such programs must compute the column `shard` as
//! [`diesel_outbox_core::shard_of`] does. Otherwise an aggregate's events lose their order.
//!
//! # The relay
//!
//! The relay runs in your service, or as a process of its own, the binary `outbox`. It has its own connections, so it does not matter
//! which library writes the events:
//!
//! ```text
//! use diesel_outbox_relay::{Kafka, Relay};
//!
//! let relay = Relay::postgres(database_url).broker(Kafka::new("localhost:9092")).spawn()?;
//! // .. serve ..
//! relay.stop().await?;
//! ```
//!
//! The project's `examples/seaorm` is such a service, with axum.
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
//! `emit` returns [`DbErr`](sea_orm::DbErr), so `?` works wherever it works for SeaORM's own calls. If `emit` refused the event,
//! [`EmitError::of`] returns the reason. The inbox's effect may have any error that implements `From<DbErr>`.
//!
//! # Headers for a whole request
//!
//! [`Outbox`] adds headers such as the tenant or the `traceparent` to every event that it emits, so the events need no fields for
//! them:
//!
//! ```
//! # use sea_orm::{DatabaseConnection, DbErr, TransactionTrait};
//! # use sea_orm_outbox::{Outbox, OutboxEvent};
//! async fn place(db: &DatabaseConnection, tenant: &str, event: impl OutboxEvent) -> Result<(), DbErr> {
//!     let outbox = Outbox::new().header("tenant", tenant);
//!     let txn = db.begin().await?;
//!     outbox.emit(&txn, &event).await?;
//!     txn.commit().await
//! }
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
//! use sea_orm_outbox::{Inbox, Migrations, Outbox};
//!
//! let migrations = Migrations::new().schema("events"); // PostgreSQL: on MySQL and MariaDB connect to that database instead
//! let outbox = Outbox::new().schema("events");
//! let inbox = Inbox::new("billing").schema("events");
//! # }
//! ```
//!
// The package of its tests compiles this part, because it takes rdkafka.
#![cfg_attr(not(doctest), doc = include_str!("consume.md"))]
//!
//! # Migrations
//!
//! `Migrations::new().run(&db)` creates the tables at your service's start. If you use sea-orm-migration, turn on the feature `migrator`
//! and put the outbox's migrations before your own:
//!
//! ```
//! # #[cfg(feature = "migrator")]
//! # mod example {
//! use sea_orm_migration::{MigrationTrait, MigratorTrait, async_trait::async_trait};
//! use sea_orm_outbox::Migrations;
//!
//! pub struct Migrator;
//!
//! #[async_trait]
//! impl MigratorTrait for Migrator {
//!     fn migrations() -> Vec<Box<dyn MigrationTrait>> {
//!         let mut migrations = Migrations::new().for_migrator();
//!         // migrations.push(Box::new(m20261201_000001_create_order::Migration));
//!         migrations
//!     }
//! }
//! # }
//! ```
//!
//! # A crate for the events
//!
//! Services that share events can define them in a crate of their own, which needs neither SeaORM nor a database:
//!
//! ```toml
//! [dependencies]
//! diesel-outbox-core = "0.1"
//! diesel-outbox-derive = "0.1"
//! serde = { version = "1", features = ["derive"] }
//! ```
//!
//! There, write `#[outbox(crate = diesel_outbox_core)]` on each event.
//!
//! # Features
//!
//! | feature | default | what it adds |
//! |---|---|---|
//! | `derive` | yes | `#[derive(OutboxEvent)]` and `#[derive(InboxEvent)]` |
//! | `migrations` | yes | `Migrations`, which creates the tables with one call |
//! | `migrator` | no | the migrations of sea-orm-migration |
//! | `opentelemetry` | no | a span of OpenTelemetry for each emitted event, whose context the event carries: `docs/tracing.md` in the repository |
//! | `testing` | no | assertions on emitted events, for your tests: `testing` |
//! | `postgres` | no | PostgreSQL, and SeaORM's feature `sqlx-postgres` |
//! | `mysql` | no | MySQL and MariaDB, and SeaORM's feature `sqlx-mysql` |
//! | `sqlite` | no | SQLite, and SeaORM's feature `sqlx-sqlite` |
//!
//! Turn on the databases that your service uses. Without any, no transaction can emit. Choose the async runtime and TLS with SeaORM's
//! own features, such as `runtime-tokio-rustls`.
//!
//! # SQLite
//!
//! SQLite has one writer at a time, and the relay also writes. Connections wait for their turn, for 5 s unless you set sqlx's
//! `busy_timeout`. If a transaction reads first and another connection has written since, an emit fails at once with "database is
//! locked", whatever the timeout. Begin such a transaction as the writer:
//!
//! ```
//! # use sea_orm::{DatabaseConnection, DatabaseTransaction, DbErr, TransactionTrait};
//! use sea_orm::{SqliteTransactionMode, TransactionOptions};
//!
//! # async fn begin(db: &DatabaseConnection) -> Result<DatabaseTransaction, DbErr> {
//! let sqlite_transaction_mode = Some(SqliteTransactionMode::Immediate);
//! let txn = db.begin_with_options(TransactionOptions { sqlite_transaction_mode, ..Default::default() }).await?;
//! # Ok(txn)
//! # }
//! ```

#![cfg_attr(docsrs, feature(doc_cfg))]

// Each database's statements use only some of this, so with one database others are unused.
#[cfg_attr(
    not(all(feature = "mysql", feature = "postgres", feature = "sqlite")),
    allow(dead_code, unreachable_code, unused_imports, unused_variables)
)]
mod backend;
mod emit;
mod inbox;
#[cfg(feature = "migrations")]
mod migrate;
#[cfg(feature = "testing")]
pub mod testing;

#[doc(hidden)]
pub use diesel_outbox_core::__private;
pub use diesel_outbox_core::{DecodeError, EncodedEvent, InboxEvent, OutboxEvent, Record, RecordError, wire};
#[cfg(feature = "derive")]
pub use diesel_outbox_derive::{SeaOrmInboxEvent as InboxEvent, SeaOrmOutboxEvent as OutboxEvent};

pub use self::emit::{Emit, EmitError, InTransaction, Outbox, ScheduledEvent};
pub use self::inbox::{Inbox, Once, Pruning};
#[cfg(feature = "migrations")]
pub use self::migrate::{MigrationError, Migrations};
