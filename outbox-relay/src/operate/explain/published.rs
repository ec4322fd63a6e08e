use std::collections::BTreeSet;
use std::time::Duration;

use diesel_outbox_core::PublishError;
use diesel_outbox_core::wire::TopicNaming;
use diesel_outbox_kafka::__simulated::murmur2;
use diesel_outbox_kafka::{Kafka, PublishedRecord};
use uuid::Uuid;

use super::Event;

/// How long one call of Kafka may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// So many records of the partition are read at most.
const MOST_RECORDS: u64 = 100_000;

/// What Kafka has of an event.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Published {
    /// Its first record.
    Found(PublishedRecord),
    /// Nothing in what was read: the records of its partition from the time of its emit on, and whether that was all of them.
    Missing {
        /// Its topic.
        topic: String,
        /// Whether all records since then were read. Kafka may have deleted earlier ones.
        is_all: bool,
    },
}

/// Looks for an event in its topic's partition, from the time at which it was emitted on, in 100,000 records at most.
///
/// # Errors
/// Returns an error if Kafka fails or does not answer in time, or if no topic can have the name.
pub fn find_published(
    kafka: &Kafka,
    naming: &TopicNaming,
    id: Uuid,
    event: &Event,
) -> Result<Published, PublishError> {
    let topic = naming
        .topic(&event.aggregate_type)
        .map_err(|error| PublishError::new(error.to_string()).with_source(error))?;
    let topics = BTreeSet::from([topic.clone()]);
    let mut records = kafka.records_since(&topics, event.created_at, PATIENCE)?;
    records.keep_partition_of(&topic, murmur2(event.aggregate_id.as_bytes()))?;
    for _ in 0..MOST_RECORDS {
        match records.next_record()? {
            Some(record) if record.id == Some(id) => return Ok(Published::Found(record)),
            Some(_) => {}
            None => return Ok(Published::Missing { topic, is_all: true }),
        }
    }
    Ok(Published::Missing { topic, is_all: false })
}
