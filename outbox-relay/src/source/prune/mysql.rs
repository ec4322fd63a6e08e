//! The statements of pruning on MySQL and MariaDB.

use diesel::QueryResult;
use mysql::Conn;
use mysql::prelude::Queryable;

use super::{CountedDown, Expiry, How, Prunable, PrunedChunk, PrunedDeadLetters, TimedExpiry, Turn};
use crate::operate::mysql_failed as failed;
use crate::source::BLOCKED;
use crate::source::mysql::{Statements, delete_rows, prune_lock, rows_of};

const CHUNK: usize = 1_000;

impl Prunable for Conn {
    /// Otherwise a look would lock the gaps between rows, and emitters would wait.
    fn prepare(&mut self, _of_outbox: bool) -> QueryResult<()> {
        self.execute("SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED").map(drop).map_err(failed)
    }

    /// Takes a user-level lock, which the server releases when the session ends.
    fn take_turn(&mut self) -> QueryResult<Option<Turn>> {
        let lock = prune_lock(self).map_err(failed)?;
        let locked = self.first::<Option<i64>>(&format!("SELECT GET_LOCK('{lock}', 0)")).map_err(failed)?;
        Ok((locked == Some(Some(1))).then_some(Turn { _file: None }))
    }

    fn end_turn(&mut self, _turn: Turn) -> QueryResult<()> {
        let lock = prune_lock(self).map_err(failed)?;
        self.execute(&format!("DO RELEASE_LOCK('{lock}')")).map(drop).map_err(failed)
    }

    fn count_down(&mut self, below: i64, limit: i64) -> QueryResult<CountedDown> {
        let counted = self.first(&format!(
            "SELECT COUNT(*), COUNT(sent_at), MIN(seq) FROM (SELECT seq, sent_at FROM outbox FORCE INDEX (PRIMARY) WHERE seq < {below} \
             ORDER BY seq DESC LIMIT {limit}) AS rows_below"
        ));
        Ok(counted.map_err(failed)?.unwrap_or_default())
    }

    fn sent_below(&mut self, below: i64, others: i64) -> QueryResult<Option<i64>> {
        self.first(&format!(
            "SELECT seq FROM outbox FORCE INDEX (PRIMARY) WHERE seq < {below} AND sent_at IS NOT NULL ORDER BY seq DESC \
             LIMIT 1 OFFSET {others}"
        ))
        .map_err(failed)
    }

    fn sent_chunk(&mut self, after: i64, expiry: Expiry, how: How) -> QueryResult<PrunedChunk> {
        let Expiry { seconds, through } = expiry;
        let ago = ago(seconds);
        let has_expired = format!("(o.sent_at < {ago} OR (o.sent_at IS NOT NULL AND o.seq <= {through}))");
        let rows: Vec<(i64, bool, bool)> = self
            .load(&format!(
                "SELECT o.seq, IFNULL({has_expired}, 0), o.created_at < {ago} OR o.seq <= {through} FROM outbox AS o \
                 WHERE o.seq > {after} ORDER BY o.seq LIMIT {CHUNK}"
            ))
            .map_err(failed)?;
        let expired: Vec<i64> =
            rows.iter().filter(|(_, expired, _)| *expired).map(|(seq, ..)| *seq).collect();
        // The rows of a partition that Kafka does not take may be older than all that is sent.
        let is_old = rows.iter().all(|(.., is_old)| *is_old);
        let goes_on = rows.len() == CHUNK && (is_old || !expired.is_empty());
        if how != How::Counts && !expired.is_empty() {
            delete_beside_locks(self, &expired, &has_expired).map_err(failed)?;
        }
        let last = rows.last().map_or(after, |(seq, ..)| *seq);
        let first_kept = rows.iter().find(|(_, expired, _)| !expired).map(|(seq, ..)| *seq);
        Ok(PrunedChunk::new(last, first_kept, !goes_on, expired.len() as u64))
    }

    fn dead_letters_expire_before(&mut self, expiry: TimedExpiry) -> QueryResult<String> {
        expire_before(self, expiry, "failed_at", "outbox_dead_letter")
    }

