use std::any::type_name;
use std::error::Error;
use std::fmt;
use std::time::SystemTime;

use diesel_outbox_core::__private::from_unix_ms;
use diesel_outbox_core::wire;
use rdkafka::Message;
use rdkafka::message::{Headers, OwnedMessage};
use serde::de::DeserializeOwned;
use uuid::Uuid;

use super::headers;

/// A record as it was received from Kafka.
pub struct Received {
    message: OwnedMessage,
    id: Uuid,
    event_type: String,
}

impl Received {
    /// The record that has this id and event type, as [`identity`] found them.
    pub(super) fn new(message: OwnedMessage, (id, event_type): (Uuid, String)) -> Self {
        Self { message, id, event_type }
    }

    pub(super) fn message(&self) -> &OwnedMessage {
        &self.message
    }

    pub(super) fn into_message(self) -> OwnedMessage {
        self.message
    }

    /// The event's id, by which the inbox recognises a duplicate. Header `id`.
    pub fn id(&self) -> Uuid {
        self.id
    }

    /// What happened, such as `OrderPlaced`. Header `eventType`.
    pub fn event_type(&self) -> &str {
        &self.event_type
    }

    /// The version of the event's schema, where the record tells one. Header `eventVersion`.
    pub fn event_version(&self) -> Option<u32> {
        self.header(wire::EVENT_VERSION_HEADER)?.parse().ok()
    }

    /// The key: the aggregate's id.
    pub fn key(&self) -> Option<&[u8]> {
        self.message.key()
    }

    /// The payload as the event's emitter stored it; `None` is a tombstone.
    pub fn payload(&self) -> Option<&[u8]> {
        self.message.payload()
    }

    /// The payload read as JSON.
    ///
    /// # Errors
    /// [`Rejected`] where there is no payload or it cannot be read as a `T`. As trying again cannot help, a handler
    /// that returns it with `?` sends the record to the dead letters at once.
    pub fn json<T: DeserializeOwned>(&self) -> Result<T, Rejected> {
        let Some(payload) = self.payload() else {
            return Err(Rejected::new(format!("there is no payload to read a {} from", type_name::<T>())));
        };
        serde_json::from_slice(payload).map_err(|error| {
            // serde's own words may quote the payload, so they are the source, which is never logged.
            let place = format!("line {}, column {}", error.line(), error.column());
            let reason = format!("the payload is not the JSON of a {} ({place})", type_name::<T>());
            Rejected::new(reason).with_source(error)
        })
    }

    /// The value of the first header of this name, where it is text.
    pub fn header(&self, name: &str) -> Option<&str> {
        headers::text(&self.message, name)
    }

    /// All headers in their order, `id` and `eventType` among them.
    pub fn headers(&self) -> impl Iterator<Item = (&str, Option<&[u8]>)> {
        let headers = self.message.headers().into_iter().flat_map(Headers::iter);
        headers.map(|header| (header.key, header.value))
    }

    /// The topic it came from.
    pub fn topic(&self) -> &str {
        self.message.topic()
    }

    /// The partition it came from.
    pub fn partition(&self) -> i32 {
        self.message.partition()
    }

    /// Its place in the partition.
    pub fn offset(&self) -> i64 {
        self.message.offset()
    }

    /// Returns when the event was emitted. A relay other than ours may have set the time of sending.
    pub fn timestamp(&self) -> Option<SystemTime> {
        self.message.timestamp().to_millis().map(from_unix_ms)
    }
}

/// Shows where the record is and what it is, not its key, payload or headers, which may be confidential.
impl fmt::Debug for Received {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Received")
            .field("id", &self.id)
            .field("event_type", &self.event_type)
            .field("topic", &self.topic())
            .field("partition", &self.partition())
            .field("offset", &self.offset())
            .finish_non_exhaustive()
    }
}

/// The id and the event type that the message's headers tell, which have been [checked](headers::check), or what it lacks to
/// be a record.
pub(super) fn identity(message: &OwnedMessage) -> Result<(Uuid, String), &'static str> {
    if message.headers().is_none() {
        return Err(
            "the header `id` is missing: the record has no headers, or more than the 100,000 that librdkafka \
                    reads, which the dead letter lacks",
        );
    }
    let id = headers::text(message, wire::ID_HEADER)
        .ok_or("the header `id` is missing or not text: duplicates could not be recognised")?
        .parse()
        .map_err(|_| "the header `id` is not a UUID: duplicates could not be recognised")?;
    let event_type = headers::text(message, wire::EVENT_TYPE_HEADER).ok_or(
        "the header `eventType` is missing or not text; Debezium adds it with \
         `table.fields.additional.placement=type:header:eventType`",
    )?;
    Ok((id, event_type.to_owned()))
}

/// The record can never be handled, however often it is tried. A handler returns it to send the record to the dead
/// letters at once:
///
/// ```
/// use diesel_outbox_kafka::consumer::{HandlerError, Rejected};
///
/// fn check(total_cents: i64) -> Result<(), HandlerError> {
///     if total_cents < 0 {
///         return Err(Rejected::new("the total is negative").into());
///     }
///     Ok(())
/// }
/// # assert!(check(-1).unwrap_err().is::<Rejected>());
/// ```
#[derive(Debug, thiserror::Error)]
#[error("{reason}")]
pub struct Rejected {
    reason: String,
    #[source]
    source: Option<Box<dyn Error + Send + Sync>>,
}

impl Rejected {
    /// A rejection for this reason, which is logged and kept with the dead letter.
    pub fn new(reason: impl Into<String>) -> Self {
        Self { reason: reason.into(), source: None }
    }

    /// Adds the error that caused the rejection. It is kept with the dead letter, but not logged.
    #[must_use]
    pub fn with_source(self, source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self { source: Some(source.into()), ..self }
    }
}
