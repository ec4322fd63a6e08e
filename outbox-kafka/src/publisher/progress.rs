//! The topic that has, for an outbox, the ids of what was committed last: of all passes of which the database may not have, or may
//! lose, what they settled. The ids are written in the transaction of their records, so they are there if and only if the records
//! are.
//!
//! A transaction begins with a mark. Whoever takes over commits one with acknowledgements of all replicas, and reads up to it: what was committed
//! before lies before the mark, whichever broker answers. The parts that count lie at the end of the partition, so only that is read.
//!
//! A value is a version (1 byte), the number of this part (8), that of the first one that counts still (8), the outbox's origin as text after its
//! length (2), and ids (16 each). Parts are numbered one after the other, and their keys repeat.

use std::collections::BTreeMap;
use std::thread;
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

const VERSION: u8 = 2;
/// How many ids a record has at most, so that it stays far below any limit for its size.
const PART: usize = 2_000;
/// How many parts can count at once, because so many keys there are.
pub(super) const MOST_PARTS: u64 = 1_024;
/// How many offsets from the end to begin with, and how many times as far to go back if that was not enough.
const TAIL: i64 = 256;
const FARTHER: i64 = 16;
const POLL: Duration = Duration::from_millis(100);
/// How long Kafka waits for more, in milliseconds, before it answers that there is none. The reader waits for that answer at the end of the
/// topic, and before it begins at another place.
const WAIT_AT_END_MS: &str = "10";
/// A new segment is begun after this many bytes: Kafka compacts only what is behind the newest.
const SEGMENT_BYTES: &str = "67108864";

/// Some of the ids.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Part<'a> {
    number: u64,
    first: u64,
    origin: &'a str,
    ids: &'a [Uuid],
}

impl<'a> Part<'a> {
    /// Returns the parts that have these ids, from this number on. Those before the first one count no more.
    pub(super) fn of(origin: &'a str, first: u64, number: u64, ids: &'a [Uuid]) -> Vec<Self> {
        (number..).zip(ids.chunks(PART)).map(|(number, ids)| Self { number, first, origin, ids }).collect()
    }

    pub(super) fn key(&self) -> String {
        format!("part-{}", self.number % MOST_PARTS)
    }

    pub(super) fn value(&self) -> Vec<u8> {
        let mut value = vec![VERSION];
        value.extend(self.number.to_be_bytes());
        value.extend(self.first.to_be_bytes());
        let origin = &self.origin.as_bytes()[..self.origin.len().min(u16::MAX.into())];
        value.extend((origin.len() as u16).to_be_bytes());
        value.extend(origin);
        self.ids.iter().for_each(|id| value.extend(id.as_bytes()));
        value
    }
}

/// What was committed last.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Found {
    /// The number of its first part, and the one after its last.
    pub(super) first: u64,
    pub(super) next: u64,
    pub(super) ids: Vec<Uuid>,
    /// The origin of the outbox that it is of, or nothing if that is not known.
    pub(super) origin: String,
}

/// The parts that have been read.
#[derive(Default)]
struct Parts {
    first: u64,
    origin: String,
    parts: BTreeMap<u64, Vec<Uuid>>,
}

impl Parts {
    fn add(&mut self, value: &[u8]) -> Result<(), PublishError> {
        let (number, first, origin, ids) = parse(value).ok_or_else(|| {
            PublishError::new(
                "the progress topic has a record that this version of the relay cannot read: run the version that wrote it",
            )
        })?;
        if self.parts.last_key_value().is_none_or(|(last, _)| *last < number) {
            (self.first, self.origin) = (first, origin);
        }
        self.parts.insert(number, ids);
        // What compaction has left of earlier ones does not count.
        self.parts = self.parts.split_off(&self.first);
        Ok(())
    }

    /// Returns how many parts count, or `None` if there are none.
    fn wanted(&self) -> Option<u64> {
        self.parts.last_key_value().map(|(last, _)| last + 1 - self.first)
    }

    fn are_complete(&self) -> bool {
        self.wanted() == Some(self.parts.len() as u64)
    }

    fn found(self) -> Found {
        let next = self.first + self.parts.len() as u64;
        let ids = self.parts.into_values().flatten().collect();
        Found { first: self.first, next, ids, origin: self.origin }
    }
}

