use std::time::Duration;

use diesel::prelude::*;
use diesel::sql_types::{BigInt, Double, Nullable, Text};
use diesel::sqlite::{Sqlite, SqliteConnection};
use diesel_outbox_core::Lag;

use super::{DeadLetter, DeadLetterRow, Operate, Requeue, Schedule, dead_letter, schedule_of};
use crate::source::julian_day::{created_at_ms, unix_ms};
use crate::source::promote::promote_all;
use crate::statement::statement;

impl Operate for SqliteConnection {
    fn lag(&mut self) -> QueryResult<Lag> {
        let (unsent, oldest) = Unsent::new().get_result::<(i64, f64)>(self)?;
        let mut lag = Lag::default();
        lag.unsent = unsent.unsigned_abs();
        lag.oldest = Duration::try_from_secs_f64(oldest).unwrap_or_default();
        Ok(lag)
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
        let (id, aggregate_type, aggregate_id) = which.conditions();
        let id = id.map(|id| id.to_string());
        self.immediate_transaction(|conn| {
            Restore::new(id.clone(), aggregate_type.clone(), aggregate_id.clone()).execute(conn)?;
            Forget::new(id, aggregate_type, aggregate_id).execute(conn)
        })
    }
}

statement!(
    Sqlite,
    Unsent {} -> (BigInt, Double),
    "SELECT count(*), coalesce((julianday('now') - julianday(min(created_at))) * 86400.0, 0.0) \
     FROM outbox WHERE sent_at IS NULL"
);

statement!(
    Sqlite,
    DeadLetters { limit: i64 => BigInt } -> (BigInt, Text, Text, Text, Text, BigInt, Text, BigInt),
    concat!(
        "SELECT seq, id, aggregatetype, aggregateid, type, ",
        created_at_ms!(),
        ", reason, ",
        unix_ms!("julianday(failed_at)"),
        " FROM outbox_dead_letter ORDER BY seq, failed_at LIMIT ?"
    )
);

statement!(
    Sqlite,
    /// Puts dead letters back at their old place, or under a new number if another event has the old one, because the sequence was
    /// restarted.
    Restore {
        id: Option<String> => Nullable<Text>,
        aggregate_type: Option<String> => Nullable<Text>,
        aggregate_id: Option<String> => Nullable<Text>
    } -> BigInt,
    "INSERT INTO outbox (seq, id, aggregatetype, aggregateid, type, payload, headers, shard, created_at) \
     SELECT CASE WHEN EXISTS (SELECT 1 FROM outbox AS o WHERE o.seq = d.seq) \
     OR row_number() OVER (PARTITION BY d.seq ORDER BY d.failed_at, d.id) > 1 THEN NULL ELSE d.seq END, \
     id, aggregatetype, aggregateid, type, payload, headers, shard, created_at \
     FROM outbox_dead_letter AS d WHERE id = coalesce(?, id) AND aggregatetype = coalesce(?, aggregatetype) \
     AND aggregateid = coalesce(?, aggregateid) ORDER BY d.seq"
);

statement!(
    Sqlite,
    Forget {
        id: Option<String> => Nullable<Text>,
        aggregate_type: Option<String> => Nullable<Text>,
        aggregate_id: Option<String> => Nullable<Text>
    } -> BigInt,
    "DELETE FROM outbox_dead_letter WHERE id = coalesce(?, id) \
     AND aggregatetype = coalesce(?, aggregatetype) AND aggregateid = coalesce(?, aggregateid)"
);
