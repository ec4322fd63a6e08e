//! `outbox debezium check` on PostgreSQL

mod facts;

use diesel::pg::PgConnection;

use self::facts::{Facts, Publication, ReplicationSlot, Table};
use super::DebeziumOutbox;
use crate::command::database::OutboxDatabase;
use crate::command::debezium::finding::{Finding, finding, report};
use crate::command::failure::Failure;
use crate::command::origin::Origins;
use diesel_outbox_relay::operate::Verdict::{Fail, Ok as Passed, Warn};

/// Checks everything, as the role that Debezium connects as, and prints what to do.
pub(super) fn run(
    database: &OutboxDatabase,
    outbox: &DebeziumOutbox,
    origins: &Origins,
) -> Result<(), Failure> {
    let mut conn = database.postgres_connection(origins)?;
    let findings = findings(&mut conn, outbox).map_err(|error| database.failed(error))?;
    report(&findings)
}

fn findings(conn: &mut PgConnection, outbox: &DebeziumOutbox) -> diesel::QueryResult<Vec<Finding>> {
    let facts = Facts::look(conn)?;
    let table = Table::look(conn, &outbox.schema)?;
    let publication = Publication::look(conn, &outbox.publication, &outbox.schema)?;
    let slot = ReplicationSlot::look(conn, &outbox.slot)?;
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

fn level(facts: &Facts) -> Finding {
    let level = &facts.wal_level;
    if level == "logical" {
        return finding(Passed, "wal_level is logical");
    }
    finding(
        Fail,
        format!(
            "wal_level is {level}: run ALTER SYSTEM SET wal_level = 'logical' and restart the server (a managed server \
             has a setting of its own for logical replication)"
        ),
    )
}

fn role(facts: &Facts, outbox: &DebeziumOutbox) -> Finding {
    let role = &outbox.server.user;
    if facts.may_replicate {
        finding(Passed, format!("the role {role} may replicate"))
    } else {
        finding(
            Fail,
            format!(
                "the role {role} may not replicate: run ALTER ROLE .. REPLICATION, see `outbox debezium setup-sql`"
            ),
        )
    }
}

fn table_findings(table: &Table, outbox: &DebeziumOutbox) -> Vec<Finding> {
    let name = format!("{}.outbox", outbox.schema);
    if !table.is_there {
        return vec![finding(
            Fail,
            format!(
                "there is no table {name} that this role can see: name the schema with --schema, or grant USAGE on it"
            ),
        )];
    }
    let readable = if table.may_select {
        finding(Passed, format!("the role may read {name}"))
    } else {
        finding(Fail, format!("the role may not read {name}: grant SELECT, see `outbox debezium setup-sql`"))
    };
    let columns = if table.wrong_columns.is_empty() {
        finding(Passed, format!("the columns of {name} are those that the router reads"))
    } else {
        let wrong = table.wrong_columns.join(", ");
        finding(
            Fail,
            format!(
                "{name} has no {wrong}: run `outbox migrate` for a new table. To change a created_at with time zone, run ALTER TABLE \
                 {name} ALTER created_at TYPE timestamp(3) USING created_at AT TIME ZONE 'utc'"
            ),
        )
    };
    vec![readable, columns]
}

fn publication_finding(publication: Option<&Publication>, outbox: &DebeziumOutbox) -> Finding {
    let name = &outbox.publication;
    let Some(publication) = publication else {
        return finding(
            Fail,
            format!(
                "there is no publication {name}: run `outbox wal setup`, or see `outbox debezium setup-sql`"
            ),
        );
    };
    if !publication.has_table || !publication.inserts {
        return finding(
            Fail,
            format!(
                "the publication {name} does not publish what is inserted into {}.outbox: name another with --publication",
                outbox.schema
            ),
        );
    }
    if publication.has_more || publication.more_than_inserts {
        return finding(
            Warn,
            format!(
                "the publication {name} publishes more than what is inserted into the outbox. The server sends all of it to Debezium, \
                 which throws it away: run ALTER PUBLICATION {name} SET TABLE {}.outbox and SET (publish = 'insert')",
                outbox.schema
            ),
        );
    }
    finding(Passed, format!("the publication {name} publishes the outbox's inserts, and nothing else"))
}

fn slot_finding(slot: Option<&ReplicationSlot>, facts: &Facts, outbox: &DebeziumOutbox) -> Finding {
    let name = &outbox.slot;
    let Some(slot) = slot else {
        let free =
            if facts.free_slots > 0 { "" } else { ". No slot is free: raise max_replication_slots first" };
        return finding(
            Fail,
            format!(
                "there is no slot {name}: run `outbox wal setup`, or see `outbox debezium setup-sql`{free}"
            ),
        );
    };
    if !slot.fits {
        return finding(
            Fail,
            format!(
                "the slot {name} belongs to another database or to another plugin than pgoutput: make one with another name by \
                 `outbox wal setup --slot ..`, and name it here with --slot"
            ),
        );
    }
    match (slot.status.as_str(), &slot.reader) {
        ("lost", _) => finding(
            Fail,
            format!(
                "the server has given up the slot {name}, because it retained more than max_slot_wal_keep_size allows: run `outbox \
                 wal setup`, and delete the connector's offsets before it starts"
            ),
        ),
        (_, Some(reader)) if reader.contains("outbox relay") => {
            finding(Fail, format!("a relay reads the slot {name}: stop it before Debezium starts"))
        }
        ("unreserved", _) => finding(
            Warn,
            format!(
                "the slot {name} is about to be lost: start Debezium now, or raise max_slot_wal_keep_size"
            ),
        ),
        (_, Some(reader)) => finding(Passed, format!("the slot {name} is read by {reader}")),
        (status, None) => finding(
            Passed,
            format!(
                "the slot {name} exists, nobody reads it, it is {status}, and confirmed up to {}",
                slot.confirmed
            ),
        ),
    }
}

/// A relay may have sent more than it could confirm to the server.
fn behind(slot: &ReplicationSlot, outbox: &DebeziumOutbox) -> Option<Finding> {
    let sent = slot.sent_up_to.as_ref().filter(|_| slot.reader.is_none())?;
    let name = &outbox.slot;
    Some(finding(
        Warn,
        format!(
            "a relay has sent the slot's events up to {sent}: run SELECT pg_replication_slot_advance('{name}', '{sent}'), or \
             Debezium sends them again"
        ),
    ))
}

/// So much may take longer to read than Debezium waits until its first heartbeat. That heartbeat names the WAL's end if no
/// event has come yet.
const MUCH: i64 = 256 << 20;

fn far_behind(slot: &ReplicationSlot) -> Option<Finding> {
    let megabytes = slot.behind >> 20;
    (slot.behind > MUCH && slot.reader.is_none()).then(|| {
        finding(
            Warn,
            format!(
                "{megabytes} MB of the WAL wait in the slot: if the connector starts for the first time, leave out the lines \
                 heartbeat.* and message.* until its first event has come. Otherwise events are lost if it is killed before that"
            ),
        )
    })
}

fn senders(facts: &Facts, slot: Option<&ReplicationSlot>) -> Finding {
    if facts.free_senders > 0 || slot.is_some_and(|slot| slot.reader.is_some()) {
        return finding(Passed, "a WAL sender is free");
    }
    finding(Fail, "no WAL sender is free: raise max_wal_senders and restart the server")
}

fn limit(facts: &Facts) -> Finding {
    match facts.keep_megabytes {
        ..0 => finding(
            Warn,
            "max_slot_wal_keep_size is not set: while Debezium is away the server retains all of its WAL, until the disk is full",
        ),
        limit => {
            finding(Passed, format!("a slot retains {limit} MB of the WAL at most (max_slot_wal_keep_size)"))
        }
    }
}

/// Debezium sends what comes from the slot, and no event that was in the table before.
fn waiting(table: &Table) -> Option<Finding> {
    match (table.is_cut_over?, table.waiting?) {
        (true, true) => Some(finding(
            Warn,
            "events wait to be polled, which Debezium does not do: let a relay run until `outbox lag` reports none, and then start \
             Debezium",
        )),
        (false, true) => Some(finding(
            Warn,
            "the whole table is polled, and has events that no relay has marked as sent. If they are older than the slot, \
             Debezium does not send them: `outbox wal setup` is the way from polling. If they are younger, a relay that \
             somebody starts by mistake sends all of them again",
        )),
        (_, false) => Some(finding(Passed, "no event waits to be polled")),
    }
}
