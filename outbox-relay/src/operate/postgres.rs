use std::collections::BTreeMap;
use std::time::Duration;

use diesel::connection::SimpleConnection;
use diesel::pg::{Pg, PgConnection};
use diesel::prelude::*;
use diesel::sql_types::{Array, BigInt, Bool, Double, Nullable, SmallInt, Text, Uuid as SqlUuid};
use diesel_outbox_core::{Lag, WalLag};
use uuid::Uuid;

use super::{
    DeadLetter, DeadLetterRow, Operate, Requeue, Schedule, Unsent, UnsentRow, dead_letter, schedule_of,
    unsent,
};
use crate::source::bounds::{LOCK_SHARDS, oldest_unsent, shards};
use crate::source::check::{is_set_back, was_sent_from_wal};
use crate::source::promote::promote_all;
use crate::source::wake;
use crate::source::{BLOCKED, Schemas, sees_all_rows};
use crate::statement::statement;

impl Operate for PgConnection {
    fn lag(&mut self) -> QueryResult<Lag> {
        sees_all_rows(self)?;
        type LagRow = (i64, f64, Option<i64>, Option<i64>, Option<String>);
        let (unsent, oldest, bytes, retained, status) = if is_set_back(self)? {
            CountUnsentAnywhere::new().get_result::<LagRow>(self)?
        } else {
            CountUnsent::new().get_result::<LagRow>(self)?
        };
        let mut lag = Lag::default();
        lag.unsent = unsent.unsigned_abs();
        lag.oldest = Duration::try_from_secs_f64(oldest).unwrap_or_default();
        count_dead_letters(self, &mut lag)?;
        lag.wal = status.map(|status| {
            let mut wal = WalLag::default();
            wal.bytes = bytes.unwrap_or_default().unsigned_abs();
            wal.retained_bytes = retained.unwrap_or_default().unsigned_abs();
            wal.status = status;
            wal
        });
        Ok(lag)
    }

    fn unsent(&mut self) -> QueryResult<Vec<Unsent>> {
        sees_all_rows(self)?;
        let rows = if is_set_back(self)? {
            UnsentOfShardsAnywhere::new().load::<UnsentRow>(self)?
        } else {
            UnsentOfShards::new().load::<UnsentRow>(self)?
        };
        Ok(rows.into_iter().map(unsent).collect())
    }

    fn dead_letters(&mut self, limit: i64) -> QueryResult<Vec<DeadLetter>> {
        sees_all_rows(self)?;
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
        let (is_listed, (seqs, ids)) = (which.listed().is_some(), which.listed().unwrap_or_default());
        sees_all_rows(self)?;
        self.transaction(|conn| {
            // While the shards are locked, no relay reads them, and their lower bounds can move back.
            conn.batch_execute(LOCK_SHARDS)?;
            let restored = Restore::new(id, aggregate_type, aggregate_id, is_listed, seqs, ids)
                .load::<(i16, i64)>(conn)?;
            let mut lower_bounds: BTreeMap<i16, i64> = BTreeMap::new();
            for (shard, seq) in &restored {
                let sent_through = lower_bounds.entry(*shard).or_insert(seq - 1);
                *sent_through = (*sent_through).min(seq - 1);
            }
            if !lower_bounds.is_empty() {
                let (shards, lower_bounds) = lower_bounds.into_iter().unzip();
                SetLowerBoundsBack::new(shards, lower_bounds).execute(conn)?;
                wake(conn)?;
            }
            Ok(restored.len())
        })
    }

    fn drop_dead_letters(&mut self, which: &Requeue) -> QueryResult<usize> {
        let (id, aggregate_type, aggregate_id) = which.conditions();
        let (is_listed, (seqs, ids)) = (which.listed().is_some(), which.listed().unwrap_or_default());
        sees_all_rows(self)?;
        let dropped: i64 =
            Delete::new(id, aggregate_type, aggregate_id, is_listed, seqs, ids).get_result(self)?;
        Ok(usize::try_from(dropped).unwrap_or(usize::MAX))
    }
}

/// Counts the dead letters, and the aggregates that are held back behind them.
pub(crate) fn count_dead_letters(conn: &mut PgConnection, lag: &mut Lag) -> QueryResult<()> {
    let (dead_letters, blocked) = CountDeadLetters::new(BLOCKED.to_owned()).get_result::<(i64, i64)>(conn)?;
    lag.dead_letters = dead_letters.unsigned_abs();
    lag.blocked_aggregates = blocked.unsigned_abs();
    Ok(())
}

