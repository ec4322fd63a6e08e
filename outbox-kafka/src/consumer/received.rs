use std::error::Error;
use std::fmt;
use std::time::SystemTime;

use diesel_outbox_core::__private::{from_unix_ms, identity as core_identity};
use diesel_outbox_core::{DecodeError, EncodedEvent, InboxEvent, wire};
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
    /// Returns the record that has this id and event type, as [`identity`] found them.
    pub(super) fn new(message: OwnedMessage, (id, event_type): (Uuid, String)) -> Self {
        Self { message, id, event_type }
    }

    pub(super) fn message(&self) -> &OwnedMessage {
        &self.message
    }

    pub(super) fn into_message(self) -> OwnedMessage {
        self.message
    }

    /// Returns the event's id, by which the inbox recognises a duplicate. Header `id`.
    pub fn id(&self) -> Uuid {
        self.id
    }

    /// Returns the event type, such as `OrderPlaced`. Header `eventType`.
    pub fn event_type(&self) -> &str {
        &self.event_type
    }

    /// Returns the version of the event's schema, or `None` if the record has none or one that is not a number. Header
    /// `eventVersion`.
    pub fn event_version(&self) -> Option<u32> {
        self.header(wire::EVENT_VERSION_HEADER)?.parse().ok()
    }

    /// Returns the key: the aggregate's id.
    pub fn key(&self) -> Option<&[u8]> {
        self.message.key()
    }

    /// Returns the payload as the event's emitter stored it; `None` is a tombstone.
    pub fn payload(&self) -> Option<&[u8]> {
        self.message.payload()
    }

    /// Decodes the event, by its type and version.
    ///
    /// # Errors
    /// Returns [`Rejected`] if the event is not as it should be. Because trying again cannot help, a handler
    /// that returns the error with `?` sends the record to the dead letters at once.
    pub fn decode<E: InboxEvent>(&self) -> Result<E, Rejected> {
        let version = self.headers().find(|(name, _)| *name == wire::EVENT_VERSION_HEADER);
        let event = match version {
            Some((_, value)) => self.encoded().with_version_header(value.unwrap_or_default()),
            None => Ok(self.encoded()),
        };
        event.and_then(|event| E::decode(&event)).map_err(undecoded)
    }

    /// Reads the payload as JSON.
    ///
    /// # Errors
    /// Returns [`Rejected`] if there is no payload, or if it cannot be read as a `T`. Because trying again cannot help, a handler
    /// that returns the error with `?` sends the record to the dead letters at once.
    pub fn json<T: DeserializeOwned>(&self) -> Result<T, Rejected> {
        self.encoded().json().map_err(undecoded)
    }

    fn encoded(&self) -> EncodedEvent<'_> {
        let key = self.key().and_then(|key| str::from_utf8(key).ok());
        EncodedEvent::new(&self.event_type).with_payload(self.payload()).with_aggregate_id(key)
    }

    /// Returns the value of the first header of this name, if it is text.
    pub fn header(&self, name: &str) -> Option<&str> {
        headers::text(&self.message, name)
    }

    /// Returns all headers in their order, `id` and `eventType` among them.
    pub fn headers(&self) -> impl Iterator<Item = (&str, Option<&[u8]>)> {
        let headers = self.message.headers().into_iter().flat_map(Headers::iter);
        headers.map(|header| (header.key, header.value))
    }

    /// Returns the topic that it came from.
    pub fn topic(&self) -> &str {
        self.message.topic()
    }

    /// Returns the partition that it came from.
    pub fn partition(&self) -> i32 {
        self.message.partition()
    }

    /// Returns its place in the partition.
    pub fn offset(&self) -> i64 {
        self.message.offset()
    }

    /// Returns when the event was emitted. A relay other than ours may have set the time of sending.
    pub fn timestamp(&self) -> Option<SystemTime> {
        self.message.timestamp().to_millis().map(from_unix_ms)
    }
}

/// The decoder's own words may quote the payload, so they are the source, which is never logged.
fn undecoded(error: DecodeError) -> Rejected {
    let rejected = Rejected::new(error.to_string());
    match error {
        DecodeError::Payload { source, .. } => rejected.with_source(source),
        _ => rejected,
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

/// Returns the id and the event type from the message's headers, which have been [checked](headers::check), or what it lacks to
/// be a record.
pub(super) fn identity(message: &OwnedMessage) -> Result<(Uuid, String), String> {
    if message.headers().is_none() {
        return Err("the header `id` is missing: the record has no headers, or more than the 100,000 that librdkafka \
                    reads, which the dead letter lacks"
            .to_owned());
    }
    let value = |name| headers::value(message, name);
    core_identity(value(wire::ID_HEADER), value(wire::EVENT_TYPE_HEADER))
        .map(|(id, event_type)| (id, event_type.to_owned()))
        .map_err(|error| error.to_string())
}

/// Why a record can never be handled, however often it is tried. A handler returns it to send the record to the dead
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
    /// A rejection for this reason, which the consumer logs and keeps with the dead letter.
    pub fn new(reason: impl Into<String>) -> Self {
        Self { reason: reason.into(), source: None }
    }

    /// Adds the error that caused the rejection. The consumer keeps it with the dead letter, but does not log it.
    #[must_use]
    pub fn with_source(self, source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self { source: Some(source.into()), ..self }
    }
}
