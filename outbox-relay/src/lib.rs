//! The relay of [diesel-outbox](https://docs.rs/diesel-outbox): it brings the records in the table `outbox` to Kafka, at least once and
//! in order for each aggregate.
//!
//! Your service emits events in the transactions that cause them. Run a relay beside it: embedded in the service, as on this page, or
//! as a process, with the binary `outbox` of `diesel-outbox-cli`.
//!
//! ```toml
//! [dependencies]
//! diesel-outbox-relay = { version = "0.1", features = ["postgres"] } # or "postgres-wal", "mysql" or "sqlite"
//! ```
//!
//! ```no_run
//! # #[cfg(all(feature = "postgres", feature = "kafka"))]
//! # async fn f(database_url: String) -> Result<(), diesel_outbox_relay::RelayError> {
//! use diesel_outbox_relay::{Kafka, Relay};
//!
//! let relay = Relay::postgres(&database_url).broker(Kafka::new("localhost:9092")).spawn()?;
//! // ... the service does its work ...
//! relay.stop().await?; // waits for acknowledgements, settles them and closes the connections
//! # Ok(())
//! # }
//! ```
//!
//! The tables must exist: run `diesel_outbox::Migrations` or `outbox migrate` first. The database and the broker need not be up yet.
//!
//! # Overview
//!
//! | item | what it does |
//! |---|---|
//! | [`Relay`] | builds a relay: which database, which broker, how fast, and how long sent rows are kept |
//! | [`RelayHandle`] | stops a running relay, and reports whether it has ended by itself |
//! | `Kafka` | the broker and its settings. [Your own broker](#a-broker-of-your-own) implements [`Publisher`] |
//! | [`Health`] | reports whether a running relay makes progress, for probes |
//! | [`History`] | what a relay did in the last hour, for charts |
//! | [`TopicNaming`] | names the topics, and says which of them the relay may write to |
//! | [`DeadLetterPolicy`] | what happens to an aggregate's later records after one became a dead letter |
//! | `operate::Operate` | the lag, the dead letters, and how to requeue them |
//! | `operate::Observe` | the state of an outbox at a moment: what waits, the relays and their shards, the slot |
//! | `wal` | [reads the write-ahead log](#the-write-ahead-log) instead of the table |
//! | [`Source`] | where a relay finds records: implement it to relay from another store |
//!
//! # Start and stop
//!
//! The relay works on its own threads and needs no async runtime. You can await [`stop`](RelayHandle::stop) on any runtime, or
//! call [`stop_blocking`](RelayHandle::stop_blocking) on none.
//!
//! Keep the handle: if you drop it, the relay stops. The relay ends by itself only if it cannot go on, so check
//! [`is_finished`](RelayHandle::is_finished) in your health check. Or let [`run`](Relay::run) do both: it runs the relay until your
//! shutdown future ends or the relay does.
//!
//! ```no_run
//! # #[cfg(all(feature = "postgres", feature = "kafka"))]
//! # async fn f(database_url: String, shutdown: impl Future<Output = ()>) -> Result<(), diesel_outbox_relay::RelayError> {
//! # use diesel_outbox_relay::{Kafka, Relay};
//! Relay::postgres(&database_url).broker(Kafka::new("localhost:9092")).run(shutdown).await?;
//! # Ok(())
//! # }
//! ```
//!
//! The relay logs with [`tracing`](https://docs.rs/tracing). Install a subscriber, such as `tracing_subscriber::fmt::init()`, to see
//! what it logs. No line contains a password or a payload.
//!
//! # What happens to a record
//!
//! A relay has one worker or several. Each worker makes one pass after the other:
//!
//! ```text
//!  claim ------> read ------> publish ------> settle ------> release
//!  lock the      the unsent   hand them to    mark those     commit, and
//!  rows of free  records, in  the broker      that it has    let go of
//!  shards        order                        acknowledged   the shards
//! ```
//!
//! The steps overlap: while the broker works on some records, the worker reads the next ones and settles earlier ones. After half a
//! second ([`Relay::max_pass_duration`]) it reads nothing more, and the pass ends.
//!
//! The lock is the claim. There is no lease and no clock: if a worker dies, it loses its connection and with it the lock, and another
//! worker sends what it had not settled. That is why a record may arrive twice. Protect consumers with an inbox.
//!
//! A record that the broker will never take, because it is too large for example, becomes a dead letter with its reason, and the
//! others go on. Correct the reason, then requeue it with `operate::Operate`.
//!
//! # When something is away
//!
//! You need not do anything. The relay logs a warning, waits a little longer each time, up to 5 s, and goes on by itself.
//!
//! If the broker acknowledges nothing for [`Relay::stall_timeout`], the relay gives up the pass, so that no transaction stays open
//! until the broker answers again. If the database is away, the relay connects again.
//!
//! # Several relays
//!
//! Run as many relays as you like, for example one in each instance of the service. They share the work, and if one dies, the others
//! take over. On SQLite one relay works, and the others wait until it ends.
//!
//! On PostgreSQL one of them leads: it listens for the notifications of emitters, and calls the others if there is a backlog. An idle
//! relay sends the database a few short statements in each [`Relay::poll_interval`]. If the leader dies, another one leads after that
//! time at the latest.
//!
//! On MySQL and MariaDB, which notify nobody, one of them looks at the table, and the others ask now and then whether it is gone.
//!
//! # Several outboxes
//!
//! One relay can send the events of many schemas of a PostgreSQL database: name them, or a pattern, with [`Relay::schemas`]. They
//! share its workers and connections, fairly: a backlog in one does not hold up the others, and neither does a failure.
//! `docs/tenants.md` in the repository says more. For several databases, start a relay for each.
//!
//! # A broker of your own
//!
//! A relay publishes to anything that implements [`Publisher`]. (For tests, the feature `testing` has one.)
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
//! `Relay::postgres_wal` reads PostgreSQL's write-ahead log (WAL) instead of the table. It has nothing to settle in the table, so an
//! event costs the database only its insert. In exchange, a replication slot keeps the WAL while no relay reads it. Make the slot with
//! `outbox wal setup` or `wal::setup`.
//!
//! One relay is active and the others stand by. If the slot is lost, the relay stops with [`RelayError::Source`], whose message says
//! what to do. `docs/wal.md` in the repository says what the WAL needs, and how to move a live system from polling to the WAL and
//! back.
//!
//! # Metrics
//!
//! The relay reports through the [`metrics`](https://docs.rs/metrics) facade. Install any recorder before you start the relay. If there
//! are several relays, only the one that leads sets the gauges. Each metric has the label `outbox`, such as `shop.public` for the
//! tables in the schema `public` of the database `shop`, so that you can tell several outboxes of one process apart.
//!
//! | metric | kind | meaning |
//! |---|---|---|
//! | `outbox_unsent` | gauge | how many records wait to be sent. If the relay reads the WAL, only those that it has received: watch `outbox_wal_lag_bytes` then |
//! | `outbox_oldest_unsent_seconds` | gauge | age of the oldest of them |
//! | `outbox_oldest_writer_seconds` | gauge | how long the oldest transaction that may have emitted has been open or prepared. If the relay's role is not a member of `pg_read_all_stats`, counted from when the relay first saw it. On MySQL and MariaDB, counted from the transaction's first event |
//! | `outbox_dead_letters_stored` | gauge | how many dead letters nobody has requeued |
//! | `outbox_blocked_aggregates` | gauge | of how many aggregates records are held back behind a dead letter |
//! | `outbox_scheduled` | gauge | how many events are scheduled for later |
//! | `outbox_oldest_overdue_seconds` | gauge | how long the scheduled event has been due that was due first; zero if none is |
//! | `outbox_wal_lag_bytes`, `outbox_wal_lag_seconds` | gauge | how far the slot's confirmed position is behind the end of the WAL |
//! | `outbox_wal_retained_bytes` | gauge | how much WAL the server keeps for the slot |
//! | `outbox_wal_slot_status` | gauge | 1 for the slot's `status`, 0 for the others: `reserved`, `extended`, `unreserved`, `lost` |
//! | `outbox_published_total` | counter | records that were published and settled |
//! | `outbox_dead_letters_total` | counter | records that became dead letters |
//! | `outbox_latency_seconds` | histogram | how long records take from emit to the broker's acknowledgement, by the clocks of the database and the relay |
//! | `outbox_last_progress_timestamp_seconds` | gauge | when this relay last settled a record, as a Unix time |
//! | `outbox_failures_total` | counter | failed passes, by `component`: `database` or `broker`, and by `kind`: `temporary`, `misconfigured` (nothing is sent until somebody acts) or `permanent` (the relay has stopped) |
//! | `outbox_takeovers_total` | counter | how often a relay that sends exactly once has taken the outbox over |
//! | `outbox_commit_duration_seconds` | histogram | how long Kafka takes to commit a pass, if records are sent exactly once |
//! | `outbox_pass_duration_seconds`, `outbox_pass_records` | histogram | how long passes take, and how many records they publish |
//!
//! # Features
//!
//! | feature | default | |
//! |---|---|---|
//! | `postgres` | | PostgreSQL, polled |
//! | `postgres-wal` | | PostgreSQL, polled or read from its write-ahead log |
//! | `mysql` | | MySQL and MariaDB, polled. It needs no C library |
//! | `mysql-tls` | | TLS for MySQL and MariaDB, with rustls |
//! | `sqlite` | | SQLite |
//! | `opentelemetry` | | a span of OpenTelemetry for each batch and topic: `docs/tracing.md` in the repository |
//! | `testing` | | `testing`: a relay that a test makes work step by step, without Kafka |
//! | `kafka` | yes | Kafka as the broker |
//! | `kafka-tls` | | TLS for Kafka, and SASL by PLAIN, SCRAM and OAUTHBEARER, with the system's OpenSSL |
//! | `kafka-sasl` | | Kerberos for Kafka |
//! | `kafka-zstd` | | `compression.type=zstd` |
//!
//! If you want an OpenSSL that is built from source, turn on the feature `ssl-vendored` of `rdkafka` in your manifest.

