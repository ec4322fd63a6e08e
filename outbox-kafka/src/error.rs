use rdkafka::error::KafkaError;
use rdkafka::types::RDKafkaErrorCode as Code;

/// Returns what librdkafka says of a property that it refuses. If the value may be a secret, a reason that repeats it is left
/// out.
pub(crate) fn refusal_of_property(name: &str, value: &str, reason: &str) -> String {
    let is_public = ["security.protocol", "compression.", "sasl.mechanism", "acks", "partitioner"]
        .iter()
        .any(|public| name.starts_with(public));
    let reason = if !is_public && !value.is_empty() && reason.contains(value) {
        "librdkafka does not take that value"
    } else {
        reason
    };
    let needs_a_feature = ["security.", "ssl.", "sasl."].iter().any(|prefix| name.starts_with(prefix));
    if needs_a_feature {
        format!(
            "{reason} (TLS and SASL need a feature: `tls` or `sasl` of diesel-outbox-kafka, `kafka-tls` or `kafka-sasl` \
             of diesel-outbox-relay, `tls` or `sasl` of diesel-outbox-cli)"
        )
    } else if name.starts_with("compression.") && value == "zstd" {
        format!(
            "{reason} (zstd needs a feature: `zstd` of diesel-outbox-kafka or diesel-outbox-cli, `kafka-zstd` of diesel-outbox-relay)"
        )
    } else {
        reason.to_owned()
    }
}

/// Returns whether the error is about one record of a batch and names the whole batch, so that nobody knows which record it is.
pub(crate) fn concerns_one_of_a_batch(code: Code) -> bool {
    is_too_large(code)
        || matches!(code, Code::InvalidMessageSize | Code::InvalidRecord | Code::InvalidTimestamp)
}

/// Returns whether the topic has no room for the record: its limit for a batch, or its segments, are too small.
pub(crate) fn is_too_large(code: Code) -> bool {
    matches!(code, Code::MessageSizeTooLarge | Code::MessageBatchTooLarge)
}

/// Returns whether Kafka says that the topic does not exist. librdkafka says so too of one that is being made again, or that a broker
/// does not know yet: ask Kafka again before you believe it.
pub(crate) fn is_unknown_topic(code: Code) -> bool {
    matches!(code, Code::UnknownTopic | Code::UnknownTopicOrPartition)
}

/// Returns why Kafka will never take a record that it refused, or nothing if trying again can help.
pub(crate) fn refusal(error: &KafkaError, topic: &str) -> Option<String> {
    let code = error.rdkafka_error_code().filter(|code| !is_unknown_topic(*code))?;
    rejection(code, topic)
}

/// Returns why Kafka will never take the record, or nothing if trying again can help.
pub(crate) fn rejection(code: Code, topic: &str) -> Option<String> {
    let reason = match code {
        Code::MessageSizeTooLarge | Code::InvalidMessageSize | Code::InvalidRecord => format!(
            "Kafka refused the record because it is too large or invalid ({code}): raise `message.max.bytes` at the relay and the \
             topic's `max.message.bytes`, or make the payload smaller, then requeue"
        ),
        Code::MessageBatchTooLarge => format!(
            "Kafka refused the record because it is larger than a segment of the topic ({code}): raise the topic's \
             `segment.bytes`, or make the payload smaller, then requeue"
        ),
        Code::UnknownTopic | Code::UnknownTopicOrPartition => {
            format!("the topic `{topic}` does not exist ({code}): create it, then requeue")
        }
        Code::InvalidTopic => format!(
            "Kafka cannot have a topic named `{topic}` ({code}): if the relay's topic pattern makes the name so, correct that and \
             requeue; if the aggregate type does, emit the event again with another one"
        ),
        Code::TopicAuthorizationFailed => {
            format!("the relay may not write to the topic `{topic}` ({code}): allow it, then requeue")
        }
        Code::InvalidTimestamp => format!(
            "Kafka refused the record because of its timestamp ({code}): raise the topic's `message.timestamp.before.max.ms` and \
             `message.timestamp.after.max.ms`, then requeue"
        ),
        Code::PolicyViolation | Code::UnsupportedForMessageFormat => format!(
            "Kafka refused the record ({code}): the broker's log says why. Change the topic's settings or the broker's, then requeue"
        ),
        _ => return None,
    };
    Some(reason)
}
