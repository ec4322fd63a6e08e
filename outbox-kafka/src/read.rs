//! Reads what topics have, without a consumer group: to compare it with what was emitted.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::{Duration, Instant, SystemTime};

use diesel_outbox_core::__private::{from_unix_ms, unix_ms};
use diesel_outbox_core::{PublishError, wire};
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::Headers;
use rdkafka::{ClientConfig, Message, Offset, TopicPartitionList};
use uuid::Uuid;

use crate::Kafka;

const POLL: Duration = Duration::from_millis(100);

/// What Kafka has of some topics from a time on, partition by partition in the order of the offsets. It ends where the topics ended when it
/// began.
#[must_use]
pub struct PublishedRecords {
    consumer: BaseConsumer,
    /// The partitions that are still read, by topic and number, with the offset at which each ends.
    ends: BTreeMap<(String, i32), i64>,
    expected: u64,
    /// The partitions from which Kafka may have deleted earlier records, with the time of the first that is left.
    first: BTreeMap<(String, i32), Option<SystemTime>>,
    missing: BTreeSet<String>,
    partitions: BTreeMap<String, u32>,
    patience: Duration,
}

/// A record as Kafka has it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct PublishedRecord {
    /// The topic.
    pub topic: String,
    /// The partition.
    pub partition: i32,
    /// The offset.
    pub offset: i64,
    /// The event's id, from the header `id`. `None` if the record has no such header, or if it is no UUID.
    pub id: Option<Uuid>,
    /// The key: the aggregate's id.
    pub key: Option<Vec<u8>>,
    /// Whether a replay sent it: it has the header `outbox-replayed`.
    pub is_replayed: bool,
    /// The record's time: when the event was emitted, unless the topic has `message.timestamp.type=LogAppendTime`.
    pub timestamp: Option<SystemTime>,
}

impl fmt::Debug for PublishedRecords {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PublishedRecords").field("ends", &self.ends).field("missing", &self.missing).finish()
    }
}

impl Kafka {
    /// Returns the records that these topics have now, from the first on that is not older than `since`. Of transactions it returns those
    /// that were committed. Each of its calls of Kafka may take `patience`. Of this broker's settings those count that say how to connect.
    ///
    /// # Errors
    /// Returns an error if Kafka fails, or does not answer in time.
    pub fn records_since(
        &self,
        topics: &BTreeSet<String>,
        since: SystemTime,
        patience: Duration,
    ) -> Result<PublishedRecords, PublishError> {
        let mut config = self.connection();
        config
            .set("group.id", "outbox-records")
            .set("enable.auto.commit", "false")
            .set("enable.partition.eof", "true")
            .set("isolation.level", "read_committed")
            .set("auto.offset.reset", "error");
        PublishedRecords::since(&config, topics, since, patience)
    }
}

impl PublishedRecords {
    fn since(
        config: &ClientConfig,
        topics: &BTreeSet<String>,
        since: SystemTime,
        patience: Duration,
    ) -> Result<Self, PublishError> {
        let consumer: BaseConsumer = config.create().map_err(|error| failed("connecting", error))?;
        let mut this = Self {
            consumer,
            ends: BTreeMap::new(),
            expected: 0,
            first: BTreeMap::new(),
            missing: BTreeSet::new(),
            partitions: BTreeMap::new(),
            patience,
        };
        let mut times = TopicPartitionList::new();
        for topic in topics {
            let metadata = this.consumer.fetch_metadata(Some(topic), patience);
            let metadata =
                metadata.map_err(|error| failed(&format!("looking for the topic `{topic}`"), error))?;
            let found = metadata.topics().first();
            let partitions = match found.and_then(|found| found.error()).map(RDKafkaErrorCode::from) {
                None => found.map_or(&[][..], |found| found.partitions()),
                Some(RDKafkaErrorCode::UnknownTopicOrPartition | RDKafkaErrorCode::UnknownTopic) => &[],
                Some(code) => {
                    return Err(PublishError::new(format!(
                        "Kafka does not say what the topic `{topic}` is: {code}"
                    )));
                }
            };
            if partitions.is_empty() {
                this.missing.insert(topic.clone());
            } else {
                this.partitions.insert(topic.clone(), u32::try_from(partitions.len()).unwrap_or(u32::MAX));
            }
            for partition in partitions {
                times
                    .add_partition_offset(topic, partition.id(), Offset::Offset(unix_ms(since)))
                    .map_err(|error| failed("beginning to read", error))?;
            }
        }
        if times.count() == 0 {
            return Ok(this);
        }
        let starts = this
            .consumer
            .offsets_for_times(times, patience)
            .map_err(|error| failed("looking for the first record", error))?;
        let mut places = TopicPartitionList::new();
        for start in starts.elements() {
            let (topic, partition) = (start.topic(), start.partition());
            let (low, high) = this
                .consumer
                .fetch_watermarks(topic, partition, patience)
                .map_err(|error| failed(&format!("looking for the end of the topic `{topic}`"), error))?;
            start.error().map_err(|error| {
                failed(&format!("looking for the first record of the topic `{topic}`"), error)
            })?;
            let place = (topic.to_owned(), partition);
            let offset = match start.offset() {
                Offset::Offset(offset) if offset < high => offset,
                // Whatever was there is gone. If something older is left, nothing newer was there.
                _ if low == high && low > 0 => {
                    this.first.insert(place, Some(SystemTime::now()));
                    continue;
                }
                _ => continue,
            };
            if offset <= low && low > 0 {
                // Earlier ones may have been there. When the first of those that are left was emitted is known once it is read.
                this.first.insert(place, None);
            }
            this.ends.insert((topic.to_owned(), partition), high);
            this.expected = this.expected.saturating_add((high - offset).unsigned_abs());
            places
                .add_partition_offset(topic, partition, Offset::Offset(offset))
                .map_err(|error| failed("beginning to read", error))?;
        }
        this.consumer.assign(&places).map_err(|error| failed("beginning to read", error))?;
        Ok(this)
    }

