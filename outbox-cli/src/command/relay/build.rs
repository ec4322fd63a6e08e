//! A relay as the settings want it.

use std::cmp::Ordering;

use diesel_outbox_relay::source::SentRows;
use diesel_outbox_relay::{Kafka, Relay, TopicNaming};

use crate::command::database::OutboxDatabase;
use crate::command::failure::Failure;
use crate::command::origin::{ConfigError, Origins};
use crate::command::settings::{AfterSettings, KafkaSettings, RelaySettings, items};

/// The relay, ready to run.
pub(super) fn relay(
    settings: &RelaySettings,
    origins: &Origins,
    database: &OutboxDatabase,
    has_others: bool,
) -> Result<Relay, Failure> {
    let RelaySettings { source, after, work, .. } = settings;
    let relay = database
        .relay(source, origins)?
        .broker(kafka(&settings.kafka, origins)?)
        .topic_naming(topics(&settings.kafka, origins)?)
        .batch_size(work.batch_size)
        .max_in_flight(work.max_in_flight)
        .max_in_flight_bytes(work.max_in_flight_bytes)
        .max_pass_duration(work.max_pass_duration.0)
        .exactly_once(settings.kafka.exactly_once.exactly_once)
        .stall_timeout(work.stall_timeout.0)
        .poll_interval(source.poll_interval.0)
        .lag_interval(work.lag_interval.0)
        .shutdown_timeout(work.shutdown_timeout.0)
        .dead_letter_policy(after.dead_letter_policy);
    // Databases on several servers may have the same name.
    let relay = if has_others { relay.server_name(database.server_name()) } else { relay };
    // The relay has a default of its own, which depends on the number of outboxes.
    let relay = if origins.given("workers").is_some() { relay.workers(work.workers) } else { relay };
    Ok(match sent_rows(after, origins)? {
        SentRows::Keep { retention } => relay.keep_sent(retention),
        _ => relay.delete_sent(),
    })
}

/// How many workers a relay has at most.
pub(super) fn workers(settings: &RelaySettings, origins: &Origins, databases: &[OutboxDatabase]) -> usize {
    let has_more = origins.given("workers").is_none() && databases.iter().any(OutboxDatabase::has_several);
    if has_more { 2 } else { settings.work.workers }
}

fn kafka(settings: &KafkaSettings, origins: &Origins) -> Result<Kafka, ConfigError> {
    let kafka = settings.connection.kafka(origins)?;
    let prefix = &settings.exactly_once.exactly_once_prefix;
    Ok(kafka.event_headers(settings.event_headers).exactly_once_prefix(prefix))
}

fn topics(settings: &KafkaSettings, origins: &Origins) -> Result<TopicNaming, ConfigError> {
    let topics = settings.topics.topic.naming.clone();
    match settings.allow_topics.as_deref().map(items) {
        Some(names) if names.is_empty() => Err(origins
            .of("allow_topics")
            .wrong("it allows no topic at all: name one, or leave it out to allow all topics")),
        Some(names) => Ok(topics.allow(names)),
        None => Ok(topics),
    }
}

/// Sent rows are kept for a time, or deleted. The setting that was given in the higher layer counts.
fn sent_rows(settings: &AfterSettings, origins: &Origins) -> Result<SentRows, ConfigError> {
    let kept = SentRows::Keep { retention: settings.keep_sent.0 };
    if !settings.delete_sent {
        return Ok(kept);
    }
    let (deleting, keeping) = (origins.of("delete_sent"), origins.of("keep_sent"));
    match deleting.layer.cmp(&keeping.layer) {
        Ordering::Greater => Ok(SentRows::Delete),
        Ordering::Less => Ok(kept),
        Ordering::Equal => Err(ConfigError::Conflict { origin: deleting, other: keeping }),
    }
}

#[cfg(test)]
mod tests;
