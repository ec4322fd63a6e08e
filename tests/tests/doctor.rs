//! `outbox doctor` finds what is wrong, and nothing else.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::Duration;

use diesel::connection::{AnsiTransactionManager, SimpleConnection, TransactionManager};
use diesel::prelude::*;
use diesel_outbox::{Emit, Record};
use outbox_tests::load::{drop_roles, migrated};
use outbox_tests::{Folder, Kafka, Postgres, eventually, migrated_mariadb, workspace_binary};
use serde_json::Value;

const PATIENCE: Duration = Duration::from_secs(60);

/// What it has found.
#[derive(Debug)]
struct Found {
    code: Option<i32>,
    findings: Vec<(String, String, String)>,
}

impl Found {
    /// Returns the verdict and the text of this line. There may be several: the worst counts.
    fn line(&self, check: &str) -> (&str, &str) {
        let lines = || self.findings.iter().filter(|(line, ..)| line == check);
        let worst =
            ["FAIL", "warn", "ok"].iter().find_map(|verdict| lines().find(|(_, is, _)| is == verdict));
        let (_, verdict, text) = worst.unwrap_or_else(|| panic!("no line {check} in {self:?}"));
        (verdict.as_str(), text.as_str())
    }

    /// The lines that are not ok.
    fn wrong(&self) -> BTreeSet<&str> {
        let wrong = self.findings.iter().filter(|(_, verdict, _)| verdict != "ok");
        wrong.map(|(check, ..)| check.as_str()).collect()
    }

    #[track_caller]
    fn has(&self, check: &str, verdict: &str, text: &str) {
        let (is, said) = self.line(check);
        assert!(is == verdict && said.contains(text), "{check} is {is}: {said}");
        assert_eq!(
            self.code,
            Some(i32::from(self.findings.iter().any(|(_, is, _)| is == "FAIL"))),
            "{self:?}"
        );
    }
}

fn doctor(database_url: &str, more: &[&str]) -> Command {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    let mut command = Command::new(BINARY.get_or_init(|| workspace_binary("outbox")));
    command.args(["doctor", "--database-url", database_url]).args(more);
    command
}

