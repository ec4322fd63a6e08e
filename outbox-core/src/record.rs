use std::error::Error;
use std::fmt;
use std::str::Utf8Error;
use std::time::SystemTime;

use bytes::Bytes;
use bytestring::ByteString;
use serde::Serialize;
use uuid::Uuid;

use crate::wire;

/// An event as it is stored in the outbox and sent to the broker.
///
/// The payload is bytes, which are sent exactly as they were stored: no relay interprets them. A record without a payload is a
/// tombstone, which makes a compacted Kafka topic forget the key.
///
/// ```
/// use diesel_outbox_core::Record;
///
/// let record = Record::new("customer", "42", "CustomerMoved")
///     .version(2)
///     .header("region", "eu")
///     .with_payload(b"\x00\x01 any bytes".to_vec());
/// assert!(record.check().is_ok());
/// assert_eq!(record.headers()[0], ("eventVersion".to_owned(), "2".to_owned()));
/// ```
#[derive(Clone, PartialEq, Eq)]
pub struct Record {
    id: Uuid,
    aggregate_type: ByteString,
    aggregate_id: ByteString,
    event_type: ByteString,
    headers: Vec<(String, String)>,
    payload: Option<Bytes>,
    created_at: Option<SystemTime>,
}

impl Record {
    /// The maximum length of the aggregate type, the aggregate id and the event type, in characters.
    pub const NAME_LIMIT: usize = 255;
    /// The maximum size of the payload, in bytes: 256 MiB. Kafka's own default limit (`message.max.bytes`) is much lower, about
    /// 1 MB.
    pub const PAYLOAD_LIMIT: usize = 256 * 1024 * 1024;

    /// Returns a record with a new id and without payload and headers. The id is a UUID v7, so later ids sort later.
    pub fn new(
        aggregate_type: impl Into<String>,
        aggregate_id: impl Into<String>,
        event_type: impl Into<String>,
    ) -> Self {
        Self {
            id: Uuid::now_v7(),
            aggregate_type: aggregate_type.into().into(),
            aggregate_id: aggregate_id.into().into(),
            event_type: event_type.into().into(),
            headers: Vec::new(),
            payload: None,
            created_at: None,
        }
    }

    /// Returns a stored record whose fields lie in memory that many records share, so that a source can read many records without
    /// an allocation for each.
    ///
    /// # Errors
    /// An error if the aggregate type, the aggregate id or the event type is not UTF-8.
    pub fn from_bytes(
        id: Uuid,
        aggregate_type: Bytes,
        aggregate_id: Bytes,
        event_type: Bytes,
        payload: Option<Bytes>,
    ) -> Result<Self, Utf8Error> {
        Ok(Self {
            id,
            aggregate_type: aggregate_type.try_into()?,
            aggregate_id: aggregate_id.try_into()?,
            event_type: event_type.try_into()?,
            headers: Vec::new(),
            payload,
            created_at: None,
        })
    }

    /// Sets the id, by which consumers recognise a duplicate. It must be unique to the event. Default: a new UUID v7.
    #[must_use]
    pub fn with_id(mut self, id: Uuid) -> Self {
        self.id = id;
        self
    }

    /// Sets the payload to these bytes. Default: no payload, a tombstone.
    #[must_use]
    pub fn with_payload(mut self, payload: impl Into<Vec<u8>>) -> Self {
        self.payload = Some(payload.into().into());
        self
    }

    /// Sets the payload to the value as JSON.
    ///
    /// # Errors
    /// [`RecordError::Encode`] if serde cannot serialize the value, for example a map whose keys are not strings.
    pub fn json<T: Serialize + ?Sized>(self, value: &T) -> Result<Self, RecordError> {
        let bytes = serde_json::to_vec(value).map_err(RecordError::encode)?;
        Ok(self.with_payload(bytes))
    }

