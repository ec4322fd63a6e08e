use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use diesel_outbox_core::{Acknowledgement, Outcome};
use rdkafka::client::ClientContext;
use rdkafka::error::KafkaError;
use rdkafka::message::{DeliveryResult, Message};
use rdkafka::producer::ProducerContext;

use super::Batching;
use crate::error::{concerns_one_of_a_batch, rejection};
use crate::log::Errors;

/// Receives what librdkafka reports. Deliveries come while the worker polls, so nobody else waits for the lock.
pub(super) struct Deliveries {
    batching: Batching,
    acknowledgements: Mutex<Vec<Acknowledgement>>,
    batch_was_refused: AtomicBool,
    errors: Errors,
}

impl Deliveries {
    pub(super) fn new(batching: Batching) -> Self {
        Self {
            batching,
            acknowledgements: Mutex::default(),
            batch_was_refused: AtomicBool::new(false),
            errors: Errors::default(),
        }
    }

    pub(super) fn batch_was_refused(&self) -> bool {
        self.batch_was_refused.load(Ordering::Relaxed)
    }

    fn outcome(&self, error: &KafkaError, topic: &str) -> Outcome {
        let code = error.rdkafka_error_code();
        if self.batching == Batching::Many && code.is_some_and(concerns_one_of_a_batch) {
            self.batch_was_refused.store(true, Ordering::Relaxed);
            return Outcome::Retry {
                reason: format!(
                    "Kafka refused a batch ({error}); its records are sent one by one to find the bad one"
                ),
            };
        }
        match code.and_then(|code| rejection(code, topic)) {
            Some(reason) => Outcome::Rejected { reason },
            None => Outcome::Retry { reason: error.to_string() },
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.acknowledgements.lock().unwrap_or_else(PoisonError::into_inner).is_empty()
    }

    pub(super) fn drain(&self, into: &mut Vec<Acknowledgement>) {
        into.append(&mut self.acknowledgements.lock().unwrap_or_else(PoisonError::into_inner));
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

impl ProducerContext for Deliveries {
    type DeliveryOpaque = usize;

    fn delivery(&self, delivery: &DeliveryResult<'_>, ticket: usize) {
        let outcome = match delivery {
            Ok(_) => Outcome::Durable,
            Err((error, message)) => self.outcome(error, message.topic()),
        };
        self.acknowledgements
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(Acknowledgement { ticket: ticket as u64, outcome });
    }
}
