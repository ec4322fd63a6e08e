//! The relay: it brings the outbox's records to the broker, at least once and in order for each aggregate.
//!
//! ```no_run
//! # #[cfg(all(feature = "postgres", feature = "kafka"))]
//! # async fn f(database_url: String) -> Result<(), diesel_outbox_relay::RelayError> {
//! use diesel_outbox_relay::{Kafka, Relay};
//!
//! let relay = Relay::postgres(&database_url).broker(Kafka::new("localhost:9092")).spawn()?;
//! // ... the service does its work ...
//! relay.stop().await?; // flush, settle, leave
//! # Ok(())
//! # }
//! ```
//!
//! Keep the handle: dropping it stops the relay. The relay works on threads of its own and needs no async runtime; `stop` can be
//! awaited on any, and [`stop_blocking`](RelayHandle::stop_blocking) needs none. The relay ends by itself only if it cannot go on: ask
//! [`is_finished`](RelayHandle::is_finished) in your health check, or run the relay until a future ends, with
//! `Relay::postgres(..).broker(..).run(shutdown).await`, which returns when either ends. To run the relay as a process of its own, use
//! the binary `outbox` of `diesel-outbox-cli`.
//!
//! What the relay has to report it logs with [`tracing`](https://docs.rs/tracing): install a subscriber, such as
//! `tracing_subscriber::fmt::init()`, to see it.
//!
//! # A pass
//!
//! Each worker makes one pass after the other. It
//!
//! 1. **claims** free shards of the table by locking their rows,
//! 2. **reads** the unsent records in order,
//! 3. **publishes** them while it reads on,
//! 4. **settles** exactly those that the broker acknowledged, and
//! 5. **releases** the shards with a commit; after half a second it reads nothing more ([`Relay::max_pass_duration`]).
//!
//! The lock is the claim: a worker that dies loses its connection, and with it the lock. There is no lease and no clock.
//!
//! # When something is away
//!
//! You need not do anything: the relay logs a warning, waits a little longer each time, up to 5 s, and goes on by itself.
//!
//! If the broker acknowledges nothing for a while ([`Relay::stall_timeout`]), the relay gives the pass up, and keeps no
//! transaction open until the broker answers again. If the database is away, the relay connects again.
//!
//! # Several relays
//!
//! Run as many as you like, for example one in each instance of the service. On SQLite one relay works, and the others
//! wait for its end.
//!
//! On PostgreSQL one of them listens for the emitters' notifications. It calls the others when there is a backlog, and
//! they share it. An idle relay sends the database a few short statements each `poll_interval`. That is also how long it
//! may take until another relay listens after the listening one has died.
//!
//! # A broker of your own
//!
//! A relay publishes to anything that implements [`Publisher`], in a test for example to the test itself:
//!
//! ```
//! use std::sync::mpsc::{Sender, channel};
//! use std::time::Duration;
//!
//! use diesel_outbox_relay::{Acknowledgement, Outcome, PublishError, Publisher, Record, Refusal, Relay};
//!
//! struct InProcess {
//!     events: Sender<Record>,
//!     in_flight: Vec<u64>,
//! }
//!
//! impl Publisher for InProcess {
//!     fn publish(&mut self, ticket: u64, _topic: &str, record: &Record) -> Result<(), Refusal> {
//!         let _ = self.events.send(record.clone());
//!         self.in_flight.push(ticket);
//!         Ok(())
//!     }
//!
//!     fn acknowledgements(&mut self, _: Duration, known: &mut Vec<Acknowledgement>) -> Result<(), PublishError> {
//!         known.extend(self.in_flight.drain(..).map(|ticket| Acknowledgement::new(ticket, Outcome::Durable)));
//!         Ok(())
//!     }
//!
//!     fn abandon(&mut self) {
//!         self.in_flight.clear();
//!     }
//!
//!     fn ready(&mut self, _: Duration) -> Result<(), PublishError> {
//!         Ok(())
//!     }
//! }
//!
//! # #[cfg(feature = "sqlite")]
//! # fn f() -> Result<(), diesel_outbox_relay::RelayError> {
//! let (events, received) = channel();
//! let relay = Relay::sqlite("shop.db")
//!     .broker(move || {
//!         let publisher = InProcess { events: events.clone(), in_flight: Vec::new() };
//!         Ok(Box::new(publisher) as Box<dyn Publisher>)
//!     })
//!     .spawn()?;
//! // ... emit, and look for the event in `received` ...
//! # drop(received);
//! relay.stop_blocking()
//! # }
//! ```
//!
//! # The write-ahead log
//!
//! `Relay::postgres_wal` reads PostgreSQL's write-ahead log instead of the table, from a slot that `outbox wal setup` has made.
//! Nothing is settled in the table then. One relay is active, and the others stand by. If the slot is lost, the relay stops
//! with [`RelayError::Source`]. `docs/wal.md` in the repository says what it needs, and how to move from polling to the
//! write-ahead log and back.
//!
//! # Metrics
//!
//! The relay reports through the [`metrics`](https://docs.rs/metrics) facade: install any recorder before you start the relay. Of several
//! relays only the leading one sets the gauges. Each metric has the label `outbox`, such as `shop.public` for the tables in the
//! schema `public` of the database `shop`, so that several outboxes in one process stay apart.
//!
//! | metric | kind | |
//! |---|---|---|
//! | `outbox_unsent` | gauge | records that wait to be sent; if the write-ahead log is read, only what the relay has received of it: watch `outbox_wal_lag_bytes` then |
//! | `outbox_oldest_unsent_seconds` | gauge | age of the oldest of them |
//! | `outbox_oldest_writer_seconds` | gauge | how long the oldest transaction that may have emitted has been open or prepared; counted from when the relay first saw it if its role is not a member of `pg_read_all_stats` |
//! | `outbox_wal_lag_bytes`, `outbox_wal_lag_seconds` | gauge | how far what is confirmed is behind the end of the write-ahead log |
//! | `outbox_wal_retained_bytes` | gauge | how much WAL the server keeps for the slot |
//! | `outbox_wal_slot_status` | gauge | 1 for the slot's `status`, 0 for the others: `reserved`, `extended`, `unreserved`, `lost` |
//! | `outbox_published_total` | counter | records that were published and settled |
//! | `outbox_dead_letters_total` | counter | records that became dead letters |
//! | `outbox_failures_total` | counter | failed passes, by `component`: `database` or `broker` |
//! | `outbox_pass_duration_seconds`, `outbox_pass_records` | histogram | how long passes take, and how much they publish |
//!
//! # Features
//!
//! | feature | default | |
//! |---|---|---|
//! | `postgres` | | PostgreSQL, polled |
//! | `postgres-wal` | | PostgreSQL, polled or read from its write-ahead log |
//! | `sqlite` | | SQLite |
//! | `kafka` | yes | Kafka as the broker |
//! | `kafka-tls` | | TLS for Kafka, and SASL by PLAIN, SCRAM and OAUTHBEARER, with the system's OpenSSL |
//! | `kafka-sasl` | | Kerberos for Kafka |
//! | `kafka-zstd` | | `compression.type=zstd` |
//!
//! If you want an OpenSSL that is built from source, turn on the feature `ssl-vendored` of `rdkafka` in your manifest.

#![cfg_attr(docsrs, feature(doc_cfg))]

mod error;
mod handle;
mod metrics;
#[cfg(any(feature = "postgres", feature = "sqlite"))]
pub mod operate;
mod pipeline;
mod relay;
pub mod source;
#[cfg(any(feature = "postgres", feature = "sqlite"))]
mod statement;
mod worker;

pub use diesel_outbox_core::wire::{TopicError, TopicNaming};
pub use diesel_outbox_core::{
    Acknowledgement, Broker, Claimed, DeadLetterPolicy, DeadLettered, Lag, Outcome, PublishError, Publisher,
    Record, Refusal, Source, SourceError, WalLag,
};
#[cfg(feature = "kafka")]
pub use diesel_outbox_kafka::Kafka;

pub use self::error::RelayError;
pub use self::handle::RelayHandle;
pub use self::relay::Relay;
#[cfg(feature = "postgres")]
pub use self::source::DatabaseUrl;
#[cfg(feature = "postgres-wal")]
pub use self::source::wal::{self, WalOptions};
pub use self::source::{SentRows, SourceOptions};
