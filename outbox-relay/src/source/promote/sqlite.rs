use diesel::prelude::*;
use diesel::result::Error;
use diesel::sql_types::{BigInt, Bool, Double, Nullable, Text};
use diesel::sqlite::{Sqlite, SqliteConnection};

use super::Promote;
use crate::statement::statement;

impl Promote for SqliteConnection {
    type Error = Error;

    fn has_schedule(&mut self) -> QueryResult<bool> {
        HasSchedule::new().get_result(self)
    }

    fn next_due(&mut self) -> QueryResult<Option<f64>> {
        NextDue::new().get_result(self)
    }

    fn promote(&mut self, limit: i64) -> QueryResult<Option<usize>> {
        self.immediate_transaction(|conn| {
            // Each statement has its own time, so all of them use the numbers of the first.
            let due = Due::new(limit).get_result::<String>(conn)?;
            Insert::new(due.clone()).execute(conn)?;
            Delete::new(due).execute(conn).map(Some)
        })
    }

    fn count_scheduled(&mut self) -> QueryResult<u64> {
        Count::new().get_result::<i64>(self).map(i64::unsigned_abs)
    }
}

statement!(
    Sqlite,
    HasSchedule {} -> Bool,
    "SELECT EXISTS (SELECT 1 FROM sqlite_schema WHERE name = 'outbox_scheduled')"
);

statement!(
    Sqlite,
    NextDue {} -> Nullable<Double>,
    "SELECT (julianday((SELECT min(due_at) FROM outbox_scheduled)) - julianday('now')) * 86400.0"
);

statement!(
    Sqlite,
    Due { limit: i64 => BigInt } -> Text,
    "SELECT json_group_array(seq) FROM (SELECT seq FROM outbox_scheduled \
     WHERE due_at <= strftime('%Y-%m-%dT%H:%M:%fZ', 'now') ORDER BY due_at, seq LIMIT ?)"
);

statement!(
    Sqlite,
    /// Its `created_at` becomes that of a row that is emitted now: see docs/scheduled.md.
    Insert { seqs: String => Text } -> Bool,
    "INSERT INTO outbox (id, aggregatetype, aggregateid, type, payload, headers, shard) \
     SELECT id, aggregatetype, aggregateid, type, payload, headers, shard FROM outbox_scheduled \
     WHERE seq IN (SELECT value FROM json_each(?)) ORDER BY due_at, seq"
);

statement!(
    Sqlite,
    Delete { seqs: String => Text } -> Bool,
    "DELETE FROM outbox_scheduled WHERE seq IN (SELECT value FROM json_each(?))"
);

statement!(Sqlite, Count {} -> BigInt, "SELECT count(*) FROM outbox_scheduled");
