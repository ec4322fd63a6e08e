//! The messages of pgoutput, as a server writes them.

use bytes::Bytes;

use super::database::{Row, key};

/// The number of the table outbox.
pub(super) const TABLE: u32 = 16_400;

const COLUMNS: [&str; 10] = [
    "seq",
    "id",
    "aggregatetype",
    "aggregateid",
    "type",
    "payload",
    "shard",
    "headers",
    "created_at",
    "sent_at",
];

fn text(message: &mut Vec<u8>, text: &str) {
    message.extend(text.as_bytes());
    message.push(0);
}

pub(super) fn relation() -> Bytes {
    let mut message = vec![b'R'];
    message.extend(TABLE.to_be_bytes());
    text(&mut message, "public");
    text(&mut message, "outbox");
    message.push(b'd');
    message.extend((COLUMNS.len() as u16).to_be_bytes());
    for column in COLUMNS {
        message.push(0);
        text(&mut message, column);
        message.extend(20u32.to_be_bytes());
        message.extend((-1i32).to_be_bytes());
    }
    message.into()
}

pub(super) fn begin(commit: u64) -> Bytes {
    let mut message = vec![b'B'];
    message.extend(commit.to_be_bytes());
    message.extend(0u64.to_be_bytes());
    message.extend(7u32.to_be_bytes());
    message.into()
}

pub(super) fn commit(commit: u64, end: u64) -> Bytes {
    let mut message = vec![b'C', 0];
    message.extend(commit.to_be_bytes());
    message.extend(end.to_be_bytes());
    message.extend(0u64.to_be_bytes());
    message.into()
}

/// An insert of the row with this number.
pub(super) fn insert(row: &Row, seq: i64) -> Bytes {
    let mut message = vec![b'I'];
    message.extend(TABLE.to_be_bytes());
    message.push(b'N');
    message.extend((COLUMNS.len() as u16).to_be_bytes());
    let mut value = |bytes: &[u8]| {
        message.push(b'b');
        message.extend((bytes.len() as u32).to_be_bytes());
        message.extend(bytes);
    };
    value(&seq.to_be_bytes());
    value(row.id().as_bytes());
    value(b"order");
    value(key(row.aggregate).as_bytes());
    value(b"Placed");
    value(&row.payload());
    value(&row.shard.to_be_bytes());
    message.extend([b'n', b'b']);
    message.extend(8u32.to_be_bytes());
    message.extend(row.seq.to_be_bytes());
    message.push(b'n');
    message.into()
}
