//! Where a row lies in the table, its `ctid`.
//!
//! It leads to the row without an index. It is good while a snapshot that saw the row is open: until then the row does not move,
//! and no other row takes its place. It means nothing across the parts of a partitioned table, so all statements that use it read
//! and write `ONLY` the outbox itself. It means nothing in another table either, so all statements of a pass fail if the name `outbox`
//! leads to another one since, because somebody has renamed schemas.

use diesel::expression::AsExpression;
use diesel::pg::Pg;
use diesel::query_builder::QueryId;
use diesel::serialize::{self, IsNull, Output, ToSql};
use diesel::sql_types::SqlType;
use std::io::Write;

/// A condition that is true if the table with this oid is the outbox. Otherwise the statement fails, with an error that says why.
macro_rules! is_the_table {
    () => {
        "(CASE WHEN ?::oid = 'outbox'::regclass::oid THEN '1' ELSE 'another table is the outbox here since a schema was renamed' END)::int = 1"
    };
}
pub(super) use is_the_table;

#[derive(SqlType, QueryId)]
#[diesel(postgres_type(oid = 27, array_oid = 1010))]
pub(super) struct Tid;

/// A block's number and the row's number in it.
#[derive(Debug, Clone, Copy, AsExpression)]
#[diesel(sql_type = Tid)]
pub(crate) struct TupleId {
    block: u32,
    offset: u16,
}

impl From<TupleId> for u64 {
    fn from(place: TupleId) -> Self {
        Self::from(place.block) << 16 | Self::from(place.offset)
    }
}

impl From<u64> for TupleId {
    fn from(ticket: u64) -> Self {
        Self { block: (ticket >> 16) as u32, offset: ticket as u16 }
    }
}

impl TupleId {
    pub(super) fn from_bytes([b0, b1, b2, b3, o0, o1]: [u8; 6]) -> Self {
        Self { block: u32::from_be_bytes([b0, b1, b2, b3]), offset: u16::from_be_bytes([o0, o1]) }
    }
}

impl ToSql<Tid, Pg> for TupleId {
    fn to_sql<'b>(&'b self, out: &mut Output<'b, '_, Pg>) -> serialize::Result {
        out.write_all(&self.block.to_be_bytes())?;
        out.write_all(&self.offset.to_be_bytes())?;
        Ok(IsNull::No)
    }
}
