//! The topic that has, for an outbox, the ids of the last batch that was committed. A batch's ids are written in the transaction of
//! its records, so they are there if and only if the records are.
//!
//! A batch begins with a mark. Whoever takes over commits one with acknowledgements of all replicas, and reads up to it: what was committed before lies before
//! the mark, whichever broker answers. A batch lies at the end of its partition, so only that is read.
//!
//! A value is a version (1 byte), the number of the batch (8), which part of it this is and of how many (4 each), and ids (16 each).

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use diesel_outbox_core::PublishError;
use futures_executor::block_on;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, ResourceSpecifier, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};
use rdkafka::{ClientConfig, Message, Offset, TopicPartitionList};
use uuid::Uuid;

/// The topic's only partition.
pub(super) const PARTITION: i32 = 0;
/// The key of a mark.
pub(super) const MARK: &str = "mark";

const VERSION: u8 = 1;
/// How many ids a record has at most, so that it stays far below any limit for its size.
const PART: usize = 2_000;
/// How many offsets from the end to begin with, and how many times as far to go back if that was not enough.
const TAIL: i64 = 256;
const FARTHER: i64 = 16;
const POLL: Duration = Duration::from_millis(100);
/// A new segment is begun after this many bytes: Kafka compacts only what is behind the newest.
const SEGMENT_BYTES: &str = "67108864";

/// What was committed together.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Batch {
    pub(super) number: u64,
    pub(super) ids: Vec<Uuid>,
}

impl Batch {
    /// Returns the records for the topic, with their keys.
    pub(super) fn records(&self) -> impl Iterator<Item = (String, Vec<u8>)> {
        let parts = self.ids.chunks(PART);
        let of = parts.len() as u32;
        parts.enumerate().map(move |(part, ids)| {
            let mut value = vec![VERSION];
            value.extend(self.number.to_be_bytes());
            value.extend((part as u32).to_be_bytes());
            value.extend(of.to_be_bytes());
            ids.iter().for_each(|id| value.extend(id.as_bytes()));
            (format!("part-{part}"), value)
        })
    }
}

/// The parts of the newest batch that was found.
#[derive(Default)]
struct Found {
    number: u64,
    of: u32,
    parts: BTreeMap<u32, Vec<Uuid>>,
}

impl Found {
    fn add(&mut self, value: &[u8]) -> Result<(), PublishError> {
        let (number, part, of, ids) = parse(value).ok_or_else(|| {
            PublishError::new(
                "the progress topic has a record that this version of the relay cannot read: run the version that wrote it",
            )
        })?;
        if number > self.number {
            *self = Self { number, of, parts: BTreeMap::new() };
        }
        // What compaction has left of earlier batches is not of this one.
        if number == self.number {
            self.parts.insert(part, ids);
        }
        Ok(())
    }

    fn is_complete(&self) -> bool {
        self.of > 0 && self.parts.len() == self.of as usize
    }

    fn batch(self) -> Batch {
        Batch { number: self.number, ids: self.parts.into_values().flatten().collect() }
    }
}

fn parse(value: &[u8]) -> Option<(u64, u32, u32, Vec<Uuid>)> {
    let (version, value) = value.split_first()?;
    let (number, value) = value.split_first_chunk()?;
    let (part, value) = value.split_first_chunk()?;
    let (of, ids) = value.split_first_chunk()?;
    let (ids, rest) = ids.as_chunks();
    (*version == VERSION && rest.is_empty()).then(|| {
        let ids = ids.iter().map(|id| Uuid::from_bytes(*id)).collect();
        (u64::from_be_bytes(*number), u32::from_be_bytes(*part), u32::from_be_bytes(*of), ids)
    })
}

/// A reader of the topic, and who makes it.
pub(super) struct Progress {
    consumer: BaseConsumer,
    config: ClientConfig,
    topic: String,
    until: Instant,
}

impl Progress {
    /// `config` has what it takes to connect. Everything must be over by then.
    pub(super) fn open(mut config: ClientConfig, topic: &str, until: Instant) -> Result<Self, PublishError> {
        // A consumer that is assigned its partition joins no group.
        let consumer = config
            .clone()
            .set("group.id", topic)
            .set("enable.auto.commit", "false")
            .set("isolation.level", "read_committed")
            .set("auto.offset.reset", "error")
            .create()
            .map_err(|error| failed("connecting to read", topic, error))?;
        config.remove("group.id");
        Ok(Self { consumer, config, topic: topic.to_owned(), until })
    }

    fn left(&self) -> Duration {
        self.until.saturating_duration_since(Instant::now()).max(Duration::from_millis(1))
    }

    /// Makes the topic if it is missing, and checks that Kafka keeps what it must.
    pub(super) fn check(&self) -> Result<(), PublishError> {
        let topic = &*self.topic;
        let admin: AdminClient<DefaultClientContext> =
            self.config.create().map_err(|error| failed("looking at", topic, error))?;
        let options =
            AdminOptions::new().request_timeout(Some(self.left())).operation_timeout(Some(self.left()));
        let partitions = self.partitions()?;
        if partitions == 0 {
            let new = NewTopic::new(topic, 1, TopicReplication::Fixed(-1))
                .set("cleanup.policy", "compact")
                .set("segment.bytes", SEGMENT_BYTES);
            let made = block_on(admin.create_topics([&new], &options));
            match made.map_err(|error| failed("making", topic, error))?.into_iter().next() {
                // Another relay may have been faster.
                Some(Ok(_)) | Some(Err((_, Code::TopicAlreadyExists))) | None => {}
                Some(Err((_, code))) => {
                    return Err(PublishError::new(format!(
                        "the topic `{topic}`, which sending exactly once needs, is missing, and Kafka does not let the relay make it ({code}): \
                         make it with 1 partition and `cleanup.policy=compact`"
                    )));
                }
            }
        } else if partitions > 1 {
            return Err(PublishError::new(format!(
                "the topic `{topic}` has {partitions} partitions, but the progress of an outbox needs a single one: set another prefix for \
                 sending exactly once, so that the relay makes a topic of its own"
            )));
        }
        self.check_policy(&admin, &options)
    }

