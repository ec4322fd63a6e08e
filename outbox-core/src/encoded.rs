use std::fmt;

use serde::de::DeserializeOwned;
use uuid::Uuid;

use crate::{DecodeError, Record, wire};

/// An event that a consumer can decode: the counterpart of [`OutboxEvent`](crate::OutboxEvent).
///
/// Derive it with `#[derive(InboxEvent)]`, on the type that derives `OutboxEvent` or on the consumer's own type.
///
/// ```
/// use diesel_outbox_core::{DecodeError, EncodedEvent, InboxEvent};
///
/// #[derive(serde::Deserialize)]
/// struct OrderPlaced { order_id: u64 }
///
/// // A few lines by hand; the derive also handles versions, variants and tombstones.
/// impl InboxEvent for OrderPlaced {
///     const EVENT_TYPES: &'static [&'static str] = &["OrderPlaced"];
///
///     fn decode(event: &EncodedEvent<'_>) -> Result<Self, DecodeError> {
///         match event.event_type() {
///             "OrderPlaced" => event.json(),
///             _ => Err(event.unknown_type(Self::EVENT_TYPES)),
///         }
///     }
/// }
///
/// let event = EncodedEvent::new("OrderPlaced").with_payload(Some(br#"{"order_id":7}"#));
/// assert_eq!(OrderPlaced::decode(&event)?.order_id, 7);
/// # Ok::<(), DecodeError>(())
/// ```
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot be decoded from a received event",
    label = "this does not implement `InboxEvent`",
    note = "put `#[derive(InboxEvent)]` on `{Self}`, beside `#[derive(serde::Deserialize)]`"
)]
pub trait InboxEvent: Sized {
    /// The event types that this type decodes, without duplicates.
    const EVENT_TYPES: &'static [&'static str];

    /// Decodes the event according to its type and version.
    ///
    /// # Errors
    /// [`DecodeError::UnknownType`] or [`DecodeError::UnknownVersion`] if this type does not decode such events, and the other
    /// variants if the event is malformed.
    fn decode(event: &EncodedEvent<'_>) -> Result<Self, DecodeError>;
}

/// The parts of a received event that decoding needs.
#[derive(Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct EncodedEvent<'a> {
    event_type: &'a str,
    version: Option<u32>,
    payload: Option<&'a [u8]>,
    aggregate_id: Option<&'a str>,
}

impl<'a> EncodedEvent<'a> {
    /// Returns an event of this type, which is the header [`eventType`](wire::EVENT_TYPE_HEADER), with nothing else set.
    #[must_use]
    pub fn new(event_type: &'a str) -> Self {
        Self { event_type, version: None, payload: None, aggregate_id: None }
    }

    /// Returns the event of a record that a Kafka client has received, after its id, which is for the inbox. Takes the record's key, its
    /// value, and its headers in their order.
    ///
    /// ```
    /// use diesel_outbox_core::EncodedEvent;
    ///
    /// let headers = [("id", "01937d5e-0000-7000-8000-000000000001"), ("eventType", "OrderPlaced"), ("eventVersion", "2")];
    /// let headers = headers.map(|(name, value)| (name, Some(value.as_bytes())));
    /// let (event_id, event) = EncodedEvent::received(Some(b"order-7"), Some(br#"{"order_id":7}"#), headers)?;
    /// assert_eq!(event_id.get_version_num(), 7);
    /// assert_eq!((event.event_type(), event.version(), event.aggregate_id()), ("OrderPlaced", Some(2), Some("order-7")));
    /// # Ok::<(), diesel_outbox_core::DecodeError>(())
    /// ```
    ///
    /// # Errors
    /// [`DecodeError::IdHeader`], [`DecodeError::EventTypeHeader`] or [`DecodeError::VersionHeader`] if one of those headers is not as it
    /// should be. A record without a version is an event without a version.
    pub fn received(
        key: Option<&'a [u8]>,
        payload: Option<&'a [u8]>,
        headers: impl IntoIterator<Item = (&'a str, Option<&'a [u8]>)>,
    ) -> Result<(Uuid, Self), DecodeError> {
        let (mut id, mut event_type, mut version) = (None, None, None);
        for (name, value) in headers {
            match name {
                wire::ID_HEADER => id = id.or(value),
                wire::EVENT_TYPE_HEADER => event_type = event_type.or(value),
                // A header without a value is a version too, and not a number.
                wire::EVENT_VERSION_HEADER => version = version.or(Some(value.unwrap_or_default())),
                _ => {}
            }
        }
        let (id, event_type) = identity(id, event_type)?;
        let key = key.and_then(|key| str::from_utf8(key).ok());
        let event = Self::new(event_type).with_payload(payload).with_aggregate_id(key);
        let event = version.map_or(Ok(event), |version| event.with_version_header(version))?;
        Ok((id, event))
    }

