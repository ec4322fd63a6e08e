//! Reads the rows of a pass, in their order.

use std::error::Error;

use bytes::Bytes;
use diesel::connection::{DefaultLoadingMode, LoadConnection};
use diesel::pg::{Pg, PgConnection};
use diesel::prelude::*;
use diesel::row::{Field, Row};
use diesel::sql_types::{
    Array, BigInt, Binary, Bool, Nullable, Oid, SmallInt, Text, Timestamptz, Uuid as SqlUuid,
};
use diesel_outbox_core::Claimed;
use uuid::Uuid;

use super::batch_size::BatchSize;
use super::tuple_id::{Tid, TupleId, is_the_table};
use crate::source::bounds::{first_of_ended, oldest_unsent};
use crate::source::fence::OpenTransactions;
use crate::source::row::StoredRow;
use crate::statement::statement;

type UnsentRow = (
    BigInt,
    Tid,
    SqlUuid,
    Text,
    Text,
    Text,
    Nullable<Binary>,
    Nullable<Text>,
    Timestamptz,
    Nullable<BigInt>,
    Bool,
);

/// Whether an earlier dead letter of the row's aggregate is there. It looks at one entry of an index, so that many dead letters of other
/// aggregates cost little more than one. The texts are compared as bytes, which is faster than the database's own order.
macro_rules! follows_dead_letter {
    ($place:literal) => {
        concat!(
            "EXISTS (SELECT FROM outbox_dead_letter AS d WHERE d.aggregateid::text COLLATE pg_catalog.\"C\" = outbox.aggregateid::text \
             AND d.aggregatetype::text COLLATE pg_catalog.\"C\" = outbox.aggregatetype::text AND d.seq < ",
            $place,
            ")"
        )
    };
}

/// Whether the row comes after a dead letter of its aggregate, or after a requeued one that is behind it now. A row that comes before may
/// still have to be sent: it was on its way when the later one was refused. As long as a table is empty, no row looks into it.
macro_rules! is_held_back {
    () => {
        concat!(
            "CASE WHEN (SELECT EXISTS (SELECT FROM outbox_requeued)) THEN EXISTS (SELECT FROM (SELECT coalesce((SELECT r.place \
             FROM outbox_requeued AS r WHERE r.seq = outbox.seq AND r.id = outbox.id), outbox.seq) AS place) AS its WHERE ",
            follows_dead_letter!("its.place"),
            " OR EXISTS (SELECT FROM outbox_requeued AS r WHERE r.aggregateid::text COLLATE pg_catalog.\"C\" = outbox.aggregateid::text \
             AND r.aggregatetype::text COLLATE pg_catalog.\"C\" = outbox.aggregatetype::text AND r.place < its.place AND r.seq > outbox.seq)) \
             WHEN (SELECT EXISTS (SELECT FROM outbox_dead_letter)) THEN ",
            follows_dead_letter!("outbox.seq"),
            " ELSE false END"
        )
    };
}

statement!(
    Pg,
    /// The oldest unsent rows first. This scans along `seq`, because that is how the rows lie in the table: to go through the table once for
    /// each shard costs several times as much. It passes over rows of the shards before the first and after the last claimed one in the
    /// index, and over those between them in the table.
    ///
    /// The scan begins at the oldest unsent row of the claimed shards, looked up in the same snapshot. One from an earlier snapshot could lie
    /// beyond a row that was committed since. It leaves out what was given before, and does not compare rows beyond the last of that. Of a row
    /// that is larger than expected only the size comes, because payloads are measured where they lie. The texts are cast, because a
    /// statement that is kept prepared must return the same types in every schema.
    pub(super) Unsent {
        polled_through: i64 => BigInt,
        open: Vec<i64> => Array<BigInt>,
        open_after: Vec<i64> => Array<BigInt>,
        shards: Vec<i16> => Array<SmallInt>,
        lower_bounds: Vec<i64> => Array<BigInt>,
        passed: Vec<i64> => Array<BigInt>,
        largest: i64 => BigInt,
        blocks: bool => Bool,
        last_given: i64 => BigInt,
        given: Vec<TupleId> => Array<Tid>,
        table: u32 => Oid,
        limit: i64 => BigInt
    } -> UnsentRow,
    concat!(
        "WITH claimed AS MATERIALIZED (SELECT shard, ?::bigint AS polled_through, after IS NOT NULL AS ended, \
         greatest(sent_through, least(passed, after)) AS start FROM (SELECT ",
        first_of_ended!("?::bigint[]", "?::bigint[]"),
        " AS after) AS ended, unnest(?, ?, ?) AS claimed (shard, sent_through, passed)) ",
        "SELECT seq, ctid, id, aggregatetype::text, aggregateid::text, type::text, CASE WHEN octet_length(payload) <= largest THEN payload END, \
         CASE WHEN pg_catalog.pg_column_size(headers) <= largest THEN headers::text END, created_at, \
         CASE WHEN octet_length(payload) > largest OR pg_catalog.pg_column_size(headers) > largest \
         THEN greatest(octet_length(payload), pg_catalog.pg_column_size(headers))::bigint END, CASE WHEN blocks THEN ",
        is_held_back!(),
        " ELSE false END FROM ONLY outbox, (SELECT ?::bigint AS largest, ?::bool AS blocks) AS limits WHERE shard = ANY (ARRAY (SELECT shard FROM claimed)) ",
        "AND shard BETWEEN (SELECT min(shard) FROM claimed) AND (SELECT max(shard) FROM claimed) AND sent_at IS NULL ",
        "AND seq >= (SELECT CASE WHEN bool_or(ended) THEN min(start) + 1 ELSE (SELECT min(oldest.seq) FROM claimed AS s ",
        oldest_unsent!(),
        ") END FROM claimed) AND seq <= (SELECT max(polled_through) FROM claimed) AND (seq > ? OR ctid NOT IN (SELECT pg_catalog.unnest(?))) AND ",
        is_the_table!(),
        " ORDER BY seq LIMIT ?"
    )
);

