//! Decodes the messages of pgoutput, and the rows of the outbox in them.

use std::sync::Arc;

use bytes::Bytes;
use diesel::pg::{Pg, PgConnection};
use diesel::prelude::*;
use diesel::sql_types::BigInt;
use diesel_outbox_core::SourceError;
use pg_walstream::{ColumnInfo, LogicalReplicationMessage as Decoded, LogicalReplicationParser, TupleData};
use uuid::Uuid;

use super::position::Lsn;
use crate::source::row::StoredRow;
use crate::statement::statement;

/// What matters in the WAL, in its order.
pub(crate) enum Message {
    /// A transaction begins, which commits at this place.
    Begin(Lsn),
    Insert(Insert),
    /// Everything up to here has come.
    End(Lsn),
}

/// A row as it came. It is decoded when it is needed: when it is given to the relay, and once more if it becomes a dead letter.
pub(crate) struct Insert {
    message: Bytes,
    columns: Arc<ColumnPositions>,
}

/// The position of each column in a row.
struct ColumnPositions {
    seq: usize,
    id: usize,
    aggregate_type: usize,
    aggregate_id: usize,
    event_type: usize,
    payload: usize,
    headers: usize,
    created_at: usize,
}

/// The version before the one that streams open transactions: whatever comes was committed.
pub(crate) const PROTOCOL: u32 = 1;

const INSERT: u8 = b'I';

/// 1 January 2000, from which PostgreSQL counts microseconds.
const POSTGRES_EPOCH_MS: i64 = 946_684_800_000;

/// Returns the number of the table outbox. A publication may have other tables, even of the same name in other schemas.
pub(crate) fn table(conn: &mut PgConnection) -> QueryResult<u32> {
    Table::new().get_result::<i64>(conn).map(|number| number as u32)
}

statement!(Pg, Table {} -> BigInt, "SELECT 'outbox'::regclass::oid::bigint");

pub(crate) struct Decoder {
    parser: LogicalReplicationParser,
    table: u32,
    /// The positions of its columns, since the server last described it.
    columns: Option<Arc<ColumnPositions>>,
}

impl Decoder {
    /// Returns a decoder for the table of this number.
    pub(crate) fn new(table: u32) -> Self {
        Self { parser: LogicalReplicationParser::with_protocol_version(PROTOCOL), table, columns: None }
    }

    /// Decodes a message. Returns `None` if it does not matter.
    pub(crate) fn decode(&mut self, message: Bytes) -> Result<Option<Message>, SourceError> {
        if message.first() == Some(&INSERT) {
            let relation = message.get(1..5).and_then(|oid| oid.try_into().ok()).map(u32::from_be_bytes);
            let columns = self.columns.as_ref().filter(|_| relation == Some(self.table));
            return Ok(columns.map(|columns| Message::Insert(Insert { message, columns: columns.clone() })));
        }
        let decoded = self.parser.parse_wal_message_bytes(message).map_err(not_understood)?;
        Ok(match decoded.message {
            Decoded::Begin { final_lsn, .. } => Some(Message::Begin(final_lsn)),
            Decoded::Commit { end_lsn, .. } => Some(Message::End(end_lsn)),
            Decoded::Relation { relation_id, columns, .. } if relation_id == self.table => {
                self.columns = Some(Arc::new(ColumnPositions::of(&columns)?));
                None
            }
            _ => None,
        })
    }
}

impl ColumnPositions {
    fn of(columns: &[ColumnInfo]) -> Result<Self, SourceError> {
        let position = |name: &str| {
            columns.iter().position(|column| &*column.name == name).ok_or_else(|| {
                SourceError::new(format!(
                    "the table outbox has no column `{name}` in the write-ahead log: does the \
                     publication leave it out?"
                ))
            })
        };
        Ok(Self {
            seq: position("seq")?,
            id: position("id")?,
            aggregate_type: position("aggregatetype")?,
            aggregate_id: position("aggregateid")?,
            event_type: position("type")?,
            payload: position("payload")?,
            headers: position("headers")?,
            created_at: position("created_at")?,
        })
    }
}

impl Insert {
    pub(crate) fn row(&self, ticket: u64) -> Result<StoredRow, SourceError> {
        let mut parser = LogicalReplicationParser::with_protocol_version(PROTOCOL);
        let decoded = parser.parse_wal_message_bytes(self.message.clone()).map_err(not_understood)?;
        let Decoded::Insert { tuple, .. } = decoded.message else {
            return Err(SourceError::new("a row of the write-ahead log was decoded as something else"));
        };
        let mut values = RowValues(tuple);
        let columns = &self.columns;
        Ok(StoredRow {
            ticket,
            seq: i64::from_be_bytes(values.fixed(columns.seq, "seq")?),
            id: Ok(Uuid::from_bytes(values.fixed(columns.id, "id")?)),
            aggregate_type: values.value(columns.aggregate_type, "aggregatetype")?,
            aggregate_id: values.value(columns.aggregate_id, "aggregateid")?,
            event_type: values.value(columns.event_type, "type")?,
            payload: values.take(columns.payload),
            headers: values.take(columns.headers),
            created_at_ms: i64::from_be_bytes(values.fixed(columns.created_at, "created_at")?)
                .div_euclid(1_000)
                + POSTGRES_EPOCH_MS,
        })
    }
}

