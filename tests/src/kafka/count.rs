use std::collections::BTreeMap;
use std::time::Duration;

use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::topic_partition_list::TopicPartitionListElem;
use rdkafka::{Offset, TopicPartitionList};

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
        let sum_of = |place| Ok::<i64, KafkaError>(self.offsets(place)?.into_values().sum());
        let count = sum_of(Offset::End).and_then(|high| Ok(high - sum_of(Offset::Beginning)?));
        count.ok().and_then(|count| usize::try_from(count).ok()).unwrap_or_default()
    }

    /// Returns the offset that each partition's next record gets, or nothing while Kafka does not answer.
    pub fn ends(&self) -> BTreeMap<i32, i64> {
        self.offsets(Offset::End).unwrap_or_default()
    }

    fn offsets(&self, place: Offset) -> Result<BTreeMap<i32, i64>, KafkaError> {
        let mut asked = TopicPartitionList::new();
        for partition in partitions(&self.consumer, &self.topic).unwrap_or_default() {
            // This is how librdkafka asks for the ends of all partitions at once. To ask for one after the other takes as long
            // as some ten thousand records take to come.
            asked.add_partition_offset(&self.topic, partition, place)?;
        }
        let offsets = self.consumer.offsets_for_times(asked, Duration::from_secs(5))?;
        let offset = |end: &TopicPartitionListElem<'_>| Some((end.partition(), end.offset().to_raw()?));
        Ok(offsets.elements().iter().filter_map(offset).collect())
    }
}
