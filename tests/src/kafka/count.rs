use std::time::Duration;

use rdkafka::consumer::{BaseConsumer, Consumer};

use super::Kafka;
use super::read::partitions;

/// Counts a topic's records without reading them.
pub struct Counter {
    consumer: BaseConsumer,
    topic: String,
}

impl Kafka {
    /// Makes a counter for this topic.
    #[track_caller]
    pub fn counter(&self, topic: &str) -> Counter {
        let consumer = self.client().create().expect("a consumer");
        Counter { consumer, topic: topic.to_owned() }
    }
}

impl Counter {
    /// Returns how many records the topic holds, or 0 while Kafka does not answer.
    pub fn count(&self) -> usize {
        let patience = Duration::from_secs(5);
        let partitions = partitions(&self.consumer, &self.topic).unwrap_or_default();
        let counts = partitions.into_iter().filter_map(|partition| {
            let (low, high) = self.consumer.fetch_watermarks(&self.topic, partition, patience).ok()?;
            usize::try_from(high - low).ok()
        });
        counts.sum()
    }
}