fn parse(value: &[u8]) -> Option<(u64, u64, String, Vec<Uuid>)> {
    let (version, value) = value.split_first()?;
    let (number, value) = value.split_first_chunk()?;
    let (first, value) = value.split_first_chunk()?;
    let (length, value) = value.split_first_chunk()?;
    let (origin, ids) = value.split_at_checked(u16::from_be_bytes(*length).into())?;
    let (number, first) = (u64::from_be_bytes(*number), u64::from_be_bytes(*first));
    let (ids, rest) = ids.as_chunks();
    let is_sound = *version == VERSION && rest.is_empty() && first <= number && number < u64::MAX;
    let origin = String::from_utf8_lossy(origin).into_owned();
    is_sound.then(|| (number, first, origin, ids.iter().map(|id| Uuid::from_bytes(*id)).collect()))
}

/// Reads these records of the topic, for the fuzz targets.
#[cfg(fuzzing)]
#[allow(missing_docs)]
pub fn fuzz<'d>(values: impl IntoIterator<Item = &'d [u8]>) {
    let mut parts = Parts::default();
    for value in values {
        if parts.add(value).is_err() {
            return;
        }
        let (wanted, found) = (parts.wanted(), parts.parts.len() as u64);
        assert!(wanted.is_none_or(|wanted| found <= wanted), "more parts count than there can be");
    }
    let _ = parts.found();
}

/// A reader of the topic, and who makes it.
pub(super) struct Progress {
    consumer: BaseConsumer,
    admin: AdminClient<DefaultClientContext>,
    topic: String,
    until: Instant,
}

impl Progress {
    /// `config` has what it takes to connect. Everything must be over by then.
    pub(super) fn open(mut config: ClientConfig, topic: &str, until: Instant) -> Result<Self, PublishError> {
        // A consumer that is assigned its partition joins no group.
        let connecting = |error| failed("connecting to read", topic, error);
        let admin = config.create().map_err(connecting)?;
        let consumer = config
            .set("group.id", topic)
            .set("enable.auto.commit", "false")
            .set("isolation.level", "read_committed")
            .set("auto.offset.reset", "error")
            .set("enable.partition.eof", "true")
            .set("fetch.wait.max.ms", WAIT_AT_END_MS)
            .create()
            .map_err(connecting)?;
        Ok(Self { consumer, admin, topic: topic.to_owned(), until })
    }

    /// Leaves Kafka. Nobody waits for that, because each of the two takes up to a tenth of a second.
    pub(super) fn leave(self) {
        // Without another thread it takes that long.
        _ = thread::Builder::new().name("outbox-progress".to_owned()).spawn(move || drop(self));
    }

    fn left(&self) -> Duration {
        self.until.saturating_duration_since(Instant::now()).max(Duration::from_millis(1))
    }

