//! Each grant of a relay is needed: without it the relay fails, and its error names the grant.

use std::time::{Duration, Instant};

use diesel::connection::SimpleConnection;
use diesel::prelude::*;
use diesel_outbox::{Emit, Record};
use diesel_outbox_core::{Source, SourceError};
use diesel_outbox_relay::source::wal::{WalOptions, WalSource, setup};
use diesel_outbox_relay::source::{DeadLetterPolicy, MysqlSource, PostgresSource, SentRows, SourceOptions};
use outbox_tests::load::{drop_roles, migrated};
use outbox_tests::{Mariadb, eventually};

use super::{PATIENCE, done, role_arguments};

/// Claims this many events, makes a dead letter of one, settles the others, and looks after the table.
fn work(source: &mut dyn Source, events: usize) -> Result<(), SourceError> {
    let mut claimed = Vec::new();
    let began = Instant::now();
    loop {
        if source.claim()? {
            while source.read(1_000, &mut claimed)? {}
        }
        if claimed.len() >= events {
            break;
        }
        assert!(began.elapsed() < PATIENCE, "nothing came");
        source.wait(Duration::from_millis(20))?;
    }
    let tickets: Vec<u64> = claimed.iter().map(|claimed| claimed.ticket).collect();
    source.settle(&tickets[1..])?;
    source.dead_letter(tickets[0], "too large")?;
    source.release()?;
    source.upkeep().map(drop)
}

/// The same, and measures the lag. The session before may still lead.
fn work_and_measure(source: &mut dyn Source, events: usize) -> Result<(), SourceError> {
    work(source, events)?;
    let began = Instant::now();
    while source.upkeep()?.is_none() {
        assert!(began.elapsed() < PATIENCE, "no lag was measured");
        source.wait(Duration::from_millis(20))?;
    }
    Ok(())
}

fn options() -> SourceOptions {
    SourceOptions::default()
        .dead_letter_policy(DeadLetterPolicy::Block)
        .poll_interval(Duration::from_millis(50))
        .lag_interval(Duration::from_millis(50))
}

fn emit(conn: &mut PgConnection, aggregate: &str) {
    let records = [1, 2].map(|number| Record::new("order", aggregate, number.to_string()));
    conn.transaction(|c| c.emit_all(&records)).unwrap();
}

/// What to take away, what the relay's error then says, and in which case: it polls, it deletes what was sent, the sequence was set back,
/// or it reads the write-ahead log.
const GRANTS: [(&str, &str, Case); 17] = [
    ("USAGE ON SCHEMA public", "GRANT USAGE ON SCHEMA", Case::Polls),
    ("SELECT ON outbox", "GRANT SELECT, UPDATE (seq, sent_at), DELETE ON outbox", Case::Polls),
    ("UPDATE (sent_at) ON outbox", "GRANT SELECT, UPDATE (seq, sent_at), DELETE ON outbox", Case::Polls),
    ("UPDATE (seq) ON outbox", "GRANT SELECT, UPDATE", Case::IsSetBack),
    ("DELETE ON outbox", "GRANT SELECT, UPDATE (seq, sent_at), DELETE ON outbox", Case::Polls),
    ("DELETE ON outbox", "GRANT SELECT, UPDATE (seq, sent_at), DELETE ON outbox", Case::Deletes),
    ("SELECT ON outbox_shard", "GRANT SELECT, UPDATE ON outbox_shard", Case::Polls),
    ("UPDATE ON outbox_shard", "GRANT SELECT, UPDATE ON outbox_shard", Case::Polls),
    ("SELECT ON outbox_seq_seq", "GRANT SELECT, UPDATE ON outbox_seq_seq", Case::Polls),
    (
        "UPDATE ON outbox_seq_seq",
        "GRANT SELECT, UPDATE ON outbox, outbox_shard, outbox_seq_seq",
        Case::IsSetBack,
    ),
    ("SELECT ON outbox_dead_letter", "GRANT SELECT, INSERT ON outbox_dead_letter", Case::Polls),
    ("INSERT ON outbox_dead_letter", "GRANT SELECT, INSERT ON outbox_dead_letter", Case::Polls),
    ("SELECT ON outbox_requeued", "GRANT SELECT, DELETE ON outbox_requeued", Case::Polls),
    ("DELETE ON outbox_requeued", "GRANT SELECT, DELETE ON outbox_requeued", Case::Polls),
    ("SELECT ON outbox_slot", "GRANT SELECT, UPDATE ON outbox_slot", Case::Polls),
    ("UPDATE ON outbox_slot", "GRANT SELECT, UPDATE ON outbox_slot", Case::ReadsWal),
    ("UPDATE ON outbox_reader", "outbox_reader, on which the relay's role needs UPDATE", Case::ReadsWal),
];

#[derive(Clone, Copy, PartialEq, Eq)]
enum Case {
    Polls,
    Deletes,
    IsSetBack,
    ReadsWal,
}

