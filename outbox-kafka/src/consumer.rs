//! The consumer loop: each event that arrives from Kafka has its effect in the database once.
//!
//! ```no_run
//! # #[cfg(feature = "derive")]
//! # mod example {
//! use diesel::prelude::*;
//! use diesel_outbox_kafka::InboxEvent;
//! use diesel_outbox_kafka::consumer::Consumer;
//! # fn charge(_: &mut PgConnection, _: i64, _: i64) -> QueryResult<usize> { Ok(1) }
//! # fn ship(_: &mut PgConnection, _: i64) -> QueryResult<usize> { Ok(1) }
//!
//! #[derive(serde::Deserialize, InboxEvent)]
//! enum OrderEvent {
//!     OrderPlaced { order_id: i64, total_cents: i64 },
//!     OrderPaid { order_id: i64 },
//! }
//!
//! # async fn f() -> Result<(), Box<dyn std::error::Error>> {
//! let consumer = Consumer::<PgConnection>::new("localhost:9092", "billing")
//!     .database_url("postgres://localhost/billing")
//!     .topics(["outbox.event.order"])
//!     .on_event(|c, event| {
//!         match event {
//!             OrderEvent::OrderPlaced { order_id, total_cents } => charge(c, order_id, total_cents)?,
//!             OrderEvent::OrderPaid { order_id } => ship(c, order_id)?,
//!         };
//!         Ok(())
//!     })
//!     .spawn()?;
//! // ... the service does its work ...
//! consumer.stop().await?; // finish the record in hand, commit, leave the group
//! # Ok(())
//! # }
//! # }
//! # fn main() {}
//! ```
//!
//! The consumer ends by itself only if it cannot go on: ask [`is_finished`](ConsumerHandle::is_finished) in your health check. Or
//! run the consumer until a future ends, with `Consumer::new(..)..run(shutdown).await`: it returns when either ends. Without tokio,
//! stop it by [`stop_blocking`](ConsumerHandle::stop_blocking). On diesel-async begin with `Consumer::new_async`.
//!
//! # Handlers
//! - [`on_event`](Consumer::on_event) handles all events of a type that derives `InboxEvent`: the first choice.
//! - [`on_json`](Consumer::on_json) handles one event type, with its payload read as JSON.
//! - [`on`](Consumer::on) handles one event type, with the record as it is: its headers, its key, a payload in another encoding.
//!
//! # What happens to a record
//! 1. The database transaction begins, and the inbox notes the record's id. If it has the id already, the record is a
//!    duplicate and done with.
//! 2. The handler runs in the same transaction, which is then committed.
//! 3. Only then does the record's offset count as done. The consumer commits offsets every second, every 1,000 records, when a
//!    partition is taken away, and when it stops. After a crash before that, Kafka delivers the records again, and step 1
//!    recognises them.
//!
//! # When something fails
//! - **The handler returns an error or panics**: everything is rolled back, and the record is tried again after 100 ms,
//!   200 ms and so on up to 10 s ([`Consumer::backoff`]). Its partition waits meanwhile, so that the order is kept;
//!   others flow. After 5 attempts ([`Consumer::max_attempts`]), or at once if the error is a [`Rejected`], the record goes to
//!   the dead-letter topic, and the partition flows again. After a panic the consumer also gives the connection up.
//! - **An event cannot be decoded** for [`on_event`](Consumer::on_event) or [`on_json`](Consumer::on_json): the record goes to the
//!   dead-letter topic at once.
//! - **The database is away**, refuses the connection or the inbox, or cuts the connection while the handler is at work:
//!   this is not the record's fault and does not count as an attempt. The consumer connects again, for as long as it takes,
//!   and stays in its group.
//! - **The table `inbox` is missing** when the consumer connects for the first time: it logs an error and ends with
//!   [`ConsumerError::NoInbox`].
//! - **The header `id` or `eventType` is missing or wrong**, or a header's name is not UTF-8: the record goes to the
//!   dead-letter topic. rdkafka panics at such a name; the consumer catches that, and Rust prints it. In a program with `panic = "abort"`
//!   it ends the process, as a handler's panic does: keep such names off the topics then.
//! - **A batch cannot be read**, because it is damaged, or compressed by zstd in a program that was built without the feature
//!   `zstd`: its partition waits, and after some seconds an error names topic, partition and offset, and what to do. Others flow.
//!   The consumer passes over nothing. (It finds the partition by librdkafka's statistics: `statistics.interval.ms` must not be 0.)
//! - **The dead-letter topic does not take a record**: the partition waits, and the consumer logs an error, until it does.
//!   Nothing is ever dropped.
//!
//! # What it logs
//! The consumer logs with [`tracing`](https://docs.rs/tracing). To see it, call `tracing_subscriber::fmt::init()` when your program
//! starts. No log line has a payload, a key or a URL.
//!
//! | level | is logged when |
//! |---|---|
//! | error | the consumer ends by itself, a record becomes a dead letter, a partition stands still |
//! | warn | the database or Kafka is away, a handler failed and the record is tried again |
//! | info | the consumer starts, connects and stops, partitions come and go, an event type is skipped for the first time |
//! | debug | a record is handled |
//!
//! # Dead letters
//! A dead letter has the key, the payload and the headers of the record, and besides them `outbox-error` (the reason),
//! `outbox-topic`, `outbox-partition`, `outbox-offset` and `outbox-timestamp` (where and when the record was, the last in
//! milliseconds since 1970) and `outbox-consumer` (the consumer's name). To try it again, send it to its topic as it is:
//! the inbox has not noted its id. If the dead-letter topic has no room for these headers, the consumer sends the dead letter without
//! them and logs a warning. It compresses dead letters with gzip, unless you set `compression.type`.
//!
//! # Time
//! A handler must be done within `max.poll.interval.ms` (5 minutes by default), or Kafka gives the partitions to others
//! while it is still at work; the inbox holds even then. Bound it with the database's `statement_timeout`, and
//! connecting with `connect_timeout` in the URL.

#[cfg(feature = "async")]
mod asynchronous;
mod backoff;
mod blocking;
mod builder;
mod connection;
mod consume;
mod dead_letters;
mod error;
mod group;
mod handle;
mod handlers;
mod headers;
mod held;
mod received;
mod spans;
mod stalls;
mod start;
#[cfg(feature = "testing")]
mod testing;

#[cfg(feature = "async")]
pub use self::asynchronous::AsyncHandler;
pub use self::blocking::BlockingHandler;
pub use self::builder::Consumer;
pub use self::error::ConsumerError;
pub use self::handle::ConsumerHandle;
pub use self::handlers::{HandlerError, UnknownTypes};
pub use self::received::{Received, Rejected};