    fn dead_letter_chunk(
        &mut self,
        (seq, id): &(i64, String),
        before: &str,
        deletes: bool,
    ) -> QueryResult<PrunedDeadLetters> {
        let rows: Vec<(i64, String, bool)> = self
            .load(&format!(
                "SELECT seq, id, failed_at < '{before}' AND (aggregatetype, aggregateid) NOT IN (SELECT aggregatetype, aggregateid \
                 FROM outbox_dead_letter WHERE reason = '{BLOCKED}') FROM outbox_dead_letter WHERE seq > {seq} OR (seq = {seq} AND id > '{id}') \
                 ORDER BY seq, id LIMIT {CHUNK}"
            ))
            .map_err(failed)?;
        let expired: Vec<&(i64, String, bool)> = rows.iter().filter(|(.., expired)| *expired).collect();
        if deletes && !expired.is_empty() {
            let these: Vec<String> = expired.iter().map(|(seq, id, _)| format!("({seq}, '{id}')")).collect();
            self.execute(&format!(
                "DELETE FROM outbox_dead_letter WHERE (seq, id) IN ({}) AND failed_at < '{before}'",
                these.join(",")
            ))
            .map_err(failed)?;
        }
        let next = rows.last().filter(|_| rows.len() == CHUNK).map(|(seq, id, _)| (*seq, id.clone()));
        Ok(PrunedDeadLetters { next, expired: expired.len() as u64 })
    }

    fn consumer_after(&mut self, consumer: Option<&str>) -> QueryResult<Option<String>> {
        let consumer = consumer.map(str::as_bytes);
        let next: Option<Option<Vec<u8>>> = self
            .exec_first(
                "SELECT MIN(consumer) FROM inbox WHERE ? IS NULL OR consumer > ?",
                (consumer, consumer),
            )
            .map_err(failed)?;
        Ok(next.flatten().map(|name| String::from_utf8_lossy(&name).into_owned()))
    }

    fn marks_expire_before(&mut self, consumer: &str, expiry: TimedExpiry) -> QueryResult<String> {
        let of = format!("inbox WHERE consumer = {}", bytes(consumer));
        expire_before(self, expiry, "received_at", &of)
    }

    fn count_marks(&mut self, consumer: &str, before: &str) -> QueryResult<u64> {
        let count = self.first(&format!(
            "SELECT COUNT(*) FROM inbox WHERE consumer = {} AND received_at < '{before}'",
            bytes(consumer)
        ));
        Ok(count.map_err(failed)?.unwrap_or_default())
    }

    fn prune_marks(&mut self, consumer: &str, before: &str, limit: i64) -> QueryResult<u64> {
        self.execute(&format!(
            "DELETE FROM inbox WHERE consumer = {} AND received_at < '{before}' ORDER BY received_at LIMIT {limit}",
            bytes(consumer)
        ))
        .map_err(failed)
    }
}

fn ago(seconds: f64) -> String {
    format!("UTC_TIMESTAMP(3) - INTERVAL {seconds} SECOND")
}

fn expire_before(conn: &mut Conn, expiry: TimedExpiry, time: &str, of: &str) -> QueryResult<String> {
    let by_age = format!("SELECT CAST({} AS CHAR)", ago(expiry.seconds));
    let age: Option<String> = conn.first(&by_age).map_err(failed)?;
    let number: Option<String> = match expiry.newer {
        ..0 => None,
        newer => conn
            .first(&format!(
                "SELECT CAST({time} AS CHAR) FROM {of} ORDER BY {time} DESC LIMIT 1 OFFSET {newer}"
            ))
            .map_err(failed)?,
    };
    Ok(age.max(number).unwrap_or_default())
}

/// A text as the server takes it whatever its character sets are.
fn bytes(text: &str) -> String {
    let digits: String = text.bytes().map(|byte| format!("{byte:02x}")).collect();
    format!("x'{digits}'")
}

/// Deletes these rows if they have still expired. Leaves out those that somebody has locked: the relay does not wait for them, and finds them
/// again later.
fn delete_beside_locks(conn: &mut Conn, seqs: &[i64], has_expired: &str) -> mysql::Result<()> {
    conn.execute("START TRANSACTION")?;
    let deleted = delete_free(conn, seqs, has_expired);
    // Otherwise the session of a relay that goes on would stay in the transaction.
    conn.execute(if deleted.is_ok() { "COMMIT" } else { "ROLLBACK" })?;
    deleted
}

fn delete_free(conn: &mut Conn, seqs: &[i64], has_expired: &str) -> mysql::Result<()> {
    let rows = rows_of(seqs);
    let free: Vec<i64> =
        conn.load(&format!("SELECT o.seq FROM {rows} WHERE {has_expired} FOR UPDATE SKIP LOCKED"))?;
    if free.is_empty() { Ok(()) } else { delete_rows(conn, &free) }
}
