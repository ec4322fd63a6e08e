//! What the server reports about itself, its binlog, the user and the table.

use std::collections::BTreeMap;

use diesel_outbox_relay::mysql::prelude::Queryable;
use diesel_outbox_relay::mysql::{Conn, Result as QueryResult, Row};
use diesel_outbox_relay::operate::is_polled;

use crate::command::database::mysql::Flavor;
use crate::command::debezium::mysql::{load, quoted, row_of};

#[derive(Debug)]
pub(super) struct Facts {
    pub(super) version: String,
    /// As the variables say, by their names. Not every server has all of them.
    variables: BTreeMap<String, String>,
    pub(super) may_read_binlog: bool,
    pub(super) may_ask_for_files: bool,
    /// Whether the changes of the outbox's database are kept out of the binlog. `None` if the user may not see that.
    pub(super) is_filtered: Option<bool>,
}

const VARIABLES: &str = "'log_bin', 'server_id', 'binlog_format', 'binlog_row_image', 'binlog_expire_logs_seconds', 'expire_logs_days', \
                         'gtid_mode', 'log_bin_compress', 'log_slave_updates', 'log_replica_updates', 'read_only'";

impl Facts {
    pub(super) fn look(conn: &mut Conn, database: &str) -> QueryResult<Self> {
        let variables: Vec<(String, String)> =
            load(conn, &format!("SHOW GLOBAL VARIABLES WHERE Variable_name IN ({VARIABLES})"))?;
        let variables: BTreeMap<_, _> =
            variables.into_iter().map(|(name, value)| (name.to_lowercase(), value)).collect();
        let grants: Vec<String> = load(conn, "SHOW GRANTS")?;
        let status = conn
            .query_first::<Row, _>("SHOW MASTER STATUS")
            .or_else(|_| conn.query_first("SHOW BINARY LOG STATUS"))
            .ok()
            .flatten();
        Ok(Self {
            version: load(conn, "SELECT VERSION()")?.pop().unwrap_or_default(),
            may_read_binlog: grants.iter().any(|line| is_granted(line, "REPLICATION SLAVE")),
            may_ask_for_files: ["REPLICATION CLIENT", "BINLOG MONITOR"]
                .iter()
                .any(|name| grants.iter().any(|line| is_granted(line, name))),
            is_filtered: status.map(|row| is_filtered(&row, database)),
            variables,
        })
    }

    pub(super) fn flavor(&self) -> Flavor {
        if self.version.contains("MariaDB") { Flavor::Mariadb } else { Flavor::Mysql }
    }

    /// The variable's value, or nothing if the server has no such variable.
    pub(super) fn variable(&self, name: &str) -> &str {
        self.variables.get(name).map(String::as_str).unwrap_or_default()
    }

    pub(super) fn is_on(&self, name: &str) -> bool {
        matches!(self.variable(name).to_uppercase().as_str(), "ON" | "1")
    }

    /// Whether what a replica receives is in its own binlog, too.
    pub(super) fn logs_what_it_receives(&self) -> bool {
        self.is_on("log_slave_updates") || self.is_on("log_replica_updates")
    }

    /// How many seconds the binlog is kept at least. `None` if the server never purges it by itself.
    pub(super) fn kept_seconds(&self) -> Option<u64> {
        let number = |name| self.variable(name).parse::<f64>().unwrap_or_default();
        let seconds = number("binlog_expire_logs_seconds").max(number("expire_logs_days") * 86_400.0);
        (seconds >= 1.0).then_some(seconds as u64)
    }
}

/// Whether a line of SHOW GRANTS has this privilege for the whole server.
fn is_granted(line: &str, privilege: &str) -> bool {
    let line = line.to_uppercase();
    let Some((privileges, place)) = line.strip_prefix("GRANT ").and_then(|rest| rest.split_once(" ON "))
    else {
        return false;
    };
    place.starts_with("*.* ")
        && privileges.split(',').map(str::trim).any(|name| name == privilege || name == "ALL PRIVILEGES")
}

