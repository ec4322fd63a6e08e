use mysql::{Conn, Error, Result};

use super::Promote;
use crate::source::mysql::Statements;

impl Promote for Conn {
    type Error = Error;

    fn has_schedule(&mut self) -> Result<bool> {
        let tables: Option<i64> = self.first(
            "SELECT COUNT(*) FROM information_schema.tables WHERE table_schema = DATABASE() \
             AND table_name IN ('outbox_scheduled', 'outbox_promotion')",
        )?;
        Ok(tables == Some(2))
    }

    fn next_due(&mut self) -> Result<Option<f64>> {
        let micros: Option<Option<i64>> = self.first(
            "SELECT TIMESTAMPDIFF(MICROSECOND, UTC_TIMESTAMP(6), MIN(due_at)) FROM outbox_scheduled",
        )?;
        Ok(micros.flatten().map(|micros| micros as f64 / 1e6))
    }

    fn promote(&mut self, limit: i64) -> Result<Option<usize>> {
        // With a snapshot it would lock the gaps between the rows, and emitters would wait.
        self.execute("SET TRANSACTION ISOLATION LEVEL READ COMMITTED")?;
        self.execute("START TRANSACTION")?;
        let moved = step(self, limit);
        match &moved {
            Ok(_) => self.execute("COMMIT")?,
            Err(_) => self.execute("ROLLBACK")?,
        };
        moved
    }

    fn count_scheduled(&mut self) -> Result<u64> {
        Ok(self.first("SELECT COUNT(*) FROM outbox_scheduled")?.unwrap_or_default())
    }
}

/// Locks rows by their primary key, as whoever cancels one does: no two sessions lock them in different orders.
fn step(conn: &mut Conn, limit: i64) -> Result<Option<usize>> {
    if conn.first::<i16>("SELECT turn FROM outbox_promotion FOR UPDATE SKIP LOCKED")?.is_none() {
        return Ok(None);
    }
    let due: Vec<String> = conn.load(&format!(
        "SELECT id FROM outbox_scheduled WHERE due_at <= UTC_TIMESTAMP(6) ORDER BY due_at, seq LIMIT {limit}"
    ))?;
    if due.is_empty() {
        return Ok(Some(0));
    }
    let free: Vec<String> = conn.load(&format!(
        "SELECT id FROM outbox_scheduled FORCE INDEX (PRIMARY) WHERE id IN ({}) FOR UPDATE SKIP LOCKED",
        list(&due)
    ))?;
    if free.is_empty() {
        return Ok(Some(0));
    }
    let free = list(&free);
    // `created_at` becomes that of a row that is emitted now: see docs/scheduled.md.
    let moved = conn.execute(&format!(
        "INSERT INTO outbox (id, aggregatetype, aggregateid, type, payload, headers, shard, created_at) \
         SELECT id, aggregatetype, aggregateid, type, payload, headers, shard, UTC_TIMESTAMP(3) \
         FROM outbox_scheduled FORCE INDEX (PRIMARY) WHERE id IN ({free}) ORDER BY due_at, seq"
    ))?;
    conn.execute(&format!("DELETE FROM outbox_scheduled WHERE id IN ({free})"))?;
    Ok(usize::try_from(moved).ok())
}

/// Returns the ids as they stand in a statement. What is not a UUID was not emitted by us, so it is quoted too.
fn list(ids: &[String]) -> String {
    ids.iter()
        .map(|id| format!("'{}'", id.replace('\\', "").replace('\'', "''")))
        .collect::<Vec<_>>()
        .join(",")
}
