//! The sequence that numbers the rows.
//!
//! Lower bounds move past numbers, so a sequence that gives some of them a second time hides events. That happens if somebody
//! restarts it, truncates its table with RESTART IDENTITY, or copies the table without it, as logical replication does. A restarted
//! sequence has another file than before, so the relay notices it even after it has caught up.

use diesel::pg::{Pg, PgConnection};
use diesel::prelude::*;
use diesel::result::Error;
use diesel::sql_types::BigInt;

use crate::statement::statement;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Sequence {
    /// The last number that it has given.
    pub(crate) last: i64,
    pub(crate) file: i64,
}

#[derive(Debug, thiserror::Error)]
#[error(
    "the sequence of outbox.seq was set back or replaced while the relay worked (it stands at {last}): the relay checks the table \
     before it sends anything else"
)]
struct SetBack {
    last: i64,
}

impl Sequence {
    pub(super) fn load(conn: &mut PgConnection) -> QueryResult<Self> {
        let (last, file) = Load::new().get_result::<(i64, i64)>(conn)?;
        Ok(Self { last, file })
    }

    /// Returns whether it has gone on from where it was before, and is no other one.
    pub(super) fn goes_on_from(self, before: Self) -> bool {
        self.file == before.file && self.last >= before.last
    }

    /// Returns the last number by now, or an error if the sequence has not gone on from where it was.
    pub(super) fn go_on(&mut self, now: Self) -> QueryResult<i64> {
        if !now.goes_on_from(*self) {
            return Err(Error::QueryBuilderError(Box::new(SetBack { last: now.last })));
        }
        *self = now;
        Ok(self.last)
    }
}

/// Returns whether a session found out that the sequence had not gone on from where it was.
pub(super) fn was_set_back(error: &Error) -> bool {
    matches!(error, Error::QueryBuilderError(error) if error.is::<SetBack>())
}

/// The last number that a sequence has given, or 0 if it is new, in a statement that selects from the sequence. The function for it
/// locks the sequence, as if it took a number.
macro_rules! last_number {
    () => {
        "CASE WHEN is_called THEN last_value ELSE last_value - 1 END"
    };
}
pub(crate) use last_number;

statement!(
    Pg,
    Load {} -> (BigInt, BigInt),
    concat!(
        "SELECT ",
        last_number!(),
        ", coalesce(pg_relation_filenode('outbox_seq_seq'::regclass)::bigint, 0) FROM outbox_seq_seq"
    )
);
