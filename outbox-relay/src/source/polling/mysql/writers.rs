//! Transactions that have emitted and stay open. Their rows take places in the shards' lists, and the server keeps old versions of all
//! that is changed meanwhile.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use mysql::Conn;

use super::bounds::{self, listed};
use super::connection::Statements;

/// How old a row is before the relay warns of its transaction, and how often it does.
const LONG: Duration = Duration::from_secs(60);
const AGAIN: Duration = Duration::from_secs(600);
/// So many rows after the bounds are looked at. If more wait, the relay has other worries.
const MOST_ROWS: usize = 1_000;

#[derive(Default)]
pub(super) struct Writers {
    /// The oldest row that is not committed, and when the relay last warned of its transaction.
    warned: Option<(i64, Instant)>,
}

impl Writers {
    /// Returns how long ago the oldest row was emitted that is not committed, and warns of a transaction that has been open for long.
    pub(super) fn look(
        &mut self,
        conn: &mut Conn,
        uncommitted: &mut Conn,
        bounds: &bounds::Claimed,
    ) -> mysql::Result<Duration> {
        let oldest = oldest(conn, uncommitted, bounds)?;
        let Some((seq, age)) = oldest else {
            self.warned = None;
            return Ok(Duration::ZERO);
        };
        if age >= LONG && self.is_due(seq, Instant::now()) {
            warn(age, open_transactions(conn).as_deref());
        }
        Ok(age)
    }

    fn is_due(&mut self, seq: i64, now: Instant) -> bool {
        let is_due = self
            .warned
            .is_none_or(|(warned, at)| warned != seq || now.saturating_duration_since(at) >= AGAIN);
        if is_due {
            self.warned = Some((seq, now));
        }
        is_due
    }
}

/// The row that was emitted first among those that are not committed: its `seq`, and how long ago that was.
///
/// Such a row is there without being committed. One that is gone at the second look was committed, and then sent and deleted.
fn oldest(
    conn: &mut Conn,
    uncommitted: &mut Conn,
    bounds: &bounds::Claimed,
) -> mysql::Result<Option<(i64, Duration)>> {
    let (lowest, list) = (bounds::lowest(bounds), bounds::unsent(bounds));
    let rows: Vec<(i64, Option<i64>)> = uncommitted.load(&format!(
        "SELECT seq, TIMESTAMPDIFF(MICROSECOND, created_at, UTC_TIMESTAMP(3)) FROM \
         ((SELECT seq, created_at FROM outbox WHERE seq IN ({list}) AND sent_at IS NULL) UNION ALL \
         (SELECT seq, created_at FROM outbox FORCE INDEX (PRIMARY) WHERE seq > {lowest} AND sent_at IS NULL \
         ORDER BY seq LIMIT {MOST_ROWS})) AS unsent"
    ))?;
    let mut rows: BTreeMap<i64, Option<i64>> = rows.into_iter().collect();
    for seq in present(conn, &rows)? {
        rows.remove(&seq);
    }
    let still = present(uncommitted, &rows)?;
    let ages = still.into_iter().map(|seq| {
        let micros = rows.get(&seq).copied().flatten().unwrap_or_default();
        (seq, Duration::from_micros(u64::try_from(micros).unwrap_or_default()))
    });
    Ok(ages.max_by_key(|(_, age)| *age))
}

/// Which of these rows the connection sees.
fn present(conn: &mut Conn, rows: &BTreeMap<i64, Option<i64>>) -> mysql::Result<Vec<i64>> {
    if rows.is_empty() {
        return Ok(Vec::new());
    }
    conn.load(&format!("SELECT seq FROM outbox WHERE seq IN ({})", listed(rows.keys())))
}

/// The connections to this database, and to none, whose transactions have changed something, with their ages in seconds, the oldest
/// first; or nothing if the role may not see them. The server does not say which of them has changed which table.
pub(crate) fn open_transactions(conn: &mut Conn) -> Option<Vec<(u64, i64)>> {
    conn.load(
        "SELECT t.trx_mysql_thread_id, TIMESTAMPDIFF(SECOND, CONVERT_TZ(t.trx_started, 'SYSTEM', '+00:00'), UTC_TIMESTAMP()) \
         FROM information_schema.innodb_trx AS t LEFT JOIN information_schema.processlist AS p ON p.id = t.trx_mysql_thread_id \
         WHERE t.trx_rows_modified > 0 AND t.trx_mysql_thread_id <> CONNECTION_ID() AND (p.db IS NULL OR p.db = DATABASE()) \
         ORDER BY t.trx_started LIMIT 5",
    )
    .ok()
}

const STAYS_OPEN: &str = "a transaction that has emitted stays open: until it ends, the server keeps old versions of all rows that are \
                          changed, and each of its events is looked for again and again";

fn warn(age: Duration, open: Option<&[(u64, i64)]>) {
    let seconds = age.as_secs();
    match open {
        Some(oldest_first @ [(connection, _), ..]) => tracing::warn!(
            connection,
            seconds,
            ?oldest_first,
            "{STAYS_OPEN}; find out what it waits for, or end it, which rolls it back: KILL {connection} (if that is 0 it is prepared: \
             XA RECOVER lists it)"
        ),
        Some([]) => {}
        None => tracing::warn!(
            seconds,
            "{STAYS_OPEN}; information_schema.innodb_trx shows its connection, also to the relay if its role has the privilege PROCESS"
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_transaction_is_warned_of_every_ten_minutes_and_another_one_at_once() {
        let mut writers = Writers::default();
        let began = Instant::now();
        let mut is_due = |seq, after| writers.is_due(seq, began + Duration::from_secs(after));
        assert!(is_due(7, 0));
        assert!(!is_due(7, 599));
        assert!(is_due(7, 600));
        assert!(is_due(9, 601));
    }
}
