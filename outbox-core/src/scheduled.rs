use std::fmt;
use std::time::SystemTime;

use crate::Record;

/// An event that is stored until it is due.
#[derive(Clone, PartialEq, Eq)]
pub struct ScheduledEvent {
    record: Record,
    due_at: SystemTime,
}

impl ScheduledEvent {
    /// Returns a record that is due at this time.
    pub fn new(record: Record, due_at: SystemTime) -> Self {
        Self { record, due_at }
    }

    /// Returns the event as it is stored, with its id. Its [`created_at`](Record::created_at) is when it was emitted. When it is sent, that
    /// is when it became due.
    pub fn record(&self) -> &Record {
        &self.record
    }

    /// Returns when it is due, by the database's clock, in milliseconds.
    pub fn due_at(&self) -> SystemTime {
        self.due_at
    }
}

impl fmt::Debug for ScheduledEvent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ScheduledEvent").field("record", &self.record).field("due_at", &self.due_at).finish()
    }
}
