use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::SystemTime;

use diesel_outbox_core::__private::{from_unix_ms, unix_ms};
use diesel_outbox_kafka::__simulated::murmur2;
use diesel_outbox_kafka::PublishedRecord;
use uuid::Uuid;

use crate::operate::kept::KeptRow;

/// Rows, and which of them were found on Kafka.
#[derive(Default)]
pub(super) struct Comparison {
    events: HashMap<Uuid, Event>,
    topics: Vec<String>,
    /// Where each topic is in that list.
    numbers: HashMap<String, u32>,
    /// The highest `seq` of each aggregate that was found in a partition.
    highest: HashMap<(u64, u32, i32), i64>,
}

struct Event {
    seq: i64,
    aggregate: u64,
    created_at_ms: i64,
    topic: u32,
    /// The hash by which Kafka chooses the partition.
    key: u32,
    is_sent: bool,
    is_seen: bool,
}

/// What a record is, beside the rows.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Seen {
    First,
    OutOfOrder,
    Again,
    Unknown,
}

pub(super) fn hash(parts: &[&[u8]]) -> u64 {
    let mut hasher = DefaultHasher::new();
    parts.hash(&mut hasher);
    hasher.finish()
}

impl Comparison {
    pub(super) fn add_row(&mut self, row: &KeptRow, topic: &str) {
        let Some(id) = row.id else { return };
        let topic = self.numbers.get(topic).copied().unwrap_or_else(|| {
            let number = self.topics.len() as u32;
            self.topics.push(topic.to_owned());
            self.numbers.insert(topic.to_owned(), number);
            number
        });
        let event = Event {
            seq: row.seq,
            aggregate: hash(&[row.aggregate_type.as_bytes(), row.aggregate_id.as_bytes()]),
            created_at_ms: unix_ms(row.created_at),
            topic,
            key: murmur2(row.aggregate_id.as_bytes()),
            is_sent: row.is_sent,
            is_seen: false,
        };
        self.events.insert(id, event);
    }

    pub(super) fn add_record(&mut self, record: &PublishedRecord) -> Seen {
        let Some(event) = record.id.and_then(|id| self.events.get_mut(&id)) else { return Seen::Unknown };
        if std::mem::replace(&mut event.is_seen, true) {
            return Seen::Again;
        }
        let highest =
            self.highest.entry((event.aggregate, event.topic, record.partition)).or_insert(event.seq);
        if event.seq < *highest {
            return Seen::OutOfOrder;
        }
        *highest = event.seq;
        Seen::First
    }

    /// Returns the events that were sent and not found.
    pub(super) fn unseen(&self) -> impl Iterator<Item = Unseen<'_>> {
        self.events.iter().filter(|(_, event)| event.is_sent && !event.is_seen).map(|(id, event)| Unseen {
            id: *id,
            topic: self.topics.get(event.topic as usize).map_or("", String::as_str),
            key: event.key,
            created_at: from_unix_ms(event.created_at_ms),
        })
    }
}

/// An event that was sent and not found.
pub(super) struct Unseen<'a> {
    pub(super) id: Uuid,
    pub(super) topic: &'a str,
    pub(super) key: u32,
    pub(super) created_at: SystemTime,
}
