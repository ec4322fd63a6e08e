//! A relay that a test makes work step by step, and that keeps what it sends instead of sending it to Kafka. Feature `testing`.
//!
//! ```no_run
//! # #[cfg(feature = "sqlite")]
//! # fn f() -> Result<(), diesel_outbox_relay::RelayError> {
//! use diesel_outbox_relay::Relay;
//!
//! let mut relay = Relay::sqlite("test.db").recorded()?;
//! // The test calls its service, which commits an order and its event. Then:
//! let sent = relay.step()?;
//! assert_eq!((sent[0].topic(), sent[0].key()), ("outbox.event.order", "7"));
//! assert_eq!(sent[0].headers()[1], ("eventType", "OrderPlaced"));
//! # Ok(())
//! # }
//! ```
//!
//! It is the relay of production with another publisher: it claims and settles rows, moves scheduled events that are due, names topics as you
//! set it, and makes dead letters of events whose topic has no name. It sees what was committed. To look at events in an open
//! transaction, use the feature `testing` of `diesel-outbox` or `sea-orm-outbox`.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use diesel_outbox_core::__private::Stop;
use diesel_outbox_core::{Acknowledgement, Outcome, PublishError, Publisher, Record, Refusal, wire};

use crate::health::WorkerHealth;
use crate::pipeline::{PassError, Passed};
use crate::worker::Worker;
use crate::{History, Relay, RelayError};

/// A relay that works only when a test asks it to.
pub struct RecordedRelay {
    worker: Worker,
    sent: Arc<Mutex<Vec<Sent>>>,
}

impl fmt::Debug for RecordedRelay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RecordedRelay").finish_non_exhaustive()
    }
}

impl Relay {
    /// Returns a relay that works only when it is asked to, on this thread, and keeps what it sends. It needs no broker. For tests: feature
    /// `testing`.
    ///
    /// A step is one batch. With [`batch_size(1)`](Self::batch_size) it is one event.
    ///
    /// # Errors
    /// Returns an error if a setting is wrong, or if the relay has several outboxes or sends exactly once.
    pub fn recorded(self) -> Result<RecordedRelay, RelayError> {
        let sent: Arc<Mutex<Vec<Sent>>> = Arc::default();
        let publisher = Recorder { sent: sent.clone(), in_flight: Vec::new() };
        let worker = self.single_worker(Box::new(publisher), Stop::default())?;
        Ok(RecordedRelay { worker, sent })
    }
}

impl RecordedRelay {
    /// Moves scheduled events that are due into the outbox, then sends one batch. Returns what it has sent, in order. That is nothing if
    /// nothing waits.
    ///
    /// A relay that reads the WAL learns of an event a moment after its commit, so ask it again until the event is there.
    ///
    /// # Errors
    /// Returns an error if the database fails.
    pub fn step(&mut self) -> Result<Vec<Sent>, RelayError> {
        self.pass().map(|(_, sent)| sent)
    }

    /// Takes steps until nothing waits any more, and returns what they have sent, in order.
    ///
    /// # Errors
    /// Returns an error if the database fails.
    pub fn drain(&mut self) -> Result<Vec<Sent>, RelayError> {
        let mut all = Vec::new();
        loop {
            let (passed, sent) = self.pass()?;
            all.extend(sent);
            if passed == Passed::Idle {
                return Ok(all);
            }
        }
    }

    fn pass(&mut self) -> Result<(Passed, Vec<Sent>), RelayError> {
        let has_sent = || !self.sent.lock().unwrap_or_else(PoisonError::into_inner).is_empty();
        let passed = self.worker.step(&has_sent).map_err(|error| match error {
            PassError::Source(error) => RelayError::Source(error),
            PassError::Publisher(error) => RelayError::Broker(error),
        })?;
        let sent = std::mem::take(&mut *self.sent.lock().unwrap_or_else(PoisonError::into_inner));
        Ok((passed, sent))
    }
}

/// A record as a relay would have sent it to Kafka.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sent {
    topic: String,
    id: String,
    record: Record,
}

impl Sent {
    /// Returns the topic.
    pub fn topic(&self) -> &str {
        &self.topic
    }

    /// Returns the key: the aggregate id.
    pub fn key(&self) -> &str {
        self.record.aggregate_id()
    }

    /// Returns all headers in their order: `id`, `eventType`, then the event's own.
    pub fn headers(&self) -> Vec<(&str, &str)> {
        let identity = [(wire::ID_HEADER, &*self.id), (wire::EVENT_TYPE_HEADER, self.record.event_type())];
        let own = self.record.headers().iter().map(|(name, value)| (name.as_str(), value.as_str()));
        identity.into_iter().chain(own).collect()
    }

    /// Returns the value, or `None` for a tombstone.
    pub fn payload(&self) -> Option<&[u8]> {
        self.record.payload()
    }

    /// Returns the record as it was read from the outbox.
    pub fn record(&self) -> &Record {
        &self.record
    }
}

/// Takes every record, and acknowledges it at the next opportunity.
struct Recorder {
    sent: Arc<Mutex<Vec<Sent>>>,
    in_flight: Vec<u64>,
}

impl Publisher for Recorder {
    fn publish(&mut self, ticket: u64, topic: &str, record: &Record) -> Result<(), Refusal> {
        let sent = Sent { topic: topic.to_owned(), id: record.id().to_string(), record: record.clone() };
        self.sent.lock().unwrap_or_else(PoisonError::into_inner).push(sent);
        self.in_flight.push(ticket);
        Ok(())
    }

    fn acknowledgements(
        &mut self,
        _: Duration,
        acknowledgements: &mut Vec<Acknowledgement>,
    ) -> Result<(), PublishError> {
        let durable = |ticket| Acknowledgement::new(ticket, Outcome::Durable);
        acknowledgements.extend(self.in_flight.drain(..).map(durable));
        Ok(())
    }

    fn abandon(&mut self) {
        self.in_flight.clear();
    }

    fn ready(&mut self, _: Duration) -> Result<(), PublishError> {
        Ok(())
    }
}

impl Relay {
    fn single_worker(mut self, publisher: Box<dyn Publisher>, stop: Stop) -> Result<Worker, RelayError> {
        self.workers = Some(1);
        self.check()?;
        if self.has_several_outboxes() {
            return Err(RelayError::SeveralSchemas);
        }
        if self.limits.exactly_once {
            return Err(RelayError::ExactlyOnce("a recorder has no transactions"));
        }
        let (sources, _) = self.sources(&stop, &History::new(Duration::ZERO))?;
        // A relay without a worker was refused above.
        let source = sources.into_iter().next().ok_or(RelayError::NoBroker)?;
        Ok(self.worker(source, publisher, WorkerHealth::new(), stop))
    }
}
