use bytes::Bytes;
use diesel_outbox_core::__private::from_unix_ms;
use diesel_outbox_core::{Claimed, Record, wire};
use uuid::Uuid;

/// A row of the outbox table, as both databases return it except for the id.
pub(crate) struct StoredRow {
    /// The number by which the source settles it.
    pub(crate) ticket: u64,
    pub(crate) seq: i64,
    pub(crate) id: Result<Uuid, String>,
    pub(crate) aggregate_type: Bytes,
    pub(crate) aggregate_id: Bytes,
    pub(crate) event_type: Bytes,
    pub(crate) payload: Option<Bytes>,
    pub(crate) headers: Option<Bytes>,
    pub(crate) created_at_ms: i64,
}

impl StoredRow {
    #[cfg(any(feature = "mysql", feature = "postgres-wal", feature = "sqlite"))]
    pub(crate) fn bytes(&self) -> usize {
        self.payload.as_ref().map_or(0, Bytes::len) + self.headers.as_ref().map_or(0, Bytes::len)
    }

    pub(crate) fn claimed(self) -> Claimed {
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
