use std::error::Error;

use rdkafka::error::KafkaError;

/// Why a consumer could not be started, or ended by itself.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConsumerError {
    /// It was not told what to subscribe to.
    #[error("the consumer has no topics: name them with `.topics([\"outbox.event.order\"])`")]
    NoTopics,
    /// It was not told what to do with any record.
    #[error("the consumer has no handlers: add one with `.on(\"OrderPlaced\", ...)`")]
    NoHandlers,
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
    /// The consumer cannot go on: another one has taken its `group.instance.id`, for example. What was handled is in
    /// the database; start a new consumer to go on from there.
    #[error("the Kafka consumer failed for good: {0}")]
    Kafka(#[source] Box<dyn Error + Send + Sync>),
    /// The consumer's thread could not be started.
    #[error("the consumer's thread could not be started: {0}")]
    Thread(#[from] std::io::Error),
    /// There is no tokio runtime, or it is shutting down.
    #[cfg(feature = "async")]
    #[error(
        "there is no tokio runtime to run async handlers on: call this from within one, and keep it running"
    )]
    NoRuntime,
    /// The consumer's own code panicked. A handler's panic does not do this.
    #[error("the consumer panicked: {0}")]
    Panicked(String),
}

impl ConsumerError {
    /// For what librdkafka says of the settings. The value is left out: it may be a secret.
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
