//! Reads what a topic holds.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::message::{BorrowedHeaders, BorrowedMessage, Header, Headers};
use rdkafka::types::RDKafkaErrorCode;
use rdkafka::{Message, Offset, TopicPartitionList};

use super::{Kafka, PATIENCE};
use crate::wait::{eventually, eventually_ok};

/// A record as a consumer sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ReadRecord {
    /// The partition that holds it.
    pub partition: i32,
    /// Its offset there.
    pub offset: i64,
    /// Its key.
    pub key: Option<Vec<u8>>,
    /// Its value, or `None` for a tombstone.
    pub payload: Option<Vec<u8>>,
    /// Its headers in order. A header whose name is not UTF-8 is `("?", None)`.
    pub headers: Vec<(String, Option<Vec<u8>>)>,
    /// Its timestamp in milliseconds since 1970.
    pub timestamp: Option<i64>,
}

impl ReadRecord {
    /// Returns the first header of that name as text.
    pub fn header(&self, name: &str) -> Option<&str> {
        let (_, value) = self.headers.iter().find(|(key, _)| key == name)?;
        str::from_utf8(value.as_deref()?).ok()
    }

    /// Returns the key as text.
    pub fn key_text(&self) -> Option<&str> {
        str::from_utf8(self.key.as_deref()?).ok()
    }

    /// Returns the payload as text.
    pub fn text(&self) -> Option<&str> {
        str::from_utf8(self.payload.as_deref()?).ok()
    }
}

impl From<&BorrowedMessage<'_>> for ReadRecord {
    fn from(message: &BorrowedMessage<'_>) -> Self {
        let header = |headers: &BorrowedHeaders, position| {
            // rdkafka panics if a name is not UTF-8.
            let read = AssertUnwindSafe(|| {
                let Header { key, value } = headers.get(position);
                (key.to_owned(), value.map(<[u8]>::to_vec))
            });
            catch_unwind(read).unwrap_or_else(|_| ("?".to_owned(), None))
        };
        let headers = message.headers();
        Self {
            partition: message.partition(),
            offset: message.offset(),
            key: message.key().map(<[u8]>::to_vec),
            payload: message.payload().map(<[u8]>::to_vec),
            headers: headers
                .into_iter()
                .flat_map(|headers| (0..headers.count()).map(move |position| header(headers, position)))
                .collect(),
            timestamp: message.timestamp().to_millis(),
        }
    }
}

impl Kafka {
    /// Returns every record of a topic up to its present ends, by partition and offset, except for those of transactions that are open or
    /// were aborted. A topic that does not exist has none.
    #[track_caller]
    pub fn read_all(&self, topic: &str) -> Vec<ReadRecord> {
        self.read_as(topic, "read_committed")
    }

    /// Returns the same with those of transactions that are open or were aborted.
    #[track_caller]
    pub fn read_all_uncommitted(&self, topic: &str) -> Vec<ReadRecord> {
        self.read_as(topic, "read_uncommitted")
    }

    #[track_caller]
    fn read_as(&self, topic: &str, isolation: &str) -> Vec<ReadRecord> {
        let mut config = self.client();
        config
            .set("group.id", "outbox-tests")
            .set("enable.auto.commit", "false")
            .set("enable.partition.eof", "true")
            .set("isolation.level", isolation)
            .set("fetch.wait.max.ms", "10");
        let consumer: BaseConsumer = config.create().expect("a consumer");
        let found = eventually_ok(&format!("the topic {topic}"), PATIENCE, || partitions(&consumer, topic));

        let mut assignment = TopicPartitionList::new();
        for partition in &found {
            assignment.add_partition_offset(topic, *partition, Offset::Beginning).expect("a partition");
        }
        consumer.assign(&assignment).expect("assign partitions");
        let mut unread = found;
        let mut records = Vec::new();
        while !unread.is_empty() {
            match eventually(&format!("more of the topic {topic}"), PATIENCE, || next(&consumer)) {
                Ok(message) => records.push(ReadRecord::from(&message)),
                Err(KafkaError::PartitionEOF(ended)) => unread.retain(|partition| *partition != ended),
                Err(error) => panic!("reading the topic {topic} failed: {error}"),
            }
        }
        records.sort_by_key(|record| (record.partition, record.offset));
        records
    }

    /// Waits until a topic holds `count` records or more, and returns all that it holds.
    #[track_caller]
    pub fn read_at_least(&self, topic: &str, count: usize, within: Duration) -> Vec<ReadRecord> {
        eventually_ok(&format!("{count} records in the topic {topic}"), within, || {
            let records = self.read_all(topic);
            if records.len() < count { Err(format!("it holds {}", records.len())) } else { Ok(records) }
        })
    }
}

/// Returns the consumer's next record. Ignores errors of a connection, because the consumer connects again by itself.
fn next(consumer: &BaseConsumer) -> Option<Result<BorrowedMessage<'_>, KafkaError>> {
    consumer.poll(Duration::from_millis(100)).filter(|next| {
        let lost = [RDKafkaErrorCode::BrokerTransportFailure, RDKafkaErrorCode::AllBrokersDown];
        !matches!(next, Err(KafkaError::MessageConsumption(code)) if lost.contains(code))
    })
}

/// Returns the partitions of a topic that have a leader.
pub(super) fn partitions(consumer: &BaseConsumer, topic: &str) -> Result<Vec<i32>, String> {
    let metadata =
        consumer.fetch_metadata(Some(topic), Duration::from_secs(5)).map_err(|error| error.to_string())?;
    let found = metadata.topics().first().ok_or("no answer for the topic")?;
    match found.error().map(RDKafkaErrorCode::from) {
        None => Ok(found.partitions().iter().filter(|p| p.leader() >= 0).map(|p| p.id()).collect()),
        Some(RDKafkaErrorCode::UnknownTopicOrPartition) => Ok(Vec::new()),
        Some(error) => Err(error.to_string()),
    }
}
