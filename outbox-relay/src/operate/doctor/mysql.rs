use std::time::SystemTime;

use diesel::QueryResult;
use mysql::Conn;
use mysql::prelude::{FromRow, Queryable};

use super::{Examine, Finding, LONG_OPEN, Verdict, clock_finding, lag_findings, looked};
use crate::operate::Operate;
use crate::operate::mysql::failed;
use crate::source::mysql::{check_server, check_tables, open_transactions, row_of};

/// What a relay does, none of which runs: to explain a statement takes the same privileges.
const NEEDED: [(&str, &str, &str); 11] = [
    ("outbox", "UPDATE (sent_at)", "UPDATE outbox SET sent_at = NULL WHERE seq = 0"),
    ("outbox", "DELETE", "DELETE FROM outbox WHERE seq = 0"),
    ("outbox", "SELECT", "SELECT * FROM outbox WHERE seq = 0"),
    (
        "outbox",
        "INSERT (id, aggregatetype, aggregateid, type, payload, headers, shard, created_at)",
        "INSERT INTO outbox (id, aggregatetype, aggregateid, type, payload, headers, shard, created_at) \
         VALUES ('', '', '', '', NULL, NULL, 0, UTC_TIMESTAMP(3))",
    ),
    ("outbox_scheduled", "SELECT", "SELECT * FROM outbox_scheduled WHERE seq = 0"),
    ("outbox_scheduled", "DELETE", "DELETE FROM outbox_scheduled WHERE seq = 0"),
    ("outbox_promotion", "SELECT", "SELECT * FROM outbox_promotion WHERE turn = 0"),
    ("outbox_promotion", "UPDATE", "UPDATE outbox_promotion SET turn = 0 WHERE turn = 0"),
    ("outbox_shard", "UPDATE", "UPDATE outbox_shard SET unsent = '' WHERE shard = 99"),
    ("outbox_dead_letter", "SELECT", "SELECT * FROM outbox_dead_letter WHERE seq = 0"),
    (
        "outbox_dead_letter",
        "INSERT",
        "INSERT INTO outbox_dead_letter (seq, id, aggregatetype, aggregateid, type, shard, created_at, reason) \
         VALUES (0, '', '', '', '', 0, UTC_TIMESTAMP(3), '')",
    ),
];
/// So many old versions of rows are worth a warning.
const LONG_HISTORY: i64 = 1_000_000;

impl Examine for Conn {
    fn examine(&mut self) -> Vec<Finding> {
        looked("server", briefly(self, |conn| Ok(examined(conn))))
    }

    fn recent_aggregate_types(&mut self) -> QueryResult<Vec<String>> {
        let query = "SELECT DISTINCT aggregatetype FROM (SELECT aggregatetype FROM outbox ORDER BY seq DESC LIMIT 10000) AS recent \
                     ORDER BY 1";
        let rows = briefly(self, |conn| conn.query::<mysql::Row, _>(query)).map_err(failed)?;
        let types = rows.into_iter().map(|row| row_of::<(String,)>(row).map(|(name,)| name));
        types.collect::<mysql::Result<_>>().map_err(failed)
    }
}

/// Looks at something, and does not wait for long for a table that somebody changes. A server waits for a year by default.
fn briefly<T>(conn: &mut Conn, look: impl FnOnce(&mut Conn) -> mysql::Result<T>) -> mysql::Result<T> {
    conn.query_drop("SET SESSION lock_wait_timeout = 2, SESSION innodb_lock_wait_timeout = 2")?;
    let looked = look(conn);
    conn.query_drop("SET SESSION lock_wait_timeout = DEFAULT, SESSION innodb_lock_wait_timeout = DEFAULT")?;
    looked
}

fn examined(conn: &mut Conn) -> Vec<Finding> {
    let mut findings = vec![match check_server(conn) {
        Ok(()) => Finding::ok("server", "its version and its binlog suit the relay"),
        Err(error) => Finding::fail("server", error.to_string()),
    }];
    findings.extend(looked("durability", settings(conn)));
    let tables = check_tables(conn);
    let are_there = tables.is_ok();
    findings.push(match tables {
        Ok(()) => Finding::ok("tables", "they are there, with all shards, in InnoDB"),
        Err(error) => Finding::fail("tables", error.to_string()),
    });
    findings.extend(looked("connections", connections(conn)));
    findings.push(writers(conn));
    findings.push(prepared(conn));
    findings.push(bloat(conn));
    findings.extend(looked("clock", clock(conn)));
    if are_there {
        findings.push(role(conn));
        findings.extend(looked("lag", conn.lag().map(|lag| lag_findings(&lag))));
    }
    findings
}

/// The first row, if it has these types.
fn first<T: FromRow>(conn: &mut Conn, query: &str) -> mysql::Result<Option<T>> {
    conn.query_first::<mysql::Row, _>(query)?.map(row_of).transpose()
}

