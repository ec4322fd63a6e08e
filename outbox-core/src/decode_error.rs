use std::error::Error;

/// The reason why an event could not be decoded.
///
/// No message quotes the payload or the aggregate id, because both may be confidential. The decoder's own error, which is the
/// [`source`](Error::source), may quote them.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DecodeError {
    /// The record has no event id, so the inbox could not recognise a duplicate.
    #[error("the header `id` is {}: duplicates could not be recognised", if *.is_missing { "missing or not text" } else { "not a UUID" })]
    IdHeader {
        /// Whether there is none, rather than one that is not a UUID.
        is_missing: bool,
    },
    /// The record has no event type.
    #[error(
        "the header `eventType` is missing or not text; Debezium adds it with \
         `table.fields.additional.placement=type:header:eventType`"
    )]
    EventTypeHeader,
    /// The Rust type does not decode events of this type. A consumer that does not need them can skip the event.
    #[error("the event type `{event_type}` is unknown here; known: {}", known.join(", "))]
    UnknownType {
        /// The event's type.
        event_type: String,
        /// The event types that the Rust type decodes.
        known: &'static [&'static str],
    },
    /// The Rust type does not decode this version: the consumer is older than the event, or has no `upcast` for it.
    #[error(
        "the event `{event_type}` has {}, which is unknown here; known: {}. Update this consumer, or add an `upcast` for this \
         version",
        .version.map_or_else(|| "no version".to_owned(), |version| format!("version {version}")),
        list(known)
    )]
    UnknownVersion {
        /// The event's type.
        event_type: String,
        /// Its version, if it has one.
        version: Option<u32>,
        /// The versions that the Rust type decodes.
        known: &'static [u32],
    },
    /// The event has a version that is not a number.
    #[error(
        "the header `eventVersion` of the event `{event_type}` is not a number: whoever emits it must set digits, up to 4294967295"
    )]
    VersionHeader {
        /// The event's type.
        event_type: String,
    },
    /// The event is a tombstone, but its type needs a payload.
    #[error(
        "the event `{event_type}` has no payload, but its type needs one: if such events are tombstones, mark the type \
         `#[outbox(tombstone)]`"
    )]
    NoPayload {
        /// The event's type.
        event_type: String,
    },
    /// The payload does not match the type.
    #[error(
        "the payload of the event `{event_type}` cannot be decoded as `{target}`{}",
        .position.map(|(line, column)| format!(" at line {line}, column {column}")).unwrap_or_default()
    )]
    Payload {
        /// The event's type.
        event_type: String,
        /// The Rust type that the payload should become.
        target: &'static str,
        /// The line and column of the payload, counted from 1, at which the decoder stopped, if it reports them.
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
    /// The payload decodes as an event of another type.
    #[error(
        "the payload of the event `{event_type}` decodes as another variant of `{target}`, so it was refused: if the enum has \
         `#[serde(untagged)]`, remove that, which does not change the payloads; if it has a `decode` function, write one for each \
         variant"
    )]
    WrongType {
        /// The event's type.
        event_type: String,
        /// The Rust type that the payload should become.
        target: &'static str,
    },
}

fn list(versions: &[u32]) -> String {
    versions.iter().map(u32::to_string).collect::<Vec<_>>().join(", ")
}
