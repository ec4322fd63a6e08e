//! Rows that the broker will never take, and rows that are held back because of them.

use diesel::pg::{Pg, PgConnection};
use diesel::prelude::*;
use diesel::sql_types::{Oid, Text};

use super::tuple_id::{Tid, TupleId, is_the_table};
use crate::statement::statement;

/// Keeps a row as a dead letter, and returns its aggregate type and id. If somebody changed the row while it was claimed, it is not
/// found: the next pass reads it again.
pub(super) fn keep(
    conn: &mut PgConnection,
    table: u32,
    ticket: u64,
    reason: &str,
) -> QueryResult<(String, String)> {
    Move::new(ticket.into(), table, reason.to_owned()).get_result(conn)
}

statement!(
    Pg,
    /// Moves a row to the dead letters, and returns its aggregate type and id. One that was requeued under a new number goes back to its old
    /// place.
    Move { place: TupleId => Tid, table: u32 => Oid, reason: String => Text } -> (Text, Text),
    concat!(
        "WITH gone AS (DELETE FROM ONLY outbox WHERE ctid = ? AND ",
        is_the_table!(),
        " RETURNING *) INSERT INTO outbox_dead_letter \
         (seq, id, aggregatetype, aggregateid, type, payload, headers, shard, created_at, reason) \
         SELECT coalesce((SELECT r.place FROM outbox_requeued AS r WHERE r.seq = gone.seq AND r.id = gone.id), gone.seq), id, \
         aggregatetype, aggregateid, type, payload, headers, shard, created_at, ? FROM gone \
         RETURNING aggregatetype::text, id::text"
    )
);
