//! The consumer loop: each event that arrives from Kafka has its effect in the database once.
//!
//! ```no_run
//! use diesel::prelude::*;
//! use diesel_outbox_kafka::consumer::Consumer;
//! # #[derive(serde::Deserialize)] struct Order;
//! # fn charge(_: &mut PgConnection, _: &Order) -> QueryResult<usize> { Ok(1) }
//! # fn ship(_: &mut PgConnection, _: &Order) -> QueryResult<usize> { Ok(1) }
//!
//! # fn f(url: String) -> Result<(), Box<dyn std::error::Error>> {
//! let consumer = Consumer::<PgConnection>::new("localhost:9092", "billing")
//!     .topics(["outbox.event.order"])
//!     .on("OrderPlaced", |c, received| {
//!         let order: Order = received.json()?;
//!         charge(c, &order)?;
//!         Ok(())
//!     })
//!     .on_json("OrderPaid", |c, order: Order| {
//!         ship(c, &order)?;
//!         Ok(())
//!     })
//!     .spawn(move || PgConnection::establish(&url))?;
//! // ... the service does its work ...
//! consumer.stop()?; // finish the record in hand, commit, leave the group
//! # Ok(())
//! # }
//! ```
//!
//! The connection's database is a feature of `diesel-outbox`, `postgres` or `sqlite`; turn it on in your manifest.
//!
//! # What happens to a record
//! 1. The database transaction begins, and the inbox notes the record's id. If it has the id already, the record is a
//!    duplicate and done with.
//! 2. The handler runs in the same transaction, which is then committed.
//! 3. Only then does the record's offset count as done. Offsets are committed every second, every 1,000 records, when a
//!    partition is taken away, and at a stop. A crash before means that records are delivered again, and step 1
//!    recognises them.
//!
//! # When something fails
//! - **The handler returns an error or panics**: everything is rolled back, and the record is tried again after 100 ms,
//!   200 ms and so on up to 10 s ([`Consumer::backoff`]). Its partition waits meanwhile, so that the order is kept;
//!   others flow. After 5 attempts ([`Consumer::max_attempts`]), or at once where the error is a [`Rejected`], the record goes to
//!   the dead-letter topic, and the partition flows again. After a panic the connection is given up too.
//! - **The database is away**, refuses the connection or the inbox, or cuts the connection while the handler is at work:
//!   this is not the record's fault and does not count as an attempt. The consumer connects again, for as long as it takes,
//!   and stays in its group.
//! - **The header `id` or `eventType` is missing or wrong**, or a header's name is not UTF-8: the record goes to the
//!   dead-letter topic. rdkafka panics at such a name; the consumer catches that, and Rust prints it. In a program with `panic = "abort"`
//!   it ends the process, as a handler's panic does: keep such names off the topics then.
//! - **A batch cannot be read**, as one that is damaged, or compressed by zstd in a program that was built without the feature
//!   `zstd`: its partition waits, and after some seconds an error names topic, partition and offset, and what to do. Others flow.
//!   Nothing is passed over. (The partition is found by librdkafka's statistics: `statistics.interval.ms` must not be 0.)
//! - **The dead-letter topic does not take a record**: the partition waits, and an error is logged, until it does.
//!   Nothing is ever dropped.
//!
//! # Dead letters
//! A dead letter has the key, the payload and the headers of the record, and besides them `outbox-error` (the reason),
//! `outbox-topic`, `outbox-partition`, `outbox-offset` and `outbox-timestamp` (where and when the record was, the last in
//! milliseconds since 1970) and `outbox-consumer` (the consumer's name). To try it again, send it to its topic as it is:
//! the inbox has not noted its id. If the dead-letter topic has no room for these headers the dead letter goes without them, and
//! the log says so. It is compressed with gzip, unless `compression.type` is set.
//!
//! # Time
//! A handler must be done within `max.poll.interval.ms` (5 minutes by default), or Kafka gives the partitions to others
//! while it is still at work; the inbox holds even then. Bound it with the database's `statement_timeout`, and
//! connecting with `connect_timeout` in the URL.

#[cfg(feature = "async")]
mod asynchronous;
mod backoff;
mod blocking;
mod database;
mod dead_letters;
mod error;
mod group;
mod handle;
mod handlers;
mod headers;
mod held;
mod received;
mod stalls;
mod worker;

use std::collections::BTreeMap;
use std::error::Error;
use std::marker::PhantomData;
use std::time::Duration;

