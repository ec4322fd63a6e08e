//! Dead letters of records that were read from the WAL. Their rows may or may not be in the table.

use std::collections::HashMap;

use diesel::connection::SimpleConnection;
use diesel::pg::{Pg, PgConnection};
use diesel::prelude::*;
use diesel::sql_types::{BigInt, Binary, Nullable, SmallInt, Text, Uuid as SqlUuid};
use diesel_outbox_core::{DeadLetterPolicy, SourceError, shard_of};
use uuid::Uuid;

use crate::source::database_error;
use crate::source::row::StoredRow;
use crate::statement::statement;

type Aggregate = (Vec<u8>, Vec<u8>);

/// The aggregates that are held back because of their dead letters, if the policy is to block. An aggregate is free again when all
/// of its dead letters have come back, with new numbers.
pub(super) struct HeldBack {
    blocks: bool,
    /// Each aggregate with the ids and numbers of its dead letters. `None` before they were looked up.
    aggregates: Option<HashMap<Aggregate, HashMap<Uuid, i64>>>,
}

impl HeldBack {
    pub(super) fn by(policy: DeadLetterPolicy) -> Self {
        Self { blocks: policy == DeadLetterPolicy::Block, aggregates: None }
    }

    /// Returns whether any aggregate may be held back.
    pub(super) fn blocks(&self) -> bool {
        self.blocks
    }

    /// Looks the dead letters up, unless that was done.
    pub(super) fn look_up(&mut self, conn: &mut PgConnection) -> Result<(), SourceError> {
        if !self.blocks || self.aggregates.is_some() {
            return Ok(());
        }
        let mut aggregates = HashMap::<Aggregate, HashMap<Uuid, i64>>::new();
        let dead_letters = DeadLetters::new()
            .load::<(String, String, Uuid, i64)>(conn)
            .map_err(|error| database_error("looking up dead letters", error))?;
        for (aggregate_type, aggregate_id, id, seq) in dead_letters {
            aggregates.entry((aggregate_type.into(), aggregate_id.into())).or_default().insert(id, seq);
        }
        self.aggregates = Some(aggregates);
        Ok(())
    }

    /// Forgets them, so that they are looked up again.
    pub(super) fn forget(&mut self) {
        self.aggregates = None;
    }

    /// Adds a row that becomes a dead letter.
    pub(super) fn add(&mut self, row: &StoredRow) {
        if let (Some(aggregates), Ok(id)) = (&mut self.aggregates, row.id.as_ref()) {
            aggregates.entry(aggregate(row)).or_default().insert(*id, row.seq);
        }
    }

    /// Returns whether this row is held back.
    pub(super) fn has(&mut self, row: &StoredRow) -> bool {
        let Some(aggregates) = self.aggregates.as_mut().filter(|aggregates| !aggregates.is_empty()) else {
            return false;
        };
        let aggregate = aggregate(row);
        let (Some(dead_letters), Ok(id)) = (aggregates.get_mut(&aggregate), &row.id) else { return false };
        // A row with its old number was read once more, and is a dead letter already.
        let requeued = dead_letters.get(id).is_some_and(|seq| *seq != row.seq);
        if requeued {
            dead_letters.remove(id);
        }
        if dead_letters.is_empty() {
            aggregates.remove(&aggregate);
        }
        !requeued
    }
}

fn aggregate(row: &StoredRow) -> Aggregate {
    (row.aggregate_type.to_vec(), row.aggregate_id.to_vec())
}

/// Keeps the row as a dead letter for good: the relay does not ask the WAL for it again. The commit waits for synchronous standbys,
/// unless the caller does.
pub(super) fn keep(
    conn: &mut PgConnection,
    row: StoredRow,
    reason: &str,
    caller_waits: bool,
) -> QueryResult<()> {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (aggregate_type, aggregate_id) = (text(&row.aggregate_type), text(&row.aggregate_id));
    let shard = shard_of(&aggregate_type, &aggregate_id);
    let id = row.id.unwrap_or_default();
    conn.transaction(|conn| {
        let commit = if caller_waits { "local" } else { "on" };
        conn.batch_execute(&format!("SET LOCAL synchronous_commit = {commit}"))?;
        Insert::new(
            row.seq,
            id,
            aggregate_type,
            aggregate_id,
            text(&row.event_type),
            row.payload.map(Vec::from),
            row.headers.map(|headers| text(&headers)),
            shard,
            row.created_at_ms,
            reason.to_owned(),
        )
        .execute(conn)?;
        Remove::new(row.seq, id).execute(conn)
    })
    .map(drop)
}

statement!(
    Pg,
    DeadLetters {} -> (Text, Text, SqlUuid, BigInt),
    "SELECT aggregatetype, aggregateid, id, seq FROM outbox_dead_letter"
);

statement!(
    Pg,
    /// Does nothing if the dead letter exists already, because the WAL was read once more.
    Insert {
        seq: i64 => BigInt,
        id: Uuid => SqlUuid,
        aggregate_type: String => Text,
        aggregate_id: String => Text,
        event_type: String => Text,
        payload: Option<Vec<u8>> => Nullable<Binary>,
        headers: Option<String> => Nullable<Text>,
        shard: i16 => SmallInt,
        created_at_ms: i64 => BigInt,
        reason: String => Text
    } -> BigInt,
    "INSERT INTO outbox_dead_letter \
     (seq, id, aggregatetype, aggregateid, type, payload, headers, shard, created_at, reason) \
     VALUES (?, ?, ?, ?, ?, ?, ?::json, ?, to_timestamp(?::float8 / 1000::float8) AT TIME ZONE 'utc', ?) ON CONFLICT (seq, id) DO NOTHING"
);

statement!(
    Pg,
    Remove { seq: i64 => BigInt, id: Uuid => SqlUuid } -> BigInt,
    "DELETE FROM outbox WHERE seq = ? AND id = ?"
);
