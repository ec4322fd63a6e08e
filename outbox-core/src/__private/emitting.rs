use crate::{OutboxEvent, Record, RecordError};

const CHUNK_RECORDS: usize = 1_000;
/// Half of what MariaDB takes in one packet by default.
const CHUNK_BYTES: usize = 8 * 1024 * 1024;

/// Returns the event's record with these headers behind its own, after a check of every limit. If the event has a header of the same
/// name, the event's header wins.
///
/// # Errors
/// A [`RecordError`] if the event cannot be stored.
pub fn checked_record<E>(event: &E, headers: &[(String, String)]) -> Result<Record, RecordError>
where
    E: OutboxEvent + ?Sized,
{
    let mut record = event.to_record()?;
    let own = record.headers().len();
    for (name, value) in headers {
        if record.headers()[..own].iter().all(|(other, _)| other != name) {
            record = record.header(name, value);
        }
    }
    record.check()?;
    Ok(record)
}

/// Divides records into what one statement writes.
pub fn chunks(records: &[Record]) -> impl Iterator<Item = &[Record]> {
    let mut rest = records;
    std::iter::from_fn(move || {
        let mut bytes = 0;
        let fitting = rest.iter().take(CHUNK_RECORDS).take_while(|record| {
            let before = bytes;
            bytes += record.payload().map_or(0, <[u8]>::len);
            before == 0 || bytes <= CHUNK_BYTES
        });
        let (chunk, after) = rest.split_at(fitting.count());
        rest = after;
        (!chunk.is_empty()).then_some(chunk)
    })
}

/// Returns whether this is a database's message that there is no table `outbox` or `outbox_scheduled`.
pub fn is_outbox_missing(message: &str) -> bool {
    let missing = [
        "\"outbox\" does not exist",
        ".outbox\" does not exist",
        ".outbox' doesn't exist",
        "no such table: outbox",
        "outbox_scheduled\" does not exist",
        ".outbox_scheduled' doesn't exist",
    ];
    missing.iter().any(|missing| message.contains(missing))
}

/// Returns whether this is PostgreSQL's message that a session has not prepared a statement that another one has, or the other way
/// round, as happens behind a pooler that gives each transaction another session.
pub fn is_statement_elsewhere(message: &str) -> bool {
    message.starts_with("prepared statement \"")
        && (message.ends_with("\" does not exist") || message.ends_with("\" already exists"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_are_bounded_in_number_and_bytes_and_lose_nothing() {
        let record = |bytes: usize| Record::new("a", "1", "E").with_payload(vec![0; bytes]);
        let small: Vec<Record> = (0..2_500).map(|_| record(1)).collect();
        assert_eq!(chunks(&small).map(<[Record]>::len).collect::<Vec<_>>(), [1_000, 1_000, 500]);
        let large: Vec<Record> = [20, 5, 3, 3, 20].map(|mega| record(mega << 20)).into();
        assert_eq!(chunks(&large).map(<[Record]>::len).collect::<Vec<_>>(), [1, 2, 1, 1]);
        assert_eq!(chunks(&[]).count(), 0);
    }
}
