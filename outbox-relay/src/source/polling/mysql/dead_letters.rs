//! Rows that the broker will never take.

use mysql::prelude::Queryable;
use mysql::{Conn, params};

use super::connection::Statements;

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