/// Returns the schemas of a PostgreSQL database that have an outbox and are among these names. A `*` in a name stands for any
/// characters, as in [`Relay::schemas`](crate::Relay::schemas).
///
/// # Errors
/// Returns the database's error.
pub fn schemas(
    conn: &mut PgConnection,
    names: impl IntoIterator<Item = impl Into<String>>,
) -> QueryResult<Vec<String>> {
    Schemas::new(names.into_iter().map(Into::into)).names(conn)
}

/// The number and age of the rows of this part of a query, and how far the slot is behind, if other rows are read from one.
macro_rules! lag {
    ($rows:expr) => {
        concat!(
            "SELECT * FROM (SELECT count(*), \
             coalesce(extract(epoch FROM clock_timestamp() - (min(o.created_at) AT TIME ZONE 'utc')), 0)::float8 ",
            $rows,
            ") AS unsent LEFT JOIN (SELECT \
             greatest(pg_current_wal_insert_lsn() - greatest(o.start_lsn, s.confirmed_flush_lsn), 0)::bigint, \
             greatest(pg_current_wal_insert_lsn() - s.restart_lsn, 0)::bigint, coalesce(s.wal_status, 'lost') \
             FROM outbox_slot AS o LEFT JOIN pg_replication_slots AS s ON s.slot_name = o.slot \
             AND s.database = current_database() LIMIT 1) AS wal ON true"
        )
    };
}

/// The unsent rows, scanned along `seq` from the oldest on, because the rows lie in that order in the table.
macro_rules! unsent_rows {
    () => {
        concat!(
            "FROM outbox AS o WHERE o.sent_at IS NULL AND o.seq >= (SELECT min(oldest.seq) FROM ",
            shards!(),
            " AS s ",
            oldest_unsent!(),
            ") AND o.seq <= (SELECT max(polled_through) FROM outbox_shard)"
        )
    };
}

/// The unsent rows of the whole table, because the lower bounds mean nothing if the sequence was set back.
macro_rules! unsent_rows_anywhere {
    () => {
        concat!(
            "FROM outbox AS o JOIN outbox_shard AS s ON s.shard = o.shard WHERE o.sent_at IS NULL AND NOT ",
            was_sent_from_wal!()
        )
    };
}

/// The number and age of the rows of this part of a query, for each aggregate type and shard.
macro_rules! of_shards {
    ($rows:expr) => {
        concat!(
            "SELECT o.aggregatetype::text, o.shard, count(*), \
             coalesce(extract(epoch FROM clock_timestamp() - (min(o.created_at) AT TIME ZONE 'utc')), 0)::float8 ",
            $rows,
            " GROUP BY o.aggregatetype, o.shard ORDER BY o.aggregatetype, o.shard"
        )
    };
}

statement!(Pg, UnsentOfShards {} -> (Text, SmallInt, BigInt, Double), of_shards!(unsent_rows!()));

statement!(Pg, UnsentOfShardsAnywhere {} -> (Text, SmallInt, BigInt, Double), of_shards!(unsent_rows_anywhere!()));

statement!(
    Pg,
    CountUnsent {} -> (BigInt, Double, Nullable<BigInt>, Nullable<BigInt>, Nullable<Text>),
    lag!(unsent_rows!())
);

statement!(
    Pg,
    CountUnsentAnywhere {} -> (BigInt, Double, Nullable<BigInt>, Nullable<BigInt>, Nullable<Text>),
    lag!(unsent_rows_anywhere!())
);

statement!(
    Pg,
    CountDeadLetters { blocked: String => Text } -> (BigInt, BigInt),
    "SELECT count(*), (SELECT count(*) FROM (SELECT DISTINCT aggregatetype, aggregateid FROM outbox_dead_letter WHERE reason = ?) AS b) \
     FROM outbox_dead_letter"
);

/// All dead letters, as the rows that [`dead_letter`] takes.
macro_rules! dead_letters {
    () => {
        "SELECT seq, id::text, aggregatetype, aggregateid, type, (extract(epoch FROM created_at) * 1000::numeric)::bigint, \
         reason, (extract(epoch FROM failed_at) * 1000::numeric)::bigint FROM outbox_dead_letter"
    };
}
pub(super) use dead_letters;

