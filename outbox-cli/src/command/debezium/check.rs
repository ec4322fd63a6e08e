//! `outbox debezium check`

mod facts;

use diesel::pg::PgConnection;

use self::facts::{Facts, Publication, Slot, Table};
use super::Outbox;
use crate::command::config::Config;
use crate::command::database::Database;
use crate::command::failure::Failure;
use crate::command::output::print;

/// One thing that was looked at.
struct Finding {
    verdict: Verdict,
    text: String,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Good,
    /// Debezium runs, but not everything is as it should be.
    Mind,
    /// Debezium cannot do its work.
    Wrong,
}

use self::Verdict::{Good, Mind, Wrong};

/// Looks at everything, as the role that Debezium connects as, and tells what is to be done.
pub(super) fn run(config: &Config, outbox: &Outbox) -> Result<(), Failure> {
    let database = Database::chosen(config)?;
    let mut conn = database.postgres_connection(config)?;
    let findings = findings(&mut conn, outbox).map_err(|error| database.failed(error))?;
    let lines: String = findings.iter().map(Finding::line).collect();
    print(&lines)?;
    match findings.iter().filter(|finding| finding.verdict == Wrong).count() {
        0 => Ok(()),
        wrong => Err(Failure::DebeziumCheck { wrong }),
    }
}

impl Finding {
    fn line(&self) -> String {
        let mark = match self.verdict {
            Good => "ok   ",
            Mind => "mind ",
            Wrong => "WRONG",
        };
        format!("{mark} {}\n", self.text)
    }
}

fn findings(conn: &mut PgConnection, outbox: &Outbox) -> diesel::QueryResult<Vec<Finding>> {
    let facts = Facts::look(conn)?;
    let table = Table::look(conn, &outbox.schema)?;
    let publication = Publication::look(conn, &outbox.publication, &outbox.schema)?;
    let slot = Slot::look(conn, &outbox.slot)?;
    let mut findings = vec![level(&facts), role(&facts, outbox)];
    findings.extend(table_findings(&table, outbox));
    findings.push(publication_finding(publication.as_ref(), outbox));
    findings.push(slot_finding(slot.as_ref(), &facts, outbox));
    findings.extend(slot.as_ref().and_then(|slot| behind(slot, outbox)));
    findings.extend(slot.as_ref().and_then(far_behind));
    findings.push(senders(&facts, slot.as_ref()));
    findings.push(limit(&facts));
    findings.extend(waiting(&table));
    Ok(findings)
}

fn finding(verdict: Verdict, text: impl Into<String>) -> Finding {
    Finding { verdict, text: text.into() }
}

fn level(facts: &Facts) -> Finding {
    let level = &facts.wal_level;
    if level == "logical" {
        return finding(Good, "wal_level is logical");
    }
    finding(
        Wrong,
        format!(
            "wal_level is {level}: run ALTER SYSTEM SET wal_level = 'logical' and restart the server (on a managed server \
             its logical replication setting)"
        ),
    )
}

fn role(facts: &Facts, outbox: &Outbox) -> Finding {
    let role = &outbox.server.user;
    if facts.may_replicate {
        finding(Good, format!("the role {role} may replicate"))
    } else {
        finding(
            Wrong,
            format!(
                "the role {role} may not replicate: run ALTER ROLE .. REPLICATION, see `outbox debezium sql`"
            ),
        )
    }
}

fn table_findings(table: &Table, outbox: &Outbox) -> Vec<Finding> {
    let name = format!("{}.outbox", outbox.schema);
    if !table.is_there {
        return vec![finding(
            Wrong,
            format!(
                "there is no table {name} that this role can see: name the schema with --schema, or grant USAGE on it"
            ),
        )];
    }
    let readable = if table.may_select {
        finding(Good, format!("the role may read {name}"))
    } else {
        finding(Wrong, format!("the role may not read {name}: grant SELECT, see `outbox debezium sql`"))
    };
    let columns = if table.wrong_columns.is_empty() {
        finding(Good, format!("the columns of {name} are those that the router reads"))
    } else {
        let wrong = table.wrong_columns.join(", ");
        finding(
            Wrong,
            format!(
                "{name} has no {wrong}: run `outbox migrate` for a new table; a created_at with time zone is changed by \
                 ALTER TABLE .. ALTER created_at TYPE timestamp(3) USING created_at AT TIME ZONE 'utc'"
            ),
        )
    };
    vec![readable, columns]
}

