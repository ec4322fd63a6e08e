//! Reads the rows of a pass, in their order.

use std::collections::HashSet;

use bytes::Bytes;
use diesel_outbox_core::Claimed as ClaimedRecord;
use mysql::prelude::Queryable;
use mysql::{Conn, Value};
use uuid::Uuid;

use super::batch_size::BatchSize;
use super::bounds::{self, Claimed, Witness, listed};
use crate::source::row::StoredRow;

/// Rows that were read together.
#[derive(Default)]
pub(super) struct Batch {
    pub(super) records: Vec<ClaimedRecord>,
    /// The numbers of those whose aggregate is held back.
    pub(super) held_back: Vec<i64>,
    /// The numbers of all.
    pub(super) given: Vec<i64>,
    /// The last one with an id.
    pub(super) last: Option<Witness>,
    /// Whether there are no more after these.
    pub(super) exhausts: bool,
}

/// Reads the oldest unsent rows of the claimed shards that were not given before, up to `limit`.
///
/// Each read begins anew at the bounds, with the lowest `after`, because a row that was committed since the last read may come before the
/// rows that were given then. One statement sees all rows that were committed before it began. So if it sees an aggregate's later event, it
/// sees the earlier ones too. A read may go on `after` the last one only if both are in the same snapshot.
pub(super) fn read(
    conn: &mut Conn,
    claimed: &Claimed,
    given: &HashSet<i64>,
    after: i64,
    size: &mut BatchSize,
    limit: usize,
    blocks: bool,
) -> mysql::Result<Batch> {
    let (rows, exhausts) = loop {
        let count = size.rows(limit);
        let (rows, larger) = load(conn, claimed, given, after, count, size.largest(count), blocks)?;
        match larger {
            None => size.learn(rows.len(), rows.iter().map(|(row, _)| row.bytes()).sum()),
            // It is the next row, or is read at once.
            Some(bytes) => size.learn(1, bytes),
        }
        if larger.is_none() || !rows.is_empty() {
            let exhausts = larger.is_none() && rows.len() < count;
            break (rows, exhausts);
        }
    };
    let last = rows.iter().rev().find_map(|(row, _)| Some((row.seq, row.id.as_ref().ok()?.to_string())));
    let mut batch = Batch { exhausts, last, ..Batch::default() };
    for (row, is_held_back) in rows {
        batch.given.push(row.seq);
        let seq = row.seq;
        let claimed = row.claimed();
        if is_held_back && claimed.record.is_ok() {
            batch.held_back.push(seq);
        } else {
            batch.records.push(claimed);
        }
    }
    Ok(batch)
}

/// Each row, and whether it is held back.
type Rows = Vec<(StoredRow, bool)>;

const COLUMNS: usize = 10;

/// Whether the row comes after a dead letter of its aggregate. A row that comes before may still have to be sent: it was on its way when the
/// later one was refused. It looks at one entry of an index, so that many dead letters of other aggregates cost nothing, and at none
/// if there are no dead letters. The texts are compared as bytes too, because MySQL ignores trailing spaces.
const IS_HELD_BACK: &str = "EXISTS (SELECT 1 FROM outbox_dead_letter) AND EXISTS (SELECT 1 FROM outbox_dead_letter AS d WHERE d.aggregateid = outbox.aggregateid AND d.aggregatetype = outbox.aggregatetype \
    AND CAST(d.aggregateid AS BINARY) = CAST(outbox.aggregateid AS BINARY) \
    AND CAST(d.aggregatetype AS BINARY) = CAST(outbox.aggregatetype AS BINARY) AND d.seq < outbox.seq)";