/// Examines a database, and Kafka if the settings name brokers.
fn examined(database_url: &str, more: &[&str]) -> Found {
    let output = doctor(database_url, more).arg("--json").output().unwrap();
    let (stdout, stderr) =
        (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
    let json: Value =
        serde_json::from_str(&stdout).unwrap_or_else(|error| panic!("{error}: {stdout}{stderr}"));
    let text = |object: &Value, key: &str| object[key].as_str().expect(key).to_owned();
    let findings = json.as_array().unwrap().iter();
    let findings =
        findings.map(|object| (text(object, "check"), text(object, "verdict"), text(object, "text")));
    Found { code: output.status.code(), findings: findings.collect() }
}

fn with_kafka() -> [&'static str; 2] {
    ["--brokers", Kafka::shared().brokers()]
}

/// The servers of tests do not write through to the disk.
const OF_TESTS: &str = "durability";

fn emit<C: Emit>(conn: &mut C, aggregate_type: &str) {
    conn.transaction(|c| c.emit(&Record::new(aggregate_type, "1", "Placed"))).unwrap();
}

#[test]
fn nothing_is_wrong_with_a_sound_postgres_as_its_relay_sees_it() {
    let (database, topic) = (migrated(), Kafka::shared().unique("sound"));
    Kafka::shared().create_topic(&topic, 3);
    emit(&mut database.connect(), "order");
    let found = examined(&database.relay_url(), &[&with_kafka()[..], &["--topic", &topic]].concat());
    assert!(found.wrong().into_iter().all(|check| check == OF_TESTS), "{found:?}");
    found.has("topics", "ok", &format!("{topic} has 3 partitions"));
}

#[test]
fn nothing_is_wrong_with_a_sound_mariadb() {
    let database = migrated_mariadb();
    // Other tests may have transactions that are prepared.
    eventually("nothing to be wrong", PATIENCE, || {
        let found = examined(database.url(), &with_kafka());
        let sound = found.wrong().into_iter().all(|check| check == OF_TESTS);
        (sound && found.code == Some(0)).then_some(())
    });
}

#[test]
fn nothing_is_wrong_with_a_sound_sqlite_file_and_its_lines_fit_into_80_columns() {
    let folder = Folder::new("doctor");
    let path = folder.path().join("outbox.db");
    let url = path.to_str().unwrap();
    let mut conn = SqliteConnection::establish(url).unwrap();
    conn.batch_execute("PRAGMA journal_mode = delete").unwrap();
    let found = examined(url, &with_kafka());
    found.has("tables", "FAIL", "outbox migrate");
    found.has("durability", "warn", "PRAGMA journal_mode = wal");
    conn.batch_execute("PRAGMA journal_mode = wal").unwrap();
    diesel_outbox::Migrations::new().run(&mut conn).unwrap();
    let found = examined(url, &with_kafka());
    assert_eq!((found.wrong(), found.code), (BTreeSet::new(), Some(0)), "{found:?}");

    let output = doctor(url, &["--brokers", "127.0.0.1:1"]).output().unwrap();
    let (stdout, stderr) =
        (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
    assert_eq!(output.status.code(), Some(1), "{stdout}{stderr}");
    assert!(
        stdout.contains("\nFAIL brokers       Kafka does not answer")
            && stdout.contains("ok   tables        "),
        "{stdout}"
    );
    assert!(stdout.lines().all(|line| line.chars().count() <= 80), "{stdout}");
    assert!(stderr.contains("do what the 1 lines marked FAIL say"), "{stderr}");
}

#[test]
fn what_is_wrong_with_postgres_is_found_by_its_line() {
    let empty = Postgres::shared().database();
    let found = examined(empty.url(), &[]);
    found.has("tables", "FAIL", "outbox migrate");
    found.has("brokers", "warn", "--brokers");

    let database = migrated();
    let (conn, url) = (&mut database.connect(), database.relay_url());
    emit(conn, "order");
    let plant = |sql: &str| database.connect().batch_execute(sql).unwrap();
    let then = |check: &str, verdict: &str, text: &str, undo: &str| {
        examined(&url, &[]).has(check, verdict, text);
        plant(undo);
        let (is, said) = (examined(&url, &[]), check);
        assert_eq!(is.line(said).0, "ok", "{is:?}");
    };
    plant("REVOKE DELETE ON outbox FROM outbox_test_relay");
    then(
        "role",
        "FAIL",
        "GRANT DELETE ON outbox TO outbox_test_relay",
        "GRANT DELETE ON outbox TO outbox_test_relay",
    );
    plant("ALTER SEQUENCE outbox_seq_seq CACHE 32");
    then("tables", "FAIL", "CACHE 1", "ALTER SEQUENCE outbox_seq_seq CACHE 1");
    plant("DELETE FROM outbox_shard WHERE shard = 3");
    then("tables", "FAIL", "15 of the 16 shards", "INSERT INTO outbox_shard (shard) VALUES (3)");
    plant("UPDATE outbox SET created_at = created_at - interval '2 minutes'");
    then(
        "lag",
        "warn",
        "1 events wait, the oldest for 1",
        "UPDATE outbox SET created_at = clock_timestamp() AT TIME ZONE 'utc'",
    );
    plant(
        "INSERT INTO outbox_dead_letter (seq, id, aggregatetype, aggregateid, type, shard, created_at, reason) SELECT seq, id, aggregatetype, \
         aggregateid, type, shard, created_at, 'blocked: an earlier record of the same aggregate is a dead letter; requeue the aggregate' FROM outbox",
    );
    examined(&url, &[]).has("blocked", "warn", "1 aggregates are held back");
    then("dead_letters", "warn", "outbox dead-letters", "DELETE FROM outbox_dead_letter");

    let writer = &mut database.connect();
    AnsiTransactionManager::begin_transaction(writer).unwrap();
    writer.emit(&Record::new("order", "2", "Never")).unwrap();
    eventually("the open transaction", PATIENCE, || {
        let found = examined(database.url(), &[]);
        let (verdict, text) = found.line("writers");
        (verdict == "warn" && text.contains("SELECT pg_terminate_backend(")).then_some(())
    });
    AnsiTransactionManager::rollback_transaction(writer).unwrap();

    // A role without grants lacks each that `outbox migrate --roles` would give it.
    let role = format!("{}_bare", database.name());
    plant(&format!("CREATE ROLE {role} LOGIN PASSWORD 'bare'; GRANT USAGE ON SCHEMA public TO {role}"));
    let bare = examined(&database.url_as(&role, "bare"), &[]);
    let (verdict, said) = bare.line("role");
    assert_eq!(verdict, "FAIL");
    let grants = include_str!("../../outbox-cli/src/command/database/roles/postgres.sql").lines();
    for grant in grants.filter(|line| line.ends_with("TO {relay};") && line.contains("{schema}.")) {
        let (privileges, table) = grant["GRANT ".len()..].split_once(" ON {schema}.").unwrap();
        let table = table.split(' ').next().unwrap();
        // The commas between columns separate no privileges.
        let privileges = privileges.split_inclusive(')').flat_map(|part| match part.split_once('(') {
            Some((before, columns)) => {
                let mut before: Vec<String> = before.split(", ").map(str::to_owned).collect();
                let last = before.pop().unwrap();
                before.push(format!("{last}({columns}"));
                before
            }
            None => part.split(", ").map(str::to_owned).collect(),
        });
        for privilege in privileges.filter(|privilege| !privilege.is_empty()) {
            let needed = format!("GRANT {privilege} ON {table} TO {role}");
            assert!(said.contains(&needed), "{needed} is not in {said}");
        }
    }

    drop_roles(&mut database.connect(), &role);

    plant(
        "SELECT setval('outbox_seq_seq', 1); INSERT INTO outbox (seq, id, aggregatetype, aggregateid, type, shard) \
         VALUES (500, gen_random_uuid(), 'order', '1', 'Placed', 0)",
    );
    examined(&url, &[]).has("sequence", "warn", "set back");
}

#[test]
fn what_is_wrong_with_a_slot_is_found_by_its_line() {
    let database = migrated();
    let slot = format!("doctor_{}", database.name());
    let mut options = diesel_outbox_relay::WalOptions::default();
    options.slot.clone_from(&slot);
    diesel_outbox_relay::source::wal::setup(&mut database.connect(), &mut database.connect(), &options)
        .unwrap();
    let found = examined(&database.relay_url(), &[]);
    found.has("slot", "warn", &format!("nobody reads {slot}"));
    found.has("slot_limit", "warn", "max_slot_wal_keep_size is not set");
    let found = examined(&database.relay_url(), &["--source", "wal", "--slot", "another"]);
    found.has("slot", "FAIL", "run `outbox wal setup --slot another`");
    database.connect().batch_execute(&format!("SELECT pg_drop_replication_slot('{slot}')")).unwrap();
    examined(&database.relay_url(), &[]).has("slot", "FAIL", &format!("{slot} does not exist any more"));
}

#[test]
fn what_is_wrong_with_mariadb_is_found_by_its_line() {
    let database = migrated_mariadb();
    let (conn, url) = (&mut database.connect(), database.relay_url());
    emit(conn, "order");
    let mut plant = |sql: &str| conn.batch_execute(sql).unwrap_or_else(|error| panic!("{error}: {sql}"));
    examined(&url, &[]).has("writers", "warn", "GRANT PROCESS");
    plant("UPDATE outbox SET created_at = created_at - INTERVAL 2 MINUTE");
    examined(&url, &[]).has("lag", "warn", "1 events wait, the oldest for 1");
    plant("DELETE FROM outbox_shard WHERE shard = 3");
    examined(&url, &[]).has("tables", "FAIL", "15 of the 16 shards");
    plant("INSERT INTO outbox_shard (shard, unsent) VALUES (3, '')");
    plant(&format!("REVOKE DELETE ON `{}`.outbox FROM outbox_test_relay", database.name()));
    examined(&url, &[]).has("role", "FAIL", "GRANT DELETE ON outbox");
    plant("ALTER TABLE outbox ENGINE = MyISAM");
    examined(&url, &[]).has("tables", "FAIL", "ENGINE = InnoDB");
}

#[test]
fn what_is_wrong_with_kafka_is_found_by_its_line() {
    let folder = Folder::new("doctor-kafka");
    let path = folder.path().join("outbox.db");
    let url = path.to_str().unwrap();
    let mut conn = SqliteConnection::establish(url).unwrap();
    diesel_outbox::Migrations::new().run(&mut conn).unwrap();
    emit(&mut conn, "order");
    examined(url, &["--brokers", "127.0.0.1:1"]).has("brokers", "FAIL", "does not answer");
    let topic = Kafka::shared().unique("missing");
    let at = [&with_kafka()[..], &["--topic", &topic]].concat();
    let (verdict, text) = {
        let found = examined(url, &at);
        let (v, t) = found.line("topics");
        (v.to_owned(), t.to_owned())
    };
    assert!(verdict != "ok" && text.contains(&format!("{topic} does not exist")), "{verdict} {text}");
    examined(url, &["--allow-topics", "others.*"]).has(
        "topics",
        "FAIL",
        "aggregate type order become dead letters",
    );
    // It has made none.
    assert_eq!(examined(url, &at).line("topics").0, verdict);
    Kafka::shared().create_topic_with(&topic, 1, &[("min.insync.replicas", "2")]);
    eventually("the line about replicas", PATIENCE, || {
        let found = examined(url, &at);
        (found.findings.iter().any(|(check, ..)| check == "replicas")).then(|| {
            found.has("replicas", "FAIL", "has 1 replicas in sync, and min.insync.replicas is 2");
        })
    });
}

#[test]
fn each_line_is_in_the_documentation_and_no_other() {
    let (database, topic) = (migrated(), Kafka::shared().unique("lines"));
    Kafka::shared().create_topic(&topic, 1);
    emit(&mut database.connect(), "order");
    let mut options = diesel_outbox_relay::WalOptions::default();
    options.slot = format!("lines_{}", database.name());
    diesel_outbox_relay::source::wal::setup(&mut database.connect(), &mut database.connect(), &options)
        .unwrap();
    let of_postgres = examined(database.url(), &[&with_kafka()[..], &["--topic", &topic]].concat());
    let of_mariadb = examined(migrated_mariadb().url(), &[]);
    let all = of_postgres.findings.iter().chain(&of_mariadb.findings);
    let lines: BTreeSet<String> = all.map(|(check, ..)| check.clone()).collect();
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let page = std::fs::read_to_string(workspace.join("docs/doctor.md")).unwrap();
    let rows = page.lines().filter_map(|row| row.strip_prefix("| `"));
    let documented: BTreeSet<String> =
        rows.filter_map(|row| Some(row.split_once('`')?.0.to_owned())).collect();
    assert_eq!(lines, documented);
}
