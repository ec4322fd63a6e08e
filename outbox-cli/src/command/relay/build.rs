//! A relay as the settings want it.

use std::cmp::Ordering;

use diesel_outbox_relay::source::SentRows;
use diesel_outbox_relay::{DeadLetterPolicy, Kafka, Limits, Relay, Topics};

use crate::command::config::Config;
use crate::command::database::Database;
use crate::command::failure::Failure;
use crate::command::value::ConfigError;

/// The relay, ready to run.
pub(super) fn relay(config: &Config, database: &Database) -> Result<Relay, Failure> {
    let relay =
        database.relay(config)?.publisher(kafka(config)?).topics(topics(config)?).limits(limits(config)?);
    let relay = set(relay, config.number("workers")?, Relay::workers);
    let relay = set(relay, config.duration("poll_interval")?, Relay::poll_interval);
    let relay = set(relay, config.duration("lag_interval")?, Relay::lag_interval);
    let relay = set(relay, config.duration("stop_time")?, Relay::stop_time);
    let relay = set(relay, dead_letter_policy(config)?, Relay::dead_letter_policy);
    Ok(match sent_rows(config)? {
        SentRows::Keep { retention } => relay.retention(retention),
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
        Some(sent) => kafka.own_headers(sent),
        None => kafka,
    })
}

fn topics(config: &Config) -> Result<Topics, ConfigError> {
    let topics = config.parsed("topic", |text| Topics::pattern(text).map_err(|error| error.to_string()))?;
    let topics = topics.unwrap_or_default();
    match config.get("allow_topics") {
        Some(names) if names.texts.is_empty() => {
            Err(names.origin.wrong("it allows no topic at all: name one, or leave it out to allow all"))
        }
        Some(names) => Ok(topics.allow(&names.texts)),
        None => Ok(topics),
    }
}

fn limits(config: &Config) -> Result<Limits, ConfigError> {
    let mut limits = Limits::default();
    limits.chunk = config.number("chunk")?.unwrap_or(limits.chunk);
    limits.in_flight = config.number("in_flight")?.unwrap_or(limits.in_flight);
    limits.in_flight_bytes = config.number("in_flight_bytes")?.unwrap_or(limits.in_flight_bytes);
    limits.pass_time = config.duration("pass_time")?.unwrap_or(limits.pass_time);
    limits.stall_time = config.duration("stall_time")?.unwrap_or(limits.stall_time);
    Ok(limits)
}

fn dead_letter_policy(config: &Config) -> Result<Option<DeadLetterPolicy>, ConfigError> {
    config.parsed("dead_letter_policy", |text| match text {
        "go-on" => Ok(DeadLetterPolicy::GoOn),
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
