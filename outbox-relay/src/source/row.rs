use std::collections::HashSet;

use bytes::Bytes;
use diesel_outbox_core::__private::from_unix_ms;
use diesel_outbox_core::{Claimed, Record, wire};
use uuid::Uuid;

/// A row of the outbox table, as both databases return it except for the id.
pub(super) struct StoredRow {
    /// The number by which the source settles it.
    pub(super) ticket: u64,
    pub(super) seq: i64,
    pub(super) id: Result<Uuid, String>,
    pub(super) aggregate_type: Bytes,
    pub(super) aggregate_id: Bytes,
    pub(super) event_type: Bytes,
    pub(super) payload: Option<Bytes>,
    pub(super) headers: Option<Bytes>,
    pub(super) created_at_ms: i64,
}

impl StoredRow {
    #[cfg(any(feature = "mysql", feature = "postgres-wal", feature = "sqlite"))]
    pub(super) fn bytes(&self) -> usize {
        self.payload.as_ref().map_or(0, Bytes::len) + self.headers.as_ref().map_or(0, Bytes::len)
    }

    pub(super) fn claimed(self) -> Claimed {
        Claimed::new(self.ticket, self.record())
    }

    fn record(self) -> Result<Record, String> {
        let Self { aggregate_type, aggregate_id, event_type, payload, .. } = self;
        let record = Record::from_bytes(self.id?, aggregate_type, aggregate_id, event_type, payload)
            .map_err(|error| {
                format!("the aggregate type, the aggregate id or the event type is not UTF-8: {error}")
            })?
            .with_created_at(from_unix_ms(self.created_at_ms));
        let Some(headers) = &self.headers else { return Ok(record) };
        let json = str::from_utf8(headers).map_err(|error| format!("the headers are not UTF-8: {error}"))?;
        let headers = wire::decode_headers(json).map_err(|error| error.to_string())?;
        Ok(record.with_headers(headers))
    }
}

/// The types and ids of the aggregates that are held back.
pub(super) type BlockedAggregates = HashSet<(String, String)>;

pub(super) fn is_blocked(blocked: &BlockedAggregates, claimed: &Claimed) -> bool {
    !blocked.is_empty()
        && claimed.record.as_ref().is_ok_and(|record| {
            blocked.contains(&(record.aggregate_type().to_owned(), record.aggregate_id().to_owned()))
        })
}