    /// Adds a header. Headers keep the order in which they were added. Each name may occur once, which [`check`](Self::check)
    /// verifies.
    #[must_use]
    pub fn header(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.headers.push((name.into(), value.into()));
        self
    }

    /// Adds the version of the event's schema, as the header [`eventVersion`](wire::EVENT_VERSION_HEADER).
    #[must_use]
    pub fn version(self, version: u32) -> Self {
        self.header(wire::EVENT_VERSION_HEADER, version.to_string())
    }

    /// Replaces all headers.
    #[must_use]
    pub fn with_headers(mut self, headers: Vec<(String, String)>) -> Self {
        self.headers = headers;
        self
    }

    /// Sets the time at which the event was emitted, in milliseconds. A relay's source sets it on the records it reads. `emit`
    /// ignores it, because the database sets the time of a new row.
    #[must_use]
    pub fn with_created_at(mut self, created_at: SystemTime) -> Self {
        self.created_at = Some(created_at);
        self
    }

    /// Returns the time at which the event was emitted, by the database's clock, or `None` for a record that was not read from an
    /// outbox. It becomes the record's timestamp on Kafka.
    pub fn created_at(&self) -> Option<SystemTime> {
        self.created_at
    }

    /// Returns the event's id, by which consumers recognise a duplicate. It is sent as the header `id`.
    pub fn id(&self) -> Uuid {
        self.id
    }

    /// Returns the aggregate type: the kind of thing that the event happened to, such as `order`. It names the topic.
    pub fn aggregate_type(&self) -> &str {
        &self.aggregate_type
    }

    /// Returns the aggregate id: the one thing that the event happened to. It is the key on Kafka. Events of one aggregate keep
    /// their order.
    pub fn aggregate_id(&self) -> &str {
        &self.aggregate_id
    }

    /// Returns the event type, such as `OrderPlaced`. It is sent as the header `eventType`.
    pub fn event_type(&self) -> &str {
        &self.event_type
    }

    /// Returns the event's own headers, in order. `id` and `eventType` are not among them.
    pub fn headers(&self) -> &[(String, String)] {
        &self.headers
    }

    /// Returns the payload, or `None` for a tombstone.
    pub fn payload(&self) -> Option<&[u8]> {
        self.payload.as_deref()
    }

    /// Returns the shard of the record's aggregate: see [`shard_of`](crate::shard_of).
    pub fn shard(&self) -> i16 {
        crate::shard_of(&self.aggregate_type, &self.aggregate_id)
    }

    /// Checks every limit that the database enforces. `emit` calls it first, so that a bad record never reaches the database and
    /// the transaction stays usable.
    ///
    /// # Errors
    /// The first problem found: first the names, then the headers, then the payload.
    pub fn check(&self) -> Result<(), RecordError> {
        for (field, value) in [
            ("aggregate_type", &self.aggregate_type),
            ("aggregate_id", &self.aggregate_id),
            ("event_type", &self.event_type),
        ] {
            check_name(field, value)?;
        }
        for (position, (name, _)) in self.headers.iter().enumerate() {
            if name.is_empty() {
                return Err(RecordError::Empty { field: "header name" });
            }
            if wire::RESERVED_HEADERS.contains(&name.as_str()) {
                return Err(RecordError::ReservedHeader { name: name.clone() });
            }
            if self.headers[..position].iter().any(|(other, _)| other == name) {
                return Err(RecordError::DuplicateHeader { name: name.clone() });
            }
        }
        match &self.payload {
            Some(payload) if payload.len() > Self::PAYLOAD_LIMIT => Err(RecordError::TooLong {
                field: "payload",
                limit: Self::PAYLOAD_LIMIT,
                unit: "bytes",
                actual: payload.len(),
            }),
            _ => Ok(()),
        }
    }
}