use diesel_outbox::Inbox;
use rdkafka::ClientConfig;

#[cfg(feature = "async")]
pub use self::asynchronous::AsyncHandler;
pub use self::blocking::BlockingHandler;
pub use self::error::ConsumerError;
pub use self::handle::ConsumerHandle;
pub use self::handlers::{HandlerError, UnknownTypes};
pub use self::received::{Received, Rejected};

use self::backoff::Backoff;
use self::database::Database;
use self::dead_letters::{DeadLetters, topic_of};
use self::group::Group;
use self::handlers::Handlers;
use self::held::Held;
use self::worker::{Options, Worker};
use crate::publisher::settings::{self, problem_of_brokers};

const LONGEST_BACKOFF: Duration = Duration::from_secs(24 * 60 * 60);
/// Databases cannot count back much further.
const LONGEST_RETENTION: Duration = Duration::from_secs(100 * 365 * 24 * 60 * 60);

/// Builds a consumer: of which topics, what to do with each type of event, and into which database.
///
/// `C` is the connection that handlers get, pooled or not: say which with `Consumer::<PgConnection>::new`. One record is
/// handled at a time. For more at the same time start more consumers of the same name, in one process or in many: Kafka
/// shares the partitions among them. See the [module](self) for an example and for what happens when something fails.
#[must_use = "a consumer does nothing before `spawn` or `run`"]
pub struct Consumer<C, H = BlockingHandler<C>> {
    connection: PhantomData<fn(C)>,
    name: String,
    settings: BTreeMap<String, String>,
    topics: Vec<String>,
    handlers: Handlers<H>,
    dead_letter_topic: String,
    options: Options,
}

impl<C, H> Consumer<C, H> {
    fn with_defaults(brokers: String, name: String) -> Self {
        let settings = [("bootstrap.servers", brokers), ("client.id", name.clone())];
        Self {
            connection: PhantomData,
            name,
            settings: settings.map(|(name, value)| (name.to_owned(), value)).into(),
            topics: Vec::new(),
            handlers: Handlers::new(),
            dead_letter_topic: "{topic}.dead-letter".to_owned(),
            options: Options {
                unknown_types: UnknownTypes::default(),
                max_attempts: 5,
                backoff: Backoff { first: Duration::from_millis(100), longest: Duration::from_secs(10) },
                retention: Some(Duration::from_secs(14 * 24 * 60 * 60)),
            },
        }
    }

    /// Adds topics to subscribe to. One that begins with `^` is a regular expression, which must not match the
    /// dead-letter topics.
    pub fn topics(mut self, topics: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.topics.extend(topics.into_iter().map(Into::into));
        self
    }

    /// What to do with events of types that have no handler. Default: they are skipped.
    pub fn unknown_types(mut self, unknown_types: UnknownTypes) -> Self {
        self.options.unknown_types = unknown_types;
        self
    }

    /// How often the handler may fail on a record before it becomes a dead letter, at least 1. Default: 5. A
    /// deadlock or a serialization failure counts too. With `u32::MAX` no record does because of that, and its partition
    /// waits until the handler succeeds.
    pub fn max_attempts(mut self, attempts: u32) -> Self {
        self.options.max_attempts = attempts;
        self
    }

    /// How long to wait after a first failure, and at most after many: the wait doubles each time. It applies to records,
    /// connections and dead letters alike. Default: 100 ms and 10 s.
    pub fn backoff(mut self, first: Duration, longest: Duration) -> Self {
        self.options.backoff = Backoff { first, longest };
        self
    }

    /// The topic for records that cannot be handled; `{topic}` in it stands for the topic a record came from. Default:
    /// `{topic}.dead-letter`.
    ///
    /// Create it with a `max.message.bytes` somewhat above that of the topics, as dead letters have more headers.
    pub fn dead_letter_topic(mut self, topic: impl Into<String>) -> Self {
        self.dead_letter_topic = topic.into();
        self
    }

    /// How long the inbox remembers what was handled; `None` is for ever. Default: 14 days. Older marks are deleted from
    /// the start on and once a minute, in short steps between records.
    ///
    /// It must be longer than the longest time after which an event may be delivered again, or it has its effect again.
    /// That is safe to say where it is longer than the topics keep their records, for which Kafka's default is 7 days
    /// (`retention.ms`). For compacted topics, or those that keep records for ever, say `None`.
    pub fn inbox_retention(mut self, retention: impl Into<Option<Duration>>) -> Self {
        self.options.retention = retention.into();
        self
    }