fn settings(conn: &mut Conn) -> mysql::Result<Vec<Finding>> {
    let row: Option<(i64, i64, i64, i64)> = first(
        conn,
        "SELECT @@innodb_flush_log_at_trx_commit, @@log_bin, @@sync_binlog, CONCAT('', @@read_only) NOT IN ('0', 'OFF')",
    )?;
    let (flush, binlog, sync, read_only) = row.unwrap_or_default();
    let mut unsafe_settings = Vec::new();
    if flush != 1 {
        unsafe_settings.push(format!("innodb_flush_log_at_trx_commit is {flush}"));
    }
    if binlog == 1 && sync != 1 {
        unsafe_settings.push(format!("sync_binlog is {sync}"));
    }
    let durability = (!unsafe_settings.is_empty()).then(|| {
        let text = format!(
            "{}: after a crash of the machine, events may be lost that services have committed, or replicas may differ. Set each to 1",
            unsafe_settings.join(" and ")
        );
        (Verdict::Warn, text)
    });
    let writable = (read_only == 1).then(|| {
        let text = "read_only is ON, so the server takes no writes: name the primary in the URL";
        (Verdict::Fail, text.to_owned())
    });
    Ok(vec![
        Finding::of("durability", durability, "what is committed survives a crash"),
        Finding::of("writable", writable, "the server takes writes"),
    ])
}

fn connections(conn: &mut Conn) -> mysql::Result<Vec<Finding>> {
    let (most,): (i64,) = first(conn, "SELECT @@max_connections")?.unwrap_or_default();
    let (_, used): (String, String) =
        first(conn, "SHOW GLOBAL STATUS LIKE 'Threads_connected'")?.unwrap_or_default();
    let used = used.parse().unwrap_or(0);
    let problem = (most - used < 5).then(|| {
        let text = format!("{used} of {most} are taken: raise max_connections, or let services take fewer");
        (Verdict::Warn, text)
    });
    Ok(vec![Finding::of("connections", problem, format!("{} of {most} are free", most - used))])
}

fn writers(conn: &mut Conn) -> Finding {
    let Some(open) = open_transactions(conn) else {
        return Finding::warn(
            "writers",
            "the role does not see transactions that stay open: GRANT PROCESS ON *.* TO it, or look in information_schema.innodb_trx as \
             an administrator",
        );
    };
    match open.first() {
        Some((connection, seconds)) if u64::try_from(*seconds).unwrap_or_default() >= LONG_OPEN.as_secs() => {
            Finding::warn(
                "writers",
                format!(
                    "a transaction that has changed something stays open for {seconds} s: find out what it waits for, or end it, which rolls it \
                 back: KILL {connection} (if that is 0 it is prepared: XA RECOVER lists it)"
                ),
            )
        }
        _ => Finding::ok("writers", "no transaction that may have emitted stays open"),
    }
}

fn prepared(conn: &mut Conn) -> Finding {
    match conn.query::<mysql::Row, _>("XA RECOVER") {
        Ok(rows) if rows.is_empty() => Finding::ok("prepared", "no transaction stays prepared"),
        Ok(rows) => Finding::warn(
            "prepared",
            format!(
                "{} transactions are prepared (XA): if XA RECOVER still lists one in a minute, ask its coordinator, and only if that does not know it run XA COMMIT or XA \
                 ROLLBACK with its name",
                rows.len()
            ),
        ),
        Err(_) => Finding::ok(
            "prepared",
            "not visible to the role, which a relay does not need: XA RECOVER lists them",
        ),
    }
}

/// Old versions of rows, which InnoDB keeps for transactions that are open.
fn bloat(conn: &mut Conn) -> Finding {
    let query = "SELECT count FROM information_schema.innodb_metrics WHERE name = 'trx_rseg_history_len'";
    let length = first::<(i64,)>(conn, query).map(|row| row.map(|(length,)| length));
    match length {
        Ok(Some(length)) if length > LONG_HISTORY => Finding::warn(
            "bloat",
            format!(
                "InnoDB keeps {length} old versions of rows: end transactions that stay open, on replicas too"
            ),
        ),
        Ok(length) => {
            Finding::ok("bloat", format!("InnoDB keeps {} old versions of rows", length.unwrap_or_default()))
        }
        Err(_) => Finding::ok(
            "bloat",
            "not visible to the role, which a relay does not need: SHOW ENGINE INNODB STATUS has it",
        ),
    }
}

fn clock(conn: &mut Conn) -> mysql::Result<Vec<Finding>> {
    let before = SystemTime::now();
    let query = "SELECT TIMESTAMPDIFF(MICROSECOND, '1970-01-01', UTC_TIMESTAMP(3)) DIV 1000";
    let (theirs,): (i64,) = first(conn, query)?.unwrap_or_default();
    Ok(vec![clock_finding(before, theirs)])
}

fn role(conn: &mut Conn) -> Finding {
    let refused = NEEDED.into_iter().filter_map(|(table, grant, statement)| {
        let explained = conn.query_drop(format!("EXPLAIN {statement}"));
        explained.is_err().then(|| format!("GRANT {grant} ON {table}"))
    });
    let refused: Vec<String> = refused.collect();
    let problem = (!refused.is_empty()).then(|| {
        let text = format!("the role lacks what a relay needs: {}. See docs/mysql.md", refused.join("; "));
        (Verdict::Fail, text)
    });
    Finding::of("role", problem, "the role may do what a relay needs")
}