/// Loads up to `count` rows. If the next row is larger than `largest`, also returns its size, and drops the rows behind it.
///
/// It scans the rows after the lowest bound along the primary key, because that is how they lie in the table. Before them come the listed
/// rows, each looked up. One statement reads both. With two statements, an aggregate's listed row and then a later one could be committed
/// between them, and only the later one would be read. For the same reason it reads nothing after the lowest bound while there are more
/// listed rows than fit.
fn load(
    conn: &mut Conn,
    claimed: &Claimed,
    given: &HashSet<i64>,
    after: i64,
    count: usize,
    largest: usize,
    blocks: bool,
) -> mysql::Result<(Rows, Option<usize>)> {
    let (shards, lowest, given) = (bounds::shards(claimed), bounds::lowest(claimed), listed(given));
    let is_held_back = if blocks { IS_HELD_BACK } else { "0" };
    let columns = format!(
        "SELECT seq, id, aggregatetype, aggregateid, type, IF(LENGTH(payload) <= {largest}, payload, NULL), \
         IF(LENGTH(headers) <= {largest}, headers, NULL), TIMESTAMPDIFF(MICROSECOND, '1970-01-01', created_at) DIV 1000, \
         IF(LENGTH(payload) > {largest} OR LENGTH(headers) > {largest}, GREATEST(IFNULL(LENGTH(payload), 0), IFNULL(LENGTH(headers), 0)), NULL), {is_held_back} \
         FROM outbox"
    );
    let unsent = format!(
        "shard IN ({shards}) AND sent_at IS NULL AND seq NOT IN ({given}) ORDER BY seq LIMIT {count}"
    );
    let start = lowest.max(after);
    let mut query = format!("{columns} FORCE INDEX (PRIMARY) WHERE seq > {start} AND {unsent}");
    if after < lowest && claimed.iter().any(|(_, bound)| !bound.unsent.is_empty()) {
        let list = bounds::unsent(claimed);
        query = format!(
            "({columns} WHERE seq IN ({list}) AND seq <= {lowest} AND seq > {after} AND {unsent}) UNION ALL ({query})"
        );
    }
    let mut rows = Vec::new();
    let larger = add(conn, &query, count, &mut rows)?;
    Ok((rows, larger))
}

fn add(conn: &mut Conn, query: &str, count: usize, rows: &mut Rows) -> mysql::Result<Option<usize>> {
    for row in conn.query_iter(query)?.take(count) {
        let values: [Value; COLUMNS] = row?.unwrap().try_into().map_err(|_| unexpected())?;
        let [
            seq,
            id,
            aggregate_type,
            aggregate_id,
            event_type,
            payload,
            headers,
            created_at,
            larger,
            held_back,
        ] = values;
        if let Some(size) = nullable(larger, number)? {
            return Ok(Some(usize::try_from(size).unwrap_or(usize::MAX)));
        }
        let seq = number(seq)?;
        let id = text(id)?;
        let uuid = Uuid::try_parse_ascii(&id);
        let row = StoredRow {
            ticket: seq.unsigned_abs(),
            seq,
            id: uuid.map_err(|_| {
                format!("the column `id` holds {:?}, which is not a UUID", String::from_utf8_lossy(&id))
            }),
            aggregate_type: text(aggregate_type)?,
            aggregate_id: text(aggregate_id)?,
            event_type: text(event_type)?,
            payload: nullable(payload, text)?,
            headers: nullable(headers, text)?,
            // The server returns null for a zero date.
            created_at_ms: nullable(created_at, number)?.unwrap_or_default(),
        };
        rows.push((row, number(held_back)? != 0));
    }
    Ok(None)
}

fn nullable<T>(value: Value, convert: fn(Value) -> mysql::Result<T>) -> mysql::Result<Option<T>> {
    if value == Value::NULL { Ok(None) } else { convert(value).map(Some) }
}

/// Converts a value. In the text protocol each value comes as bytes.
fn text(value: Value) -> mysql::Result<Bytes> {
    match value {
        Value::Bytes(bytes) => Ok(bytes.into()),
        _ => Err(unexpected()),
    }
}

fn number(value: Value) -> mysql::Result<i64> {
    let Value::Bytes(bytes) = value else { return Err(unexpected()) };
    str::from_utf8(&bytes).ok().and_then(|digits| digits.parse().ok()).ok_or_else(unexpected)
}

fn unexpected() -> mysql::Error {
    mysql::Error::IoError(std::io::Error::new(
        std::io::ErrorKind::InvalidData,
        "a column of the table outbox has another type than the migrations give it",
    ))
}
