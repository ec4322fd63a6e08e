//! The servers of a benchmark, and topics on them.

use std::time::Duration;

use outbox_tests::{Kafka, Postgres};

use crate::producer::produce;
use crate::rows::records;

/// Longer than anything that a benchmark waits for.
pub(crate) const PATIENCE: Duration = Duration::from_secs(3_600);

pub(crate) const PARTITIONS: i32 = 6;

/// Room for large tables, and no end of connections that are frozen while others are measured.
pub(crate) const SETTINGS: &[(&str, &str)] =
    &[("shared_buffers", "1GB"), ("max_wal_size", "8GB"), ("wal_sender_timeout", "0")];

/// PostgreSQL and a broker whose virtual machine has compiled what it runs most.
pub(crate) fn servers(postgres: u32) -> (Postgres, Kafka) {
    let (postgres, kafka) = (Postgres::start_with(postgres, SETTINGS), Kafka::start_for_benchmark(&[]));
    let records = records(250_000, 200);
    for _ in 0..8 {
        produce(&kafka, &records);
    }
    (postgres, kafka)
}

pub(crate) fn new_topic(kafka: &Kafka) -> String {
    let topic = kafka.unique("bench");
    kafka.create_topic(&topic, PARTITIONS);
    topic
}
