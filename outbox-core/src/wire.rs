//! How a record looks on Kafka. Whatever relay sends it, the bytes are the same: topic
//! `outbox.event.{aggregatetype}`, key the aggregate id, headers `id` and `eventType` followed by the event's own,
//! value the payload as it was stored.
//!
//! Column names, topic and headers are those that Debezium's
//! [Outbox Event Router](https://debezium.io/documentation/reference/stable/transformations/outbox-event-router.html)
//! uses by default.

mod headers;
mod topic_naming;

pub use headers::{HeadersError, decode_headers, encode_headers};
pub use topic_naming::{TopicError, TopicNaming};

/// The header that carries the event's id, a UUID as text.
pub const ID_HEADER: &str = "id";
/// The header that carries the event's type.
pub const EVENT_TYPE_HEADER: &str = "eventType";
/// The header that carries the version of the event's schema, where the event has one.
pub const EVENT_VERSION_HEADER: &str = "eventVersion";
/// Header names that an event cannot use for itself.
pub const RESERVED_HEADERS: [&str; 2] = [ID_HEADER, EVENT_TYPE_HEADER];
