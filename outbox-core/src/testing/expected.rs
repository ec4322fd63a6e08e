use std::fmt;

use serde::Serialize;
use serde_json::Value;

use super::difference::Differences;
use super::report::shown_payload;
use crate::{OutboxEvent, Record};

/// What a test expects of an event: everything if it is made from an event, or only what is named.
#[derive(Debug, Clone, Default)]
#[must_use]
pub struct Expected {
    pub(super) event_type: Option<String>,
    pub(super) aggregate_type: Option<String>,
    pub(super) aggregate_id: Option<String>,
    pub(super) headers: Vec<(String, String)>,
    pub(super) payload: Option<Payload>,
}

/// What is expected of a payload.
#[derive(Debug, Clone)]
pub(super) enum Payload {
    None,
    Bytes(Vec<u8>),
    /// This JSON, whatever the order of its names and the spaces in it.
    Json(Value),
    /// JSON that has at least this.
    WithJson(Value),
}

impl Expected {
    /// Expects an event, whatever it is.
    pub fn any() -> Self {
        Self::default()
    }

    /// Expects an event of this type, such as `OrderPlaced`.
    pub fn event_type(event_type: impl Into<String>) -> Self {
        Self { event_type: Some(event_type.into()), ..Self::default() }
    }

    /// Expects this aggregate. Default: any.
    pub fn aggregate(self, aggregate_type: impl Into<String>, aggregate_id: impl Into<String>) -> Self {
        Self { aggregate_id: Some(aggregate_id.into()), ..self.aggregate_type(aggregate_type) }
    }

    /// Expects an aggregate of this type. Default: any.
    pub fn aggregate_type(self, aggregate_type: impl Into<String>) -> Self {
        Self { aggregate_type: Some(aggregate_type.into()), ..self }
    }

    /// Expects a header with this value. Others may be there too. Default: none.
    pub fn header(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.headers.push((name.into(), value.into()));
        self
    }

    /// Expects a JSON payload with at least these fields, at any depth. An array must be the same as a whole. Default: any payload.
    ///
    /// # Panics
    /// If serde cannot serialize the value.
    #[track_caller]
    pub fn json<T: Serialize + ?Sized>(self, fields: &T) -> Self {
        match serde_json::to_value(fields) {
            Ok(value) => Self { payload: Some(Payload::WithJson(value)), ..self },
            Err(error) => panic!("the expected payload cannot be written as JSON: {error}"),
        }
    }

    /// Expects exactly these bytes as the payload. Default: any payload.
    pub fn payload(self, bytes: impl Into<Vec<u8>>) -> Self {
        Self { payload: Some(Payload::Bytes(bytes.into())), ..self }
    }

    /// Expects an event without a payload. Default: any payload.
    pub fn tombstone(self) -> Self {
        Self { payload: Some(Payload::None), ..self }
    }

    pub(super) fn is_met_by(&self, record: &Record) -> bool {
        Differences::between(self, record).is_empty()
    }
}

/// Expects all that the event is, except its id: its type, aggregate, payload, and headers. If the payload is JSON, the order of the names
/// in it does not matter. The event may have more headers, such as those of an `Outbox`.
///
/// # Panics
/// If the event cannot be turned into a record.
impl<E: OutboxEvent + ?Sized> From<&E> for Expected {
    #[track_caller]
    fn from(event: &E) -> Self {
        let record = match event.to_record() {
            Ok(record) => record,
            Err(error) => panic!("the expected event cannot be turned into a record: {error}"),
        };
        let payload = match record.payload() {
            None => Payload::None,
            Some(bytes) => {
                serde_json::from_slice(bytes).map_or(Payload::Bytes(bytes.to_vec()), Payload::Json)
            }
        };
        Self {
            event_type: Some(record.event_type().to_owned()),
            aggregate_type: Some(record.aggregate_type().to_owned()),
            aggregate_id: Some(record.aggregate_id().to_owned()),
            headers: record.headers().to_vec(),
            payload: Some(payload),
        }
    }
}

impl fmt::Display for Expected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.event_type.as_deref().unwrap_or("an event"))?;
        match (&self.aggregate_type, &self.aggregate_id) {
            (Some(aggregate_type), Some(id)) => write!(f, " of {aggregate_type} {id}")?,
            (Some(aggregate_type), None) => write!(f, " of any {aggregate_type}")?,
            _ => {}
        }
        match &self.payload {
            None => {}
            Some(Payload::None) => f.write_str(", no payload")?,
            Some(Payload::Bytes(bytes)) => write!(f, ", payload {}", shown_payload(Some(bytes)))?,
            Some(Payload::Json(value)) => write!(f, ", payload {value}")?,
            Some(Payload::WithJson(value)) => write!(f, ", payload with {value}")?,
        }
        self.headers.iter().try_for_each(|(name, value)| write!(f, ", header {name}={value}"))
    }
}