statement!(
    Pg,
    DeadLetters { limit: i64 => BigInt } -> (BigInt, Text, Text, Text, Text, BigInt, Text, BigInt),
    concat!(dead_letters!(), " ORDER BY seq, failed_at LIMIT ?")
);

/// Takes the chosen dead letters out of the table, as `gone`.
macro_rules! take_out {
    () => {
        "WITH chosen AS (SELECT ?::uuid AS id, ?::text AS aggregatetype, ?::text AS aggregateid, ?::bool AS is_listed), \
         listed AS (SELECT l.seq, l.id FROM unnest(?::bigint[], ?::text[]) AS l (seq, id)), \
         gone AS (DELETE FROM outbox_dead_letter AS d USING chosen AS c WHERE (c.id IS NULL OR d.id = c.id) \
         AND (c.aggregatetype IS NULL OR d.aggregatetype::text = c.aggregatetype) \
         AND (c.aggregateid IS NULL OR d.aggregateid::text = c.aggregateid) \
         AND (NOT c.is_listed OR (d.seq, d.id::text) IN (SELECT l.seq, l.id FROM listed AS l)) RETURNING d.*)"
    };
}

statement!(
    Pg,
    Delete {
        id: Option<Uuid> => Nullable<SqlUuid>,
        aggregate_type: Option<String> => Nullable<Text>,
        aggregate_id: Option<String> => Nullable<Text>,
        is_listed: bool => Bool,
        seqs: Vec<i64> => Array<BigInt>,
        ids: Vec<String> => Array<Text>
    } -> BigInt,
    concat!(take_out!(), " SELECT count(*) FROM gone")
);

statement!(
    Pg,
    /// Puts dead letters back at their old place if rows are polled. They get new numbers in three cases: rows are read from the write-ahead
    /// log, which has only the order of the commits; nothing marks which of their neighbours were sent; or another event has the number,
    /// because the sequence was restarted. Later dead letters of an aggregate stay behind earlier ones. With a new number goes a note of the
    /// old place, so that relays hold back what comes between.
    Restore {
        id: Option<Uuid> => Nullable<SqlUuid>,
        aggregate_type: Option<String> => Nullable<Text>,
        aggregate_id: Option<String> => Nullable<Text>,
        is_listed: bool => Bool,
        seqs: Vec<i64> => Array<BigInt>,
        ids: Vec<String> => Array<Text>
    } -> (SmallInt, BigInt),
    concat!(
        take_out!(),
        ", \
     numbered AS (SELECT g.*, s.polled_through = 9223372036854775807 AND g.seq > s.unmarked AND NOT EXISTS \
     (SELECT FROM outbox AS o WHERE o.seq = g.seq AND o.shard = g.shard) \
     AND row_number() OVER (PARTITION BY g.seq ORDER BY g.failed_at, g.id) = 1 AS is_free \
     FROM gone AS g LEFT JOIN outbox_shard AS s ON s.shard = g.shard), \
     placed AS (SELECT *, bool_and(is_free) OVER (PARTITION BY aggregatetype, aggregateid ORDER BY seq) AS stays \
     FROM numbered ORDER BY seq), \
     moved AS MATERIALIZED (SELECT p.*, CASE WHEN stays THEN seq ELSE nextval('outbox_seq_seq'::regclass) END AS number \
     FROM (SELECT * FROM placed ORDER BY seq) AS p), \
     noted AS (INSERT INTO outbox_requeued (seq, id, aggregatetype, aggregateid, place) \
     SELECT number, id, aggregatetype, aggregateid, seq FROM moved WHERE NOT stays) \
     INSERT INTO outbox (seq, id, aggregatetype, aggregateid, type, payload, headers, shard, created_at) \
     SELECT number, id, aggregatetype, aggregateid, type, payload, headers, shard, created_at FROM moved ORDER BY number RETURNING shard, seq"
    )
);

statement!(
    Pg,
    /// Moves lower bounds back before these rows, if the table is polled. A slot that is read has the rows anyway.
    SetLowerBoundsBack { shards: Vec<i16> => Array<SmallInt>, lower_bounds: Vec<i64> => Array<BigInt> } -> BigInt,
    "UPDATE outbox_shard AS s SET sent_through = least(s.sent_through, restored.sent_through), passed = least(s.passed, restored.sent_through) \
     FROM unnest(?, ?) AS restored (shard, sent_through) WHERE s.shard = restored.shard AND s.polled_through = 9223372036854775807"
);
