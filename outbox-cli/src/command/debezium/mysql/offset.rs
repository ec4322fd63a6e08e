//! `outbox debezium offset`

use diesel_outbox_relay::mysql::prelude::Queryable;
use diesel_outbox_relay::mysql::{Conn, Error, Result, Row};
use serde_json::json;

use super::{load, row_of};
use crate::command::database::mysql::Flavor;

/// A place in the binlog.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Offset {
    file: String,
    position: u64,
    /// What was committed by then. If the server has GTIDs, Debezium goes by these.
    gtids: Option<String>,
}

/// Where the binlog ends. What was committed before is not read again.
pub(super) fn now(conn: &mut Conn, flavor: Flavor) -> Result<Offset> {
    match flavor {
        Flavor::Mysql => binlog_end(conn),
        Flavor::Mariadb => snapshot(conn),
    }
}

/// Needs the privilege REPLICATION CLIENT. A transaction may be in the binlog a moment before others see it. Then it is not among the GTIDs.
fn binlog_end(conn: &mut Conn) -> Result<Offset> {
    let status = conn
        .query_first::<Row, _>("SHOW BINARY LOG STATUS")
        // MySQL before 8.2 has another name for it.
        .or_else(|_| conn.query_first("SHOW MASTER STATUS"))?;
    let row = status.ok_or_else(no_binlog)?;
    match (row.get_opt(0), row.get_opt(1)) {
        (Some(Ok(file)), Some(Ok(position))) => {
            let gtids = row.get_opt::<String, _>(4).and_then(std::result::Result::ok);
            let gtids = gtids.map(|gtids| gtids.replace('\n', "")).filter(|gtids| !gtids.is_empty());
            Ok(Offset { file, position, gtids })
        }
        _ => Err(no_binlog()),
    }
}

/// The place in the binlog that belongs to a snapshot: everything before it is seen by others, too.
fn snapshot(conn: &mut Conn) -> Result<Offset> {
    conn.query_drop("START TRANSACTION WITH CONSISTENT SNAPSHOT")?;
    let status: Vec<(String, String)> = load(conn, "SHOW STATUS LIKE 'binlog\\_snapshot\\_%'")?;
    conn.query_drop("ROLLBACK")?;
    let value = |wanted: &str| {
        let found = status.iter().find(|(name, _)| name.eq_ignore_ascii_case(wanted));
        found.map(|(_, value)| value.clone()).filter(|value| !value.is_empty())
    };
    let file = value("binlog_snapshot_file").ok_or_else(no_binlog)?;
    let position = value("binlog_snapshot_position").and_then(|position| position.parse().ok());
    let position: u64 = position.ok_or_else(no_binlog)?;
    let gtids = conn.exec_iter("SELECT BINLOG_GTID_POS(?, ?)", (&file, position))?.next();
    let gtids = gtids.map(|row| row_of::<(Option<String>,)>(row?)).transpose()?.and_then(|(gtids,)| gtids);
    Ok(Offset { file, position, gtids: gtids.filter(|gtids| !gtids.is_empty()) })
}

fn no_binlog() -> Error {
    Error::IoError(std::io::Error::other("the server has no binlog: see `outbox debezium check`"))
}

impl Offset {
    /// The body of a request to Connect.
    pub(super) fn text(&self, name: &str) -> String {
        let mut offset = json!({ "file": self.file, "pos": self.position });
        if let Some(gtids) = &self.gtids {
            offset["gtids"] = json!(gtids);
        }
        let offsets = json!({ "offsets": [{ "partition": { "server": name }, "offset": offset }] });
        format!("{offsets:#}\n")
    }
}
