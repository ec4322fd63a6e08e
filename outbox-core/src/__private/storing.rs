use std::error::Error;

use super::from_unix_ms;
use crate::{Record, wire};

/// A row of the outbox, or of what is scheduled, as every database returns it.
#[derive(Debug)]
pub struct StoredRow {
    pub id: String,
    pub aggregate_type: String,
    pub aggregate_id: String,
    pub event_type: String,
    pub payload: Option<Vec<u8>>,
    pub headers: Option<String>,
    /// In milliseconds since 1970.
    pub created_at: i64,
}

/// Makes the row a record again.
///
/// # Errors
/// An error if another program has written an id that is not a UUID, or headers that are not a JSON object.
pub fn stored_record(row: StoredRow) -> Result<Record, Box<dyn Error + Send + Sync>> {
    let headers = row.headers.as_deref().map(wire::decode_headers).transpose()?;
    let record = Record::new(row.aggregate_type, row.aggregate_id, row.event_type)
        .with_id(row.id.parse()?)
        .with_headers(headers.unwrap_or_default())
        .with_created_at(from_unix_ms(row.created_at));
    Ok(match row.payload {
        Some(payload) => record.with_payload(payload),
        None => record,
    })
}
