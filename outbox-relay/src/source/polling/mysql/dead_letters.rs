//! Rows that the broker will never take, and those that are held back because of them.

use mysql::prelude::Queryable;
use mysql::{Conn, params};

use super::bounds::{self, Claimed};
use super::connection::Statements;
use crate::source::row::{BlockedAggregates, blocked_by};

/// Keeps a row as a dead letter, and returns its aggregate type and id, or `None` if somebody has deleted it.
pub(super) fn keep(conn: &mut Conn, seq: i64, reason: &str) -> mysql::Result<Option<(String, String)>> {
    conn.exec_drop(
        "INSERT INTO outbox_dead_letter \
         (seq, id, aggregatetype, aggregateid, type, payload, headers, shard, created_at, reason, failed_at) \
         SELECT seq, id, aggregatetype, aggregateid, type, payload, headers, shard, created_at, :reason, UTC_TIMESTAMP(3) \
         FROM outbox WHERE seq = :seq",
        params! { reason, seq },
    )?;
    let row = conn.first(&format!("SELECT aggregatetype, id FROM outbox WHERE seq = {seq}"))?;
    conn.execute(&format!("DELETE FROM outbox WHERE seq = {seq}"))?;
    Ok(row)
}

/// Returns the aggregates of these shards that have dead letters. They are compared as bytes, because MySQL ignores trailing spaces when
/// it compares texts.
pub(super) fn blocked(conn: &mut Conn, claimed: &Claimed) -> mysql::Result<BlockedAggregates> {
    let shards = bounds::shards(claimed);
    let rows = conn.load(&format!(
        "SELECT CAST(aggregatetype AS BINARY), CAST(aggregateid AS BINARY), MIN(seq) FROM outbox_dead_letter WHERE shard IN ({shards}) \
         GROUP BY 1, 2"
    ))?;
    Ok(blocked_by(rows))
}