    /// Leaves out all partitions of the topic but that of a key, which is its murmur2 hash. Call it before records are read.
    ///
    /// # Errors
    /// Returns an error if Kafka's client refuses.
    pub fn keep_partition_of(&mut self, topic: &str, key: u32) -> Result<(), PublishError> {
        let Some(partition) = self.partition_of(topic, key) else { return Ok(()) };
        let mut others = TopicPartitionList::new();
        self.ends.retain(|(of, number), _| {
            let stays = of != topic || *number == partition;
            if !stays {
                others.add_partition(of, *number);
            }
            stays
        });
        if others.count() == 0 {
            return Ok(());
        }
        self.consumer.incremental_unassign(&others).map_err(|error| failed("beginning to read", error))
    }

    fn partition_of(&self, topic: &str, key: u32) -> Option<i32> {
        i32::try_from((key & 0x7fff_ffff) % self.partitions.get(topic)?).ok()
    }

    /// Returns about how many records there are. Kafka's offsets have gaps.
    #[must_use]
    pub fn expected(&self) -> u64 {
        self.expected
    }

    /// Returns the topics that do not exist.
    #[must_use]
    pub fn missing(&self) -> &BTreeSet<String> {
        &self.missing
    }

    /// Returns from when on the partition of a key has all that was sent to it, if Kafka has deleted earlier records, as `retention.ms` says for
    /// example. The key is its murmur2 hash. Read all records first.
    #[must_use]
    pub fn kept_since(&self, topic: &str, key: u32) -> Option<SystemTime> {
        let partition = self.partition_of(topic, key)?;
        self.first.get(&(topic.to_owned(), partition)).copied().flatten()
    }

    /// Returns the next record, or `None` at the end.
    ///
    /// # Errors
    /// Returns an error if Kafka fails, or gives nothing for too long.
    pub fn next_record(&mut self) -> Result<Option<PublishedRecord>, PublishError> {
        let until = Instant::now() + self.patience;
        while !self.ends.is_empty() {
            let message = match self.consumer.poll(POLL) {
                None if Instant::now() >= until => {
                    return Err(PublishError::new("Kafka did not give the end of the topics in time"));
                }
                None => continue,
                Some(Err(KafkaError::PartitionEOF(_))) => {
                    self.end_what_has_no_more();
                    continue;
                }
                Some(Err(error)) => return Err(failed("reading", error)),
                Some(Ok(message)) => message,
            };
            let (partition, offset) = (message.partition(), message.offset());
            let key = (message.topic().to_owned(), partition);
            let Some(end) = self.ends.get(&key).copied() else { continue };
            if offset + 1 >= end {
                self.ends.remove(&key);
            }
            if offset >= end {
                continue;
            }
            let timestamp = message.timestamp().to_millis().map(from_unix_ms);
            if let Some(first) = self.first.get_mut(&key) {
                *first = first.or(timestamp);
            }
            let topic = key.0;
            let header = |name| message.headers()?.iter().find(|header| header.key == name);
            let (id, is_replayed) = (header(wire::ID_HEADER), header(wire::REPLAYED_HEADER).is_some());
            let id = id.and_then(|header| str::from_utf8(header.value?).ok()?.parse().ok());
            let key = message.key().map(<[u8]>::to_vec);
            return Ok(Some(PublishedRecord { topic, partition, offset, id, key, is_replayed, timestamp }));
        }
        Ok(None)
    }

    /// At the end of a partition there can be marks of transactions, which are no records.
    fn end_what_has_no_more(&mut self) {
        let Ok(position) = self.consumer.position() else { return };
        for place in position.elements() {
            let key = (place.topic().to_owned(), place.partition());
            if let (Offset::Offset(next), Some(end)) = (place.offset(), self.ends.get(&key))
                && next >= *end
            {
                self.ends.remove(&key);
            }
        }
    }
}

fn failed(doing: &str, error: KafkaError) -> PublishError {
    PublishError::new(format!("Kafka failed while {doing}: {error}")).with_source(error)
}
