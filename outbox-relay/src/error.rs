use std::time::Duration;

use diesel_outbox_core::{PublishError, SourceError};

/// Why a relay cannot start, or why it did not stop well.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RelayError {
    /// The relay has no broker to send records to.
    #[error("the relay has no broker: name one with `.broker(Kafka::new(\"host:9092\"))`")]
    NoBroker,
    /// A setting is out of its range.
    #[error("the relay's setting `{setting}` is {value}: it must be {range}")]
    Setting {
        /// The setting's name.
        setting: &'static str,
        /// What it was set to.
        value: String,
        /// What it can be.
        range: &'static str,
    },
    /// The relay is given several schemas, and can have only one.
    #[error(
        "a relay can have several schemas only if it polls a PostgreSQL database: start a relay for each schema. They can run in one \
         process"
    )]
    SeveralSchemas,
    /// Records cannot be sent exactly once.
    #[error("records cannot be sent exactly once, because {0}. Or turn that off")]
    ExactlyOnce(&'static str),
    /// The broker's settings are wrong.
    #[error("the relay cannot make a publisher: {0}")]
    Broker(#[from] PublishError),
    /// The system could not start a worker's thread.
    #[error("cannot start a worker's thread: {0}")]
    Thread(#[from] std::io::Error),
    /// The source cannot go on, and trying again cannot help, for example because a replication slot was lost. Or the relay was stopped
    /// while it waited until somebody fixes something, for example until somebody creates its tables. No unsent record is marked as
    /// sent.
    #[error("the relay {why}: {0}", why = if .0.is_permanent() { "cannot go on" } else { "was stopped while it waited for a fix" })]
    Source(#[source] SourceError),
    /// A worker panicked; the others have been stopped.
    #[error(
        "a relay worker panicked: {0}. The relay has stopped: nothing is lost, but records in flight may be sent again. Start it again; \
         if it panics again, report that as a bug"
    )]
    Panicked(String),
    /// The workers did not stop in time. They end with the process, and the next relay may send again what they had in flight.
    #[error(
        "the relay did not stop within {0:?}: records in flight may be sent again. If neither the database nor Kafka is away, set a \
         longer `shutdown_timeout`"
    )]
    ShutdownTimeout(Duration),
}
