//! `outbox migrate --roles`.

use std::time::Duration;

use diesel::connection::SimpleConnection;
use diesel::prelude::*;
use diesel_outbox::{Emit, Inbox, Once, Outbox, Record};
use diesel_outbox_core::Source;
use diesel_outbox_relay::source::{MysqlSource, PostgresSource, SourceOptions};
use outbox_tests::load::{count, drop_roles};
use outbox_tests::{Mariadb, MariadbDatabase, Postgres};
use uuid::Uuid;

use super::{done, outbox, role_arguments};

/// The names need quotes, in the database and in the text that makes the roles.
#[test]
fn each_role_does_its_work_in_a_named_schema_and_the_command_can_be_run_again() {
    let database = Postgres::shared().database();
    let conn = &mut database.connect();
    let prefix = format!("{} o'\"ne ", database.name());
    let arguments = role_arguments(&prefix);
    let mut arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    arguments.extend(["--schema", "Ev\"ents '1'"]);

    let printed = done(database.url(), &[&arguments[..], &["--print"]].concat());
    let made = format!("pg_roles WHERE rolname LIKE '{} o''%'", database.name());
    assert_eq!(count(conn, &made), 0, "{printed}");
    assert_eq!(count(conn, "pg_class WHERE relname LIKE 'outbox%'"), 0);

    let quoted = |role: &str| format!("\"{}{role}\"", prefix.replace('"', "\"\""));
    // One is there before.
    conn.batch_execute(&format!("CREATE ROLE {} NOLOGIN", quoted("emitter"))).unwrap();
    assert!(done(database.url(), &arguments).contains("granted"));
    assert_eq!(count(conn, &format!("{made} AND NOT rolcanlogin")), 4);
    let owned = format!(
        "pg_class WHERE relname ~ '^(outbox|inbox)' AND relkind IN ('r', 'v') AND relowner::regrole::text = '{}'",
        quoted("migrator").replace('\'', "''")
    );
    assert_eq!(count(conn, &owned), 10);
    done(database.url(), &arguments);
    conn.batch_execute(&printed).unwrap();

    let members = ["emitter", "relay", "consumer", "migrator"].map(|role| {
        let member = format!("{}_{role}", database.name());
        conn.batch_execute(&format!(
            "CREATE ROLE {member} LOGIN PASSWORD 'x'; GRANT {} TO {member}",
            quoted(role)
        ))
        .unwrap();
        member
    });
    let url = |member: &str| database.url_as(member, "x");
    let [emitter, relay, consumer, migrator] = members.each_ref().map(|member| url(member));
    let schema = "Ev\"ents '1'";
    let emitting = &mut PgConnection::establish(&emitter).unwrap();
    let records = [1, 2].map(|number| Record::new("order", "1", number.to_string()));
    let events = Outbox::new().schema(schema);
    emitting.transaction(|c| events.emit_all(c, &records)).unwrap();
    let [kept, cancelled] = [3, 4].map(|number| {
        let record = Record::new("order", "1", number.to_string());
        emitting.transaction(|c| events.emit_after(c, &record, Duration::ZERO)).unwrap()
    });
    assert!(events.cancel_scheduled(emitting, cancelled).unwrap());
    assert_eq!(events.scheduled(emitting).unwrap()[0].record().id(), kept);
    send_one_of_two(PostgresSource::new(relay, SourceOptions::default().schema(schema)));
    let consuming = &mut PgConnection::establish(&consumer).unwrap();
    let inbox = Inbox::new("billing").schema(schema);
    let handled = inbox.once(consuming, Uuid::now_v7(), |_| QueryResult::Ok(())).unwrap();
    assert!(matches!(handled, Once::First(())));
    assert_eq!(done(&migrator, &["requeue", "--all", "--schema", schema]), "requeued 1 dead letter\n");
    assert!(done(&migrator, &["migrate", "--schema", schema]).contains("is up to date"));

    conn.batch_execute(&format!("REASSIGN OWNED BY {} TO postgres", quoted("migrator"))).unwrap();
    let roles = ["emitter", "relay", "consumer", "migrator"].map(quoted);
    let _ = (emitting, consuming);
    drop_roles_of(conn, &members.join(", "), &roles.join(", "));
}

fn drop_roles_of(conn: &mut PgConnection, members: &str, groups: &str) {
    drop_roles(conn, members);
    drop_roles(conn, groups);
}

/// Only what needs no other table is granted, and roles that have no name are left out.
#[test]
fn an_inbox_alone_gets_a_consumer_and_a_migrator() {
    let database = Postgres::shared().database();
    let conn = &mut database.connect();
    let prefix = format!("{}_", database.name());
    let arguments = role_arguments(&prefix);
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).chain(["--inbox-only"]).collect();
    let text = done(database.url(), &arguments);
    assert!(text.contains(&format!("to {prefix}consumer, {prefix}migrator")), "{text}");
    let roles = format!("{prefix}consumer, {prefix}migrator");
    conn.batch_execute(&format!("REASSIGN OWNED BY {prefix}migrator TO postgres")).unwrap();
    drop_roles(conn, &roles);
}

