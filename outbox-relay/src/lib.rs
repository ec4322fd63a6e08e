//! The relay: it brings the outbox's records to the broker, at least once and in order for each aggregate.

mod error;
mod handle;
mod observe;
mod pipeline;
mod relay;
mod worker;

pub use diesel_outbox_core::wire::{TopicError, Topics};
pub use diesel_outbox_core::{Broker, DeadLetterPolicy, Lag, Source};
#[cfg(feature = "kafka")]
pub use diesel_outbox_kafka::Kafka;

pub use self::error::RelayError;
pub use self::handle::RelayHandle;
pub use self::pipeline::Limits;
pub use self::relay::Relay;
