use diesel::QueryResult;
use mysql::prelude::{FromRow, Queryable};
use mysql::{Conn, Params, params};
use uuid::Uuid;

use super::{Claim, Event, Explain, Explanation, Look, Pruning, Row, Stored, explain};
use crate::operate::mysql::failed;
use crate::source::BLOCKED;
use crate::source::mysql::{is_polled, open_transactions, row_of};

/// The connection is one of the crate `mysql`, which the relay re-exports.
impl Explain for Conn {
    fn explain(&mut self, id: Uuid, pruning: Pruning) -> QueryResult<Explanation> {
        explain(self, id, pruning)
    }
}

fn first<T: FromRow>(conn: &mut Conn, query: &str, values: Params) -> QueryResult<Option<T>> {
    let row = conn.exec_first::<mysql::Row, _, _>(query, values).map_err(failed)?;
    row.map(row_of).transpose().map_err(failed)
}

/// The columns of a [`Row`].
fn columns(seq: &str, since: &str) -> String {
    let ms = |time: &str| format!("TIMESTAMPDIFF(MICROSECOND, '1970-01-01', {time}) DIV 1000");
    format!("{seq}, aggregatetype, aggregateid, type, shard, {}, {}", ms("created_at"), ms(since))
}

fn id_of(id: Uuid) -> Params {
    params! { "id" => id.to_string() }
}

type LongRow = (Option<i64>, String, String, String, i16, i64, Option<i64>, String);

fn split(row: LongRow) -> (Row, String) {
    let (seq, aggregate_type, aggregate_id, event_type, shard, created, since, last) = row;
    ((seq, aggregate_type, aggregate_id, event_type, shard, created, since), last)
}

impl Look for Conn {
    fn scheduled(&mut self, id: Uuid) -> QueryResult<Option<Row>> {
        let columns = columns("NULL", "due_at");
        first(self, &format!("SELECT {columns} FROM outbox_scheduled WHERE id = :id LIMIT 1"), id_of(id))
    }

    fn stored(&mut self, id: Uuid) -> QueryResult<Option<Stored>> {
        let columns = columns("seq", "sent_at");
        let query =
            format!("SELECT {columns} FROM outbox WHERE id = :id ORDER BY sent_at IS NOT NULL LIMIT 1");
        let row: Option<Row> = first(self, &query, id_of(id))?;
        Ok(row.map(|row| Stored { is_sent: row.6.is_some(), row, is_read_from_wal: false }))
    }

    fn dead(&mut self, id: Uuid) -> QueryResult<Option<(Row, String)>> {
        let columns = columns("seq", "failed_at");
        let query = format!("SELECT {columns}, reason FROM outbox_dead_letter WHERE id = :id LIMIT 1");
        Ok(first::<LongRow>(self, &query, id_of(id))?.map(split))
    }

    fn not_committed(&mut self, id: Uuid) -> QueryResult<Option<Row>> {
        // For the next statement alone
        self.query_drop("SET TRANSACTION ISOLATION LEVEL READ UNCOMMITTED").map_err(failed)?;
        let columns = columns("seq", "sent_at");
        first(self, &format!("SELECT {columns} FROM outbox WHERE id = :id LIMIT 1"), id_of(id))
    }

    fn open_transactions(&mut self) -> QueryResult<Option<Vec<String>>> {
        let named = |(connection, seconds): (u64, i64)| match connection {
            0 => format!("one that is prepared, for {seconds} s (XA RECOVER lists it)"),
            _ => format!("connection {connection}, for {seconds} s"),
        };
        Ok(open_transactions(self).map(|open| open.into_iter().map(named).collect()))
    }

    fn first_dead_letter(&mut self, event: &Event) -> QueryResult<Option<(String, String)>> {
        let values = params! {
            "aggregate_type" => &event.aggregate_type, "aggregate_id" => &event.aggregate_id, "blocked" => BLOCKED,
        };
        first(
            self,
            "SELECT id, reason FROM outbox_dead_letter WHERE CAST(aggregatetype AS BINARY) = CAST(:aggregate_type AS BINARY) \
             AND CAST(aggregateid AS BINARY) = CAST(:aggregate_id AS BINARY) AND reason <> :blocked ORDER BY seq LIMIT 1",
            values,
        )
    }

    fn before(&mut self, shard: i16, seq: i64) -> QueryResult<i64> {
        let query = "SELECT COUNT(*) FROM outbox WHERE shard = :shard AND seq < :seq AND sent_at IS NULL";
        let count = first::<(i64,)>(self, query, params! { "shard" => shard, "seq" => seq })?;
        Ok(count.map_or(0, |(count,)| count))
    }

    fn claim(&mut self, shard: i16) -> QueryResult<Claim> {
        // The lock is held for no longer than the statement, and a relay looks again within a moment.
        let query = "SELECT shard FROM outbox_shard WHERE shard = :shard FOR UPDATE SKIP LOCKED";
        let free = first::<(i16,)>(self, query, params! { "shard" => shard });
        Ok(match free {
            Ok(Some(_)) => Claim::Free,
            Ok(None) => Claim::Claimed(None),
            // The role may not lock it.
            Err(_) => Claim::Unknown,
        })
    }

    fn has_relay(&mut self) -> QueryResult<Option<bool>> {
        is_polled(self).map(Some).map_err(failed)
    }
}
