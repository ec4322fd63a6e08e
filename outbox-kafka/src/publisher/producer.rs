//! A producer, and the thread that waits for what it has to report.

use std::io;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rdkafka::client::Client;
use rdkafka::error::KafkaResult;
use rdkafka::producer::{BaseProducer, Producer as _, PurgeConfig};

use rdkafka::ClientConfig;

use super::deliveries::Deliveries;
use super::partitioner::Murmur2;

pub(super) type Base = BaseProducer<Deliveries, Murmur2>;

/// How long the thread waits at once, and so how long a producer stays that is not used any more. rdkafka lets librdkafka
/// wait for whole milliseconds, and spins for the rest: the little more than those is over by then.
const POLL: Duration = Duration::from_micros(250_030);
/// How long to wait until a producer has left Kafka. librdkafka waits by the time of day, so that its thread may wait for an hour if
/// the clock is set back by one meanwhile and nothing wakes it.
const LEAVE: Duration = Duration::from_secs(2);
const LOOK: Duration = Duration::from_millis(5);

/// A producer in use. When it is dropped it forgets what it has: it sends nothing more, and nobody learns what became of that.
pub(super) struct Producer {
    base: Arc<Base>,
    thread: Option<JoinHandle<()>>,
}

impl Producer {
    pub(super) fn start(config: &ClientConfig, deliveries: Deliveries) -> KafkaResult<io::Result<Self>> {
        let base: Arc<Base> = Arc::new(config.create_with_context(deliveries)?);
        let polled = base.clone();
        let thread = thread::Builder::new().name("outbox-kafka".to_owned()).spawn(move || {
            while !polled.context().is_over() {
                polled.poll(POLL);
            }
        });
        Ok(thread.map(|thread| Self { base, thread: Some(thread) }))
    }

    pub(super) fn base(&self) -> &Arc<Base> {
        &self.base
    }

    pub(super) fn deliveries(&self) -> &Deliveries {
        self.base.context()
    }

    pub(super) fn client(&self) -> &Client<Deliveries> {
        self.base.client()
    }
}

/// Waits until these producers have left Kafka, but not for ever.
pub(super) fn close(producers: impl IntoIterator<Item = Producer>) {
    let threads: Vec<_> = producers.into_iter().filter_map(|mut producer| producer.thread.take()).collect();
    let until = Instant::now() + LEAVE;
    while threads.iter().any(|thread| !thread.is_finished()) && Instant::now() < until {
        thread::sleep(LOOK);
    }
}

impl Drop for Producer {
    /// The thread ends by itself and takes the producer with it. Nobody waits for it.
    fn drop(&mut self) {
        self.deliveries().end();
        self.base.purge(PurgeConfig::default().queue().inflight().non_blocking());
    }
}