#![cfg_attr(docsrs, feature(doc_cfg))]

mod backoff;
mod crash;
mod error;
#[cfg(fuzzing)]
#[doc(hidden)]
pub mod fuzzing;
mod handle;
mod health;
mod history;
mod max_rate;
mod metrics;
mod missing;
#[cfg(any(feature = "mysql", feature = "postgres", feature = "sqlite"))]
pub mod operate;
mod pipeline;
#[cfg(all(test, feature = "mysql", feature = "postgres-wal"))]
mod properties;
mod relay;
#[cfg(all(test, feature = "kafka", feature = "mysql", feature = "postgres-wal", feature = "sqlite"))]
mod simulation;
pub mod source;
#[cfg(any(feature = "postgres", feature = "sqlite"))]
mod statement;
#[cfg(feature = "testing")]
pub mod testing;
mod worker;

pub use diesel_outbox_core::wire::{TopicError, TopicNaming};
pub use diesel_outbox_core::{
    Acknowledgement, Broker, Claimed, DeadLetterPolicy, DeadLettered, Lag, Lane, Outcome, PublishError,
    Publisher, Record, Refusal, Source, SourceError, WalLag,
};
#[cfg(feature = "kafka")]
pub use diesel_outbox_kafka::Kafka;

/// The Diesel that this crate uses: its errors are in `WalError`, and `wal::setup` takes its `PgConnection`.
#[cfg(feature = "postgres")]
pub use diesel;
/// The driver with which the relay speaks to MySQL and MariaDB.
#[cfg(feature = "mysql")]
pub use mysql;

pub use self::error::RelayError;
pub use self::handle::RelayHandle;
pub use self::health::Health;
pub use self::history::{History, Point};
pub use self::relay::Relay;
#[cfg(any(feature = "mysql", feature = "postgres"))]
pub use self::source::DatabaseUrl;
#[cfg(feature = "postgres-wal")]
pub use self::source::wal::{self, WalOptions};
pub use self::source::{SentRows, SourceOptions};