fn check_name(field: &'static str, value: &str) -> Result<(), RecordError> {
    if value.is_empty() {
        return Err(RecordError::Empty { field });
    }
    if value.contains('\0') {
        return Err(RecordError::Nul { field });
    }
    // A string has no more characters than bytes, so most strings need no counting.
    if value.len() > Record::NAME_LIMIT {
        let actual = value.chars().count();
        if actual > Record::NAME_LIMIT {
            return Err(RecordError::TooLong {
                field,
                limit: Record::NAME_LIMIT,
                unit: "characters",
                actual,
            });
        }
    }
    Ok(())
}

/// Shows the payload's size and the headers' names only, because the payload and the headers' values may be confidential.
impl fmt::Debug for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let headers: Vec<&str> = self.headers.iter().map(|(name, _)| name.as_str()).collect();
        f.debug_struct("Record")
            .field("id", &self.id)
            .field("aggregate_type", &self.aggregate_type)
            .field("aggregate_id", &self.aggregate_id)
            .field("event_type", &self.event_type)
            .field("headers", &headers)
            .field("payload_bytes", &self.payload.as_ref().map(Bytes::len))
            .finish()
    }
}

/// The reason why an event cannot be stored. The database was not touched, and the transaction can go on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RecordError {
    /// A field is longer than its column.
    #[error(
        "the event's {field} has {actual} {unit}, but the limit is {limit}: shorten it, or store the long value elsewhere and refer \
         to it"
    )]
    TooLong {
        /// The field's name.
        field: &'static str,
        /// The maximum length.
        limit: usize,
        /// The unit of both lengths: `characters` or `bytes`.
        unit: &'static str,
        /// The field's length.
        actual: usize,
    },
    /// A field that must have a value is empty.
    #[error("the event's {field} is empty: give it a value")]
    Empty {
        /// The field's name.
        field: &'static str,
    },
    /// A field contains the NUL character, which PostgreSQL cannot store. It is refused for every database.
    #[error("the event's {field} holds a NUL character, which PostgreSQL cannot store in text: remove it")]
    Nul {
        /// The field's name.
        field: &'static str,
    },
    /// A header has a name that the wire format reserves.
    #[error("the header name `{name}` is reserved for the wire format: choose another name")]
    ReservedHeader {
        /// The header's name.
        name: String,
    },
    /// Two headers of one record have the same name.
    #[error("the header `{name}` is set twice: give each header its own name")]
    DuplicateHeader {
        /// The header's name.
        name: String,
    },
    /// The payload could not be encoded. The source is the encoder's error.
    #[error("the event's payload cannot be encoded")]
    Encode(#[source] Box<dyn Error + Send + Sync>),
}

impl RecordError {
    /// Returns [`Encode`](Self::Encode) with an encoder's error.
    pub fn encode(error: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self::Encode(error.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_counted_in_characters_as_the_database_does() {
        let id = "ü".repeat(Record::NAME_LIMIT);
        assert!(Record::new("order", id.clone(), "Placed").check().is_ok());
        let error = Record::new("order", id + "ü", "Placed").check().unwrap_err();
        assert!(matches!(
            error,
            RecordError::TooLong { field: "aggregate_id", limit: 255, unit: "characters", actual: 256 }
        ));
    }

    #[test]
    fn bad_fields_are_named() {
        let message = |record: Record| record.check().unwrap_err().to_string();
        assert!(message(Record::new("", "1", "E")).contains("aggregate_type is empty"));
        assert!(message(Record::new("a", "1\0", "E")).contains("aggregate_id holds a NUL"));
        assert!(message(Record::new("a", "1", "E").header("id", "x")).contains("`id` is reserved"));
        assert!(message(Record::new("a", "1", "E").version(1).version(2)).contains("twice"));
    }

    #[test]
    fn debug_output_shows_neither_payload_nor_header_values() {
        let record = Record::new("a", "1", "E").header("token", "s3cret").with_payload(*b"s3cret");
        assert!(!format!("{record:?}").contains("s3cret"));
        assert!(format!("{record:?}").contains("payload_bytes: Some(6)"));
    }
}