/// Rows that were read together.
#[derive(Default)]
pub(super) struct ReadBatch {
    pub(super) records: Vec<Claimed>,
    /// The tickets of those whose aggregate is held back.
    pub(super) held_back: Vec<u64>,
    /// The tickets and numbers of all of them.
    pub(super) given: Vec<(u64, i64)>,
    /// Whether there are no more after these.
    pub(super) exhausts: bool,
}

/// What a pass has claimed and not read.
pub(crate) struct Unread {
    /// The table's oid.
    pub(crate) table: u32,
    pub(crate) shards: Vec<i16>,
    /// Up to which number all rows of each shard were given.
    pub(crate) lower_bounds: Vec<i64>,
    /// The same as long as none of the transactions in `open` has ended.
    pub(crate) passed: Vec<i64>,
    pub(crate) open: OpenTransactions,
    /// The last number that is polled.
    pub(crate) polled_through: i64,
    /// What was read and may not be settled, and the last number of that.
    pub(crate) given: Vec<TupleId>,
    pub(crate) last_given: i64,
}

impl Unread {
    /// Reads the oldest rows, up to `limit`.
    pub(super) fn read(
        &self,
        conn: &mut PgConnection,
        batch_size: &mut BatchSize,
        limit: usize,
        blocks: bool,
    ) -> QueryResult<ReadBatch> {
        let (rows, exhausts) = loop {
            let count = batch_size.rows(limit);
            let (rows, larger) = self.load(conn, count, batch_size.largest(count), blocks)?;
            match larger {
                None => batch_size.learn(rows.rows.len(), rows.memory.len()),
                // It is the next row, or is read at once.
                Some(size) => batch_size.learn(1, size),
            }
            if larger.is_none() || !rows.rows.is_empty() {
                let exhausts = larger.is_none() && rows.rows.len() < count;
                break (rows, exhausts);
            }
        };
        let mut batch = ReadBatch { exhausts, ..ReadBatch::default() };
        for (row, is_held_back) in rows.unpack() {
            let (ticket, seq) = (row.ticket, row.seq);
            batch.given.push((ticket, seq));
            let claimed = row.claimed();
            if is_held_back && claimed.record.is_ok() {
                batch.held_back.push(ticket);
            } else {
                batch.records.push(claimed);
            }
        }
        Ok(batch)
    }

    /// Loads up to `count` rows. If the next row is larger than `largest`, also returns its size, and drops the rows behind it.
    fn load(
        &self,
        conn: &mut PgConnection,
        count: usize,
        largest: usize,
        blocks: bool,
    ) -> QueryResult<(Packed, Option<usize>)> {
        let query = Unsent::new(
            self.polled_through,
            self.open.keys().copied().collect(),
            self.open.values().copied().collect(),
            self.shards.clone(),
            self.lower_bounds.clone(),
            self.passed.clone(),
            largest as i64,
            blocks,
            self.last_given,
            self.given.clone(),
            self.table,
            count as i64,
        );
        let mut rows = Packed::default();
        for row in LoadConnection::<DefaultLoadingMode>::load(conn, query)? {
            let larger = rows.add(&row?).map_err(diesel::result::Error::DeserializationError)?;
            if larger.is_some() {
                return Ok((rows, larger));
            }
        }
        Ok((rows, None))
    }

