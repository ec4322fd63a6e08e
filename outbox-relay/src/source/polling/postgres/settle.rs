//! Settling: marks exactly the rows that the broker has acknowledged as sent, or deletes them.

use diesel::connection::SimpleConnection;
use diesel::pg::{Pg, PgConnection};
use diesel::prelude::*;
use diesel::sql_types::{Array, BigInt, Bool, Oid, Uuid as SqlUuid};
use uuid::Uuid;

use super::tuple_id::{Tid, TupleId, is_the_table};
use crate::source::SentRows;
use crate::statement::statement;

pub(super) fn settle(
    conn: &mut PgConnection,
    table: u32,
    tickets: &[u64],
    sent_rows: SentRows,
) -> QueryResult<()> {
    let places = tickets.iter().copied().map(TupleId::from).collect();
    match sent_rows {
        SentRows::Delete => Delete::new(places, table).execute(conn),
        SentRows::Keep { .. } => MarkSent::new(places, table).execute(conn),
    }
    .map(drop)
}

/// Settles those of these records that are unsent. They lie behind the lower bound, which is the only way to find them without an index.
pub(super) fn settle_committed(
    conn: &mut PgConnection,
    table: u32,
    ids: Vec<Uuid>,
    sent_through: i64,
    sent_rows: SentRows,
) -> QueryResult<()> {
    // Otherwise each of the unsent rows would be compared with each of the ids.
    conn.batch_execute("SET LOCAL enable_hashjoin = on")?;
    match sent_rows {
        SentRows::Delete => DeleteCommitted::new(sent_through, ids, table).execute(conn),
        SentRows::Keep { .. } => MarkCommittedSent::new(sent_through, ids, table).execute(conn),
    }
    .map(drop)
}

statement!(
    Pg,
    /// Marks rows as sent. No index contains `sent_at`, so these are heap-only updates.
    MarkSent { places: Vec<TupleId> => Array<Tid>, table: u32 => Oid } -> Bool,
    concat!(
        "UPDATE ONLY outbox SET sent_at = statement_timestamp() WHERE ctid = ANY (?) AND ",
        is_the_table!()
    )
);

statement!(
    Pg,
    Delete { places: Vec<TupleId> => Array<Tid>, table: u32 => Oid } -> Bool,
    concat!("DELETE FROM ONLY outbox WHERE ctid = ANY (?) AND ", is_the_table!())
);

statement!(
    Pg,
    MarkCommittedSent { sent_through: i64 => BigInt, ids: Vec<Uuid> => Array<SqlUuid>, table: u32 => Oid } -> Bool,
    concat!(
        "UPDATE ONLY outbox SET sent_at = statement_timestamp() \
         WHERE seq > ? AND sent_at IS NULL AND id IN (SELECT unnest(?)) AND ",
        is_the_table!()
    )
);

statement!(
    Pg,
    DeleteCommitted { sent_through: i64 => BigInt, ids: Vec<Uuid> => Array<SqlUuid>, table: u32 => Oid } -> Bool,
    concat!(
        "DELETE FROM ONLY outbox WHERE seq > ? AND sent_at IS NULL AND id IN (SELECT unnest(?)) AND ",
        is_the_table!()
    )
);
