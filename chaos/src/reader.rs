//! Reads a topic with rskafka, which shares no code with librdkafka: only what the broker says counts.

use std::collections::BTreeMap;
use std::time::Duration;

use rskafka::client::ClientBuilder;
use rskafka::client::partition::{OffsetAt, UnknownTopicHandling};

/// A record as it is on Kafka.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Arrived {
    /// The partition that holds it.
    pub partition: i32,
    /// Its offset there.
    pub offset: i64,
    /// Everything else, which must be the same in each occurrence of an event.
    pub content: Content,
}

/// What of a record the relay decides.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Content {
    /// Its key.
    pub key: Option<Vec<u8>>,
    /// Its value.
    pub payload: Option<Vec<u8>>,
    /// Its headers.
    pub headers: BTreeMap<String, Vec<u8>>,
    /// Its timestamp in milliseconds since 1970.
    pub timestamp: i64,
}

impl Content {
    /// Returns a header as text.
    pub fn header(&self, name: &str) -> Option<&str> {
        str::from_utf8(self.headers.get(name)?).ok()
    }
}

/// How many bytes are asked for at once, and how long the broker may wait for them, in milliseconds.
const BYTES: i32 = 4 << 20;
const WAIT: i32 = 100;

/// Reads every partition of a topic from its first record to its present end.
///
/// # Errors
/// What the client says.
pub fn read(brokers: &str, topic: &str) -> Result<Vec<Arrived>, String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let read = async {
        let brokers = brokers.split(',').map(str::to_owned).collect();
        let client = ClientBuilder::new(brokers).build().await?;
        let topics = client.list_topics().await?;
        let partitions = topics.into_iter().find(|known| known.name == topic).map(|known| known.partitions);
        let mut received = Vec::new();
        for partition in partitions.unwrap_or_default() {
            let reader = client.partition_client(topic, partition, UnknownTopicHandling::Error).await?;
            let end = reader.get_offset(OffsetAt::Latest).await?;
            let mut next = reader.get_offset(OffsetAt::Earliest).await?;
            while next < end {
                let (records, _) = reader.fetch_records(next, 1..BYTES, WAIT).await?;
                for read in records {
                    next = read.offset + 1;
                    let record = read.record;
                    let content = Content {
                        key: record.key,
                        payload: record.value,
                        headers: record.headers,
                        timestamp: record.timestamp.timestamp_millis(),
                    };
                    received.push(Arrived { partition, offset: read.offset, content });
                }
            }
        }
        Ok::<_, rskafka::client::error::Error>(received)
    };
    let limited = runtime.block_on(async { tokio::time::timeout(Duration::from_secs(60), read).await });
    limited
        .map_err(|_| "the topic was not read within a minute".to_owned())?
        .map_err(|error| error.to_string())
}
