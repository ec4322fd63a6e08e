//! Everything that touches Kafka: the [`Kafka`] broker, whose publishers bring outbox records there.

#[cfg(feature = "consumer")]
pub mod consumer;
mod error;
mod publisher;

pub use self::publisher::Kafka;
