//! The relay: it brings the outbox's records to the broker, at least once and in order for each aggregate.
//!
//! ```no_run
//! # #[cfg(all(feature = "postgres", feature = "kafka"))]
//! # async fn f(database_url: String) -> Result<(), diesel_outbox_relay::RelayError> {
//! use diesel_outbox_relay::{Kafka, Relay};
//!
//! let relay = Relay::postgres(&database_url).publisher(Kafka::new("localhost:9092")).spawn()?;
//! // ... the service does its work ...
//! relay.stop().await?; // flush, settle, leave
//! # Ok(())
//! # }
//! ```
//!
//! Or, for as long as a future runs: `Relay::postgres(..).publisher(..).run(shutdown).await`. As a process of its own it is
//! the binary `outbox` of `diesel-outbox-cli`.
//!
//! # A pass
//!
//! Each worker makes one pass after the other: it **claims** free shards of the table by locking their rows, **reads** the
//! unsent records in order, **publishes** them while it reads on, **settles** exactly those that the broker acknowledged, and
//! **releases** the shards with a commit after half a second at most. The lock is the claim: a worker that dies loses its
//! connection, and with it the lock. No lease, no clock.
//!
//! # When something is away
//!
//! When the broker acknowledges nothing for a while, the pass is given up, and no transaction is kept open until the broker
//! answers again. When the database is away, the relay connects again. In both cases it waits a little longer each
//! time, up to 5 s, logs a warning, and goes on by itself.
//!
//! # Several relays
//!
//! Run as many as you like, for example one in each instance of the service. One of them listens for the emitters'
//! notifications; it calls the others when there is a backlog, and they share it. Idle ones send the database a few short
//! statements each `poll_interval`, which is also how long it may take until another one listens when that one has died. On SQLite one relay works and the others wait for its end.
//!
//! # The write-ahead log
//!
//! `Relay::wal` reads PostgreSQL's log instead of the table, from a slot that `outbox wal setup` has made: nothing is settled in the table
//! then. One relay is active, others stand by. A slot that is lost stops the relay with [`RelayError::Source`]. See `docs/wal.md` in the
//! repository for what it needs, and for the way from polling to the log and back.
//!
//! # Metrics
//!
//! Through the [`metrics`](https://docs.rs/metrics) facade; install any recorder.
//!
//! | metric | kind | |
//! |---|---|---|
//! | `outbox_unsent` | gauge | records that wait to be sent |
//! | `outbox_oldest_unsent_seconds` | gauge | age of the oldest of them |
//! | `outbox_oldest_writer_seconds` | gauge | how long the oldest transaction that may have emitted has been open or prepared; counted from when the relay first saw it if its role is not a member of `pg_read_all_stats` |
//! | `outbox_log_lag_bytes`, `outbox_log_lag_seconds` | gauge | how far what is confirmed is behind the end of the write-ahead log |
//! | `outbox_slot_retained_bytes` | gauge | how much of its log the server keeps for the slot |
//! | `outbox_slot_status` | gauge | 1 for the slot's `status`, 0 for the others: `reserved`, `extended`, `unreserved`, `lost` |
//! | `outbox_published_total` | counter | records that were published and settled |
//! | `outbox_dead_letters_total` | counter | records that became dead letters |
//! | `outbox_failures_total` | counter | failed passes, by `in` = `database` or `broker` |
//! | `outbox_pass_seconds`, `outbox_pass_records` | histogram | how long passes take, and how much they publish |
//!
//! # Features
//!
//! `postgres`, `sqlite`: the databases (none by default). `postgres-wal`: PostgreSQL's write-ahead log. `kafka` (default): Kafka as the broker; `kafka-tls` (the system's
//! OpenSSL; turn on `ssl-vendored` of `rdkafka` for one built from source) and `kafka-sasl` (Kerberos): how it is reached; `kafka-zstd`:
//! `compression.type=zstd`.

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

#[cfg(feature = "postgres-wal")]
pub use crate::source::wal::WalOptions;
pub use crate::source::{SentRows, SourceOptions};
pub use diesel_outbox_core::wire::{TopicError, Topics};
pub use diesel_outbox_core::{Broker, DeadLetterPolicy, Lag, LogLag, Source};
#[cfg(feature = "kafka")]
pub use diesel_outbox_kafka::Kafka;

pub use self::error::RelayError;
pub use self::handle::RelayHandle;
pub use self::pipeline::Limits;
pub use self::relay::Relay;
