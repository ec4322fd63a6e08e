//! Everything that touches Kafka: the [`Kafka`] broker, whose publishers bring outbox records there, and, with the
//! feature `consumer`, the loop that brings them from there into a database once.

#[cfg(feature = "consumer")]
pub mod consumer;
mod error;
mod publisher;

pub use self::publisher::Kafka;
