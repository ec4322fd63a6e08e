//! Everything that touches Kafka: the [`Kafka`] broker, whose publishers send outbox records there, and, with the
//! feature `consumer`, the consumer that handles them in a database, each once.
//!
//! Give the broker to a relay. `diesel-outbox-relay` re-exports it:
//!
//! ```
//! use diesel_outbox_kafka::Kafka;
//!
//! let kafka = Kafka::new("localhost:9092").set("compression.type", "lz4");
//! ```
//!
//! Run a consumer in the service that receives the events:
//!
//! ```no_run
//! # #[cfg(feature = "postgres")]
//! # async fn f() -> Result<(), Box<dyn std::error::Error>> {
//! use diesel::prelude::*;
//! use diesel_outbox_kafka::consumer::Consumer;
//!
//! #[derive(serde::Deserialize)]
//! struct Order {
//!     id: String,
//! }
//!
//! let consumer = Consumer::<PgConnection>::new("localhost:9092", "billing")
//!     .database_url("postgres://localhost/billing")
//!     .topics(["outbox.event.order"])
//!     .on_json("OrderPlaced", |c, order: Order| {
//!         // diesel::insert_into(invoice::table).values(invoice::order_id.eq(order.id)).execute(c)?;
//!         Ok(())
//!     })
//!     .spawn()?;
//! // ... the service does its work ...
//! consumer.stop().await?;
//! # Ok(())
//! # }
//! ```
//!
//! To see what either logs, call `tracing_subscriber::fmt::init()` when your program starts: `tracing` has the log lines, those of
//! librdkafka too.
//!
//! # A service that only consumes
//!
//! Such a service needs only this crate of ours. It re-exports what a consumer uses of `diesel-outbox`:
//!
//! ```toml
//! [dependencies]
//! diesel = { version = "2.3", features = ["postgres"] }
//! diesel-outbox-kafka = { version = "0.1", features = ["postgres", "derive", "migrations"] }
//! serde = { version = "1", features = ["derive"] }
//! tracing-subscriber = "0.3"
//! ```
//!
//! Derive `diesel_outbox_kafka::InboxEvent` then, and create the table `inbox` with
//! `diesel_outbox_kafka::Migrations::inbox_only().run(&mut conn)?`. For an enum of connections, call
//! `diesel_outbox_kafka::multi_connection!`.
//!
//! # Features
//!
//! | feature | |
//! |---|---|
//! | `postgres`, `mysql`, `sqlite` | the consumer, on Diesel's connections to that database (`mysql`: MySQL and MariaDB) |
//! | `async` | the same on diesel-async's |
//! | `derive` | `#[derive(InboxEvent)]` and `#[derive(OutboxEvent)]` |
//! | `migrations` | `Migrations`, which create the table `inbox` |
//! | `consumer` | the consumer alone: what these turn on, for the features of your own `diesel-outbox` |
//! | `opentelemetry` | a span of OpenTelemetry for each record that is handled, in the trace that its event carries: `docs/tracing.md` in the repository |
//! | `tls` | TLS, and SASL by PLAIN, SCRAM and OAUTHBEARER, with the system's OpenSSL |
//! | `sasl` | SASL by Kerberos |
//! | `zstd` | compression by zstd, with a library that is built from source. A consumer needs it if a producer compresses so |
//!
//! If you want an OpenSSL that is built from source, turn on the feature `ssl-vendored` of `rdkafka` in your manifest.

#![cfg_attr(docsrs, feature(doc_cfg))]

#[cfg(feature = "consumer")]
pub mod consumer;
mod error;
mod log;
mod publisher;
mod read;

#[cfg(feature = "consumer")]
#[doc(hidden)]
pub use diesel_outbox::__private;
#[cfg(feature = "consumer")]
pub use diesel_outbox::{Inbox, Once, OutboxConnection, Pruning, multi_connection};
#[cfg(feature = "migrations")]
pub use diesel_outbox::{MigrateConnection, MigrationError, Migrations};
// The traits come from here, because diesel-outbox may add derives of the same names, which look for it.
#[cfg(feature = "consumer")]
pub use diesel_outbox_core::{DecodeError, EncodedEvent, InboxEvent, OutboxEvent, Record, RecordError, wire};
#[cfg(feature = "derive")]
pub use diesel_outbox_derive::{KafkaInboxEvent as InboxEvent, KafkaOutboxEvent as OutboxEvent};
#[cfg(feature = "consumer")]
pub use uuid::Uuid;

pub use self::publisher::Kafka;
pub use self::read::{PublishedRecord, PublishedRecords};

/// What Kafka says of itself, for the relay's crate.
#[doc(hidden)]
pub use self::publisher::examined as __examined;

/// What parses the records that say what was sent, for the fuzz targets.
#[cfg(fuzzing)]
#[doc(hidden)]
pub use self::publisher::progress::fuzz as __fuzz_progress;

/// What the relay's tests drive by a simulated broker.
#[doc(hidden)]
pub mod __simulated {
    pub use crate::publisher::gate::{Gate, NotTaken, Wait, partition_of_handed};
    pub use crate::publisher::murmur2::{murmur2, partition};
}
