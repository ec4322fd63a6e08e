use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use diesel_outbox_core::{Acknowledgement, Outcome};
use rdkafka::client::ClientContext;
use rdkafka::error::KafkaError;
use rdkafka::message::{DeliveryResult, Message};
use rdkafka::producer::ProducerContext;

use super::Batching;
use super::partitioner::Murmur2;
use crate::error::{concerns_one_of_a_batch, refusal};
use crate::log::Errors;

/// Receives what librdkafka reports, in the producer's thread, and hands it to the worker.
pub(super) struct Deliveries {
    batching: Batching,
    arrived: Mutex<Arrived>,
    enough: Condvar,
    batch_was_refused: AtomicBool,
    is_over: AtomicBool,
    errors: Arc<Errors>,
}

#[derive(Default)]
struct Arrived {
    acknowledgements: Vec<Acknowledgement>,
    /// How many the worker waits for; none if it does not wait.
    wanted: usize,
}

/// For how long the worker lets acknowledgements gather when it has many records in flight, and how many it waits for: a
/// part of those.
const GATHER: Duration = Duration::from_millis(1);
const GATHERED: usize = 256;
const PART: usize = 16;

/// What a record has instead of a ticket if nobody waits for its acknowledgement.
pub(super) const NO_TICKET: usize = usize::MAX;

impl Deliveries {
    pub(super) fn new(batching: Batching, errors: Arc<Errors>) -> Self {
        Self {
            batching,
            arrived: Mutex::default(),
            enough: Condvar::new(),
            batch_was_refused: AtomicBool::new(false),
            is_over: AtomicBool::new(false),
            errors,
        }
    }

    /// Notes that nobody wants to know any more.
    pub(super) fn end(&self) {
        self.is_over.store(true, Ordering::Relaxed);
    }

    pub(super) fn is_over(&self) -> bool {
        self.is_over.load(Ordering::Relaxed)
    }

    fn arrived(&self) -> MutexGuard<'_, Arrived> {
        self.arrived.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes what has arrived, waiting for up to `limit` for some of what is in flight.
    pub(super) fn wait(&self, limit: Duration, in_flight: usize, into: &mut Vec<Acknowledgement>) {
        let began = Instant::now();
        let enough = (in_flight / PART).clamp(1, GATHERED);
        let mut arrived = self.arrived();
        while arrived.acknowledgements.len() < enough {
            let waited = began.elapsed();
            let left = limit.saturating_sub(waited);
            if left.is_zero() || (!arrived.acknowledgements.is_empty() && waited >= GATHER) {
                break;
            }
            let wait = if enough > 1 { left.min(GATHER) } else { left };
            arrived.wanted = enough;
            (arrived, _) = self.enough.wait_timeout(arrived, wait).unwrap_or_else(PoisonError::into_inner);
        }
        arrived.wanted = 0;
        into.append(&mut arrived.acknowledgements);
    }

    pub(super) fn batch_was_refused(&self) -> bool {
        self.batch_was_refused.load(Ordering::Relaxed)
    }

    fn outcome(&self, error: &KafkaError, topic: &str) -> Outcome {
        let code = error.rdkafka_error_code();
        if self.batching != Batching::Single && code.is_some_and(concerns_one_of_a_batch) {
            self.batch_was_refused.store(true, Ordering::Relaxed);
            return Outcome::Retry {
                reason: format!(
                    "Kafka refused a batch ({error}); the relay sends its records one by one to find the bad one"
                ),
            };
        }
        match refusal(error, topic) {
            Some(reason) => Outcome::Rejected { reason },
            None => Outcome::Retry { reason: error.to_string() },
        }
    }
}

impl ClientContext for Deliveries {
    fn error(&self, error: KafkaError, reason: &str) {
        self.errors.report(&error, reason);
    }

    fn log(&self, level: rdkafka::config::RDKafkaLogLevel, facility: &str, message: &str) {
        crate::log::log(level, facility, message);
    }
}

impl ProducerContext<Murmur2> for Deliveries {
    type DeliveryOpaque = usize;

    fn delivery(&self, delivery: &DeliveryResult<'_>, ticket: usize) {
        if self.is_over() || ticket == NO_TICKET {
            return;
        }
        let outcome = match delivery {
            Ok(_) => Outcome::Durable,
            Err((error, message)) => self.outcome(error, message.topic()),
        };
        let mut arrived = self.arrived();
        arrived.acknowledgements.push(Acknowledgement::new(ticket as u64, outcome));
        let is_wanted = arrived.acknowledgements.len() == arrived.wanted;
        drop(arrived);
        if is_wanted {
            self.enough.notify_one();
        }
    }

    fn get_custom_partitioner(&self) -> Option<&Murmur2> {
        Some(&Murmur2)
    }
}
