use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use super::backoff::Backoff;
use super::blocking::BlockingHandler;
use super::connection::Connect;
use super::consume::Options;
use super::handlers::{Handlers, UnknownTypes};
use crate::publisher::settings;

/// Builds a consumer: which topics it reads, what it does with each type of event, and in which database.
///
/// `C` is the connection that handlers get: write `Consumer::<PgConnection>::new`, or name a pooled connection. Any
/// [`OutboxConnection`](diesel_outbox::OutboxConnection) does, an enum of connections too, or one of diesel-async. A consumer handles one
/// record at a time. For more at the same time start more consumers of the same name, in one process or in many: Kafka
/// shares the partitions among them. See the [module](super) for an example and for what happens when something fails.
#[must_use = "a consumer does nothing before `spawn` or `run`"]
pub struct Consumer<C, H = BlockingHandler<C>> {
    pub(super) name: String,
    pub(super) connect: Option<Connect<C>>,
    pub(super) schema: Option<String>,
    pub(super) settings: BTreeMap<String, String>,
    pub(super) topics: Vec<String>,
    pub(super) handlers: Handlers<H>,
    pub(super) dead_letter_topic: String,
    pub(super) options: Options,
    pub(super) shutdown_timeout: Duration,
}

impl<C, H> Consumer<C, H> {
    pub(super) fn with_defaults(brokers: String, name: String) -> Self {
        let settings = [("bootstrap.servers", brokers), ("client.id", name.clone())];
        Self {
            name,
            connect: None,
            schema: None,
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
            shutdown_timeout: Duration::from_secs(30),
        }
    }

    /// Sets the schema that holds the table `inbox`, which is a database on MySQL and MariaDB. With SQLite, which has none, the consumer
    /// ends with an error. Default: the connection's `search_path` or database decides.
    pub fn schema(mut self, schema: impl Into<String>) -> Self {
        self.schema = Some(schema.into());
        self
    }

    /// Adds topics to subscribe to. Required. A name that begins with `^` is a regular expression, which must not match the
    /// dead-letter topics.
    pub fn topics(mut self, topics: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.topics.extend(topics.into_iter().map(Into::into));
        self
    }

    /// Sets what happens to events of types that have no handler. Default: they are skipped.
    pub fn unknown_types(mut self, unknown_types: UnknownTypes) -> Self {
        self.options.unknown_types = unknown_types;
        self
    }

    /// Sets how often the handler may fail on a record before the record becomes a dead letter, at least 1. Default: 5.
    ///
    /// A deadlock and a serialization failure count too. With `u32::MAX` the record never becomes a dead letter because of that:
    /// its partition waits until the handler succeeds.
    pub fn max_attempts(mut self, attempts: u32) -> Self {
        self.options.max_attempts = attempts;
        self
    }

    /// Sets how long to wait after a first failure, and at most after many, each up to a day. The wait doubles each time. It applies
    /// to records, connections and dead letters alike. Default: 100 ms and 10 s.
    pub fn backoff(mut self, first: Duration, longest: Duration) -> Self {
        self.options.backoff = Backoff { first, longest };
        self
    }

    /// Sets the topic for records that cannot be handled; `{topic}` in it stands for the topic that a record came from. Default:
    /// `{topic}.dead-letter`.
    ///
    /// Create it with a `max.message.bytes` somewhat above that of the topics, because dead letters have more headers.
    pub fn dead_letter_topic(mut self, topic: impl Into<String>) -> Self {
        self.dead_letter_topic = topic.into();
        self
    }

    /// Sets how long the inbox remembers the events that were handled, up to 100 years; `None` is for ever. Default: 14 days. The
    /// consumer deletes older ids from the start on and once a minute, in short steps between records.
    ///
    /// It must be longer than the longest time after which an event may be delivered again, or the event has its effect again.
    /// You are safe if it is longer than the topics keep their records, for which Kafka's default is 7 days
    /// (`retention.ms`). For compacted topics, and those that keep records for ever, use `None`.
    pub fn inbox_retention(mut self, retention: impl Into<Option<Duration>>) -> Self {
        self.options.retention = retention.into();
        self
    }

    /// Sets how long [`run`](Consumer::run) and [`ConsumerHandle::stop`](super::ConsumerHandle::stop) wait for the record in hand,
    /// 1 ms to a day. Default: 30 s.
    pub fn shutdown_timeout(mut self, timeout: Duration) -> Self {
        self.shutdown_timeout = timeout;
        self
    }

    /// Sets any [property of librdkafka](https://github.com/confluentinc/librdkafka/blob/master/CONFIGURATION.md), for the
    /// consumer and for the producer of dead letters. `enable.auto.commit`, `enable.auto.offset.store`, `acks`,
    /// `message.timeout.ms`, `delivery.report.only.error`, `transactional.id` and `check.crcs` are refused.
    ///
    /// This crate's own defaults: `group.id` is the consumer's name, `auto.offset.reset` is `earliest`,
    /// `statistics.interval.ms` is 5000, and `partition.assignment.strategy` is `cooperative-sticky`, so that a rebalance does not
    /// stop the partitions that stay where they are. All members of a group must agree on that last one.
    pub fn set(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        settings::set(&mut self.settings, name.into(), value.into());
        self
    }
}

/// Shows the names of librdkafka's properties, not their values, and nothing of the database: some are secrets.
impl<C, H> fmt::Debug for Consumer<C, H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Consumer")
            .field("name", &self.name)
            .field("schema", &self.schema)
            .field("topics", &self.topics)
            .field("handlers", &self.handlers)
            .field("dead_letter_topic", &self.dead_letter_topic)
            .field("options", &self.options)
            .field("shutdown_timeout", &self.shutdown_timeout)
            .field("settings", &self.settings.keys().collect::<Vec<_>>())
            .finish_non_exhaustive()
    }
}