#[test]
fn without_any_one_of_its_grants_on_postgres_the_relay_names_it() {
    let (polled, read) = (migrated(), migrated());
    let mut slot = WalOptions::default();
    slot.slot = read.name().to_owned();
    setup(&mut read.connect(), &mut read.connect(), &slot).unwrap();
    let role = format!("{}_lean", polled.name());
    polled.connect().batch_execute(&format!("CREATE ROLE {role} LOGIN REPLICATION PASSWORD 'x'")).unwrap();
    for database in [&polled, &read] {
        // Everybody may use the schema by default.
        let take = "REVOKE USAGE ON SCHEMA public FROM PUBLIC";
        let grants = include_str!("../../../outbox-cli/src/command/database/roles/postgres.sql");
        let grants: String =
            grants.lines().filter(|line| line.starts_with("GRANT") && line.contains("{relay}")).collect();
        let grants = grants.replace("{relay}", &role).replace("{schema}", "public");
        database.connect().batch_execute(&format!("{take}; {grants}")).unwrap();
    }
    let mut number = 0;
    let mut work_in = |case: Case| {
        number += 1;
        let database = if case == Case::ReadsWal { &read } else { &polled };
        let conn = &mut database.connect();
        emit(conn, &number.to_string());
        let url = database.url_as(&role, "x");
        match case {
            Case::ReadsWal => work_and_measure(&mut WalSource::new(url, options(), slot.clone()), 2),
            Case::Deletes => {
                work_and_measure(&mut PostgresSource::new(url, options().sent_rows(SentRows::Delete)), 2)
            }
            Case::Polls => work_and_measure(&mut PostgresSource::new(url, options()), 2),
            Case::IsSetBack => {
                conn.batch_execute(
                    "UPDATE outbox_shard SET sequence_origin = NULL; SELECT setval('outbox_seq_seq', 1)",
                )
                .unwrap();
                work_and_measure(&mut PostgresSource::new(url, options()), 2)
            }
        }
    };
    for case in [Case::Polls, Case::Deletes, Case::IsSetBack, Case::ReadsWal] {
        work_in(case).unwrap();
    }
    for (grant, says, case) in GRANTS {
        let conn = &mut if case == Case::ReadsWal { &read } else { &polled }.connect();
        conn.batch_execute(&format!("REVOKE {grant} FROM {role}")).unwrap();
        let error = work_in(case).expect_err(grant).to_string();
        assert!(error.contains(says), "without {grant}: {error}");
        conn.batch_execute(&format!("GRANT {grant} TO {role}")).unwrap();
        work_in(case).unwrap_or_else(|error| panic!("{grant} was given back: {error}"));
    }
    let conn = &mut read.connect();
    eventually("the slot to be free", PATIENCE, || {
        conn.batch_execute(&format!("SELECT pg_drop_replication_slot('{}')", read.name())).ok()
    });
    conn.batch_execute(&format!("DROP OWNED BY {role}")).unwrap();
    drop_roles(&mut polled.connect(), &role);
}

/// The server's own message names the privilege and the table.
#[test]
fn without_any_one_of_its_grants_on_mariadb_the_relay_names_it() {
    let database = Mariadb::shared().database();
    let conn = &mut database.connect();
    let prefix = format!("{}_", database.name());
    let arguments = role_arguments(&prefix);
    done(database.url(), &arguments.iter().map(String::as_str).collect::<Vec<_>>());
    let (role, user) = (format!("{prefix}relay"), format!("{prefix}user"));
    conn.batch_execute(&format!("CREATE USER {user} IDENTIFIED BY 'x'")).unwrap();
    conn.batch_execute(&format!("GRANT {role} TO {user}")).unwrap();
    conn.batch_execute(&format!("SET DEFAULT ROLE {role} FOR {user}")).unwrap();
    let mut number = 0;
    // A shard's bound is moved only if it has come far.
    const EVENTS: usize = 3_000;
    let mut work_once = || {
        number += 1;
        let record = |event: usize| Record::new("order", number.to_string(), event.to_string());
        let records: Vec<Record> = (0..EVENTS).map(record).collect();
        database.connect().transaction(|c| c.emit_all(&records)).unwrap();
        work(&mut MysqlSource::new(database.url_as(&user, "x"), options()), EVENTS)
    };
    work_once().unwrap();
    for (grant, says) in [
        ("SELECT ON outbox", "SELECT"),
        ("UPDATE (sent_at) ON outbox", "UPDATE"),
        ("DELETE ON outbox", "DELETE"),
        ("SELECT ON outbox_shard", "SELECT"),
        ("UPDATE ON outbox_shard", "UPDATE"),
        ("SELECT ON outbox_dead_letter", "SELECT"),
        ("INSERT ON outbox_dead_letter", "INSERT"),
    ] {
        conn.batch_execute(&format!("REVOKE {grant} FROM {role}")).unwrap();
        let error = work_once().expect_err(grant).to_string();
        let table = grant.rsplit_once(' ').unwrap().1;
        assert!(
            error.contains("denied") && error.contains(says) && error.contains(table),
            "without {grant}: {error}"
        );
        conn.batch_execute(&format!("GRANT {grant} TO {role}")).unwrap();
        work_once().unwrap_or_else(|error| panic!("{grant} was given back: {error}"));
    }
    conn.batch_execute(&format!("DROP USER {user}")).unwrap();
    for role in ["emitter", "relay", "consumer", "migrator"] {
        conn.batch_execute(&format!("DROP ROLE {prefix}{role}")).unwrap();
    }
}
