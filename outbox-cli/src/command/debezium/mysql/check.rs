//! `outbox debezium check` on MySQL and MariaDB

mod facts;

use diesel_outbox_relay::mysql::{Conn, Opts, OptsBuilder, Result};

use self::facts::{Facts, Table};
use super::{DebeziumOutbox, failed};
use crate::command::database::OutboxDatabase;
use crate::command::database::mysql::Flavor;
use crate::command::debezium::finding::{Finding, finding, report};
use crate::command::failure::Failure;
use diesel_outbox_relay::operate::Verdict::{Fail, Ok as Passed, Warn};

/// Checks everything, as the user that Debezium connects as, and prints what to do.
pub(super) fn run(
    database: &OutboxDatabase,
    opts: &Opts,
    outbox: &DebeziumOutbox,
) -> std::result::Result<(), Failure> {
    // A user that may not use the database yet can connect to the server.
    let server = OptsBuilder::from_opts(opts.clone()).db_name(None::<String>).into();
    let mut conn = database.mysql_connection(&server)?;
    let findings = findings(&mut conn, outbox).map_err(|error| failed(database, &error))?;
    report(&findings)
}

fn findings(conn: &mut Conn, outbox: &DebeziumOutbox) -> Result<Vec<Finding>> {
    let facts = Facts::look(conn, &outbox.database)?;
    let table = Table::look(conn, &outbox.database)?;
    let mut findings = vec![server(&facts, outbox)];
    findings.extend(binlog(&facts));
    findings.extend(filter(&facts, outbox));
    findings.push(retention(&facts));
    findings.push(gtids(&facts));
    findings.extend(privileges(&facts, outbox));
    findings.extend(columns(&table, outbox));
    findings.extend(polled(&table));
    Ok(findings)
}

fn server(facts: &Facts, outbox: &DebeziumOutbox) -> Finding {
    let (version, flavor) = (&facts.version, facts.flavor());
    if flavor == outbox.flavor {
        return finding(Passed, format!("the server is {flavor} {version}"));
    }
    finding(
        Fail,
        format!(
            "the server is {version}, and the URL names one of {}: begin it with {}://, so that `outbox debezium connector` prints the \
             configuration for {flavor}",
            outbox.flavor,
            flavor.scheme()
        ),
    )
}

fn binlog(facts: &Facts) -> Vec<Finding> {
    if !facts.is_on("log_bin") {
        let text = "log_bin is OFF: set log_bin in the server's configuration, and restart the server";
        return vec![finding(Fail, text)];
    }
    let mut findings = Vec::new();
    if facts.variable("server_id") == "0" {
        findings.push(finding(
            Fail,
            "server_id is 0, with which the server sends its binlog to nobody: set it to another number in the server's \
             configuration, and run SET GLOBAL server_id = ..",
        ));
    }
    let format = facts.variable("binlog_format");
    // MySQL will have no other format one day, and then no variable.
    findings.push(if format.is_empty() || format.eq_ignore_ascii_case("row") {
        finding(Passed, "the server writes a binlog, and binlog_format is ROW")
    } else {
        finding(
            Fail,
            format!(
                "binlog_format is {format}: set it to ROW in the server's configuration, run SET GLOBAL binlog_format = 'ROW', and \
                 reconnect what emits, because sessions that are open keep the old one"
            ),
        )
    });
    let image = facts.variable("binlog_row_image");
    findings.push(match image.to_uppercase().as_str() {
        "" | "FULL" => finding(Passed, "binlog_row_image is FULL"),
        "NOBLOB" => finding(Warn, "binlog_row_image is NOBLOB, with which nobody has tried this: set it to FULL"),
        _ => finding(
            Fail,
            format!(
                "binlog_row_image is {image}: set it to FULL in the server's configuration, run SET GLOBAL binlog_row_image = 'FULL', \
                 and reconnect what emits, because sessions that are open keep the old one"
            ),
        ),
    });
    if facts.is_on("read_only") && !facts.logs_what_it_receives() {
        findings.push(finding(
            Fail,
            "the server is a replica, and what it receives is not in its binlog (log_slave_updates is OFF): name the primary in the URL",
        ));
    }
    findings
}

