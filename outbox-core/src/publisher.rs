use std::error::Error;
use std::time::Duration;

use uuid::Uuid;

use crate::Record;

/// A connection to a broker that a relay sends records through. `diesel-outbox-kafka` implements it for Kafka; for a test, a few
/// lines are enough.
///
/// The relay hands over the records of one aggregate in order, and they must become durable in that order. A publisher never gives
/// up on a record by itself: it reports the failure to the relay, which still has the row.
pub trait Publisher: Send {
    /// Accepts one record without waiting until it is durable. [`acknowledgements`](Self::acknowledgements) reports its outcome
    /// later, exactly once and under the same ticket.
    ///
    /// # Errors
    /// A [`Refusal`] if the record was not accepted. No outcome follows.
    fn publish(&mut self, ticket: u64, topic: &str, record: &Record) -> Result<(), Refusal>;

    /// Appends the outcomes that have become known to `acknowledgements`, and waits up to `wait` for the first one.
    ///
    /// # Errors
    /// An error if the publisher as a whole has failed. The relay then abandons everything in flight.
    fn acknowledgements(
        &mut self,
        wait: Duration,
        acknowledgements: &mut Vec<Acknowledgement>,
    ) -> Result<(), PublishError>;

    /// Forgets everything in flight, and any error. Some of the records may still become durable, but their outcomes are no
    /// longer reported.
    fn abandon(&mut self);

    /// Waits up to `wait` until the broker answers.
    ///
    /// # Errors
    /// An error if the broker does not answer in time or refuses the connection.
    fn ready(&mut self, wait: Duration) -> Result<(), PublishError>;

    /// Prepares for a pass whose records become visible no earlier than at [`commit_ahead`](Self::commit_ahead) and
    /// [`commit`](Self::commit), and then all together.
    ///
    /// If this publisher has not published for the outbox since it was last [abandoned](Self::abandon), it first makes sure that no
    /// other publisher of this outbox can commit any more, and returns the ids of the records that were committed last. The relay then
    /// marks these as sent, because whoever committed them may not have come to it. Returns `None` if there is no need for that: what this
    /// publisher has committed is settled. But the database may still lose what the last [undoable passes](Lane::undoable_passes) have
    /// settled, so their ids, and those of the pass that begins, are what a publisher that takes over must find.
    ///
    /// Only a relay that sends [exactly once](crate::Source::settle_committed) calls it. Default: returns an error, because a broker
    /// without transactions cannot do this.
    ///
    /// # Errors
    /// An error if the broker does not answer within `wait`, or refuses, or if the ids are those of an outbox with another
    /// [origin](Lane::origin). That one goes on undisturbed.
    fn begin(&mut self, lane: &Lane<'_>, wait: Duration) -> Result<Option<Vec<Uuid>>, PublishError> {
        let (_, _) = (lane, wait);
        Err(PublishError::new(
            "this broker has no transactions, so the relay cannot send exactly once: turn that off",
        ))
    }

    /// Begins to make the records visible that were published so far, all together or none, while the pass goes on. The relay calls it
    /// when the outcome of each of them is known. Those of one call must not become visible before those of an earlier one. Default: does
    /// nothing, so that they become visible at [`commit`](Self::commit).
    ///
    /// # Errors
    /// An error if those of an earlier call are not known to be visible within `wait`. The relay then abandons the pass, and
    /// [`begin`](Self::begin) finds out.
    fn commit_ahead(&mut self, wait: Duration) -> Result<(), PublishError> {
        let _ = wait;
        Ok(())
    }

    /// Makes the records visible that are not visible yet, all together or none, and waits until all of the pass are. The relay calls it
    /// when the outcome of each of them is known. Default: does nothing.
    ///
    /// # Errors
    /// An error if they are not known to be visible. The relay then abandons the pass, and [`begin`](Self::begin) finds out.
    fn commit(&mut self, wait: Duration) -> Result<(), PublishError> {
        let _ = wait;
        Ok(())
    }
}

/// The outbox of a relay that sends exactly once, as a [`Publisher`] knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Lane<'a> {
    /// The name of the outbox, such as `shop.public`, the same in every relay of it.
    pub outbox: &'a str,
    /// What tells it from outboxes of the same name elsewhere, if that is known: see [`Source::origin`](crate::Source::origin).
    pub origin: Option<&'a str>,
    /// How many of the last passes the database may still lose: see [`Source::undoable_passes`](crate::Source::undoable_passes).
    pub undoable_passes: usize,
}

impl<'a> Lane<'a> {
    /// Returns the lane of an outbox with this name, without an origin, whose database loses nothing.
    pub fn new(outbox: &'a str) -> Self {
        Self { outbox, origin: None, undoable_passes: 0 }
    }

    /// Sets what tells it from outboxes of the same name. Default: `None`.
    #[must_use]
    pub fn with_origin(mut self, origin: Option<&'a str>) -> Self {
        self.origin = origin;
        self
    }

    /// Sets how many of the last passes the database may still lose. Default: 0.
    #[must_use]
    pub fn with_undoable_passes(mut self, passes: usize) -> Self {
        self.undoable_passes = passes;
        self
    }
}

/// A broker that a relay can publish to. It makes a [`Publisher`] for each of the relay's workers. It may hold the address and
/// settings of Kafka, for example, or be any closure that returns a publisher.
pub trait Broker: Send + Sync {
    /// Returns a publisher for one worker. It does not have to wait until the broker answers.
    ///
    /// # Errors
    /// An error if the settings are wrong, so that trying again cannot help.
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

/// The outcome of one record that was handed to a [`Publisher`].
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Acknowledgement {
    /// The ticket under which the record was handed over.
    pub ticket: u64,
    /// The outcome.
    pub outcome: Outcome,
}

impl Acknowledgement {
    /// Returns the outcome of the record with this ticket.
    pub fn new(ticket: u64, outcome: Outcome) -> Self {
        Self { ticket, outcome }
    }
}

/// The outcome of a record.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Outcome {
    /// The broker has stored the record durably.
    Durable,
    /// The record is not known to be durable. It must be sent again, with everything after it.
    Retry {
        /// The reason, for a person to read.
        reason: String,
    },
    /// The broker will never accept the record, however often it is sent.
    Rejected {
        /// The reason, for a person to read.
        reason: String,
    },
}

/// The reason why a publisher did not accept a record.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Refusal {
    /// Too much is in flight. Ask for acknowledgements, then hand over the same record again.
    Full,
    /// The record must not be in flight at the same time as the one with this ticket. Hand it over again as soon as the outcome
    /// of that record is known. Records of other aggregates may be handed over in the meantime. Those of the same aggregate are
    /// refused in the same way.
    Behind {
        /// The ticket under which the other record was handed over.
        ticket: u64,
    },
    /// The record cannot be accepted now. Abandon what is in flight and begin again.
    Retry {
        /// The reason, for a person to read.
        reason: String,
    },
    /// The broker will never accept the record, however often it is sent.
    Rejected {
        /// The reason, for a person to read.
        reason: String,
    },
}

/// The reason why a publisher cannot go on: the broker is unreachable or refuses the connection, or the settings are wrong.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct PublishError {
    message: String,
    #[source]
    source: Option<Box<dyn Error + Send + Sync>>,
}

impl PublishError {
    /// Returns an error with this message, which operators read in the log.
    pub fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), source: None }
    }

    /// Adds the error that caused this one.
    #[must_use]
    pub fn with_source(self, source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self { source: Some(source.into()), ..self }
    }
}
