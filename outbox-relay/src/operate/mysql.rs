use diesel::QueryResult;
use diesel::result::{DatabaseErrorKind, Error};
use diesel_outbox_core::Lag;
use mysql::prelude::Queryable;
use mysql::{Conn, IsolationLevel, Params, TxOpts, params};

use super::{
    DeadLetter, DeadLetterRow, Operate, Requeue, Schedule, Unsent, dead_letter, hex, schedule_of, unsent,
};
use crate::source::mysql::{
    self as polling, Bound, COLUMNS, UnsentShare, lag, listed, load_bounds, row_of, unsent_of_shards,
};
use crate::source::promote::promote_all;

/// The connection is one of the crate `mysql`, which the relay re-exports.
impl Operate for Conn {
    fn lag(&mut self) -> QueryResult<Lag> {
        let bounds = load_bounds(self, &format!("SELECT {COLUMNS} FROM outbox_shard")).map_err(failed)?;
        lag(self, &bounds).map_err(failed)
    }

    fn unsent(&mut self) -> QueryResult<Vec<Unsent>> {
        let bounds = load_bounds(self, &format!("SELECT {COLUMNS} FROM outbox_shard")).map_err(failed)?;
        let rows = unsent_of_shards(self, &bounds).map_err(failed)?;
        let row = |(aggregate_type, shard, count, oldest): UnsentShare| {
            let aggregate_type = String::from_utf8_lossy(&aggregate_type).into_owned();
            unsent((aggregate_type, shard, count, oldest as f64 / 1_000_000.0))
        };
        Ok(rows.into_iter().map(row).collect())
    }

    fn dead_letters(&mut self, limit: i64) -> QueryResult<Vec<DeadLetter>> {
        let statement = format!("{DEAD_LETTERS} ORDER BY seq, failed_at LIMIT ?");
        let rows = self.exec_iter(statement, (limit,)).map_err(failed)?;
        rows.map(|row| row_of::<DeadLetterRow>(row?).map(dead_letter))
            .collect::<mysql::Result<_>>()
            .map_err(failed)
    }

    fn schedule(&mut self) -> QueryResult<Schedule> {
        schedule_of(self).map_err(failed)
    }

    fn promote(&mut self) -> QueryResult<usize> {
        promote_all(self).map_err(failed)
    }

    fn requeue(&mut self, which: &Requeue) -> QueryResult<usize> {
        requeue(self, which).map_err(failed)
    }

    fn drop_dead_letters(&mut self, which: &Requeue) -> QueryResult<usize> {
        self.exec_drop(statement(FORGET, which), values(which)).map_err(failed)?;
        Ok(usize::try_from(self.affected_rows()).unwrap_or(usize::MAX))
    }
}

/// Returns whether a relay polls the outbox in the connection's database.
///
/// # Errors
/// Returns the database's error.
pub fn is_polled(conn: &mut Conn) -> QueryResult<bool> {
    polling::is_polled(conn).map_err(failed)
}

pub(crate) fn failed(error: mysql::Error) -> Error {
    Error::DatabaseError(DatabaseErrorKind::Unknown, Box::new(error.to_string()))
}

/// With the locks of all shards, so that nobody moves a bound meanwhile: rows up to it are put into its list.
fn requeue(conn: &mut Conn, which: &Requeue) -> mysql::Result<usize> {
    // Otherwise it would lock the gaps between the rows, and emitters would wait.
    let isolation = TxOpts::default().set_isolation_level(Some(IsolationLevel::ReadCommitted));
    let mut transaction = conn.start_transaction(isolation)?;
    let bounds = load_bounds(
        &mut transaction,
        &format!("SELECT {COLUMNS} FROM outbox_shard ORDER BY shard FOR UPDATE"),
    )?;
    let mut restored: Vec<(i16, i64)> = Vec::new();
    for row in transaction.exec_iter(statement(PLACES, which), values(which))? {
        restored.push(row_of(row?)?);
    }
    for (shard, Bound { sent_through, mut unsent, .. }) in bounds {
        let before = unsent.len();
        unsent.extend(
            restored.iter().filter(|(of, seq)| *of == shard && *seq <= sent_through).map(|(_, seq)| *seq),
        );
        if unsent.len() > before {
            unsent.sort_unstable();
            let list = listed(unsent);
            transaction
                .query_drop(format!("UPDATE outbox_shard SET unsent = '{list}' WHERE shard = {shard}"))?;
        }
    }
    transaction.exec_drop(statement(RESTORE, which), values(which))?;
    transaction.exec_drop(statement(FORGET, which), values(which))?;
    let forgotten = transaction.affected_rows();
    transaction.commit()?;
    Ok(usize::try_from(forgotten).unwrap_or(usize::MAX))
}