/// A row's values. Each can be taken once.
struct RowValues(TupleData);

impl RowValues {
    fn take(&mut self, position: usize) -> Option<Bytes> {
        let value = self.0.columns.get_mut(position).filter(|value| !value.is_null())?;
        Some(std::mem::replace(value, pg_walstream::ColumnData::null()).into_bytes())
    }

    fn value(&mut self, position: usize, column: &str) -> Result<Bytes, SourceError> {
        self.take(position).ok_or_else(|| {
            SourceError::new(format!("the column {column} of the outbox is null in the write-ahead log"))
        })
    }

    fn fixed<const N: usize>(&mut self, position: usize, column: &str) -> Result<[u8; N], SourceError> {
        let value = self.value(position, column)?;
        value[..].try_into().map_err(|_| {
            SourceError::new(format!(
                "the column {column} of the outbox has {} bytes instead of {N}",
                value.len()
            ))
        })
    }
}

fn not_understood(error: pg_walstream::ReplicationError) -> SourceError {
    SourceError::new(format!(
        "cannot decode the write-ahead log: {error}. The relay reads it again, and confirms nothing that it has not sent. If this comes \
         again and again, use a newer relay: this one may not know what the server sends"
    ))
    .with_source(error)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    const NAMES: [&str; 8] =
        ["seq", "id", "aggregatetype", "aggregateid", "type", "payload", "headers", "created_at"];

    fn columns(names: &[&str]) -> Vec<ColumnInfo> {
        names.iter().map(|name| ColumnInfo::new(0, (*name).to_owned(), 0, -1)).collect()
    }

    fn message(values: &[Option<&[u8]>]) -> Bytes {
        let mut message = vec![INSERT, 0, 0, 0, 9, b'N'];
        message.extend((values.len() as u16).to_be_bytes());
        for value in values {
            match value {
                Some(value) => {
                    message.push(b'b');
                    message.extend((value.len() as u32).to_be_bytes());
                    message.extend(*value);
                }
                None => message.push(b'n'),
            }
        }
        message.into()
    }

    /// A row with this number.
    pub(crate) fn insert(seq: i64) -> Insert {
        let (seq, id, created_at) = (seq.to_be_bytes(), [7; 16], 1_000i64.to_be_bytes());
        let values: [Option<&[u8]>; 8] = [
            Some(&seq),
            Some(&id),
            Some(b"order"),
            Some(b"42"),
            Some(b"Placed"),
            None,
            None,
            Some(&created_at),
        ];
        Insert {
            message: message(&values),
            columns: Arc::new(ColumnPositions::of(&columns(&NAMES)).unwrap()),
        }
    }

    #[test]
    fn a_row_has_its_fields_wherever_the_columns_stand() {
        let row = insert(5).row(3).unwrap();
        assert_eq!(
            (row.ticket, row.seq, row.id, row.created_at_ms),
            (3, 5, Ok(Uuid::from_bytes([7; 16])), POSTGRES_EPOCH_MS + 1)
        );
        assert_eq!((&row.aggregate_id[..], row.payload), (&b"42"[..], None));

        let mut names = NAMES.to_vec();
        names.insert(0, "added");
        names.swap(3, 4);
        let columns = Arc::new(ColumnPositions::of(&columns(&names)).unwrap());
        let (seq, id, time) = (6i64.to_be_bytes(), [7; 16], [0; 8]);
        let values: [Option<&[u8]>; 9] = [
            Some(b"new"),
            Some(&seq),
            Some(&id),
            Some(b"43"),
            Some(b"order"),
            Some(b"Paid"),
            Some(b"{}"),
            None,
            Some(&time),
        ];
        let row = Insert { message: message(&values), columns }.row(0).unwrap();
        assert_eq!((row.seq, &row.aggregate_type[..], &row.aggregate_id[..]), (6, &b"order"[..], &b"43"[..]));
        assert_eq!(row.payload.as_deref(), Some(&b"{}"[..]));
    }

    #[test]
    fn a_column_that_is_missing_is_named() {
        let error = ColumnPositions::of(&columns(&NAMES[..7])).err().unwrap().to_string();
        assert!(error.contains("no column `created_at`"), "{error}");
    }

    #[test]
    fn a_value_of_another_size_is_an_error() {
        let insert = Insert {
            message: message(&[Some(b"12"), None, None, None, None, None, None, None]),
            columns: Arc::new(ColumnPositions::of(&columns(&NAMES)).unwrap()),
        };
        let error = insert.row(0).err().unwrap().to_string();
        assert!(error.contains("column seq") && error.contains("2 bytes"), "{error}");
    }
}
