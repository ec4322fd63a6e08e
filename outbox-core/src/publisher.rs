use std::error::Error;
use std::time::Duration;

use crate::Record;

/// Brings records to a broker. `diesel-outbox-kafka` implements it for Kafka; in a test a few lines do.
///
/// The relay hands the records of one aggregate over in their order, and they must become durable in that order. A publisher never
/// gives up on a record by itself: it reports to the relay, which still has the row.
pub trait Publisher: Send {
    /// Takes one record, without waiting until it is durable. [`acknowledgements`](Self::acknowledgements) reports its outcome
    /// later, under the same ticket and exactly once.
    ///
    /// # Errors
    /// The record was not taken, and no outcome will follow: see [`Refusal`].
    fn publish(&mut self, ticket: u64, topic: &str, record: &Record) -> Result<(), Refusal>;

    /// Adds the outcomes that have become known, waiting up to `wait` for the first one.
    ///
    /// # Errors
    /// The publisher as a whole has failed. The relay abandons everything in flight.
    fn acknowledgements(
        &mut self,
        wait: Duration,
        acknowledgements: &mut Vec<Acknowledgement>,
    ) -> Result<(), PublishError>;

    /// Forgets everything in flight and whatever error there was. Some of it may become durable all the same, but its outcome
    /// is no longer reported.
    fn abandon(&mut self);

    /// Waits up to `wait` until the broker answers.
    ///
    /// # Errors
    /// It does not answer, or refuses us.
    fn ready(&mut self, wait: Duration) -> Result<(), PublishError>;
}

/// A broker that a relay can publish to, with a publisher for each of its workers: Kafka's address and settings, for example,
/// or any closure that returns a publisher.
pub trait Broker: Send + Sync {
    /// Makes a publisher for one worker. It need not wait until the broker answers.
    ///
    /// # Errors
    /// The settings are wrong, so that trying again cannot help.
    fn publisher(&self) -> Result<Box<dyn Publisher>, PublishError>;
}

impl<F> Broker for F
where
    F: Fn() -> Result<Box<dyn Publisher>, PublishError> + Send + Sync,
{
    fn publisher(&self) -> Result<Box<dyn Publisher>, PublishError> {
        self()
    }
}

/// What became of one record that was handed to a [`Publisher`].
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Acknowledgement {
    /// The ticket under which it was handed over.
    pub ticket: u64,
    /// What became of it.
    pub outcome: Outcome,
}

impl Acknowledgement {
    /// The outcome of the record with this ticket.
    pub fn new(ticket: u64, outcome: Outcome) -> Self {
        Self { ticket, outcome }
    }
}

/// What became of a record.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Outcome {
    /// The broker has it for good.
    Durable,
    /// It is not durable, as far as is known, and must be sent again, with everything after it.
    Retry {
        /// Why, for a person to read.
        reason: String,
    },
    /// The broker will never take it, however often it is sent.
    Rejected {
        /// Why, for a person to read.
        reason: String,
    },
}

/// Why a publisher did not take a record.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Refusal {
    /// Too much is in flight: ask for acknowledgements, then hand the same record over again.
    Full,
    /// The record must not be on its way together with the one of this ticket, which is in flight: hand it over again as soon as
    /// the outcome of that one is known. Records of other aggregates may be handed over meanwhile; those of the same
    /// aggregate are refused in the same way.
    Behind {
        /// The ticket under which the other record was handed over.
        ticket: u64,
    },
    /// Not now: give up what is in flight and begin again.
    Retry {
        /// Why, for a person to read.
        reason: String,
    },
    /// The broker will never take it, however often it is sent.
    Rejected {
        /// Why, for a person to read.
        reason: String,
    },
}

/// Why a publisher cannot go on: the broker is away, or refuses the connection.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct PublishError {
    message: String,
    #[source]
    source: Option<Box<dyn Error + Send + Sync>>,
}

impl PublishError {
    /// An error with this message.
    pub fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), source: None }
    }

    /// Adds the error that caused this one.
    #[must_use]
    pub fn with_source(self, source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self { source: Some(source.into()), ..self }
    }
}
