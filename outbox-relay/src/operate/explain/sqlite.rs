use diesel::prelude::*;
use diesel::sql_types::{BigInt, Nullable, SmallInt, Text};
use diesel::sqlite::{Sqlite, SqliteConnection};
use uuid::Uuid;

use super::{Claim, Event, Explain, Explanation, Look, Pruning, Row, Stored, explain};
use crate::source::BLOCKED;
use crate::source::julian_day::{created_at_ms, unix_ms};
use crate::statement::statement;

impl Explain for SqliteConnection {
    fn explain(&mut self, id: Uuid, pruning: Pruning) -> QueryResult<Explanation> {
        explain(self, id, pruning)
    }
}

impl Look for SqliteConnection {
    fn scheduled(&mut self, id: Uuid) -> QueryResult<Option<Row>> {
        FindScheduled::new(id.to_string()).get_result(self).optional()
    }

    fn stored(&mut self, id: Uuid) -> QueryResult<Option<Stored>> {
        let row = FindStored::new(id.to_string()).get_result::<Row>(self).optional()?;
        Ok(row.map(|row| Stored { is_sent: row.6.is_some(), row, is_read_from_wal: false }))
    }

    fn dead(&mut self, id: Uuid) -> QueryResult<Option<(Row, String)>> {
        let found = FindDead::new(id.to_string()).get_result::<DeadRow>(self).optional()?;
        Ok(found.map(|(seq, aggregate_type, aggregate_id, event_type, shard, created, failed, reason)| {
            ((seq, aggregate_type, aggregate_id, event_type, shard, created, failed), reason)
        }))
    }

    /// SQLite has one writer, and does not say who it is.
    fn open_transactions(&mut self) -> QueryResult<Option<Vec<String>>> {
        Ok(None)
    }

    fn first_dead_letter(&mut self, event: &Event) -> QueryResult<Option<(String, String)>> {
        FirstDead::new(event.aggregate_type.clone(), event.aggregate_id.clone(), BLOCKED.to_owned())
            .get_result(self)
            .optional()
    }

    fn before(&mut self, shard: i16, seq: i64) -> QueryResult<i64> {
        Before::new(seq, shard).get_result(self)
    }

    fn claim(&mut self, _: i16) -> QueryResult<Claim> {
        Ok(Claim::Unknown)
    }

    fn has_relay(&mut self) -> QueryResult<Option<bool>> {
        Ok(None)
    }
}

type DeadRow = (Option<i64>, String, String, String, i16, i64, Option<i64>, String);

macro_rules! columns {
    ($seq:literal, $since:literal) => {
        concat!(
            "SELECT ",
            $seq,
            ", aggregatetype, aggregateid, type, shard, ",
            created_at_ms!(),
            ", ",
            unix_ms!($since)
        )
    };
}

statement!(
    Sqlite,
    FindScheduled { id: String => Text } -> (Nullable<BigInt>, Text, Text, Text, SmallInt, BigInt, Nullable<BigInt>),
    concat!(columns!("NULL", "julianday(due_at)"), " FROM outbox_scheduled WHERE id = ? LIMIT 1")
);

statement!(
    Sqlite,
    FindStored { id: String => Text } -> (Nullable<BigInt>, Text, Text, Text, SmallInt, BigInt, Nullable<BigInt>),
    concat!(
        columns!("seq", "julianday(sent_at)"),
        " FROM outbox WHERE id = ? ORDER BY sent_at IS NOT NULL LIMIT 1"
    )
);

statement!(
    Sqlite,
    FindDead { id: String => Text } -> (Nullable<BigInt>, Text, Text, Text, SmallInt, BigInt, Nullable<BigInt>, Text),
    concat!(columns!("seq", "julianday(failed_at)"), ", reason FROM outbox_dead_letter WHERE id = ? LIMIT 1")
);

statement!(
    Sqlite,
    FirstDead { aggregate_type: String => Text, aggregate_id: String => Text, blocked: String => Text } -> (Text, Text),
    "SELECT id, reason FROM outbox_dead_letter WHERE aggregatetype = ? AND aggregateid = ? AND reason <> ? ORDER BY seq LIMIT 1"
);

statement!(
    Sqlite,
    Before { seq: i64 => BigInt, shard: i16 => SmallInt } -> BigInt,
    "SELECT count(*) FROM outbox WHERE seq < ? AND shard = ? AND sent_at IS NULL"
);
