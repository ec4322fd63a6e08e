use serde_json::Value;

use super::expected::{Expected, Payload};
use super::report::shown_payload;
use crate::Record;

/// In what an event is not as expected, one line for each. What weighs most comes first.
#[derive(Debug, Default)]
pub(super) struct Differences {
    pub(super) lines: Vec<String>,
    /// How far the event is from what is expected: another type weighs more than another aggregate, and that more than all else.
    pub(super) weight: usize,
}

const OF_TYPE: usize = 10_000;
const OF_AGGREGATE: usize = 100;

impl Differences {
    pub(super) fn between(expected: &Expected, record: &Record) -> Self {
        let mut found = Self::default();
        found.text("event type", expected.event_type.as_deref(), record.event_type(), OF_TYPE);
        let aggregate_type = expected.aggregate_type.as_deref();
        found.text("aggregate type", aggregate_type, record.aggregate_type(), OF_AGGREGATE);
        found.text("aggregate id", expected.aggregate_id.as_deref(), record.aggregate_id(), OF_AGGREGATE);
        for (name, value) in &expected.headers {
            match record.headers().iter().find(|(other, _)| other == name) {
                Some((_, was)) if was == value => {}
                Some((_, was)) => found.line(format!("header `{name}`: expected `{value}`, was `{was}`"), 1),
                None => found.line(format!("header `{name}`: expected `{value}`, was missing"), 1),
            }
        }
        if let Some(payload) = &expected.payload {
            found.payload(payload, record.payload());
        }
        found
    }

    pub(super) fn is_empty(&self) -> bool {
        self.lines.is_empty()
    }

    fn line(&mut self, line: String, weight: usize) {
        self.lines.push(line);
        self.weight += weight;
    }

    fn text(&mut self, what: &str, expected: Option<&str>, was: &str, weight: usize) {
        if let Some(expected) = expected.filter(|expected| *expected != was) {
            self.line(format!("{what}: expected `{expected}`, was `{was}`"), weight);
        }
    }

    fn payload(&mut self, expected: &Payload, was: Option<&[u8]>) {
        let (value, is_all) = match expected {
            Payload::None if was.is_none() => return,
            Payload::None => {
                return self.line(format!("payload: expected none, was {}", shown_payload(was)), 1);
            }
            Payload::Bytes(bytes) if was == Some(bytes) => return,
            Payload::Bytes(bytes) => {
                let (expected, was) = (shown_payload(Some(bytes)), shown_payload(was));
                return self.line(format!("payload: expected {expected}, was {was}"), 1);
            }
            Payload::Json(value) => (value, true),
            Payload::WithJson(value) => (value, false),
        };
        match was.map(serde_json::from_slice::<Value>) {
            Some(Ok(was)) => self.json("payload", value, &was, is_all),
            _ => self.line(format!("payload: expected {value}, was {}", shown_payload(was)), 1),
        }
    }

    fn json(&mut self, path: &str, expected: &Value, was: &Value, is_all: bool) {
        let (Value::Object(expected_fields), Value::Object(fields)) = (expected, was) else {
            if expected != was {
                self.line(format!("{path}: expected {expected}, was {was}"), 1);
            }
            return;
        };
        for (name, value) in expected_fields {
            let path = format!("{path}.{name}");
            match fields.get(name) {
                Some(was) => self.json(&path, value, was, is_all),
                None => self.line(format!("{path}: expected {value}, was missing"), 1),
            }
        }
        for (name, was) in fields.iter().filter(|(name, _)| is_all && !expected_fields.contains_key(*name)) {
            self.line(format!("{path}.{name}: expected nothing, was {was}"), 1);
        }
    }
}
