//! What the connectors for all databases have in common.

use super::properties::Properties;
use crate::command::origin::Origins;

/// What stands for the aggregate type in a relay's pattern, and in the router's.
const PLACEHOLDERS: [&str; 2] = ["{aggregatetype}", "${routedByValue}"];

/// A worker replaces it by the variable of its environment.
pub(super) const PASSWORD: &str = "${env:OUTBOX_DATABASE_PASSWORD}";

/// Refuses what cannot be part of a topic's name.
pub(crate) fn connector_name(name: &str) -> Result<String, &'static str> {
    let is_good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    if !name.is_empty() && name.chars().all(is_good) {
        Ok(name.to_owned())
    } else {
        Err("use letters, digits, `.`, `_` and `-`")
    }
}

/// What makes the rows records as a relay sends them, for a relay's pattern of topics.
pub(super) fn routing(topic: &str) -> Properties {
    let given = |text: &str| text.to_owned();
    vec![
        ("tombstones.on.delete", given("false")),
        ("extended.headers.enabled", given("false")),
        ("key.converter", given("org.apache.kafka.connect.storage.StringConverter")),
        ("value.converter", given("io.debezium.converters.BinaryDataConverter")),
        ("value.converter.delegate.converter.type", given("org.apache.kafka.connect.json.JsonConverter")),
        ("value.converter.delegate.converter.type.schemas.enable", given("false")),
        ("header.converter", given("org.apache.kafka.connect.storage.StringConverter")),
        ("transforms", given("outbox")),
        ("transforms.outbox.type", given("io.debezium.transforms.outbox.EventRouter")),
        ("transforms.outbox.route.topic.replacement", topic.replace(PLACEHOLDERS[0], PLACEHOLDERS[1])),
        ("transforms.outbox.table.field.event.timestamp", given("created_at")),
        ("transforms.outbox.table.fields.additional.placement", given("type:header:eventType")),
        ("poll.interval.ms", given("5")),
        ("max.batch.size", given("16384")),
        ("max.queue.size", given("65536")),
        ("max.queue.size.in.bytes", given("67108864")),
        ("producer.override.acks", given("all")),
        ("producer.override.enable.idempotence", given("true")),
        ("producer.override.max.in.flight.requests.per.connection", given("5")),
        ("producer.override.linger.ms", given("0")),
    ]
}

/// A regular expression that matches this name alone, in a list with commas.
pub(super) fn pattern(name: &str) -> String {
    let mut text = String::with_capacity(name.len());
    for character in name.chars() {
        if !(character.is_alphanumeric() || character == '_' || character == ' ') {
            text.push('\\');
        }
        text.push(character);
    }
    text
}

/// What whoever starts any connector must know. `first` is what to do before.
pub(super) fn notes(first: &[&str], origins: &Origins) -> Vec<String> {
    let mut notes = vec![
        "The worker reads the password from its environment if it has config.providers=env and \
         config.providers.env.class=org.apache.kafka.common.config.provider.EnvVarConfigProvider."
            .to_owned(),
        "The worker lets a connector override its producer's settings if it has \
         connector.client.config.override.policy=All, the default from Kafka 4 on."
            .to_owned(),
    ];
    notes.extend(first.iter().map(|note| (*note).to_owned()));
    if let Some(origin) = origins.given("allow_topics") {
        notes.push(format!(
            "{origin}: Debezium has no list of allowed topics. Restrict the topics by Kafka's ACLs; a record that Kafka \
             refuses stops the connector.",
        ));
    }
    notes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_topic_pattern_becomes_the_routers() {
        let topic = |pattern| {
            let mut properties = routing(pattern).into_iter();
            properties.find(|(name, _)| name.ends_with("route.topic.replacement")).map(|(_, value)| value)
        };
        let becomes = |pattern, expected: &str| assert_eq!(topic(pattern).as_deref(), Some(expected));
        becomes("outbox.event.{aggregatetype}", "outbox.event.${routedByValue}");
        becomes("a-b_C.{aggregatetype}.v1", "a-b_C.${routedByValue}.v1");
        becomes("events", "events");
    }

    #[test]
    fn the_pattern_of_a_name_has_no_comma_that_ends_it() {
        assert_eq!(pattern("a,b"), "a\\,b");
    }
}
