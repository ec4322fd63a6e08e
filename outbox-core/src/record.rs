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
/// The payload is bytes: what was stored is what is sent, no relay ever looks into it. No payload at all is a
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
    /// The longest aggregate type, aggregate id and event type, in characters.
    pub const NAME_LIMIT: usize = 255;
    /// The largest payload, in bytes. Kafka's own default limit (`message.max.bytes`) is far lower, about 1 MB.
    pub const PAYLOAD_LIMIT: usize = 256 * 1024 * 1024;

    /// A record without payload and headers, and with a new id (UUID v7: ids made later sort later).
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

    /// A stored record whose fields lie in memory that many records share, so that a source can read them all without an
    /// allocation for each.
    ///
    /// # Errors
    /// Where one of the three names is not UTF-8.
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

    /// Sets the id, by which consumers recognise a duplicate: it must be unique to the event.
    #[must_use]
    pub fn with_id(mut self, id: Uuid) -> Self {
        self.id = id;
        self
    }

    /// Sets the payload to these bytes.
    #[must_use]
    pub fn with_payload(mut self, payload: impl Into<Vec<u8>>) -> Self {
        self.payload = Some(payload.into().into());
        self
    }

    /// Sets the payload to the value as JSON.
    ///
    /// # Errors
    /// [`RecordError::Encode`] where serde cannot serialize the value, such as a map whose keys are not strings.
    pub fn json<T: Serialize + ?Sized>(self, value: &T) -> Result<Self, RecordError> {
        let bytes = serde_json::to_vec(value).map_err(RecordError::encode)?;
        Ok(self.with_payload(bytes))
    }

    /// Adds a header. Names are unique in a record; headers keep the order in which they were added.
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

    /// Sets all headers at once, replacing those there are.
    #[must_use]
    pub fn with_headers(mut self, headers: Vec<(String, String)>) -> Self {
        self.headers = headers;
        self
    }

    /// Sets when the event was emitted, to the millisecond. The source of a relay does this for a stored record.
    #[must_use]
    pub fn with_created_at(mut self, created_at: SystemTime) -> Self {
        self.created_at = Some(created_at);
        self
    }

    /// Returns when the event was emitted, by the database's clock; `None` if it has not been. It is the timestamp of the
    /// record on Kafka.
    pub fn created_at(&self) -> Option<SystemTime> {
        self.created_at
    }

    /// The event's id, by which consumers recognise a duplicate. Header `id`.
    pub fn id(&self) -> Uuid {
        self.id
    }

    /// The kind of thing that the event happened to, such as `order`. It names the topic.
    pub fn aggregate_type(&self) -> &str {
        &self.aggregate_type
    }

    /// The one thing it happened to. It is the key on Kafka: events of one aggregate keep their order.
    pub fn aggregate_id(&self) -> &str {
        &self.aggregate_id
    }

    /// What happened, such as `OrderPlaced`. Header `eventType`.
    pub fn event_type(&self) -> &str {
        &self.event_type
    }

    /// The event's own headers, in order; `id` and `eventType` are not among them.
    pub fn headers(&self) -> &[(String, String)] {
        &self.headers
    }

    /// The payload; `None` is a tombstone.
    pub fn payload(&self) -> Option<&[u8]> {
        self.payload.as_deref()
    }

    /// The shard that the record's aggregate belongs to.
    pub fn shard(&self) -> i16 {
        crate::shard_of(&self.aggregate_type, &self.aggregate_id)
    }

    /// Checks every bound that the database has, so that a bad record is refused before it reaches the database and
    /// the transaction stays usable.
    ///
    /// # Errors
    /// The first [`RecordError`] found, in the order of the columns.
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
    // A string has at most as many characters as bytes, so most need no counting.
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

/// Shows everything but the payload and the headers' values, which may be confidential: of those it tells the size.
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

/// Why an event cannot be stored. The database was not touched: the transaction can go on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RecordError {
    /// A field is longer than its column.
    #[error(
        "the event's {field} has {actual} {unit}, the limit is {limit}: shorten it, or keep the long value in the payload"
    )]
    TooLong {
        /// The field's name.
        field: &'static str,
        /// The most that it may have.
        limit: usize,
        /// What is counted: `characters` or `bytes`.
        unit: &'static str,
        /// What it has.
        actual: usize,
    },
    /// A field that must have a value is empty.
    #[error("the event's {field} is empty: give it a value")]
    Empty {
        /// The field's name.
        field: &'static str,
    },
    /// A text holds the NUL character, which PostgreSQL cannot store.
    #[error("the event's {field} holds a NUL character, which databases cannot store in a text: remove it")]
    Nul {
        /// The field's name.
        field: &'static str,
    },
    /// A header has a name that the wire format uses itself.
    #[error("the header name `{name}` is reserved for the wire format: choose another name")]
    ReservedHeader {
        /// The header's name.
        name: String,
    },
    /// Two headers of one record have the same name.
    #[error("the header `{name}` is set twice: give each header a name of its own")]
    DuplicateHeader {
        /// The header's name.
        name: String,
    },
    /// The payload could not be encoded.
    #[error("the event's payload cannot be encoded")]
    Encode(#[source] Box<dyn Error + Send + Sync>),
}

impl RecordError {
    /// Wraps an encoder's error.
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
    fn debug_output_tells_neither_payload_nor_header_values() {
        let record = Record::new("a", "1", "E").header("token", "s3cret").with_payload(*b"s3cret");
        assert!(!format!("{record:?}").contains("s3cret"));
        assert!(format!("{record:?}").contains("payload_bytes: Some(6)"));
    }
}
