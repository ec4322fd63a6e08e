//! The binary `outbox` with several schemas and several databases.

use std::fs;
use std::process::{Command, Output};
use std::time::Duration;

use diesel::connection::SimpleConnection;
use diesel::prelude::*;
use diesel_outbox::{Outbox, Record};
use outbox_tests::{Database, Folder, Kafka, Postgres, Process, Signal, eventually, workspace_binary};

const PATIENCE: Duration = Duration::from_secs(60);

/// The binary with these arguments, in an environment without settings.
fn outbox(arguments: &[&str]) -> Command {
    let mut command = Command::new(workspace_binary("outbox"));
    command.args(arguments).env_remove("RUST_LOG").env_remove("DATABASE_URL");
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("OUTBOX_")) {
        command.env_remove(name);
    }
    command
}

/// Runs it on this database, and returns what it printed, with its error, and its exit code.
fn ran(database: &Database<'_>, arguments: &[&str]) -> (String, Option<i32>) {
    let Output { status, stdout, stderr } =
        outbox(arguments).env("OUTBOX_DATABASE_URL", database.url()).output().unwrap();
    let text = [stdout, stderr].map(|text| String::from_utf8(text).unwrap()).concat();
    (text, status.code())
}

#[track_caller]
fn done(database: &Database<'_>, arguments: &[&str]) -> String {
    let (text, code) = ran(database, arguments);
    assert_eq!(code, Some(0), "{text}");
    text
}

fn emit(database: &Database<'_>, schema: &str, event_type: &str) {
    let record = Record::new("order", "1", event_type);
    let outbox = Outbox::new().schema(schema);
    database.connect().transaction(|c| outbox.emit(c, &record).map(drop)).unwrap();
}

#[test]
fn each_command_does_its_work_in_all_schemas_and_says_in_which() {
    let database = Postgres::shared().database();
    let migrated = done(&database, &["migrate", "--schema", "tenant_1", "--schema", "tenant_2, other"]);
    for schema in ["tenant_1", "tenant_2", "other"] {
        assert!(migrated.contains(&format!(", schema {schema} is now up to date\n")), "{migrated}");
    }
    emit(&database, "tenant_2", "One");
    emit(&database, "other", "Two");
    let (_, place) = database.url().rsplit_once('@').unwrap();
    let all = ["--schema", "tenant_*"];
    assert_eq!(
        done(&database, &[&["lag"], &all[..]].concat()).lines().take(4).collect::<Vec<_>>(),
        [
            &*format!("PostgreSQL at {place}, schema tenant_1"),
            "  no event waits to be sent",
            &*format!("PostgreSQL at {place}, schema tenant_2"),
            "  unsent: 1",
        ]
    );
    let lag: serde_json::Value =
        serde_json::from_str(&done(&database, &[&["lag", "--json"], &all[..]].concat())).unwrap();
    assert_eq!(lag[0]["schema"], "tenant_1");
    assert_eq!((&lag[1]["schema"], &lag[1]["unsent"]), (&"tenant_2".into(), &1.into()));
    assert_eq!(lag.as_array().unwrap().len(), 2);

    database
        .connect()
        .batch_execute(
            "WITH gone AS (DELETE FROM tenant_2.outbox RETURNING *) INSERT INTO tenant_2.outbox_dead_letter \
             (seq, id, aggregatetype, aggregateid, type, shard, created_at, reason) \
             SELECT seq, id, aggregatetype, aggregateid, type, shard, created_at, 'too large' FROM gone",
        )
        .unwrap();
    let dead = done(&database, &[&["dead-letters", "--json"], &all[..]].concat());
    let dead: serde_json::Value = serde_json::from_str(&dead).unwrap();
    assert_eq!((&dead[0]["schema"], &dead[0]["reason"]), (&"tenant_2".into(), &"too large".into()));
    let requeued = done(&database, &[&["requeue", "--aggregate", "order", "1"], &all[..]].concat());
    assert_eq!(requeued, format!("PostgreSQL at {place}, schema tenant_2\n  requeued 1 dead letter\n"));
    let (again, code) = ran(&database, &[&["requeue", "--aggregate", "order", "1"], &all[..]].concat());
    assert!(code == Some(1) && again.contains("no dead letter matches"), "{again}");

    // One that has no tables does not keep the others from being printed.
    let (text, code) = ran(&database, &["lag", "--schema", "nowhere,tenant_1"]);
    assert!(
        code == Some(1) && text.contains("no event waits") && text.contains("schema nowhere: "),
        "{text}"
    );
}