    /// Sets any [property of librdkafka](https://github.com/confluentinc/librdkafka/blob/master/CONFIGURATION.md), for the
    /// consumer and for the producer of dead letters. `enable.auto.commit`, `enable.auto.offset.store`, `acks`,
    /// `message.timeout.ms`, `delivery.report.only.error`, `transactional.id` and `check.crcs` are refused.
    ///
    /// What this crate chooses otherwise: `group.id` is the consumer's name, `auto.offset.reset` is `earliest`,
    /// `statistics.interval.ms` is 5000, and `partition.assignment.strategy` is `cooperative-sticky`, so that a rebalance does not stop the partitions that stay
    /// where they are. All members of a group must agree on that last one.
    pub fn set(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        settings::set(&mut self.settings, name.into(), value.into());
        self
    }

    fn start<F, E>(self, connect: F) -> Result<Worker<C, H>, ConsumerError>
    where
        F: FnMut() -> Result<C, E> + Send + 'static,
        E: Error + 'static,
    {
        self.check()?;
        let config = |chosen: &[(&str, &str)]| {
            let mut config = ClientConfig::new();
            config.extend(chosen.iter().map(|&(name, value)| (name.to_owned(), value.to_owned())));
            config.extend(self.settings.clone());
            config
        };
        let for_dead_letters = config(&[("partitioner", "murmur2_random")]);
        let for_group = config(&[
            ("group.id", &self.name),
            ("auto.offset.reset", "earliest"),
            ("partition.assignment.strategy", "cooperative-sticky"),
            ("enable.auto.commit", "false"),
            ("enable.auto.offset.store", "false"),
            ("statistics.interval.ms", stalls::INTERVAL),
        ]);
        let dead_letters = DeadLetters::new(for_dead_letters, self.dead_letter_topic, self.name.clone());
        Ok(Worker {
            dead_letters: dead_letters.map_err(ConsumerError::settings)?,
            group: Group::join(&for_group, &self.topics).map_err(ConsumerError::settings)?,
            inbox: Inbox::new(self.name),
            database: Database::new(connect, self.options.backoff),
            handlers: self.handlers,
            options: self.options,
            held: Held::new(),
            skipped: std::collections::HashSet::new(),
        })
    }

    fn check(&self) -> Result<(), ConsumerError> {
        let wrong = |setting: &str, problem: &str| {
            Err(ConsumerError::Setting { setting: setting.to_owned(), problem: problem.to_owned() })
        };
        if self.topics.is_empty() {
            return Err(ConsumerError::NoTopics);
        }
        if self.handlers.is_empty() {
            return Err(ConsumerError::NoHandlers);
        }
        if self.name.is_empty() {
            return wrong(
                "name",
                "is empty: give the consumer a name, by which its group and its inbox are known",
            );
        }
        if self.options.max_attempts == 0 {
            return wrong("max_attempts", "is 0: it must be at least 1");
        }
        if self.options.backoff.longest > LONGEST_BACKOFF || self.options.backoff.first > LONGEST_BACKOFF {
            return wrong("backoff", "is longer than a day: make it shorter");
        }
        if self.options.retention.is_some_and(|retention| retention > LONGEST_RETENTION) {
            return wrong(
                "inbox_retention",
                "is longer than 100 years: use `None` to keep the inbox for ever",
            );
        }
        if self.topics.iter().any(|topic| self.topics.contains(&topic_of(&self.dead_letter_topic, topic))) {
            return wrong("dead_letter_topic", "names a topic that the consumer reads: name another one");
        }
        for (name, value) in &self.settings {
            match settings::canonical(name) {
                "bootstrap.servers" => {
                    if let Some(problem) = problem_of_brokers(value) {
                        return wrong(name, &format!("is refused: {problem}"));
                    }
                }
                "enable.auto.commit" | "enable.auto.offset.store" => {
                    return wrong(name, "cannot be set: an offset is only committed after its transaction");
                }
                "check.crcs" if value != "false" => {
                    return wrong(
                        name,
                        "cannot be set: librdkafka passes over a batch whose checksum is wrong, and its events would be lost. \
                         Leave it out: brokers check what they store",
                    );
                }
                "acks" | "message.timeout.ms" | "delivery.report.only.error" | "transactional.id" => {
                    return wrong(
                        name,
                        "cannot be set: a record is done with only when all in-sync replicas have its dead letter",
                    );
                }
                _ => (),
            }
        }
        Ok(())
    }
}
