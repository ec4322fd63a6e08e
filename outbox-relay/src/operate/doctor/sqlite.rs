use std::time::SystemTime;

use diesel::connection::SimpleConnection;
use diesel::prelude::*;
use diesel::sql_types::{BigInt, Bool, Text};
use diesel::sqlite::{Sqlite, SqliteConnection};

use super::{Examine, Finding, Verdict, clock_finding, lag_findings, looked};
use crate::operate::Operate;
use crate::source::NO_TABLE;
use crate::source::julian_day::unix_ms;
use crate::statement::statement;

impl Examine for SqliteConnection {
    fn examine(&mut self) -> Vec<Finding> {
        let mut findings = looked("tables", tables(self));
        let are_there = findings.iter().all(|finding| finding.verdict == Verdict::Ok);
        findings.push(role(self));
        findings.extend(looked("durability", durability(self)));
        findings.extend(looked("clock", clock(self)));
        if are_there {
            findings.extend(looked("lag", self.lag().map(|lag| lag_findings(&lag))));
        }
        findings
    }

    fn recent_aggregate_types(&mut self) -> QueryResult<Vec<String>> {
        AggregateTypes::new().load(self)
    }
}

fn tables(conn: &mut SqliteConnection) -> QueryResult<Vec<Finding>> {
    let problem = (!HasTables::new().get_result::<bool>(conn)?).then(|| (Verdict::Fail, NO_TABLE.to_owned()));
    Ok(vec![Finding::of("tables", problem, "they are there")])
}

/// Begins a transaction that writes, and takes it back.
fn role(conn: &mut SqliteConnection) -> Finding {
    match conn.batch_execute("BEGIN IMMEDIATE; ROLLBACK") {
        Ok(()) => Finding::ok("role", "this process may write to the file"),
        Err(error) => Finding::fail(
            "role",
            format!(
                "this process cannot write to the file: {error}. Let the relay's user own the file and its folder; if it is locked, end \
                 the transaction of another process that stays open"
            ),
        ),
    }
}

fn durability(conn: &mut SqliteConnection) -> QueryResult<Vec<Finding>> {
    let mode = JournalMode::new().get_result::<String>(conn)?;
    let problem = match mode.as_str() {
        "wal" => None,
        "off" | "memory" => Some((
            Verdict::Fail,
            format!("journal_mode is {mode}: a crash destroys the database. Run PRAGMA journal_mode = wal"),
        )),
        _ => Some((
            Verdict::Warn,
            format!(
                "journal_mode is {mode}, with which emitters and the relay wait for each other: run PRAGMA journal_mode = wal"
            ),
        )),
    };
    Ok(vec![Finding::of("durability", problem, "journal_mode is wal")])
}

fn clock(conn: &mut SqliteConnection) -> QueryResult<Vec<Finding>> {
    let before = SystemTime::now();
    Ok(vec![clock_finding(before, Clock::new().get_result(conn)?)])
}

statement!(
    Sqlite,
    HasTables {} -> Bool,
    "SELECT count(*) = 2 FROM sqlite_master WHERE type = 'table' AND name IN ('outbox', 'outbox_dead_letter')"
);

statement!(Sqlite, JournalMode {} -> Text, "SELECT journal_mode FROM pragma_journal_mode");

statement!(Sqlite, Clock {} -> BigInt, concat!("SELECT ", unix_ms!("julianday('now')")));

statement!(
    Sqlite,
    AggregateTypes {} -> Text,
    "SELECT DISTINCT aggregatetype FROM (SELECT aggregatetype FROM outbox ORDER BY seq DESC LIMIT 10000) ORDER BY 1"
);
