//! A relay as the settings want it.

use std::cmp::Ordering;

use diesel_outbox_relay::source::SentRows;
use diesel_outbox_relay::{DeadLetterPolicy, Kafka, Relay, TopicNaming};

use crate::command::config::Config;
use crate::command::database::Database;
use crate::command::failure::Failure;
use crate::command::value::ConfigError;

/// The relay, ready to run.
pub(super) fn relay(config: &Config, database: &Database) -> Result<Relay, Failure> {
    let relay = database.relay(config)?.broker(kafka(config)?).topic_naming(topics(config)?);
    let relay = set(relay, config.number("workers")?, Relay::workers);
    let relay = set(relay, config.number("chunk")?, Relay::batch_size);
    let relay = set(relay, config.number("in_flight")?, Relay::max_in_flight);
    let relay = set(relay, config.number("in_flight_bytes")?, Relay::max_in_flight_bytes);
    let relay = set(relay, config.duration("pass_time")?, Relay::max_pass_duration);
    let relay = set(relay, config.duration("stall_time")?, Relay::stall_timeout);
    let relay = set(relay, config.duration("poll_interval")?, Relay::poll_interval);
    let relay = set(relay, config.duration("lag_interval")?, Relay::lag_interval);
    let relay = set(relay, config.duration("stop_time")?, Relay::shutdown_timeout);
    let relay = set(relay, dead_letter_policy(config)?, Relay::dead_letter_policy);
    Ok(match sent_rows(config)? {
        SentRows::Keep { retention } => relay.keep_sent(retention),
        _ => relay.delete_sent(),
    })
}

fn set<T>(relay: Relay, value: Option<T>, with: impl FnOnce(Relay, T) -> Relay) -> Relay {
    match value {
        Some(value) => with(relay, value),
        None => relay,
    }
}

fn kafka(config: &Config) -> Result<Kafka, ConfigError> {
    let brokers = config.list("brokers").join(",");
    if brokers.is_empty() {
        return Err(ConfigError::Missing { what: "no broker is named", key: "brokers" });
    }
    let mut kafka = Kafka::new(brokers);
    for (name, value) in config.properties() {
        if ["bootstrap.servers", "metadata.broker.list"].contains(&name) {
            return Err(value.origin.wrong("name the brokers with the setting `brokers` instead"));
        }
        kafka = kafka.set(name, value.text());
    }
    Ok(match config.switch("own_headers")? {
        Some(sent) => kafka.event_headers(sent),
        None => kafka,
    })
}

fn topics(config: &Config) -> Result<TopicNaming, ConfigError> {
    let topics =
        config.parsed("topic", |text| text.parse::<TopicNaming>().map_err(|error| error.to_string()))?;
    let topics = topics.unwrap_or_default();
    match config.get("allow_topics") {
        Some(names) if names.texts.is_empty() => {
            Err(names.origin.wrong("it allows no topic at all: name one, or leave it out to allow all"))
        }
        Some(names) => Ok(topics.allow(&names.texts)),
        None => Ok(topics),
    }
}

fn dead_letter_policy(config: &Config) -> Result<Option<DeadLetterPolicy>, ConfigError> {
    config.parsed("dead_letter_policy", |text| match text {
        "go-on" => Ok(DeadLetterPolicy::Continue),
        "block" => Ok(DeadLetterPolicy::Block),
        _ => Err("it must be go-on or block".into()),
    })
}

/// Sent rows are kept for a time or deleted: what was given in the stronger source counts.
fn sent_rows(config: &Config) -> Result<SentRows, ConfigError> {
    let kept = config
        .duration("retention")?
        .map_or_else(SentRows::default, |retention| SentRows::Keep { retention });
    if !config.switch("delete_sent")?.unwrap_or_default() {
        return Ok(kept);
    }
    let origins = config.get("retention").zip(config.get("delete_sent"));
    let Some((retention, deletion)) = origins.map(|(kept, deleted)| (&kept.origin, &deleted.origin)) else {
        return Ok(SentRows::Delete);
    };
    match deletion.source.cmp(&retention.source) {
        Ordering::Greater => Ok(SentRows::Delete),
        Ordering::Less => Ok(kept),
        Ordering::Equal => Err(ConfigError::Conflict { origin: deletion.clone(), other: retention.clone() }),
    }
}

#[cfg(test)]
mod tests;
