use std::error::Error;
use std::time::Duration;

use rdkafka::error::KafkaError;

/// Why a consumer could not be started, ended by itself, or did not stop well.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConsumerError {
    /// It has no topics to subscribe to.
    #[error("the consumer has no topics: name them with `.topics([\"outbox.event.order\"])`")]
    NoTopics,
    /// It has nothing to do with any record.
    #[error("the consumer has no handlers: add one with `.on_event(|c, event: OrderEvent| ..)`")]
    NoHandlers,
    /// It has no database.
    #[error(
        "the consumer has no database: name it with `.database_url(\"postgres://host/name\")`. To give it connections of a pool, begin \
         with `Consumer::<PooledConnection<ConnectionManager<PgConnection>>>::new(..)`, and call `.connect_with(move || pool.get())`"
    )]
    NoDatabase,
    /// A setting has a value that cannot work.
    #[error("the consumer's setting `{setting}` {problem}")]
    Setting {
        /// The setting's name.
        setting: String,
        /// What is wrong with it, and what to do.
        problem: String,
    },
    /// librdkafka does not take the settings together.
    #[error("the consumer's Kafka settings are wrong: {0}")]
    Settings(#[source] Box<dyn Error + Send + Sync>),
    /// The consumer's thread could not be started.
    #[error("the consumer's thread could not be started: {0}")]
    Thread(#[from] std::io::Error),
    /// There is no tokio runtime for the async handlers.
    #[cfg(feature = "async")]
    #[error(
        "there is no tokio runtime to run async handlers on: call `spawn` or `run` from within one, and keep it running until the \
         consumer has stopped"
    )]
    NoRuntime,
    /// The table `inbox` was missing when the consumer first looked for it. No handler has run. If the database was away before, the
    /// consumer may have skipped records without a handler, sent unreadable ones to the dead-letter topic, and committed their
    /// offsets, because none of that needs the database.
    #[error(
        "the consumer's database has no table `inbox`: create it with `diesel_outbox_kafka::Migrations::inbox_only().run(..)` or \
         `outbox migrate --inbox-only`, and start the consumer again. If the table is there, the consumer does not see it. On PostgreSQL \
         its schema is not in the connection's `search_path` (name it with `.schema(..)`), or the role may not use the schema; on MySQL \
         and MariaDB it is in another database than the connection's (name that with `.schema(..)`); on SQLite the path names another \
         file. No handler has run: Kafka delivers its events again"
    )]
    NoInbox,
    /// The database cannot hold the inbox as it is set: `schema` was set and SQLite has none, for example.
    #[error("the consumer cannot work with this database: {0}")]
    Database(#[source] diesel::result::Error),
    /// The consumer cannot go on: another one has taken its `group.instance.id`, for example. What was handled is in
    /// the database; start a new consumer to go on from there.
    #[error(
        "the Kafka consumer failed permanently: {0}. Start a new consumer: it continues where this one stopped"
    )]
    Kafka(#[source] Box<dyn Error + Send + Sync>),
    /// The consumer's own code panicked. A handler's panic does not do this.
    #[error("the consumer panicked: {0}")]
    Panicked(String),
    /// The consumer did not stop in time, because a handler, the database or Kafka takes too long. It stops when they are done, or
    /// ends with the process.
    #[error(
        "the consumer did not stop within {0:?}, because a handler, the database or Kafka takes longer. It stops when they are done. \
         If the process ends before that, Kafka delivers again what is not committed, and the inbox knows what was \
         handled: nothing is lost. If this happens often, set a longer `shutdown_timeout`"
    )]
    ShutdownTimeout(Duration),
}

impl ConsumerError {
    /// Returns the error for what librdkafka says of the settings, without the value, which may be a secret.
    pub(super) fn settings(error: KafkaError) -> Self {
        match error {
            KafkaError::ClientConfig(_, reason, setting, value) => {
                let reason = crate::error::refusal_of_property(&setting, &value, &reason);
                Self::Setting { setting, problem: format!("is refused: {reason}") }
            }
            error => Self::Settings(error.into()),
        }
    }
}
