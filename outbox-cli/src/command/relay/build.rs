//! A relay as the settings want it.

use diesel_outbox_relay::source::SentRows;
use diesel_outbox_relay::{Kafka, Relay, TopicNaming};

use crate::command::database::OutboxDatabase;
use crate::command::failure::Failure;
use crate::command::origin::{ConfigError, Origins};
use crate::command::settings::{KafkaSettings, RelaySettings, items};

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
    let relay = match after.retention.keep_sent_rows {
        Some(rows) => relay.keep_sent_rows(rows),
        None => relay,
    };
    let relay = match &after.keep_dead_letters {
        Some(retention) => relay.keep_dead_letters(retention.0),
        None => relay,
    };
    let relay = match after.keep_dead_letter_rows {
        Some(rows) => relay.keep_dead_letter_rows(rows),
        None => relay,
    };
    let relay = match work.max_rate {
        Some(rate) => relay.max_rate(rate),
        None => relay,
    };
    Ok(match after.retention.sent_rows(origins)? {
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

/// Returns how topics are named, and which are allowed.
pub(in super::super) fn topics(
    settings: &KafkaSettings,
    origins: &Origins,
) -> Result<TopicNaming, ConfigError> {
    let topics = settings.topics.topic.naming.clone();
    match settings.allow_topics.as_deref().map(items) {
        Some(names) if names.is_empty() => Err(origins
            .of("allow_topics")
            .wrong("it allows no topic at all: name one, or leave it out to allow all topics")),
        Some(names) => Ok(topics.allow(names)),
        None => Ok(topics),
    }
}

#[cfg(test)]
mod tests;