/// All of them, as the rows that [`dead_letter`] takes.
pub(super) const DEAD_LETTERS: &str = "SELECT seq, id, aggregatetype, aggregateid, type, \
    TIMESTAMPDIFF(MICROSECOND, '1970-01-01', created_at) DIV 1000, reason, \
    TIMESTAMPDIFF(MICROSECOND, '1970-01-01', failed_at) DIV 1000 \
    FROM outbox_dead_letter";

/// Those with their old numbers: no other row has the number because the table was truncated since.
const PLACES: &str = "SELECT shard, MIN(d.seq) FROM outbox_dead_letter AS d WHERE {which} \
    AND NOT EXISTS (SELECT 1 FROM outbox AS o WHERE o.seq = d.seq) GROUP BY shard, d.seq";

/// Puts them back at their old place, or under a new number if another event has the old one. Later dead letters of an aggregate stay behind
/// earlier ones. Those with old numbers come first, so that no new number is one of theirs.
const RESTORE: &str = "INSERT INTO outbox (seq, id, aggregatetype, aggregateid, type, payload, headers, shard, created_at) \
    SELECT CASE WHEN stays = 1 THEN seq ELSE NULL END, id, aggregatetype, aggregateid, type, payload, headers, shard, created_at \
    FROM (SELECT f.*, MIN(f.is_free) OVER (PARTITION BY CAST(f.aggregatetype AS BINARY), CAST(f.aggregateid AS BINARY) ORDER BY f.seq) AS stays \
    FROM (SELECT d.*, CASE WHEN EXISTS (SELECT 1 FROM outbox AS o WHERE o.seq = d.seq) \
    OR ROW_NUMBER() OVER (PARTITION BY d.seq ORDER BY d.failed_at, d.id) > 1 THEN 0 ELSE 1 END AS is_free \
    FROM outbox_dead_letter AS d WHERE {which}) AS f) AS placed ORDER BY stays DESC, seq";

const FORGET: &str = "DELETE FROM outbox_dead_letter WHERE {which}";

fn values(which: &Requeue) -> Params {
    let (id, aggregate_type, aggregate_id) = which.conditions();
    params! {
        "id" => id.map(|id| id.to_string()), "aggregate_type" => aggregate_type, "aggregate_id" => aggregate_id,
    }
}

/// The aggregates are compared as bytes: as texts, two are equal that differ in trailing spaces. Listed ids are written as hexadecimal
/// digits, because they may be any text.
fn statement(with: &str, which: &Requeue) -> String {
    let listed = which.listed().map_or(String::new(), |(seqs, ids)| {
        let ids: Vec<String> = ids.iter().map(|id| format!("'{}'", hex(id))).collect();
        format!(
            " AND seq IN ({}) AND HEX(id) IN ({})",
            at_least_one(listed(seqs)),
            at_least_one(ids.join(","))
        )
    });
    let which = "id = COALESCE(:id, id) AND (:aggregate_type IS NULL OR CAST(aggregatetype AS BINARY) = CAST(:aggregate_type AS BINARY)) \
         AND (:aggregate_id IS NULL OR CAST(aggregateid AS BINARY) = CAST(:aggregate_id AS BINARY))";
    with.replace("{which}", &format!("{which}{listed}"))
}

/// A list must not be empty.
fn at_least_one(list: String) -> String {
    if list.is_empty() { "NULL".to_owned() } else { list }
}
