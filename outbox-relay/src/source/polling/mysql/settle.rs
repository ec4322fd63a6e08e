//! Settling: exactly the rows that the broker has acknowledged are marked as sent, or deleted.

use mysql::Conn;

use super::connection::Statements;
use crate::source::SentRows;

/// Each row is looked up by its primary key, which locks nothing else, so that nobody who emits waits for it, and this waits for nobody.
/// Of a long list in `IN (..)` the optimizer makes a scan of the whole table, which waits for each row that is not committed.
pub(super) fn settle(conn: &mut Conn, tickets: &[u64], sent_rows: SentRows) -> mysql::Result<()> {
    match sent_rows {
        SentRows::Delete => delete(conn, tickets),
        SentRows::Keep { .. } => {
            conn.execute(&format!("UPDATE {} SET o.sent_at = UTC_TIMESTAMP(3)", rows(tickets))).map(drop)
        }
    }
}

/// Deletes exactly these rows.
pub(super) fn delete(conn: &mut Conn, seqs: &[impl ToString]) -> mysql::Result<()> {
    conn.execute(&format!("DELETE o FROM {}", rows(seqs))).map(drop)
}

fn rows(seqs: &[impl ToString]) -> String {
    let seqs: Vec<String> = seqs.iter().map(ToString::to_string).collect();
    format!(
        "JSON_TABLE('[{}]', '$[*]' COLUMNS (seq bigint PATH '$')) AS t STRAIGHT_JOIN outbox AS o ON o.seq = t.seq",
        seqs.join(",")
    )
}
