//! Which rows are polled: all, or those up to a number. Later ones are read from the WAL.

use diesel::pg::{Pg, PgConnection};
use diesel::prelude::*;
use diesel::sql_types::{BigInt, Bool};

use crate::source::bounds::{oldest_unsent, shards};
use crate::statement::statement;

/// Returns the last number that is polled, or `i64::MAX` if the whole table is.
pub(super) fn polled_through(conn: &mut PgConnection) -> QueryResult<i64> {
    PolledThrough::new().get_result(conn)
}

/// Returns whether the whole table is polled, and nothing is read from the WAL.
pub(super) fn is_whole_table(conn: &mut PgConnection) -> QueryResult<bool> {
    polled_through(conn).map(|last| last == i64::MAX)
}

/// Returns whether some of the polled rows are unsent, or claimed by somebody.
pub(super) fn rows_wait(conn: &mut PgConnection) -> QueryResult<bool> {
    RowsWait::new().get_result(conn)
}

/// Notes that all polled rows are sent.
pub(super) fn all_are_sent(conn: &mut PgConnection) -> QueryResult<()> {
    let last = polled_through(conn)?;
    sent_through(conn, last)
}

/// Notes that no row up to this number is unsent, or ever will be.
pub(super) fn sent_through(conn: &mut PgConnection, last: i64) -> QueryResult<()> {
    RaiseSentThrough::new(last).execute(conn).map(drop)
}

statement!(Pg, PolledThrough {} -> BigInt, "SELECT coalesce(min(polled_through), 9223372036854775807) FROM outbox_shard");

statement!(
    Pg,
    RowsWait {} -> Bool,
    concat!("SELECT EXISTS (SELECT FROM ", shards!(), " AS s ", oldest_unsent!(), ")")
);

statement!(
    Pg,
    RaiseSentThrough { sent_through: i64 => BigInt } -> BigInt,
    "UPDATE outbox_shard AS s SET sent_through = given.sent_through FROM (SELECT ?::bigint AS sent_through) AS given WHERE s.sent_through < given.sent_through"
);
