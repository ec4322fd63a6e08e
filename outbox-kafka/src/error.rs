use rdkafka::types::RDKafkaErrorCode as Code;

/// What librdkafka says of a property that it refuses, without the value, which may be a secret.
pub(crate) fn refusal_of_property(reason: &str, value: &str) -> String {
    if !value.is_empty() && reason.contains(value) {
        "librdkafka does not take that value".to_owned()
    } else {
        reason.to_owned()
    }
}

/// Whether the error is about one record of a batch, and tells of the whole batch: which one it is cannot be known.
pub(crate) fn concerns_one_of_a_batch(code: Code) -> bool {
    matches!(
        code,
        Code::MessageSizeTooLarge | Code::InvalidMessageSize | Code::InvalidRecord | Code::InvalidTimestamp
    )
}

/// Why Kafka will never take the record, or nothing where trying again can help.
pub(crate) fn rejection(code: Code, topic: &str) -> Option<String> {
    let reason = match code {
        Code::MessageSizeTooLarge | Code::InvalidMessageSize | Code::InvalidRecord => format!(
            "Kafka refused the record as too large or invalid ({code}): raise `message.max.bytes` at the relay and the \
             topic's `max.message.bytes`, or make the payload smaller, then requeue"
        ),
        Code::UnknownTopic | Code::UnknownTopicOrPartition => {
            format!("the topic `{topic}` does not exist ({code}): create it, then requeue")
        }
        Code::InvalidTopic => format!("Kafka cannot have a topic named `{topic}` ({code})"),
        Code::TopicAuthorizationFailed => {
            format!("the relay may not write to the topic `{topic}` ({code}): allow it, then requeue")
        }
        Code::PolicyViolation | Code::InvalidTimestamp | Code::UnsupportedForMessageFormat => {
            format!("Kafka refused the record ({code})")
        }
        _ => return None,
    };
    Some(reason)
}