/// Whether the server writes this database's changes into its binlog. The third column lists the databases whose changes it
/// writes, and the fourth those whose changes it does not.
fn is_filtered(status: &Row, database: &str) -> bool {
    let list = |column| status.get_opt::<String, _>(column).and_then(Result::ok).unwrap_or_default();
    let has = |list: &str| list.split(',').any(|name| name.trim() == database);
    let (only, not) = (list(2), list(3));
    !only.is_empty() && !has(&only) || has(&not)
}

/// The table `outbox`.
#[derive(Debug, Default)]
pub(super) struct Table {
    pub(super) is_there: bool,
    pub(super) may_select: bool,
    /// Columns that the router reads, and that are missing or of another type.
    pub(super) wrong_columns: Vec<String>,
    /// Whether a relay that polls would send something. `None` if the user may not see that.
    pub(super) waiting: Option<bool>,
    /// Whether a relay polls the table. `None` if the user may not see that.
    pub(super) is_polled: Option<bool>,
}

const COLUMNS: [(&str, &str); 6] = [
    ("id", "char(36)"),
    ("aggregatetype", "varchar"),
    ("aggregateid", "varchar"),
    ("type", "varchar"),
    ("payload", "longblob"),
    ("created_at", "datetime(3)"),
];

impl Table {
    pub(super) fn look(conn: &mut Conn, database: &str) -> QueryResult<Self> {
        let columns: Vec<(String, String)> = conn
            .exec_iter(
                "SELECT COLUMN_NAME, COLUMN_TYPE FROM information_schema.columns WHERE TABLE_SCHEMA = ? AND TABLE_NAME = 'outbox'",
                (database,),
            )?
            .map(|row| row_of(row?))
            .collect::<QueryResult<_>>()?;
        if columns.is_empty() {
            return Ok(Self::default());
        }
        let is_right = |(wanted, of): &&(&str, &str)| {
            columns.iter().any(|(name, column_type)| {
                name.eq_ignore_ascii_case(wanted) && column_type.to_lowercase().starts_with(of)
            })
        };
        let wrong = COLUMNS.iter().filter(|column| !is_right(column));
        let schema = quoted(database);
        let waiting: QueryResult<Vec<bool>> = load(
            conn,
            &format!(
                "SELECT EXISTS (SELECT 1 FROM {schema}.outbox_shard AS s JOIN {schema}.outbox AS o ON o.shard = s.shard \
             AND o.seq > s.sent_through WHERE o.sent_at IS NULL) OR EXISTS (SELECT 1 FROM {schema}.outbox_shard WHERE unsent <> '')"
            ),
        );
        Ok(Self {
            is_there: true,
            may_select: conn.query_drop(format!("SELECT 1 FROM {schema}.outbox LIMIT 0")).is_ok(),
            wrong_columns: wrong.map(|(name, of)| format!("{name} {of}")).collect(),
            waiting: waiting.ok().and_then(|mut waiting| waiting.pop()),
            is_polled: conn.query_drop(format!("USE {schema}")).ok().and_then(|()| is_polled(conn).ok()),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_privilege_counts_only_for_the_whole_server() {
        for (line, granted) in [
            (
                "GRANT REPLICATION SLAVE, BINLOG MONITOR ON *.* TO `ann`@`%` IDENTIFIED BY PASSWORD '*00'",
                true,
            ),
            ("GRANT SELECT, REPLICATION SLAVE ON *.* TO `ann`@`%`", true),
            ("GRANT ALL PRIVILEGES ON *.* TO `root`@`localhost` WITH GRANT OPTION", true),
            ("GRANT REPLICATION SLAVE ADMIN ON *.* TO `ann`@`%`", false),
            ("GRANT ALL PRIVILEGES ON `shop`.* TO `ann`@`%`", false),
            ("GRANT USAGE ON *.* TO `ann`@`%`", false),
            ("GRANT `reader`@`%` TO `ann`@`%`", false),
        ] {
            assert_eq!(is_granted(line, "REPLICATION SLAVE"), granted, "{line}");
        }
    }
}
