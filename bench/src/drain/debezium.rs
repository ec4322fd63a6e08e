//! Debezium is frozen while a backlog is made and while others are measured.

use std::time::Instant;

use outbox_tests::{Connect, Debezium, Kafka, eventually};

use crate::servers::PATIENCE;

/// Something that relays, and can be frozen.
pub(crate) trait Frozen {
    fn resume(&self);
    fn pause(&self);
}

impl Frozen for Debezium<'_> {
    fn resume(&self) {
        Self::resume(self);
    }

    fn pause(&self) {
        Self::pause(self);
    }
}

impl Frozen for Connect {
    fn resume(&self) {
        self.thaw();
    }

    fn pause(&self) {
        self.freeze();
    }
}

/// Lets Debezium go on, which is frozen, and returns its events per second until so many events have reached Kafka after those
/// that were there before.
pub(crate) fn resume_and_drain(
    debezium: &impl Frozen,
    kafka: &Kafka,
    topic: &str,
    before: usize,
    rows: usize,
) -> f64 {
    let counter = kafka.counter(topic);
    let began = Instant::now();
    debezium.resume();
    eventually("Debezium to publish all", PATIENCE, || (counter.count() >= before + rows).then_some(()));
    let speed = rows as f64 / began.elapsed().as_secs_f64();
    debezium.pause();
    speed
}
