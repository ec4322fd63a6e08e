use diesel_outbox_core::{Claimed, Record, wire};
use uuid::Uuid;

/// A row of the outbox table, as both databases give it but for the id.
pub(super) struct StoredRow {
    /// What the source settles it by.
    pub(super) ticket: u64,
    pub(super) seq: i64,
    pub(super) id: Result<Uuid, String>,
    pub(super) aggregate_type: String,
    pub(super) aggregate_id: String,
    pub(super) event_type: String,
    pub(super) payload: Option<Vec<u8>>,
    pub(super) headers: Option<String>,
    pub(super) created_at_ms: i64,
}

impl StoredRow {
    pub(super) fn bytes(&self) -> usize {
        self.payload.as_ref().map_or(0, Vec::len) + self.headers.as_ref().map_or(0, String::len)
    }

    pub(super) fn claimed(self) -> Claimed {
        Claimed { ticket: self.ticket, record: self.record() }
    }

    fn record(self) -> Result<Record, String> {
        let headers = match &self.headers {
            Some(json) => wire::decode_headers(json).map_err(|error| error.to_string())?,
            None => Vec::new(),
        };
        let record = Record::with_id(self.id?, self.aggregate_type, self.aggregate_id, self.event_type)
            .with_headers(headers)
            .with_created_at_ms(self.created_at_ms);
        Ok(match self.payload {
            Some(payload) => record.with_payload(payload),
            None => record,
        })
    }
}

/// How many rows to read at once, so that a chunk has about the same number of bytes whatever the payloads' size.
#[derive(Clone, Copy)]
pub(super) struct ChunkSize {
    row_bytes: usize,
}

impl ChunkSize {
    const TARGET_BYTES: usize = 8 * 1024 * 1024;
    /// Before anything was read the rows might be large.
    const UNKNOWN: usize = 64 * 1024;

    pub(super) fn new() -> Self {
        Self { row_bytes: Self::UNKNOWN }
    }

    pub(super) fn rows(&self, limit: usize) -> usize {
        (Self::TARGET_BYTES / self.row_bytes.max(1)).clamp(1, limit.max(1))
    }

    pub(super) fn learn(&mut self, rows: usize, bytes: usize) {
        self.row_bytes = bytes.checked_div(rows).unwrap_or(self.row_bytes);
    }
}
