//! Records as a consumer receives them, made by a test.

use std::time::SystemTime;

use diesel_outbox_core::__private::unix_ms;
use diesel_outbox_core::wire::{self, TopicNaming};
use diesel_outbox_core::{OutboxEvent, Record, RecordError};
use rdkafka::message::{Header, Message, OwnedHeaders, OwnedMessage, Timestamp};

use super::Received;

/// For the tests of a handler: feature `testing`.
impl Received {
    /// Returns the event as a consumer receives it: from the topic of its aggregate type, partition 0, offset 0, with the aggregate id as the key.
    /// A test calls the handler with it:
    ///
    /// ```
    /// use diesel_outbox_core::Record;
    /// use diesel_outbox_kafka::consumer::{HandlerError, Received};
    ///
    /// fn handle(received: &Received) -> Result<i64, HandlerError> {
    ///     let order: serde_json::Value = received.json()?;
    ///     Ok(order["total_cents"].as_i64().unwrap_or_default())
    /// }
    ///
    /// let placed = Record::new("order", "7", "OrderPlaced").with_payload(*br#"{"total_cents":990}"#);
    /// let received = Received::from_event(&placed)?.with_header("tenant", "acme").at("orders", 3, 42);
    /// assert_eq!(handle(&received)?, 990);
    /// assert_eq!((received.topic(), received.key()), ("orders", Some(&b"7"[..])));
    /// # Ok::<(), HandlerError>(())
    /// ```
    ///
    /// # Errors
    /// A [`RecordError`] if `emit` would refuse the event.
    pub fn from_event<E: OutboxEvent + ?Sized>(event: &E) -> Result<Self, RecordError> {
        let record = event.to_record()?;
        record.check()?;
        let id = record.id().to_string();
        let identity = [(wire::ID_HEADER, id.as_str()), (wire::EVENT_TYPE_HEADER, record.event_type())];
        let own = record.headers().iter().map(|(name, value)| (name.as_str(), value.as_str()));
        let headers = identity.into_iter().chain(own).fold(OwnedHeaders::new(), |headers, (key, value)| {
            headers.insert(Header { key, value: Some(value) })
        });
        let emitted = record.created_at().unwrap_or_else(SystemTime::now);
        let message = OwnedMessage::new(
            record.payload().map(<[u8]>::to_vec),
            Some(record.aggregate_id().as_bytes().to_vec()),
            topic(&record),
            Timestamp::CreateTime(unix_ms(emitted)),
            0,
            0,
            Some(headers),
        );
        Ok(Self::new(message, (record.id(), record.event_type().to_owned())))
    }

    /// Sets where the record is. For tests: feature `testing`. Default: the topic of its aggregate type, partition 0, offset 0.
    #[must_use]
    pub fn at(self, topic: impl Into<String>, partition: i32, offset: i64) -> Self {
        self.with(|message| Parts { topic: topic.into(), partition, offset, ..message })
    }

    /// Sets the key. For tests: feature `testing`. Default: the aggregate id.
    #[must_use]
    pub fn with_key(self, key: Option<&[u8]>) -> Self {
        self.with(|message| Parts { key: key.map(<[u8]>::to_vec), ..message })
    }

    /// Adds a header behind the others; `None` is one without a value. For tests: feature `testing`.
    #[must_use]
    pub fn with_header<'a>(self, name: &str, value: impl Into<Option<&'a str>>) -> Self {
        let value = value.into();
        self.with(|message| Parts { headers: message.headers.insert(Header { key: name, value }), ..message })
    }

    /// Sets when the event was emitted. For tests: feature `testing`. Default: now.
    #[must_use]
    pub fn with_timestamp(self, timestamp: SystemTime) -> Self {
        self.with(|message| Parts { timestamp: Timestamp::CreateTime(unix_ms(timestamp)), ..message })
    }

    fn with(self, change: impl FnOnce(Parts) -> Parts) -> Self {
        let identity = (self.id(), self.event_type().to_owned());
        let Parts { payload, key, topic, timestamp, partition, offset, headers } =
            change(Parts::of(&self.into_message()));
        let message = OwnedMessage::new(payload, key, topic, timestamp, partition, offset, Some(headers));
        Self::new(message, identity)
    }
}

struct Parts {
    payload: Option<Vec<u8>>,
    key: Option<Vec<u8>>,
    topic: String,
    timestamp: Timestamp,
    partition: i32,
    offset: i64,
    headers: OwnedHeaders,
}

impl Parts {
    fn of(message: &OwnedMessage) -> Self {
        Self {
            payload: message.payload().map(<[u8]>::to_vec),
            key: message.key().map(<[u8]>::to_vec),
            topic: message.topic().to_owned(),
            timestamp: message.timestamp(),
            partition: message.partition(),
            offset: message.offset(),
            headers: message.headers().map_or_else(OwnedHeaders::new, OwnedHeaders::clone),
        }
    }
}

/// An aggregate type may make a topic's name that Kafka does not have. No consumer receives from such a topic, and a test need not care.
fn topic(record: &Record) -> String {
    TopicNaming::default()
        .topic(record.aggregate_type())
        .unwrap_or_else(|_| record.aggregate_type().to_owned())
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use super::*;

    #[test]
    fn an_event_comes_as_a_consumer_receives_it_and_each_part_can_be_changed() {
        let record = Record::new("order", "7", "Placed").version(2).header("a", "b");
        let received = Received::from_event(&record).unwrap();
        assert_eq!((received.id(), received.event_type()), (record.id(), "Placed"));
        assert_eq!((received.topic(), received.partition(), received.offset()), ("outbox.event.order", 0, 0));
        assert_eq!((received.key(), received.payload()), (Some(&b"7"[..]), None));
        assert_eq!((received.event_version(), received.header("a")), (Some(2), Some("b")));
        assert_eq!(received.header("id"), Some(&*record.id().to_string()));
        let time = UNIX_EPOCH + Duration::from_millis(5);
        let changed = received.at("t", 1, 2).with_key(None).with_header("c", None).with_timestamp(time);
        assert_eq!((changed.topic(), changed.partition(), changed.offset()), ("t", 1, 2));
        assert_eq!((changed.key(), changed.timestamp()), (None, Some(time)));
        assert_eq!(changed.headers().last(), Some(("c", None)));
        assert!(Received::from_event(&Record::new("", "7", "Placed")).is_err());
    }
}