    /// Makes the topic if it is missing, and checks that Kafka keeps what it must.
    pub(super) fn check(&self) -> Result<(), PublishError> {
        let topic = &*self.topic;
        let options =
            AdminOptions::new().request_timeout(Some(self.left())).operation_timeout(Some(self.left()));
        let partitions = self.partitions()?;
        if partitions == 0 {
            let new = NewTopic::new(topic, 1, TopicReplication::Fixed(-1))
                .set("cleanup.policy", "compact")
                .set("segment.bytes", SEGMENT_BYTES);
            let made = block_on(self.admin.create_topics([&new], &options));
            match made.map_err(|error| failed("making", topic, error))?.into_iter().next() {
                // Brokers may not know its settings yet, but this relay does.
                Some(Ok(_)) => return Ok(()),
                // Another relay was faster.
                Some(Err((_, Code::TopicAlreadyExists))) | None => {}
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
        self.check_policy(&options)
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

    fn check_policy(&self, options: &AdminOptions) -> Result<(), PublishError> {
        let topic = &*self.topic;
        let described = block_on(self.admin.describe_configs(&[ResourceSpecifier::Topic(topic)], options))
            .map_err(|error| failed("looking at the settings of", topic, error))?;
        let policy = match described.into_iter().next() {
            Some(Ok(settings)) => settings.get("cleanup.policy").and_then(|entry| entry.value.clone()),
            Some(Err(Code::UnknownTopicOrPartition | Code::UnknownTopic)) => {
                return Err(PublishError::new(format!(
                    "Kafka does not know the settings of the topic `{topic}` yet, which was made a moment ago"
                )));
            }
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

    /// Returns what was committed last before this mark, or what is known to be committed by now.
    pub(super) fn last_before(&self, mark: Option<Uuid>) -> Result<Found, PublishError> {
        let topic = &*self.topic;
        let (low, high) = self
            .consumer
            .fetch_watermarks(topic, PARTITION, self.left())
            .map_err(|error| failed("looking for the end of", topic, error))?;
        let mut tail = TAIL;
        loop {
            let start = high.saturating_sub(tail).max(low);
            let parts = self.read(start, mark)?;
            if parts.are_complete() {
                return Ok(parts.found());
            }
            if start == low {
                return match parts.wanted() {
                    None => Ok(Found::default()),
                    Some(wanted) => Err(PublishError::new(format!(
                        "the topic `{topic}` has only {} of the {wanted} parts that say what was sent last, so nobody knows it: was somebody \
                         else writing to it?",
                        parts.parts.len(),
                    ))),
                };
            }
            tail = tail.saturating_mul(FARTHER);
        }
    }

    fn read(&self, start: i64, mark: Option<Uuid>) -> Result<Parts, PublishError> {
        let topic = &*self.topic;
        let mut place = TopicPartitionList::new();
        let assigned = place
            .add_partition_offset(topic, PARTITION, Offset::Offset(start))
            .and_then(|()| self.consumer.assign(&place));
        assigned.map_err(|error| failed("beginning to read", topic, error))?;
        let mut parts = Parts::default();
        while Instant::now() < self.until {
            let record = match self.consumer.poll(POLL.min(self.left())) {
                None => continue,
                Some(Err(KafkaError::PartitionEOF(_))) if mark.is_none() => return Ok(parts),
                Some(Err(KafkaError::PartitionEOF(_))) => continue,
                Some(record) => record.map_err(|error| failed("reading", topic, error))?,
            };
            let value = record.payload().unwrap_or_default();
            if record.key() != Some(MARK.as_bytes()) {
                parts.add(value)?;
            } else if mark.is_some_and(|mark| value == mark.as_bytes()) {
                return Ok(parts);
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

    fn ids(count: usize) -> Vec<Uuid> {
        (0..count).map(|_| Uuid::now_v7()).collect()
    }

    fn read(values: impl IntoIterator<Item = Vec<u8>>) -> Parts {
        let mut parts = Parts::default();
        values.into_iter().for_each(|value| parts.add(&value).unwrap());
        parts
    }

    fn values(first: u64, number: u64, ids: &[Uuid]) -> Vec<Vec<u8>> {
        Part::of("here", first, number, ids).iter().map(Part::value).collect()
    }

    fn found(first: u64, next: u64, ids: &[&[Uuid]]) -> Found {
        Found { first, next, ids: ids.concat(), origin: "here".to_owned() }
    }

    #[test]
    fn what_counts_is_found_among_what_compaction_has_left_of_earlier_parts() {
        let (old, new) = (ids(3 * PART), ids(PART + 1));
        let left = values(20, 20, &old).into_iter().skip(1);
        let parts = read(left.chain(values(23, 23, &new)));
        assert!(parts.are_complete());
        assert_eq!(parts.found(), found(23, 25, &[&new]));
    }

    #[test]
    fn the_passes_that_the_database_may_have_lost_are_found_with_the_last_one() {
        let (first, second, third) = (ids(PART + 1), ids(2), ids(1));
        let mut written = [values(7, 7, &first), values(7, 9, &second)].concat();
        let parts = read(written.clone());
        assert!(parts.are_complete());
        assert_eq!(parts.found(), found(7, 10, &[&first, &second]));
        written.extend(values(9, 10, &third));
        assert_eq!(read(written).found(), found(9, 11, &[&second, &third]));
    }

    #[test]
    fn they_are_not_complete_without_the_first() {
        assert!(!read(values(8, 8, &ids(3 * PART)).into_iter().skip(1)).are_complete());
        assert!(!read(values(7, 8, &ids(2))).are_complete());
        assert!(!read([]).are_complete());
    }

    #[test]
    fn each_record_is_small_and_no_two_that_count_have_the_same_key() {
        let ids = ids(MOST_PARTS as usize * PART);
        let parts = Part::of("here", 5_000, 5_000, &ids);
        assert!(parts.iter().all(|part| part.value().len() < 33_000));
        let keys: std::collections::BTreeSet<String> = parts.iter().map(Part::key).collect();
        assert_eq!(keys.len() as u64, MOST_PARTS);
    }

    #[test]
    fn a_record_of_another_version_is_an_error() {
        let mut value = values(1, 1, &ids(1)).remove(0);
        value[0] = 9;
        assert!(Parts::default().add(&value).is_err());
        assert!(Parts::default().add(&[]).is_err());
    }
}