    /// Sets the version, which is the header [`eventVersion`](wire::EVENT_VERSION_HEADER). Default: none.
    #[must_use]
    pub fn with_version(mut self, version: Option<u32>) -> Self {
        self.version = version;
        self
    }

    /// Sets the version to the value of the header [`eventVersion`](wire::EVENT_VERSION_HEADER).
    ///
    /// # Errors
    /// [`DecodeError::VersionHeader`] if the value is not a number.
    pub fn with_version_header(self, value: &[u8]) -> Result<Self, DecodeError> {
        match str::from_utf8(value).ok().and_then(|version| version.parse().ok()) {
            Some(version) => Ok(self.with_version(Some(version))),
            None => Err(DecodeError::VersionHeader { event_type: self.event_type.to_owned() }),
        }
    }

    /// Sets the payload, which is the value on Kafka. Default: `None`, a tombstone.
    #[must_use]
    pub fn with_payload(mut self, payload: Option<&'a [u8]>) -> Self {
        self.payload = payload;
        self
    }

    /// Sets the aggregate id, which is the key on Kafka. Default: none.
    #[must_use]
    pub fn with_aggregate_id(mut self, aggregate_id: Option<&'a str>) -> Self {
        self.aggregate_id = aggregate_id;
        self
    }

    /// Returns the event type.
    pub fn event_type(&self) -> &'a str {
        self.event_type
    }

    /// Returns the version, or `None` if the event has none.
    pub fn version(&self) -> Option<u32> {
        self.version
    }

    /// Returns the payload, or `None` for a tombstone.
    pub fn payload(&self) -> Option<&'a [u8]> {
        self.payload
    }

    /// Returns the aggregate id, or `None` if it was not set.
    pub fn aggregate_id(&self) -> Option<&'a str> {
        self.aggregate_id
    }

    /// Decodes the payload from JSON.
    ///
    /// # Errors
    /// [`DecodeError::NoPayload`] for a tombstone, and [`DecodeError::Payload`] if the payload is not JSON of this type.
    pub fn json<T: DeserializeOwned>(&self) -> Result<T, DecodeError> {
        serde_json::from_slice(self.require_payload()?).map_err(|error| self.not_json::<T>(error))
    }

    /// Returns the error for an event whose type is not among the known ones.
    pub fn unknown_type(&self, known: &'static [&'static str]) -> DecodeError {
        DecodeError::UnknownType { event_type: self.event_type.to_owned(), known }
    }

    /// Returns the error for an event whose version is not among the known ones.
    pub fn unknown_version(&self, known: &'static [u32]) -> DecodeError {
        let (event_type, version) = (self.event_type.to_owned(), self.version);
        DecodeError::UnknownVersion { event_type, version, known }
    }

    pub(crate) fn require_payload(&self) -> Result<&'a [u8], DecodeError> {
        self.payload.ok_or_else(|| DecodeError::NoPayload { event_type: self.event_type.to_owned() })
    }

    pub(crate) fn not_json<T>(&self, error: serde_json::Error) -> DecodeError {
        DecodeError::Payload {
            event_type: self.event_type.to_owned(),
            target: std::any::type_name::<T>(),
            position: (error.line() > 0).then(|| (error.line(), error.column())),
            source: error.into(),
        }
    }
}