    /// Goes past what was read: in the same snapshot nothing is missing before it.
    pub(crate) fn go_past(&mut self, given: &[(u64, i64)]) {
        let Some((_, last)) = given.last() else { return };
        self.lower_bounds
            .iter_mut()
            .chain(&mut self.passed)
            .for_each(|sent_through| *sent_through = (*sent_through).max(*last));
        if *last >= self.last_given {
            self.given.clear();
        }
    }
}

/// 1 January 2000, from which PostgreSQL counts microseconds.
const POSTGRES_EPOCH_MS: i64 = 946_684_800_000;

/// Rows whose texts and payloads lie one after the other in memory that they share. That is one allocation for a batch, and not
/// several for each row, which another thread would have to free.
#[derive(Default)]
struct Packed {
    memory: Vec<u8>,
    rows: Vec<PackedRow>,
}

/// A row, and how long each of its parts is.
struct PackedRow {
    ticket: u64,
    seq: i64,
    id: Uuid,
    aggregate_type: usize,
    aggregate_id: usize,
    event_type: usize,
    payload: Option<usize>,
    headers: Option<usize>,
    created_at_ms: i64,
    is_held_back: bool,
}

impl Packed {
    /// Adds a row from the binary form of its columns. If the row is too large to have come, adds nothing and returns its size.
    /// Most of the time of reading goes here: Diesel's conversions, which look at each column several times, take half as long
    /// again.
    fn add<'a>(&mut self, row: &impl Row<'a, Pg>) -> Converted<Option<usize>> {
        if let Some(size) = nullable_column(row, 9, int8)? {
            return Ok(Some(usize::try_from(size)?));
        }
        let mut pack = |bytes: &[u8]| {
            self.memory.extend_from_slice(bytes);
            Ok(bytes.len())
        };
        self.rows.push(PackedRow {
            seq: column(row, 0, int8)?,
            ticket: column(row, 1, |bytes| Ok(TupleId::from_bytes(bytes.try_into()?)))?.into(),
            id: column(row, 2, |bytes| Ok(Uuid::from_slice(bytes)?))?,
            aggregate_type: column(row, 3, &mut pack)?,
            aggregate_id: column(row, 4, &mut pack)?,
            event_type: column(row, 5, &mut pack)?,
            payload: nullable_column(row, 6, &mut pack)?,
            headers: nullable_column(row, 7, &mut pack)?,
            created_at_ms: column(row, 8, int8)?.div_euclid(1_000) + POSTGRES_EPOCH_MS,
            is_held_back: column(row, 10, |bytes| Ok(bytes != [0]))?,
        });
        Ok(None)
    }

    /// Returns each row, and whether it is held back.
    fn unpack(self) -> impl Iterator<Item = (StoredRow, bool)> {
        let mut memory = Bytes::from(self.memory);
        let mut stored = move |row: &PackedRow| StoredRow {
            ticket: row.ticket,
            seq: row.seq,
            id: Ok(row.id),
            aggregate_type: memory.split_to(row.aggregate_type),
            aggregate_id: memory.split_to(row.aggregate_id),
            event_type: memory.split_to(row.event_type),
            payload: row.payload.map(|length| memory.split_to(length)),
            headers: row.headers.map(|length| memory.split_to(length)),
            created_at_ms: row.created_at_ms,
        };
        self.rows.into_iter().map(move |row| (stored(&row), row.is_held_back))
    }
}

type Converted<T> = Result<T, Box<dyn Error + Send + Sync>>;

fn column<'a, T>(
    row: &impl Row<'a, Pg>,
    position: usize,
    convert: impl FnOnce(&[u8]) -> Converted<T>,
) -> Converted<T> {
    nullable_column(row, position, convert)?.ok_or_else(|| format!("column {position} is null").into())
}

fn nullable_column<'a, T>(
    row: &impl Row<'a, Pg>,
    position: usize,
    convert: impl FnOnce(&[u8]) -> Converted<T>,
) -> Converted<Option<T>> {
    let field = row.get(position).ok_or("a column is missing")?;
    field.value().map(|value| convert(value.as_bytes())).transpose()
}

fn int8(bytes: &[u8]) -> Converted<i64> {
    Ok(i64::from_be_bytes(bytes.try_into()?))
}