#[test]
fn wrong_combinations_say_what_to_do() {
    let database = Postgres::shared().database();
    let refused = |arguments: &[&str], expected: &str| {
        let (text, code) = ran(&database, arguments);
        assert!(code == Some(2) && text.contains(expected), "{arguments:?}: {text}");
    };
    let relay = ["relay", "--brokers", "localhost:9092", "--source", "wal", "--schema", "a,b"];
    refused(&relay, "--schema: the WAL is read for one outbox at a time: start a process for each schema");
    let folder = Folder::new("settings");
    let file = folder.path().join("outbox.toml");
    fs::write(
        &file,
        "source = 'wal'\n[[database]]\nurl = 'postgres://a/a'\n[[database]]\nurl = 'postgres://b/b'",
    )
    .unwrap();
    let output = outbox(&["relay", "--brokers", "localhost:9092", "--config", file.to_str().unwrap()])
        .output()
        .unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(text.contains("the WAL is read for one database at a time"), "{text}");
    refused(&["wal", "setup", "--schema", "a*"], "--schema: this is about one outbox: name one schema");
    refused(&["lag", "--schema", "tenant_*"], "--schema: no schema that matches has an outbox");
    let refused = |text: &str, expected: &str| {
        fs::write(&file, text).unwrap();
        let output = outbox(&["lag", "--config", file.to_str().unwrap()]).output().unwrap();
        let text = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.code() == Some(2) && text.contains(expected), "{text}");
    };
    refused("[[database]]\nschema = 'a'", "`url` of the `[[database]]` number 1 in ");
    refused("[[database]]\nurl_env = 'NO_SUCH_VARIABLE'", "the variable NO_SUCH_VARIABLE is not set");
    refused("[[database]]\nurl = 'a.db'\nurl_env = 'HOME'", " exclude each other");
    refused("[[database]]\nurl = 'a.db'\nslot = 'x'", "those are url, url_env and schema");
    refused("database_url = 'a.db'\n[[database]]\nurl = 'b.db'", " exclude each other");
    refused("[database]\nurl = 'b.db'", "write [[database]]");
    refused("schema = []\n[[database]]\nurl = 'postgres://db/a'", "it names no schema: leave it out");
    refused("[[database]]\nurl = 'postgres://db/a'\nschema = ' '", "it names no schema: leave it out");
}

#[test]
fn a_file_has_several_databases_and_one_that_is_away_stops_only_its_own() {
    let databases = [Postgres::shared().database(), Postgres::shared().database()];
    done(&databases[0], &["migrate"]);
    done(&databases[1], &["migrate", "--schema", "tenant_1,tenant_2"]);
    let topic = Kafka::shared().unique("databases");
    let folder = Folder::new("settings");
    let file = folder.path().join("outbox.toml");
    let settings = format!(
        "brokers = '{}'\ntopic = '{topic}'\nlag_interval = '200ms'\n\
         [[database]]\nurl_env = 'FIRST_URL'\n\
         [[database]]\nurl = 'postgres://nobody:s3cret@127.0.0.1:1/away'\nschema = ['a*']\n\
         [[database]]\nurl_env = 'SECOND_URL'\nschema = ['tenant_*']\n",
        Kafka::shared().brokers()
    );
    fs::write(&file, settings).unwrap();
    let mut lag = outbox(&["lag", "--json", "--config", file.to_str().unwrap()]);
    let lag =
        lag.env("FIRST_URL", databases[0].url()).env("SECOND_URL", databases[1].url()).output().unwrap();
    let of_all: serde_json::Value = serde_json::from_slice(&lag.stdout).unwrap();
    assert_eq!((of_all.as_array().unwrap().len(), lag.status.code()), (3, Some(1)));
    let mut command = outbox(&["relay", "--config", file.to_str().unwrap()]);
    command.env("FIRST_URL", databases[0].url()).env("SECOND_URL", databases[1].url());
    let relay = Process::start(&command);
    emit(&databases[0], "public", "One");
    emit(&databases[1], "tenant_1", "Two");
    emit(&databases[1], "tenant_2", "Three");
    let received = Kafka::shared().read_at_least(&topic, 3, PATIENCE);
    let mut event_types: Vec<_> = received.iter().filter_map(|record| record.header("eventType")).collect();
    event_types.sort();
    assert_eq!(event_types, ["One", "Three", "Two"]);
    relay.wait_for_line("that one is away", PATIENCE, |line| line.contains("cannot connect to the database"));
    eventually("the lag of all that are there", PATIENCE, || {
        let output = relay.output();
        (output.contains(&format!("/{}.public", databases[0].name())) && output.contains("without_lag=2"))
            .then_some(())
    });
    relay.signal(Signal::Terminate);
    assert!(relay.wait(PATIENCE).success(), "{}", relay.output());
    assert!(!relay.output().contains("s3cret"), "{}", relay.output());
}
