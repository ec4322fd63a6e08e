//! A producer, and the thread that waits for what it has to report.

use std::io;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use rdkafka::client::Client;
use rdkafka::error::KafkaResult;
use rdkafka::producer::{BaseProducer, Producer as _, PurgeConfig};

use rdkafka::ClientConfig;

use super::deliveries::Deliveries;
use super::partitioner::Murmur2;

type Base = BaseProducer<Deliveries, Murmur2>;

/// How long the thread waits at once. rdkafka counts the rest of a wait in whole milliseconds, and spins for what is left
/// of the last one: the longer the wait, the less that is. It is also how long an abandoned producer stays.
const POLL: Duration = Duration::from_secs(5);

/// A producer in use. Dropped, it forgets what it has: nothing more is sent, and nobody learns what became of it.
pub(super) struct Producer(Arc<Base>);

impl Producer {
    pub(super) fn start(config: &ClientConfig, deliveries: Deliveries) -> KafkaResult<io::Result<Self>> {
        let base: Arc<Base> = Arc::new(config.create_with_context(deliveries)?);
        let polled = base.clone();
        let thread = thread::Builder::new().name("outbox-kafka".to_owned()).spawn(move || {
            while !polled.context().is_over() {
                polled.poll(POLL);
            }
        });
        Ok(thread.map(|_| Self(base)))
    }

    pub(super) fn base(&self) -> &Base {
        &self.0
    }

    pub(super) fn deliveries(&self) -> &Deliveries {
        self.0.context()
    }

    pub(super) fn client(&self) -> &Client<Deliveries> {
        self.0.client()
    }
}

impl Drop for Producer {
    /// The thread ends by itself and takes the producer with it. It is not waited for.
    fn drop(&mut self) {
        self.deliveries().end();
        self.0.purge(PurgeConfig::default().queue().inflight());
    }
}
