use std::error::Error;

/// Why an event could not be decoded.
///
/// No message quotes the payload or the aggregate id, which may be confidential. The decoder's own words may: they are the
/// [`source`](Error::source).
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DecodeError {
    /// The event's type is none that is known here. A consumer that need not handle it passes over it.
    #[error("the event type `{event_type}` is unknown here; known: {}", known.join(", "))]
    UnknownType {
        /// The event's type.
        event_type: String,
        /// The types that are known.
        known: &'static [&'static str],
    },
    /// The event's version is none that is known here: the consumer is older than the event, or has no upcaster for it.
    #[error(
        "the event `{event_type}` has {}, which is unknown here; known: {}. Bring this consumer up to date, or give it an \
         `upcast` for this version",
        .version.map_or_else(|| "no version".to_owned(), |version| format!("version {version}")),
        list(known)
    )]
    UnknownVersion {
        /// The event's type.
        event_type: String,
        /// Its version, if it has one.
        version: Option<u32>,
        /// The versions that are known.
        known: &'static [u32],
    },
    /// The event is a tombstone, but its type needs a payload.
    #[error(
        "the event `{event_type}` has no payload, but its type needs one: mark it `#[outbox(tombstone)]` if it has none"
    )]
    NoPayload {
        /// The event's type.
        event_type: String,
    },
    /// The payload is not what the type needs.
    #[error(
        "the payload of the event `{event_type}` cannot be decoded as `{target}`{}",
        .position.map(|(line, column)| format!(" at line {line}, column {column}")).unwrap_or_default()
    )]
    Payload {
        /// The event's type.
        event_type: String,
        /// The Rust type that was to be decoded.
        target: &'static str,
        /// The line and the column of the payload, from 1, where the decoder stopped, if it counts them.
        position: Option<(usize, usize)>,
        /// The decoder's own error, which may quote the payload.
        source: Box<dyn Error + Send + Sync>,
    },
    /// The aggregate id of a tombstone does not have the parts that the type's fields need.
    #[error("the aggregate id of the event `{event_type}` {problem}")]
    AggregateId {
        /// The event's type.
        event_type: String,
        /// What is wrong with it.
        problem: String,
    },
    /// The payload was decoded as an event of another type, which was refused.
    #[error(
        "the payload of the event `{event_type}` was decoded as another variant of `{target}`, and was refused: remove \
         `#[serde(untagged)]` from the enum, which does not change the payloads"
    )]
    WrongType {
        /// The event's type.
        event_type: String,
        /// The Rust type that was to be decoded.
        target: &'static str,
    },
}

fn list(versions: &[u32]) -> String {
    versions.iter().map(u32::to_string).collect::<Vec<_>>().join(", ")
}
