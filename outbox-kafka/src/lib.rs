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
//! # #[cfg(feature = "consumer")]
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use diesel::prelude::*;
//! use diesel_outbox_kafka::consumer::Consumer;
//!
//! #[derive(serde::Deserialize)]
//! struct Order {
//!     id: String,
//! }
//!
//! let url = "postgres://localhost/billing";
//! let consumer = Consumer::<PgConnection>::new("localhost:9092", "billing")
//!     .topics(["outbox.event.order"])
//!     .on_json("OrderPlaced", |c, order: Order| {
//!         // diesel::insert_into(invoice::table).values(invoice::order_id.eq(order.id)).execute(c)?;
//!         Ok(())
//!     })
//!     .spawn(move || PgConnection::establish(url))?;
//! // ...
//! consumer.stop()?;
//! # Ok(())
//! # }
//! # #[cfg(not(feature = "consumer"))]
//! # fn main() {}
//! ```
//!
//! # Features
//!
//! | feature | |
//! |---|---|
//! | `consumer` | the consumer, on Diesel's connections |
//! | `async` | the same on diesel-async's |
//! | `tls` | TLS, and SASL by PLAIN, SCRAM and OAUTHBEARER, with the system's OpenSSL |
//! | `sasl` | SASL by Kerberos |
//! | `zstd` | compression by zstd, with a library that is built from source: consumers need it for what others compress so |
//!
//! If you want an OpenSSL that is built from source, turn on the feature `ssl-vendored` of `rdkafka` in your manifest.

#![cfg_attr(docsrs, feature(doc_cfg))]

#[cfg(feature = "consumer")]
pub mod consumer;
mod error;
mod log;
mod publisher;

pub use self::publisher::Kafka;
