//! What must be true of the server and the tables before anything is claimed.

use diesel_outbox_core::{SHARDS, SourceError};
use mysql::Conn;

use super::connection::Statements;
use crate::source::{NO_TABLE, database_error};

pub(super) fn check(conn: &mut Conn) -> Result<(), SourceError> {
    check_server(conn)?;
    let failed = |error| database_error("looking for the outbox table", error);
    let tables: Vec<(String, Option<String>)> = conn
        .load(
            "SELECT table_name AS name, engine AS engine FROM information_schema.tables WHERE table_schema = DATABASE() \
             AND table_name IN ('outbox', 'outbox_shard', 'outbox_dead_letter')",
        )
        .map_err(failed)?;
    if tables.len() < 3 {
        return Err(SourceError::misconfigured(NO_TABLE));
    }
    for (table, engine) in tables {
        let engine = engine.unwrap_or_default();
        if !engine.eq_ignore_ascii_case("innodb") {
            return Err(SourceError::misconfigured(format!(
                "the table {table} has the engine {engine}, and only InnoDB can hold an outbox: others have no transactions, or no row \
                 locks, so events of transactions that were rolled back would be sent, and some twice. Stop what emits, and run ALTER \
                 TABLE {table} ENGINE = InnoDB"
            )));
        }
    }
    let shards: Option<i64> = conn.first("SELECT COUNT(*) FROM outbox_shard").map_err(failed)?;
    if shards != Some(i64::from(SHARDS)) {
        let rows: Vec<String> = (0..SHARDS).map(|shard| format!("({shard}, '')")).collect();
        return Err(SourceError::misconfigured(format!(
            "the table outbox_shard has {} of the {SHARDS} shards, and events of the others would not be sent: run \
             INSERT IGNORE INTO outbox_shard (shard, unsent) VALUES {}",
            shards.unwrap_or_default(),
            rows.join(", ")
        )));
    }
    Ok(())
}

/// MariaDB's own number: the one that it sends at the beginning of a connection is that of an old MySQL.
fn number(version: &str) -> (u16, u16, u16) {
    let mut numbers =
        version.split(|c: char| !c.is_ascii_digit()).map(|number| number.parse().unwrap_or_default());
    let mut next = || numbers.next().unwrap_or_default();
    (next(), next(), next())
}

fn check_server(conn: &mut Conn) -> Result<(), SourceError> {
    let failed = |error| database_error("asking the server for its version", error);
    let row: Option<(String, i64, String)> =
        conn.first("SELECT VERSION(), @@log_bin, @@binlog_format").map_err(failed)?;
    let (version, logs, format) = row.unwrap_or_default();
    let is_mariadb = version.contains("MariaDB");
    let least = if is_mariadb { (10, 6, 0) } else { (8, 0, 4) };
    if number(&version) < least {
        return Err(SourceError::misconfigured(format!(
            "the server is {version}, and the relay needs MySQL 8.0.4 or MariaDB 10.6 or later, which can pass over rows that another relay has \
             locked (SKIP LOCKED) and read a list as a table (JSON_TABLE)"
        )));
    }
    if logs == 1 && format.eq_ignore_ascii_case("statement") {
        return Err(SourceError::misconfigured(
            "the server's binlog_format is STATEMENT, with which InnoDB refuses the relay's READ COMMITTED: set it to MIXED or ROW in \
             the server's configuration, and until its next start with SET GLOBAL binlog_format = 'MIXED'; sessions that are open \
             keep the old one",
        ));
    }
    let several: Vec<(String, String)> = conn
        .load(
            "SHOW GLOBAL VARIABLES WHERE Variable_name = 'wsrep_on' AND Value = 'ON' \
             OR Variable_name = 'group_replication_single_primary_mode' AND Value = 'OFF' \
             OR Variable_name = 'auto_increment_increment' AND Value > 1",
        )
        .map_err(failed)?;
    if let Some((name, value)) = several.first() {
        return Err(SourceError::misconfigured(format!(
            "the server has {name} = {value}, as if it were one of several that are written to (Galera, group replication with several \
             primaries, circular replication): its row locks hold on it alone, and the others' rows appear in an order of their \
             own, so two relays could send one event, and events could be overlooked. Use a server whose replicas are not written to"
        )));
    }
    Ok(())
}
