//! The partition of a record, chosen as Java clients and Debezium choose it.

use rdkafka::producer::Partitioner;

use super::gate;
use super::murmur2::{murmur2, partition};

/// librdkafka asks it: in the worker's thread if it knows the topic, or else later in a thread of its own.
pub(super) struct Murmur2;

impl Partitioner for Murmur2 {
    fn partition(&self, _: &str, key: Option<&[u8]>, partitions: i32, _: impl Fn(i32) -> bool) -> i32 {
        gate::partition_of_handed(partitions)
            .unwrap_or_else(|| partition(murmur2(key.unwrap_or_default()), partitions))
    }
}