    /// Returns how many partitions the topic has, 0 if it does not exist.
    fn partitions(&self) -> Result<usize, PublishError> {
        let topic = &*self.topic;
        let metadata = self
            .consumer
            .fetch_metadata(Some(topic), self.left())
            .map_err(|error| failed("looking for", topic, error))?;
        Ok(metadata.topics().first().map_or(0, |found| found.partitions().len()))
    }

    fn check_policy(
        &self,
        admin: &AdminClient<DefaultClientContext>,
        options: &AdminOptions,
    ) -> Result<(), PublishError> {
        let topic = &*self.topic;
        let described = block_on(admin.describe_configs(&[ResourceSpecifier::Topic(topic)], options))
            .map_err(|error| failed("looking at the settings of", topic, error))?;
        let policy = match described.into_iter().next() {
            Some(Ok(settings)) => settings.get("cleanup.policy").and_then(|entry| entry.value.clone()),
            Some(Err(code)) => {
                return Err(PublishError::new(format!(
                    "the relay cannot see whether the topic `{topic}` is compacted ({code}): allow it to describe the topic's settings"
                )));
            }
            None => None,
        };
        match policy.as_deref() {
            Some("compact") => Ok(()),
            policy => Err(PublishError::new(format!(
                "the topic `{topic}` has `cleanup.policy={}`, so Kafka would delete what the relay must find there, and records would be \
                 sent twice: set `cleanup.policy=compact`",
                policy.unwrap_or_default()
            ))),
        }
    }

    /// Returns the last batch that was committed before this mark.
    pub(super) fn last_before(&self, mark: Uuid) -> Result<Batch, PublishError> {
        let topic = &*self.topic;
        let (low, high) = self
            .consumer
            .fetch_watermarks(topic, PARTITION, self.left())
            .map_err(|error| failed("looking for the end of", topic, error))?;
        let mut tail = TAIL;
        loop {
            let start = high.saturating_sub(tail).max(low);
            let found = self.read(start, mark)?;
            if found.is_complete() {
                return Ok(found.batch());
            }
            if start == low {
                return if found.of == 0 {
                    Ok(Batch::default())
                } else {
                    Err(PublishError::new(format!(
                        "the topic `{topic}` has only {} of the {} parts of the last batch, so nobody knows what was sent: was somebody \
                         else writing to it?",
                        found.parts.len(),
                        found.of
                    )))
                };
            }
            tail = tail.saturating_mul(FARTHER);
        }
    }

    fn read(&self, start: i64, mark: Uuid) -> Result<Found, PublishError> {
        let topic = &*self.topic;
        let mut place = TopicPartitionList::new();
        let assigned = place
            .add_partition_offset(topic, PARTITION, Offset::Offset(start))
            .and_then(|()| self.consumer.assign(&place));
        assigned.map_err(|error| failed("beginning to read", topic, error))?;
        let mut found = Found::default();
        while Instant::now() < self.until {
            let record = match self.consumer.poll(POLL.min(self.left())) {
                None => continue,
                Some(record) => record.map_err(|error| failed("reading", topic, error))?,
            };
            let value = record.payload().unwrap_or_default();
            if record.key() != Some(MARK.as_bytes()) {
                found.add(value)?;
            } else if value == mark.as_bytes() {
                return Ok(found);
            }
        }
        Err(PublishError::new(format!("Kafka did not give the end of the topic `{topic}` in time")))
    }
}

fn failed(doing: &str, topic: &str, error: KafkaError) -> PublishError {
    PublishError::new(format!("Kafka failed while {doing} the topic `{topic}`: {error}")).with_source(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batch(number: u64, ids: usize) -> Batch {
        Batch { number, ids: (0..ids).map(|_| Uuid::now_v7()).collect() }
    }

    #[test]
    fn the_newest_batch_is_found_among_what_compaction_has_left_of_others() {
        let (old, new) = (batch(7, 3 * PART), batch(8, PART + 1));
        let mut found = Found::default();
        for (_, value) in old.records().skip(2).chain(new.records()) {
            found.add(&value).unwrap();
        }
        assert!(found.is_complete());
        assert_eq!(found.batch(), new);
    }

    #[test]
    fn a_batch_without_its_first_part_is_not_complete() {
        let mut found = Found::default();
        for (_, value) in batch(8, 3 * PART).records().skip(1) {
            found.add(&value).unwrap();
        }
        assert!(!found.is_complete());
    }

    #[test]
    fn each_record_is_small() {
        let records: Vec<_> = batch(1, 100_000).records().collect();
        assert_eq!(records.len(), 100_000 / PART);
        assert!(records.iter().all(|(_, value)| value.len() < 33_000));
    }

    #[test]
    fn a_record_of_another_version_is_an_error() {
        let (_, mut value) = batch(1, 1).records().next().unwrap();
        value[0] = 2;
        assert!(Found::default().add(&value).is_err());
        assert!(Found::default().add(&[]).is_err());
    }
}