fn filter(facts: &Facts, outbox: &DebeziumOutbox) -> Option<Finding> {
    let name = &outbox.database;
    facts.is_filtered?.then(|| {
        finding(
            Fail,
            format!("the binlog has no changes of {name}: take binlog_do_db and binlog_ignore_db out of the server's configuration"),
        )
    })
}

/// Debezium may be away for some time, such as over a weekend.
const SHORT: u64 = 3 * 86_400;

fn retention(facts: &Facts) -> Finding {
    let hours = facts.kept_seconds().map(|seconds| seconds / 3_600);
    match (hours, facts.kept_seconds()) {
        (Some(hours), Some(..SHORT)) => finding(
            Warn,
            format!(
                "the binlog is kept for {hours} hours (binlog_expire_logs_seconds): if Debezium is away for longer, it cannot continue, \
                 and a relay must send what is in the table"
            ),
        ),
        (Some(hours), _) => {
            finding(Passed, format!("the binlog is kept for {hours} hours (binlog_expire_logs_seconds)"))
        }
        (None, _) => finding(
            Passed,
            "the binlog is kept until somebody purges it (a managed server may do so, by a setting of its own)",
        ),
    }
}

fn gtids(facts: &Facts) -> Finding {
    if facts.flavor() == Flavor::Mariadb || facts.is_on("gtid_mode") {
        return finding(
            Passed,
            "there are GTIDs, by which Debezium finds its place on a replica that becomes the primary",
        );
    }
    finding(
        Warn,
        "gtid_mode is not ON: if a replica becomes the primary, Debezium does not find its place there, and a relay must send what is \
         in the table",
    )
}

fn privileges(facts: &Facts, outbox: &DebeziumOutbox) -> [Finding; 2] {
    let user = &outbox.user;
    let monitor = match facts.flavor() {
        Flavor::Mysql => "REPLICATION CLIENT",
        Flavor::Mariadb => "BINLOG MONITOR",
    };
    [("REPLICATION SLAVE", facts.may_read_binlog), (monitor, facts.may_ask_for_files)].map(
        |(name, granted)| {
            if granted {
                finding(Passed, format!("the user {user} has {name}"))
            } else {
                finding(Fail, format!("the user {user} has no {name}: see `outbox debezium setup-sql`"))
            }
        },
    )
}

fn columns(table: &Table, outbox: &DebeziumOutbox) -> Vec<Finding> {
    let name = format!("{}.outbox", outbox.database);
    if !table.is_there {
        let text = format!(
            "there is no table {name} that this user can see: grant SELECT on it, see `outbox debezium setup-sql`, or name the \
             database with --schema"
        );
        return vec![finding(Fail, text)];
    }
    let readable = if table.may_select {
        finding(Passed, format!("the user may read {name}"))
    } else {
        finding(Fail, format!("the user may not read {name}: grant SELECT, see `outbox debezium setup-sql`"))
    };
    let columns = if table.wrong_columns.is_empty() {
        finding(Passed, format!("the columns of {name} are those that the router reads"))
    } else {
        let wrong = table.wrong_columns.join(", ");
        finding(
            Fail,
            format!(
                "{name} has no {wrong}: run `outbox migrate` for a new table. Debezium would send a binary id as no text that a \
                 consumer can read"
            ),
        )
    };
    vec![readable, columns]
}

/// Debezium sends what comes after its offset, and no event that was in the table before.
fn polled(table: &Table) -> Vec<Finding> {
    let mut findings = Vec::new();
    if table.is_polled == Some(true) {
        findings.push(finding(
            Warn,
            "a relay polls the outbox: stop it before Debezium starts, or both send each event, and the order is lost",
        ));
    }
    findings.extend(table.waiting.map(|waiting| {
        if waiting {
            finding(
                Warn,
                "the table has events that no relay has marked as sent. Debezium sends those that were committed after its offset. Let \
                 a relay send the others first; if Debezium has sent them, mark them before a relay starts: the page on Debezium says \
                 how",
            )
        } else {
            finding(Passed, "no event waits to be polled")
        }
    }));
    findings
}
