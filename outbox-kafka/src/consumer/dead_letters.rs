use std::error::Error;
use std::fmt::Write;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use rdkafka::Message;
use rdkafka::client::ClientContext;
use rdkafka::config::{ClientConfig, RDKafkaLogLevel};
use rdkafka::error::{KafkaError, KafkaResult};
use rdkafka::message::{DeliveryResult, Header, OwnedHeaders, OwnedMessage};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer, ProducerContext};
use rdkafka::types::RDKafkaErrorCode as Code;
use tracing::warn;

use super::headers;
use crate::error::is_too_large;
use crate::log::{Errors, log};
use crate::publisher::settings::canonical;

/// The headers that a dead letter has besides the record's own.
const HEADERS: [&str; 6] = [
    "outbox-error",
    "outbox-topic",
    "outbox-partition",
    "outbox-offset",
    "outbox-timestamp",
    "outbox-consumer",
];
/// The longest error that is kept, in characters.
const ERROR_LIMIT: usize = 4_000;

/// Where records go that cannot be handled.
pub(super) struct DeadLetters {
    producer: BaseProducer<Delivery>,
    topic: String,
    consumer: String,
}

impl DeadLetters {
    /// Starts the producer. `{topic}` in `topic` stands for the topic that the record came from.
    pub(super) fn new(mut config: ClientConfig, topic: String, consumer: String) -> KafkaResult<Self> {
        config.set("acks", "all").set("message.timeout.ms", "10000").set("message.max.bytes", "1000000000");
        if !config.config_map().keys().any(|name| canonical(name) == "compression.type") {
            // A record that its producer had compressed is to fit again.
            config.set("compression.type", "gzip");
        }
        Ok(Self { producer: config.create_with_context(Delivery::default())?, topic, consumer })
    }

    /// Returns the dead-letter topic of this topic.
    pub(super) fn topic(&self, of: &str) -> String {
        topic_of(&self.topic, of)
    }

    /// Sends the record to its dead-letter topic and waits until it is durable there. One that is as large as the topic allows
    /// goes without our headers.
    ///
    /// # Errors
    /// Returns what the operator is to read; trying again later may help.
    pub(super) fn send(&self, message: &OwnedMessage, readable: bool, reason: &str) -> Result<(), String> {
        let topic = self.topic(message.topic());
        let own = headers::without(message, &HEADERS, readable);
        let mut outcome = self.deliver(&topic, message, self.with_ours(own.clone(), message, reason));
        if let Err(error) = &outcome
            && error.rdkafka_error_code().is_some_and(is_too_large)
        {
            outcome = self.deliver(&topic, message, own);
            if outcome.is_ok() {
                warn!(
                    topic = message.topic(),
                    partition = message.partition(),
                    offset = message.offset(),
                    to = topic,
                    "the dead letter lacks the headers with the reason and its original position, because the dead-letter topic has no \
                     room for them: raise its `max.message.bytes` above that of the topic"
                );
            }
        }
        outcome.map_err(|error| match error.rdkafka_error_code() {
            Some(Code::UnknownTopic | Code::UnknownTopicOrPartition | Code::MessageTimedOut) => format!(
                "the dead-letter topic `{topic}` does not take the record ({error}): create it if it is missing, or \
                 name another one with `.dead_letter_topic(..)`"
            ),
            Some(code) if is_too_large(code) => format!(
                "the dead-letter topic `{topic}` does not take a record as large as this: raise its \
                 `max.message.bytes` and its `segment.bytes` above those of `{}`",
                message.topic()
            ),
            Some(Code::TopicAuthorizationFailed) => {
                format!("the consumer may not write to the dead-letter topic `{topic}`: allow it, with an ACL for example")
            }
            _ => format!("the dead-letter topic `{topic}` cannot be written to: {error}"),
        })
    }

    /// Logs what the producer reports meanwhile.
    pub(super) fn listen(&self) {
        self.producer.poll(Duration::ZERO);
    }

    fn deliver(&self, topic: &str, message: &OwnedMessage, headers: OwnedHeaders) -> KafkaResult<()> {
        let mut record = BaseRecord::<[u8], [u8]>::to(topic).headers(headers);
        record.key = message.key();
        record.payload = message.payload();
        self.producer.send(record).map_err(|(error, _)| error)?;
        loop {
            if let Some(outcome) = self.producer.context().take() {
                return outcome;
            }
            self.producer.poll(Duration::from_millis(100));
        }
    }

    fn with_ours(&self, headers: OwnedHeaders, message: &OwnedMessage, reason: &str) -> OwnedHeaders {
        let error: String = reason.chars().take(ERROR_LIMIT).collect();
        let timestamp = message.timestamp().to_millis().map(|ms| ms.to_string());
        let values = [
            Some(error.as_str()),
            Some(message.topic()),
            Some(&message.partition().to_string()),
            Some(&message.offset().to_string()),
            timestamp.as_deref(),
            Some(&self.consumer),
        ];
        HEADERS
            .into_iter()
            .zip(values)
            .filter(|(_, value)| value.is_some())
            .fold(headers, |headers, (key, value)| headers.insert(Header { key, value }))
    }
}

pub(super) fn topic_of(pattern: &str, topic: &str) -> String {
    pattern.replace("{topic}", topic)
}

/// Returns the error and all that caused it, in one line.
pub(super) fn full_text(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let _ = write!(text, ": {cause}");
        source = cause.source();
    }
    text
}

/// The outcome of the one record in flight.
#[derive(Default)]
struct Delivery {
    outcome: Mutex<Option<KafkaResult<()>>>,
    errors: Errors,
}

impl Delivery {
    fn take(&self) -> Option<KafkaResult<()>> {
        self.outcome.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

impl ClientContext for Delivery {
    fn error(&self, error: KafkaError, reason: &str) {
        self.errors.report(&error, reason);
    }

    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        log(level, facility, message);
    }
}

impl ProducerContext for Delivery {
    type DeliveryOpaque = ();

    fn delivery(&self, delivery: &DeliveryResult<'_>, (): ()) {
        let outcome = delivery.as_ref().map(|_| ()).map_err(|(error, _)| error.clone());
        *self.outcome.lock().unwrap_or_else(PoisonError::into_inner) = Some(outcome);
    }
}
