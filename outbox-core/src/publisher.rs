use std::error::Error;
use std::time::Duration;

use crate::Record;

/// Brings records to a broker. Implemented for Kafka by `diesel-outbox-kafka`, and by a few lines in a test.
///
/// Records of one aggregate are handed over in their order and must become durable in that order. A publisher never
/// gives up on a record by itself: it tells the relay, which still has the row.
pub trait Publisher: Send {
    /// Hands one record over, without waiting until it is durable. Its outcome is told later by
    /// [`acknowledgements`](Self::acknowledgements) under the same ticket, exactly once.
    ///
    /// # Errors
    /// The record was not taken, and no outcome will follow: see [`Refusal`].
    fn publish(&mut self, ticket: u64, topic: &str, record: &Record) -> Result<(), Refusal>;

    /// Adds the outcomes that have become known, waiting up to `wait` for the first one.
    ///
    /// # Errors
    /// The publisher as a whole has failed: everything in flight is to be abandoned.
    fn acknowledgements(
        &mut self,
        wait: Duration,
        acknowledgements: &mut Vec<Acknowledgement>,
    ) -> Result<(), PublisherError>;

    /// Forgets everything in flight and whatever error there was. Some of it may become durable all the same; no
    /// outcome is told for it any more.
    fn abandon(&mut self);

    /// Waits up to `wait` until the broker answers.
    ///
    /// # Errors
    /// It does not answer, or refuses us.
    fn ready(&mut self, wait: Duration) -> Result<(), PublisherError>;
}

/// A broker to which publishers can be connected, one for each of the relay's workers: Kafka's address and settings, for
/// example, or any closure that returns a publisher.
pub trait Broker: Send + Sync {
    /// A publisher of its own for one worker. It need not wait until the broker answers.
    ///
    /// # Errors
    /// The settings are wrong, so that trying again cannot help.
    fn publisher(&self) -> Result<Box<dyn Publisher>, PublisherError>;
}

impl<F> Broker for F
where
    F: Fn() -> Result<Box<dyn Publisher>, PublisherError> + Send + Sync,
{
    fn publisher(&self) -> Result<Box<dyn Publisher>, PublisherError> {
        self()
    }
}

/// What became of one record that was handed to a [`Publisher`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Acknowledgement {
    /// The ticket under which it was handed over.
    pub ticket: u64,
    /// What became of it.
    pub outcome: Outcome,
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

/// A publisher that cannot go on: the broker is away, or refuses the connection.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct PublisherError {
    message: String,
    #[source]
    source: Option<Box<dyn Error + Send + Sync>>,
}

impl PublisherError {
    /// An error that says this.
    pub fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), source: None }
    }

    /// An error that says this and was caused by that.
    pub fn because(message: impl Into<String>, source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self { message: message.into(), source: Some(source.into()) }
    }
}
