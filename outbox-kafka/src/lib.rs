//! Everything that touches Kafka: the [`Kafka`] broker, whose publishers bring outbox records there.

mod error;
mod publisher;

pub use self::publisher::Kafka;
