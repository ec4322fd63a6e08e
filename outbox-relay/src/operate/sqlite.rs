use std::time::Duration;

use diesel::prelude::*;
use diesel::sql_types::{BigInt, Bool, Double, Nullable, SmallInt, Text};
use diesel::sqlite::{Sqlite, SqliteConnection};
use diesel_outbox_core::Lag;

use super::{
    DeadLetter, DeadLetterRow, Operate, Requeue, Schedule, Unsent, UnsentRow, dead_letter, hex, schedule_of,
    unsent,
};
use crate::source::BLOCKED;
use crate::source::julian_day::{created_at_ms, unix_ms};
use crate::source::promote::promote_all;
use crate::statement::statement;

impl Operate for SqliteConnection {
    fn lag(&mut self) -> QueryResult<Lag> {
        let (unsent, oldest) = CountUnsent::new().get_result::<(i64, f64)>(self)?;
        let (dead_letters, blocked) =
            CountDeadLetters::new(BLOCKED.to_owned()).get_result::<(i64, i64)>(self)?;
        let mut lag = Lag::default();
        lag.unsent = unsent.unsigned_abs();
        lag.oldest = Duration::try_from_secs_f64(oldest).unwrap_or_default();
        lag.dead_letters = dead_letters.unsigned_abs();
        lag.blocked_aggregates = blocked.unsigned_abs();
        Ok(lag)
    }

    fn unsent(&mut self) -> QueryResult<Vec<Unsent>> {
        Ok(UnsentOfShards::new().load::<UnsentRow>(self)?.into_iter().map(unsent).collect())
    }

    fn dead_letters(&mut self, limit: i64) -> QueryResult<Vec<DeadLetter>> {
        Ok(DeadLetters::new(limit).load::<DeadLetterRow>(self)?.into_iter().map(dead_letter).collect())
    }

    fn schedule(&mut self) -> QueryResult<Schedule> {
        schedule_of(self)
    }

    fn promote(&mut self) -> QueryResult<usize> {
        promote_all(self)
    }

    fn requeue(&mut self, which: &Requeue) -> QueryResult<usize> {
        self.immediate_transaction(|conn| {
            let (id, aggregate_type, aggregate_id) = which.conditions();
            let (is_any, seqs, ids) = listed(which);
            let id = id.map(|id| id.to_string());
            Restore::new(id, aggregate_type, aggregate_id, is_any, seqs, ids).execute(conn)?;
            conn.drop_dead_letters(which)
        })
    }

    fn drop_dead_letters(&mut self, which: &Requeue) -> QueryResult<usize> {
        let (id, aggregate_type, aggregate_id) = which.conditions();
        let (is_any, seqs, ids) = listed(which);
        Forget::new(id.map(|id| id.to_string()), aggregate_type, aggregate_id, is_any, seqs, ids)
            .execute(self)
    }
}

/// Returns whether none are listed, and the listed numbers and ids as JSON: ids as hexadecimal digits, because they may be any text.
fn listed(which: &Requeue) -> (bool, String, String) {
    let (seqs, ids) = which.listed().unwrap_or_default();
    let seqs: Vec<String> = seqs.iter().map(i64::to_string).collect();
    let hex = |id: &String| format!("\"{}\"", hex(id));
    let ids: Vec<String> = ids.iter().map(hex).collect();
    (which.listed().is_none(), format!("[{}]", seqs.join(",")), format!("[{}]", ids.join(",")))
}

statement!(
    Sqlite,
    UnsentOfShards {} -> (Text, SmallInt, BigInt, Double),
    "SELECT aggregatetype, shard, count(*), coalesce((julianday('now') - julianday(min(created_at))) * 86400.0, 0.0) \
     FROM outbox WHERE sent_at IS NULL GROUP BY aggregatetype, shard ORDER BY aggregatetype, shard"
);

statement!(
    Sqlite,
    CountUnsent {} -> (BigInt, Double),
    "SELECT count(*), coalesce((julianday('now') - julianday(min(created_at))) * 86400.0, 0.0) \
     FROM outbox WHERE sent_at IS NULL"
);

statement!(
    Sqlite,
    CountDeadLetters { blocked: String => Text } -> (BigInt, BigInt),
    "SELECT count(*), (SELECT count(*) FROM (SELECT DISTINCT aggregatetype, aggregateid FROM outbox_dead_letter WHERE reason = ?)) \
     FROM outbox_dead_letter"
);

/// All dead letters, as the rows that [`dead_letter`] takes.
macro_rules! dead_letters {
    () => {
        concat!(
            "SELECT seq, id, aggregatetype, aggregateid, type, ",
            created_at_ms!(),
            ", reason, ",
            unix_ms!("julianday(failed_at)"),
            " FROM outbox_dead_letter"
        )
    };
}
pub(super) use dead_letters;

statement!(
    Sqlite,
    DeadLetters { limit: i64 => BigInt } -> (BigInt, Text, Text, Text, Text, BigInt, Text, BigInt),
    concat!(dead_letters!(), " ORDER BY seq, failed_at LIMIT ?")
);

statement!(
    Sqlite,
    /// Puts dead letters back at their old place, or under a new number if another event has the old one, because the sequence was
    /// restarted. Later dead letters of an aggregate stay behind earlier ones. Those with old numbers come first, so that no new number is one
    /// of theirs.
    Restore {
        id: Option<String> => Nullable<Text>,
        aggregate_type: Option<String> => Nullable<Text>,
        aggregate_id: Option<String> => Nullable<Text>,
        is_any: bool => Bool,
        seqs: String => Text,
        ids: String => Text
    } -> BigInt,
    "INSERT INTO outbox (seq, id, aggregatetype, aggregateid, type, payload, headers, shard, created_at) \
     SELECT CASE WHEN stays THEN seq ELSE NULL END, id, aggregatetype, aggregateid, type, payload, headers, shard, created_at \
     FROM (SELECT f.*, min(f.is_free) OVER (PARTITION BY f.aggregatetype, f.aggregateid ORDER BY f.seq) AS stays \
     FROM (SELECT d.*, NOT EXISTS (SELECT 1 FROM outbox AS o WHERE o.seq = d.seq) \
     AND row_number() OVER (PARTITION BY d.seq ORDER BY d.failed_at, d.id) = 1 AS is_free \
     FROM outbox_dead_letter AS d WHERE id = coalesce(?, id) AND aggregatetype = coalesce(?, aggregatetype) \
     AND aggregateid = coalesce(?, aggregateid) AND (? OR (d.seq IN (SELECT value FROM json_each(?)) \
     AND hex(d.id) IN (SELECT value FROM json_each(?))))) AS f) AS placed ORDER BY stays DESC, seq"
);

statement!(
    Sqlite,
    Forget {
        id: Option<String> => Nullable<Text>,
        aggregate_type: Option<String> => Nullable<Text>,
        aggregate_id: Option<String> => Nullable<Text>,
        is_any: bool => Bool,
        seqs: String => Text,
        ids: String => Text
    } -> BigInt,
    "DELETE FROM outbox_dead_letter WHERE id = coalesce(?, id) \
     AND aggregatetype = coalesce(?, aggregatetype) AND aggregateid = coalesce(?, aggregateid) \
     AND (? OR (seq IN (SELECT value FROM json_each(?)) AND hex(id) IN (SELECT value FROM json_each(?))))"
);
