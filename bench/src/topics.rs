//! The topics of a benchmark.

use outbox_tests::Kafka;

pub(crate) const PARTITIONS: i32 = 6;

pub(crate) fn new_topic(kafka: &Kafka) -> String {
    let topic = kafka.unique("bench");
    kafka.create_topic(&topic, PARTITIONS);
    topic
}