/// Reads the values of the headers that every record has.
pub fn identity<'a>(id: Option<&[u8]>, event_type: Option<&'a [u8]>) -> Result<(Uuid, &'a str), DecodeError> {
    let text = |value| str::from_utf8(value).ok();
    let id = id.and_then(text).ok_or(DecodeError::IdHeader { is_missing: true })?;
    let id = id.parse().map_err(|_| DecodeError::IdHeader { is_missing: false })?;
    let event_type = event_type.and_then(|value| str::from_utf8(value).ok());
    Ok((id, event_type.ok_or(DecodeError::EventTypeHeader)?))
}

/// Returns the event as a consumer will receive it, for tests without a broker. Fails with [`DecodeError::VersionHeader`] if the
/// record's version is not a number, as a consumer does.
impl<'a> TryFrom<&'a Record> for EncodedEvent<'a> {
    type Error = DecodeError;

    fn try_from(record: &'a Record) -> Result<Self, DecodeError> {
        let event = Self::new(record.event_type())
            .with_payload(record.payload())
            .with_aggregate_id(Some(record.aggregate_id()));
        match record.headers().iter().find(|(name, _)| name == wire::EVENT_VERSION_HEADER) {
            Some((_, version)) => event.with_version_header(version.as_bytes()),
            None => Ok(event),
        }
    }
}

/// Shows only the size of the payload, because the payload may be confidential.
impl fmt::Debug for EncodedEvent<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EncodedEvent")
            .field("event_type", &self.event_type)
            .field("version", &self.version)
            .field("payload_bytes", &self.payload.map(<[u8]>::len))
            .field("aggregate_id", &self.aggregate_id)
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_that_is_not_a_number_is_an_error_and_not_the_first_version() {
        let record =
            |version| Record::new("order", "7", "Placed").header(wire::EVENT_VERSION_HEADER, version);
        for version in ["", "two", "-1", "4294967296"] {
            let record = record(version);
            let error = EncodedEvent::try_from(&record).unwrap_err();
            assert!(matches!(&error, DecodeError::VersionHeader { event_type } if event_type == "Placed"));
            assert!(
                error.to_string().contains("`eventVersion` of the event `Placed` is not a number"),
                "{error}"
            );
        }
        assert_eq!(EncodedEvent::try_from(&record("2")).unwrap().version(), Some(2));
        let without = Record::new("order", "7", "Placed");
        assert_eq!(EncodedEvent::try_from(&without).unwrap().version(), None);
    }

    #[test]
    fn an_error_names_the_place_and_the_type_and_never_the_payload() {
        let event = EncodedEvent::new("Placed").with_payload(Some(b"{\n \"s3cret\": 1}"));
        let error = event.json::<Vec<u8>>().unwrap_err();
        let text = error.to_string();
        assert!(
            text.contains("`Placed`") && text.contains("Vec<u8>") && text.contains("line 1, column"),
            "{text}"
        );
        let event = EncodedEvent::new("Placed").with_payload(Some(b"[\"s3cret\"]"));
        let error = event.json::<Vec<u8>>().unwrap_err();
        assert!(!error.to_string().contains("s3cret") && !format!("{event:?}").contains("s3cret"));
        let source = std::error::Error::source(&error).unwrap().to_string();
        assert!(source.contains("s3cret"), "{source}");
    }

    #[test]
    fn a_record_is_not_received_if_a_header_is_not_as_it_should_be() {
        let id = ("id", Some(&b"01937d5e-0000-7000-8000-000000000001"[..]));
        let event_type = ("eventType", Some(&b"Placed"[..]));
        let error = |headers: &[(&'static str, Option<&'static [u8]>)]| {
            EncodedEvent::received(None, None, headers.iter().copied()).unwrap_err().to_string()
        };
        assert!(error(&[event_type]).contains("`id` is missing"));
        assert!(error(&[("id", Some(b"7")), id, event_type]).contains("`id` is not a UUID"));
        assert!(error(&[id, ("eventType", Some(b"\xff"))]).contains("`eventType` is missing or not text"));
        assert!(error(&[id, event_type, ("eventVersion", None)]).contains("`eventVersion`"));
    }
}
