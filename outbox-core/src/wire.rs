//! The format of a record on Kafka. Every relay, including Debezium, sends the same bytes:
//!
//! | part | content |
//! |---|---|
//! | topic | `outbox.event.{aggregatetype}` by default: see [`TopicNaming`] |
//! | key | the aggregate id |
//! | headers | `id` and `eventType`, then the event's own in their order |
//! | value | the payload exactly as it was stored, or null for a tombstone |
//! | timestamp | the time at which the event was emitted |
//!
//! The names of the columns, the topic and the headers are the defaults of Debezium's
//! [Outbox Event Router](https://debezium.io/documentation/reference/stable/transformations/outbox-event-router.html).

mod headers;
mod topic_naming;

pub use headers::{HeadersError, decode_headers, encode_headers};
pub use topic_naming::{TopicError, TopicNaming};

/// The header that holds the event's id, a UUID as text.
pub const ID_HEADER: &str = "id";
/// The header that holds the event type.
pub const EVENT_TYPE_HEADER: &str = "eventType";
/// The header that a record has besides its own if it was replayed: when, in milliseconds since 1970.
pub const REPLAYED_HEADER: &str = "outbox-replayed";
/// The header that holds the version of the event's schema. An event without a version does not have it.
pub const EVENT_VERSION_HEADER: &str = "eventVersion";
/// The header names that an event cannot use for headers of its own.
pub const RESERVED_HEADERS: &[&str] = &[ID_HEADER, EVENT_TYPE_HEADER];
