//! What must be true of the server and the tables before anything is claimed.

use diesel_outbox_core::{SHARDS, SourceError};
use mysql::Conn;

use super::connection::Statements;
use crate::source::{NO_TABLE, database_error};

pub(super) fn check(conn: &mut Conn) -> Result<(), SourceError> {
    check_server(conn)?;
    check_tables(conn)
}

pub(crate) fn check_tables(conn: &mut Conn) -> Result<(), SourceError> {
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

pub(crate) fn check_server(conn: &mut Conn) -> Result<(), SourceError> {
    let failed = |error| database_error("asking the server for its version", error);
    let row: Option<(String, i64, String)> =
        conn.first("SELECT VERSION(), @@log_bin, @@binlog_format").map_err(failed)?;
    let (version, binlog, binlog_format) = row.unwrap_or_default();
    let variables = conn
        .load(
            "SHOW GLOBAL VARIABLES WHERE Variable_name IN \
             ('wsrep_on', 'group_replication_single_primary_mode', 'auto_increment_increment')",
        )
        .map_err(failed)?;
    let server = Server { version, binlog: (binlog == 1).then_some(binlog_format), variables };
    server.refusal().map_or(Ok(()), |refusal| Err(SourceError::misconfigured(refusal)))
}

/// What a server says about itself.
#[derive(Debug)]
struct Server {
    version: String,
    /// The format of the binary log, if it has one.
    binlog: Option<String>,
    /// Those that servers have which are written to together.
    variables: Vec<(String, String)>,
}

impl Server {
    /// Returns why the relay cannot work with this server, if so.
    fn refusal(&self) -> Option<String> {
        let version = &self.version;
        let least = if version.contains("MariaDB") { (10, 6, 0) } else { (8, 0, 4) };
        if number(version) < least {
            return Some(format!(
                "the server is {version}, and the relay needs MySQL 8.0.4 or MariaDB 10.6 or later, which can pass over rows that another \
                 relay has locked (SKIP LOCKED) and read a list as a table (JSON_TABLE)"
            ));
        }
        if self.binlog.as_deref().is_some_and(|format| format.eq_ignore_ascii_case("statement")) {
            return Some(
                "the server's binlog_format is STATEMENT, with which InnoDB refuses the relay's READ COMMITTED: set it to MIXED or ROW in \
                 the server's configuration, and until its next start with SET GLOBAL binlog_format = 'MIXED'; sessions that are open \
                 keep the old one"
                    .into(),
            );
        }
        let (name, value) = self.variables.iter().find(|(name, value)| says_several(name, value))?;
        Some(format!(
            "the server has {name} = {value}, as if it were one of several that are written to (Galera, group replication with several \
             primaries, circular replication): its row locks hold on it alone, and the others' rows appear in an order of their \
             own, so two relays could send one event, and events could be overlooked. Use a server whose replicas are not written to"
        ))
    }
}

/// Returns whether a variable with this value says that the server is one of several that are written to.
fn says_several(name: &str, value: &str) -> bool {
    match name.to_ascii_lowercase().as_str() {
        "wsrep_on" => value.eq_ignore_ascii_case("on"),
        "group_replication_single_primary_mode" => value.eq_ignore_ascii_case("off"),
        _ => value != "1",
    }
}

/// The first three numbers of a version.
fn number(version: &str) -> (u16, u16, u16) {
    let mut numbers =
        version.split(|c: char| !c.is_ascii_digit()).map(|number| number.parse().unwrap_or_default());
    let mut next = || numbers.next().unwrap_or_default();
    (next(), next(), next())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server(version: &str, variables: &[(&str, &str)]) -> Server {
        let variables = variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        Server { version: version.to_owned(), binlog: Some("ROW".to_owned()), variables: variables.collect() }
    }

    #[test]
    fn a_server_that_is_too_old_is_refused_by_its_version() {
        for old in ["5.7.44-log", "8.0.3-rc-log", "5.5.68-MariaDB", "10.5.29-MariaDB-0+deb11u1", ""] {
            let refusal = server(old, &[]).refusal().expect(old);
            assert!(refusal.starts_with(&format!("the server is {old}, and the relay needs MySQL 8.0.4")));
        }
        for new in [
            "8.0.4-rc",
            "8.0.45-0ubuntu0.24.04.1",
            "8.4.7",
            "9.7.0",
            "10.6.0-MariaDB",
            "10.11.14-MariaDB-0+deb12u2-log",
            "11.8.3-MariaDB-1+b1",
        ] {
            assert_eq!(server(new, &[]).refusal(), None, "{new}");
        }
    }

    #[test]
    fn a_server_that_is_one_of_several_that_are_written_to_is_refused() {
        for several in [
            ("wsrep_on", "ON"),
            ("group_replication_single_primary_mode", "OFF"),
            ("auto_increment_increment", "2"),
        ] {
            let refusal = server("11.8.3-MariaDB", &[several]).refusal().expect(several.0);
            let (name, value) = several;
            assert!(refusal.starts_with(&format!("the server has {name} = {value}, as if")), "{refusal}");
        }
        let alone = [
            ("wsrep_on", "OFF"),
            ("group_replication_single_primary_mode", "ON"),
            ("auto_increment_increment", "1"),
        ];
        assert_eq!(server("11.8.3-MariaDB", &alone).refusal(), None);
    }

    #[test]
    fn the_format_of_the_binary_log_counts_only_if_there_is_one() {
        let with = |format: Option<&str>| {
            let binlog = format.map(str::to_owned);
            Server { binlog, ..server("9.7.0", &[]) }.refusal()
        };
        assert!(with(Some("STATEMENT")).expect("a refusal").contains("SET GLOBAL binlog_format = 'MIXED'"));
        assert_eq!([with(None), with(Some("MIXED")), with(Some("ROW"))], [None, None, None]);
    }
}
