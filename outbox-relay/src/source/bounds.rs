//! Between which numbers the relay looks for the rows of a shard.

use diesel::connection::SimpleConnection;
use diesel::{PgConnection, QueryResult};

/// Whether the transaction `x` has ended, as the statement's own snapshot sees it. A transaction that this server has not begun counts as
/// ended: then the table comes from another server.
macro_rules! has_ended {
    () => {
        "(pg_visible_in_snapshot(x::text::xid8, pg_current_snapshot()) \
         OR x::text::xid8 >= pg_snapshot_xmax(pg_current_snapshot()))"
    };
}
pub(crate) use has_ended;

/// Locks all shards until the transaction ends. No worker has claimed anything meanwhile.
pub(crate) const LOCK_SHARDS: &str = "SELECT FROM outbox_shard ORDER BY shard FOR UPDATE";

/// Locks all shards, and the table against inserts, until the transaction ends. It waits for each lock no longer than given,
/// because workers that claim wait behind the first, and emitters behind the second.
pub(crate) fn lock_shards_and_table(conn: &mut PgConnection, shards: &str, table: &str) -> QueryResult<()> {
    conn.batch_execute(&format!("SET LOCAL lock_timeout = '{shards}'"))?;
    conn.batch_execute(LOCK_SHARDS)?;
    conn.batch_execute(&format!(
        "SET LOCAL lock_timeout = '{table}'; LOCK TABLE outbox IN SHARE ROW EXCLUSIVE MODE"
    ))
}

/// The number after which all rows of those transactions in `open` lie that have ended. Null if none has.
macro_rules! first_of_ended {
    ($open:literal, $after:literal) => {
        concat!(
            "(SELECT min(after) FROM unnest(",
            $open,
            ", ",
            $after,
            ") AS o (x, after) WHERE ",
            crate::source::bounds::has_ended!(),
            ")"
        )
    };
}
pub(crate) use first_of_ended;

/// The shards, and the `seq` after which each may have unsent rows. That is `passed` as long as none of the transactions that were open
/// then has ended, because the snapshot cannot see their rows anyway. Once one has ended, its rows may be anywhere above the number that
/// was the last when it began. `OFFSET 0` prevents the server from computing that for each row that it compares.
macro_rules! shards {
    () => {
        concat!(
            "(SELECT shard, sent_through, polled_through, passed, greatest(sent_through, least(passed, ",
            crate::source::bounds::first_of_ended!("open", "open_after"),
            ")) AS start FROM outbox_shard OFFSET 0)"
        )
    };
}
pub(crate) use shards;

/// The oldest unsent row of each shard `s` that is polled. The comparison and the order use both columns, so that only the index on (shard,
/// seq) can serve them. Along `seq` alone, the search for a shard without such a row would pass over all that the others have sent.
macro_rules! oldest_unsent {
    () => {
        "JOIN LATERAL (SELECT o.seq FROM outbox AS o WHERE (o.shard, o.seq) > (s.shard, s.start) \
         AND (o.shard, o.seq) <= (s.shard, s.polled_through) AND o.sent_at IS NULL ORDER BY o.shard, o.seq LIMIT 1) AS oldest ON true"
    };
}
pub(crate) use oldest_unsent;
