//! Dead letters of records that were read from the WAL. Their rows may or may not be in the table. [`HeldBack`](super::held_back::HeldBack)
//! decides with what it finds here.

use diesel::connection::SimpleConnection;
use diesel::pg::{Pg, PgConnection};
use diesel::prelude::*;
use diesel::sql_types::{Array, BigInt, Binary, Bool, Nullable, SmallInt, Text, Uuid as SqlUuid};
use diesel_outbox_core::{SourceError, shard_of};
use uuid::Uuid;

use super::held_back::Found;
use crate::source::database_error;
use crate::source::row::StoredRow;
use crate::statement::statement;

/// Returns the types and ids of the aggregates that have dead letters, or requeued ones that are still to come.
pub(super) fn aggregates(conn: &mut PgConnection) -> Result<Vec<(String, String)>, SourceError> {
    Aggregates::new().load(conn).map_err(|error| database_error("looking up dead letters", error))
}

/// Looks what the row's aggregate has. Its requeued rows have come up to the number `last_requeued`.
pub(super) fn look(
    conn: &mut PgConnection,
    row: &StoredRow,
    last_requeued: i64,
) -> Result<Found, SourceError> {
    type FoundRow = (Option<i64>, Option<i64>, Option<i64>, bool);
    let id = row.id.clone().unwrap_or_default();
    let (place, first_dead, first_to_come, comes_again) =
        Look::new(row.seq, id, text(&row.aggregate_type), text(&row.aggregate_id), last_requeued)
            .get_result::<FoundRow>(conn)
            .map_err(|error| database_error("looking up the dead letters of an aggregate", error))?;
    Ok(Found { place, first_dead, first_to_come, comes_again })
}

/// Removes the notes of these requeued rows. The server has it on its disk when the transaction commits, before it hears that they are settled.
pub(super) fn forget_requeued(conn: &mut PgConnection, seqs: Vec<i64>) -> QueryResult<()> {
    conn.batch_execute("SET LOCAL synchronous_commit = local")?;
    ForgetRequeued::new(seqs).execute(conn).map(drop)
}

/// Keeps the row as a dead letter for good: the relay does not ask the WAL for it again. The commit waits for synchronous standbys,
/// unless the caller does.
pub(super) fn keep(
    conn: &mut PgConnection,
    row: StoredRow,
    reason: &str,
    caller_waits: bool,
) -> QueryResult<()> {
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

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

statement!(
    Pg,
    Aggregates {} -> (Text, Text),
    "SELECT aggregatetype::text, aggregateid::text FROM outbox_dead_letter UNION SELECT aggregatetype::text, aggregateid::text FROM outbox_requeued"
);

statement!(
    Pg,
    /// One statement, so that it sees a dead letter before or after its requeue.
    Look {
        seq: i64 => BigInt,
        id: Uuid => SqlUuid,
        aggregate_type: String => Text,
        aggregate_id: String => Text,
        last_requeued: i64 => BigInt
    } -> (Nullable<BigInt>, Nullable<BigInt>, Nullable<BigInt>, Bool),
    "SELECT its.place, \
     (SELECT min(d.seq) FROM outbox_dead_letter AS d WHERE d.aggregateid::text COLLATE pg_catalog.\"C\" = its.aggregateid AND d.aggregatetype::text COLLATE pg_catalog.\"C\" = its.aggregatetype), \
     (SELECT min(r.place) FROM outbox_requeued AS r WHERE r.aggregateid::text COLLATE pg_catalog.\"C\" = its.aggregateid AND r.aggregatetype::text COLLATE pg_catalog.\"C\" = its.aggregatetype \
     AND r.seq > greatest(its.last_requeued, CASE WHEN its.place IS NOT NULL THEN its.seq END)), \
     EXISTS (SELECT FROM outbox_requeued AS r WHERE r.aggregateid::text COLLATE pg_catalog.\"C\" = its.aggregateid AND r.aggregatetype::text COLLATE pg_catalog.\"C\" = its.aggregatetype \
     AND r.place = coalesce(its.place, its.seq) AND r.id = its.id AND r.seq > its.seq) \
     FROM (SELECT given.*, (SELECT r.place FROM outbox_requeued AS r WHERE r.seq = given.seq AND r.id = given.id) AS place \
     FROM (SELECT ?::bigint AS seq, ?::uuid AS id, ?::text AS aggregatetype, ?::text AS aggregateid, ?::bigint AS last_requeued) AS given) AS its"
);

statement!(
    Pg,
    ForgetRequeued { seqs: Vec<i64> => Array<BigInt> } -> BigInt,
    "DELETE FROM outbox_requeued WHERE seq = ANY (?)"
);

statement!(
    Pg,
    /// Does nothing if the dead letter exists already, because the WAL was read once more, or if somebody has requeued it by now. A requeued
    /// row goes back to its old place.
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
     SELECT place, id, aggregatetype, aggregateid, type, payload, headers, shard, created_at, reason FROM (SELECT given.*, \
     coalesce((SELECT r.place FROM outbox_requeued AS r WHERE r.seq = given.seq AND r.id = given.id), given.seq) AS place \
     FROM (SELECT ?::bigint AS seq, ?::uuid AS id, ?::text AS aggregatetype, ?::text AS aggregateid, ?::text AS type, ?::bytea AS payload, \
     ?::json AS headers, ?::smallint AS shard, to_timestamp(?::float8 / 1000::float8) AT TIME ZONE 'utc' AS created_at, ?::text AS reason) \
     AS given) AS its WHERE NOT EXISTS (SELECT FROM outbox_requeued AS r WHERE r.aggregateid::text COLLATE pg_catalog.\"C\" = its.aggregateid \
     AND r.aggregatetype::text COLLATE pg_catalog.\"C\" = its.aggregatetype AND r.place = its.place AND r.id = its.id AND r.seq > its.seq) \
     ON CONFLICT (seq, id) DO NOTHING"
);

statement!(
    Pg,
    Remove { seq: i64 => BigInt, id: Uuid => SqlUuid } -> BigInt,
    "DELETE FROM outbox WHERE seq = ? AND id = ?"
);