#[test]
fn whoever_may_not_make_roles_and_sqlite_get_an_error_that_says_what_to_do() {
    let database = Postgres::shared().database();
    let conn = &mut database.connect();
    let owner = format!("{}_owner", database.name());
    conn.batch_execute(&format!(
        "CREATE ROLE {owner} LOGIN PASSWORD 'x'; GRANT CREATE ON SCHEMA public TO {owner}"
    ))
    .unwrap();
    let arguments = role_arguments(&format!("{}_", database.name()));
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let (is_done, text) = outbox(&database.url_as(&owner, "x"), &arguments);
    assert!(!is_done && text.contains("permission denied") && text.contains("--roles --print"), "{text}");
    drop_roles(conn, &owner);
    let (is_done, text) = outbox("sqlite://nothing.db", &arguments);
    assert!(!is_done && text.contains("SQLite has no roles"), "{text}");
}

#[test]
fn the_roles_of_mariadb_do_their_work() {
    let database = Mariadb::shared().database();
    do_their_work(&database, |role, user| format!("SET DEFAULT ROLE `{role}` FOR {user}"));
}

#[test]
fn the_roles_of_mysql_do_their_work() {
    let database = Mariadb::shared_mysql().database();
    do_their_work(&database, |role, user| format!("SET DEFAULT ROLE `{role}` TO {user}"));
}

fn do_their_work(database: &MariadbDatabase<'_>, by_default: impl Fn(&str, &str) -> String) {
    let conn = &mut database.connect();
    let (prefix, short) = (format!("{}`", database.name()), database.name());
    let arguments = role_arguments(&prefix);
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let printed = done(database.url(), &[&arguments[..], &["--print"]].concat());
    assert!(printed.contains("CREATE ROLE IF NOT EXISTS"), "{printed}");
    assert!(done(database.url(), &arguments).contains("granted"));
    done(database.url(), &arguments);
    let url = |role: &str| {
        let (user, role) = (format!("{short}_{role}"), format!("{prefix}{role}").replace('`', "``"));
        let statements = [
            format!("CREATE USER {user} IDENTIFIED BY 'x'"),
            format!("GRANT `{role}` TO {user}"),
            by_default(&role, &user),
        ];
        statements.iter().for_each(|statement| database.connect().batch_execute(statement).unwrap());
        database.url_as(&user, "x")
    };
    let emitting = &mut MysqlConnection::establish(&url("emitter")).unwrap();
    let records = [1, 2].map(|number| Record::new("order", "1", number.to_string()));
    emitting.transaction(|c| c.emit_all(&records)).unwrap();
    emitting.transaction(|c| c.emit_after(&Record::new("order", "1", "3"), Duration::ZERO)).unwrap();
    let cancelled =
        emitting.transaction(|c| c.emit_after(&Record::new("order", "1", "4"), Duration::ZERO)).unwrap();
    assert!(emitting.cancel_scheduled(cancelled).unwrap());
    send_one_of_two(MysqlSource::new(url("relay"), SourceOptions::default()));
    let consuming = &mut MysqlConnection::establish(&url("consumer")).unwrap();
    let inbox = Inbox::new("billing");
    let handled = inbox.once(consuming, Uuid::now_v7(), |_| QueryResult::Ok(())).unwrap();
    assert!(matches!(handled, Once::First(())));
    let migrator = url("migrator");
    assert_eq!(done(&migrator, &["requeue", "--all"]), "requeued 1 dead letter\n");
    assert!(done(&migrator, &["migrate"]).contains("is up to date"));
    for role in ["emitter", "relay", "consumer", "migrator"] {
        let quoted = format!("{prefix}{role}").replace('`', "``");
        conn.batch_execute(&format!("DROP USER {short}_{role}")).unwrap();
        conn.batch_execute(&format!("DROP ROLE `{quoted}`")).unwrap();
    }
}

/// Makes a pass that settles the first of two records, makes the second a dead letter, and looks after the table.
fn send_one_of_two(mut source: impl Source) {
    assert!(source.claim().unwrap());
    let mut claimed = Vec::new();
    source.read(10, &mut claimed).unwrap();
    source.settle(&[claimed[0].ticket]).unwrap();
    source.dead_letter(claimed[1].ticket, "too large").unwrap();
    source.release().unwrap();
    // What was scheduled is moved into the outbox.
    let lag = source.upkeep().unwrap().unwrap();
    assert_eq!((lag.unsent, lag.scheduled), (1, 0));
}
