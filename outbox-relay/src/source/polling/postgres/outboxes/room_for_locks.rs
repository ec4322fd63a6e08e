//! Whether the server has room for the locks of all outboxes. All of its sessions share this room.

use diesel::pg::{Pg, PgConnection};
use diesel::prelude::*;
use diesel::sql_types::BigInt;

use crate::statement::statement;

/// How many advisory locks a session holds for an outbox, at most.
const LOCKS: i64 = 3;

/// Warns if the advisory locks of this many outboxes take much of it.
pub(super) fn warn(conn: &mut PgConnection, outboxes: usize) -> QueryResult<()> {
    let room = Room::new().get_result::<i64>(conn)?;
    let locks = i64::try_from(outboxes).unwrap_or(i64::MAX).saturating_mul(LOCKS);
    if locks > room / 2 {
        tracing::warn!(
            outboxes,
            locks,
            room,
            "the relay may take more than half of the server's room for locks, and without room statements fail: raise \
             max_locks_per_transaction"
        );
    }
    Ok(())
}

statement!(
    Pg,
    Room {} -> BigInt,
    "SELECT current_setting('max_locks_per_transaction')::bigint * (current_setting('max_connections')::bigint \
     + current_setting('max_prepared_transactions')::bigint)"
);