fn publication_finding(publication: Option<&Publication>, outbox: &Outbox) -> Finding {
    let name = &outbox.publication;
    let Some(publication) = publication else {
        return finding(
            Wrong,
            format!("there is no publication {name}: run `outbox wal setup`, or see `outbox debezium sql`"),
        );
    };
    if !publication.has_table || !publication.inserts {
        return finding(
            Wrong,
            format!(
                "the publication {name} does not have what is inserted into {}.outbox: name another",
                outbox.schema
            ),
        );
    }
    if publication.has_more || publication.more_than_inserts {
        return finding(
            Mind,
            format!(
                "the publication {name} has more than what is inserted into the outbox, all of which Debezium is sent and \
                 throws away: run ALTER PUBLICATION {name} SET TABLE {}.outbox and SET (publish = 'insert')",
                outbox.schema
            ),
        );
    }
    finding(Good, format!("the publication {name} has the outbox's inserts, and nothing else"))
}

fn slot_finding(slot: Option<&Slot>, facts: &Facts, outbox: &Outbox) -> Finding {
    let name = &outbox.slot;
    let Some(slot) = slot else {
        let free =
            if facts.free_slots > 0 { "" } else { ", after raising max_replication_slots, as none is free" };
        return finding(
            Wrong,
            format!("there is no slot {name}: run `outbox wal setup`, or see `outbox debezium sql`{free}"),
        );
    };
    if !slot.fits {
        return finding(
            Wrong,
            format!(
                "the slot {name} is of another database or another plugin than pgoutput: make one of another name with `outbox wal setup \
                 --slot ..`, and name it here with --slot"
            ),
        );
    }
    match (slot.status.as_str(), &slot.reader) {
        ("lost", _) => finding(
            Wrong,
            format!(
                "the server has given up the slot {name}, as it kept more than max_slot_wal_keep_size allows: run `outbox wal \
                 setup`, and delete the connector's offsets before it starts"
            ),
        ),
        (_, Some(reader)) if reader.contains("outbox relay") => {
            finding(Wrong, format!("a relay reads the slot {name}: stop it before Debezium starts"))
        }
        ("unreserved", _) => finding(
            Mind,
            format!(
                "the slot {name} is about to be lost: start Debezium now, or raise max_slot_wal_keep_size"
            ),
        ),
        (_, Some(reader)) => finding(Good, format!("the slot {name} is read by {reader}")),
        (status, None) => finding(
            Good,
            format!("the slot {name} is there and free, {status}, confirmed up to {}", slot.confirmed),
        ),
    }
}

/// A relay may know more than it could tell the server.
fn behind(slot: &Slot, outbox: &Outbox) -> Option<Finding> {
    let sent = slot.sent_up_to.as_ref().filter(|_| slot.reader.is_none())?;
    let name = &outbox.slot;
    Some(finding(
        Mind,
        format!(
            "a relay has sent what is in the slot {name} up to {sent}: run SELECT pg_replication_slot_advance('{name}', \
             '{sent}'), else Debezium sends it again"
        ),
    ))
}

/// So much may take longer to read than Debezium waits until its first heartbeat, which names the log's end where nothing has come.
const MUCH: i64 = 256 << 20;

fn far_behind(slot: &Slot) -> Option<Finding> {
    let megabytes = slot.behind >> 20;
    (slot.behind > MUCH && slot.reader.is_none()).then(|| {
        finding(
            Mind,
            format!(
                "{megabytes} MB of the log wait in the slot: where this is the connector's first start leave out the lines \
                 heartbeat.* and message.* until its first event has come, else events can be lost where it is killed before that"
            ),
        )
    })
}

fn senders(facts: &Facts, slot: Option<&Slot>) -> Finding {
    if facts.free_senders > 0 || slot.is_some_and(|slot| slot.reader.is_some()) {
        return finding(Good, "a sender is free");
    }
    finding(Wrong, "no sender is free: raise max_wal_senders and restart the server")
}

fn limit(facts: &Facts) -> Finding {
    match facts.keep_megabytes {
        ..0 => finding(
            Mind,
            "max_slot_wal_keep_size is not set: while Debezium is away the server keeps all of its log, until the disk is full",
        ),
        limit => {
            finding(Good, format!("a slot keeps {limit} MB of the log at most (max_slot_wal_keep_size)"))
        }
    }
}

/// Debezium sends what comes from the slot, and nothing that was in the table before.
fn waiting(table: &Table) -> Option<Finding> {
    match (table.is_divided?, table.waiting?) {
        (true, true) => Some(finding(
            Mind,
            "events wait to be polled that Debezium does not send: let a relay run until `outbox lag` tells of none, and \
             start Debezium then",
        )),
        (false, true) => Some(finding(
            Mind,
            "the table is polled as a whole, and has events that no relay has marked as sent: if they were in it before the \
             slot was made Debezium does not send them (`outbox wal setup` is the way from polling), and a relay that is \
             started by mistake would send all of them",
        )),
        (_, false) => Some(finding(Good, "nothing waits to be polled")),
    }
}
