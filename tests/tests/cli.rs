//! Runs the binary `outbox` as its users do.

use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Command, Output};
use std::sync::OnceLock;
use std::time::Duration;

use diesel::prelude::*;
use diesel::sql_types::{BigInt, Text};
use diesel_outbox::{Emit, Record};
use outbox_tests::{Database, Folder, Kafka, Postgres, Process, Signal, eventually, workspace_binary};

const PATIENCE: Duration = Duration::from_secs(60);

/// The binary with these arguments, in an environment without settings.
fn outbox(arguments: &[&str]) -> Command {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    let mut command = Command::new(BINARY.get_or_init(|| workspace_binary("outbox")));
    command.args(arguments).env_remove("RUST_LOG").env_remove("DATABASE_URL");
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("OUTBOX_")) {
        command.env_remove(name);
    }
    command
}

/// Runs it, and returns what it printed and how it ended.
fn ran(arguments: &[&str]) -> (String, String, Option<i32>) {
    let Output { status, stdout, stderr } = outbox(arguments).output().unwrap();
    (String::from_utf8(stdout).unwrap(), String::from_utf8(stderr).unwrap(), status.code())
}

/// Runs it successfully, and returns what it printed.
#[track_caller]
fn done(arguments: &[&str]) -> String {
    let (stdout, stderr, code) = ran(arguments);
    assert_eq!((stderr.as_str(), code), ("", Some(0)), "{stdout}");
    stdout
}

/// Runs it with a failure, and returns its one-line error.
#[track_caller]
fn failed(arguments: &[&str], expected: i32) -> String {
    let (stdout, stderr, code) = ran(arguments);
    assert_eq!((stdout.as_str(), code), ("", Some(expected)), "{stderr}");
    assert_eq!(stderr.trim_end().lines().count(), 1, "{stderr}");
    stderr
}

fn migrated() -> Database<'static> {
    let database = Postgres::shared().database();
    done(&["migrate", "--database-url", database.url()]);
    database
}

fn emit<C: Emit>(conn: &mut C, aggregate_type: &str, count: usize) {
    let record = |n| Record::new(aggregate_type, n, "OrderPlaced").with_payload(*b"{}");
    conn.transaction(|c| c.emit_all((0..count).map(|n| record(n.to_string())))).unwrap();
}

fn number(conn: &mut PgConnection, sql: &str) -> i64 {
    diesel::dsl::sql::<BigInt>(sql).get_result(conn).unwrap()
}

fn relay(arguments: &[&str]) -> Process {
    Process::start(&outbox(&[&["relay"], arguments].concat()))
}

/// Stops it and returns what it logged.
#[track_caller]
fn stopped(process: &Process, signal: Signal) -> String {
    process.signal(signal);
    let status = process.wait(PATIENCE);
    assert!(status.success(), "{status}:\n{}", process.output());
    assert!(process.output().contains("the relay has stopped"), "{}", process.output());
    process.output()
}

#[test]
fn migrations_run_once_in_each_database_and_schema() {
    let database = Postgres::shared().database();
    let file = Folder::new("migrate");
    let file = format!("sqlite://{}", file.path().join("outbox.db").display());
    for place in [
        &["--database-url", database.url()][..],
        &["--database-url", database.url(), "--schema", "shop events"],
        &["--database-url", &file],
    ] {
        let first = done(&[&["migrate"], place].concat());
        assert!(first.starts_with("ran ") && first.contains("_create_outbox\n"), "{first}");
        let second = done(&[&["migrate"], place].concat());
        assert!(second.ends_with("is up to date\n") && !second.contains("ran "), "{second}");
        assert_eq!(done(&[&["lag"], place].concat()), "no event waits to be sent\n");
    }
    let sql = "select count(*) from information_schema.tables where table_name = 'outbox'";
    assert_eq!(number(&mut database.connect(), sql), 2);
}

#[test]
fn a_service_that_only_consumes_needs_only_the_inbox() {
    let folder = Folder::new("inbox-only");
    let path = folder.path().join("billing.db");
    let path = path.to_str().unwrap();
    let tables = || -> Vec<String> {
        let sql = "select name from sqlite_schema where type = 'table' and name like '%box%' order by name";
        let mut conn = SqliteConnection::establish(path).unwrap();
        let names = diesel::dsl::sql::<Text>(sql).load(&mut conn);
        names.unwrap()
    };
    let inbox_only = || done(&["migrate", "--inbox-only", "--database-url", path]);
    let first = inbox_only();
    assert!(first.contains("_create_inbox\n") && !first.contains("_create_outbox"), "{first}");
    assert!(!inbox_only().contains("ran "));
    assert_eq!(tables(), ["inbox", "outbox_migration"]);
    // The other tables can follow.
    let rest = done(&["migrate", "--database-url", path]);
    assert!(rest.contains("_create_outbox\n") && !rest.contains("_create_inbox"), "{rest}");
}

#[test]
fn completions_and_man_pages_are_written_without_a_database() {
    assert!(done(&["completions", "bash"]).contains("--ready-timeout"));
    let folder = Folder::new("man");
    let pages = folder.path().join("man1");
    assert_eq!(done(&["man", pages.to_str().unwrap()]), "");
    let page = std::fs::read_to_string(pages.join("outbox-doctor.1")).unwrap();
    assert!(page.contains("outbox") && page.contains("FAIL"), "{page}");
}

#[test]
fn flags_start_a_relay() {
    let database = Postgres::shared().database();
    let place = ["--database-url", database.url(), "--schema", "events"];
    done(&[&["migrate"][..], &place].concat());
    let (kafka, topic) = (Kafka::shared(), Kafka::shared().unique("flags"));
    let pattern = format!("{topic}.{{aggregatetype}}");
    let settings =
        ["--brokers", kafka.brokers(), "--topic", &pattern, "--workers", "2", "--kafka", "linger.ms=2"];
    let process = relay(&[&place[..], &settings].concat());

    let mut conn = database.connect();
    diesel::sql_query("set search_path to events").execute(&mut conn).unwrap();
    emit(&mut conn, "order", 3);
    assert_eq!(kafka.read_at_least(&format!("{topic}.order"), 3, PATIENCE).len(), 3);

    let log = stopped(&process, Signal::Terminate);
    let start = log.lines().find(|line| line.contains("the relay has started")).unwrap();
    for part in ["0.1.0", "PostgreSQL at", database.name(), "events", kafka.brokers(), &pattern, "workers=2"]
    {
        assert!(start.contains(part), "{part} is not in {start}");
    }
    assert!(log.contains("SIGTERM"), "{log}");
}

#[test]
fn the_environment_starts_a_relay() {
    let folder = Folder::new("environment");
    let path = folder.path().join("outbox.db");
    let path = path.to_str().unwrap();
    done(&["migrate", "--database-url", path]);
    let (kafka, topic) = (Kafka::shared(), Kafka::shared().unique("environment"));
    let mut command = outbox(&["relay"]);
    command
        .env("DATABASE_URL", path)
        .env("OUTBOX_BROKERS", kafka.brokers())
        .env("OUTBOX_TOPIC", &topic)
        .env("OUTBOX_DELETE_SENT", "true")
        .env("OUTBOX_LOG_FORMAT", "json")
        .env("OUTBOX_KAFKA_COMPRESSION_TYPE", "gzip");
    let process = Process::start(&command);
    emit(&mut SqliteConnection::establish(path).unwrap(), "order", 2);
    assert_eq!(kafka.read_at_least(&topic, 2, PATIENCE).len(), 2);
    let log = stopped(&process, Signal::Interrupt);
    assert!(log.lines().all(|line| line.starts_with('{') && line.ends_with('}')), "{log}");
    assert!(log.contains("SIGINT"), "{log}");
}

#[test]
fn a_file_starts_a_relay() {
    let database = migrated();
    let (kafka, topic) = (Kafka::shared(), Kafka::shared().unique("file"));
    let folder = Folder::new("file");
    let path = folder.path().join("outbox.toml");
    let (url, brokers) = (database.url(), kafka.brokers());
    let text = format!(
        "database_url = '{url}'\nbrokers = ['{brokers}']\ntopic = '{topic}'\nkeep_sent = '1h'\nshutdown_timeout = '20s'\n\
         dead_letter_policy = 'block'\n\n[kafka]\nlinger.ms = 2\n'compression.type' = 'gzip'\n"
    );
    std::fs::write(&path, text).unwrap();
    let process = relay(&["--config", path.to_str().unwrap()]);
    emit(&mut database.connect(), "order", 1);
    assert_eq!(kafka.read_at_least(&topic, 1, PATIENCE).len(), 1);
    stopped(&process, Signal::Terminate);
}

#[test]
fn a_relay_that_is_stopped_in_the_middle_sends_nothing_twice() {
    let database = migrated();
    let mut conn = database.connect();
    emit(&mut conn, "order", 20_000);
    let (kafka, topic) = (Kafka::shared(), Kafka::shared().unique("middle"));
    kafka.create_topic(&topic, 3);
    let place = ["--database-url", database.url(), "--brokers", kafka.brokers(), "--topic", &topic];
    // Small steps, so that the relay is stopped before it is done.
    let process = relay(
        &[&place[..], &["--batch-size", "10", "--max-in-flight", "10", "--max-pass-duration", "50ms"]]
            .concat(),
    );
    let sent = "select count(*) from outbox where sent_at is not null";
    eventually("a record to be sent", PATIENCE, || (number(&mut conn, sent) > 0).then_some(()));
    stopped(&process, Signal::Terminate);
    let sent = number(&mut conn, sent);
    assert!((1..20_000).contains(&sent), "{sent} were sent");
    assert_eq!(kafka.read_all(&topic).len() as i64, sent);
}

/// A relay that waits for a broker that never answers.
fn waiting(database: &Database<'_>, shutdown_timeout: &str) -> (Process, TcpListener) {
    let deaf = TcpListener::bind("127.0.0.1:0").unwrap();
    let broker = deaf.local_addr().unwrap().to_string();
    let mut conn = database.connect();
    emit(&mut conn, "order", 1);
    let process = relay(&[
        "--database-url",
        database.url(),
        "--brokers",
        &broker,
        "--stall-timeout",
        "20s",
        "--shutdown-timeout",
        shutdown_timeout,
    ]);
    let waiting = "select count(*) from pg_stat_activity where datname = current_database() \
                   and application_name = 'outbox relay' and state = 'idle in transaction' \
                   and state_change < clock_timestamp() - interval '300 milliseconds'";
    eventually("a record to be in flight", PATIENCE, || (number(&mut conn, waiting) > 0).then_some(()));
    (process, deaf)
}

#[test]
fn a_second_signal_ends_the_relay_at_once() {
    let database = migrated();
    let (process, _deaf) = waiting(&database, "10m");
    process.signal(Signal::Terminate);
    process.wait_for_line("that it stops", PATIENCE, |line| line.contains("the relay is stopping"));
    process.signal(Signal::Terminate);
    assert_eq!(process.wait(PATIENCE).code(), Some(143));
}

#[test]
fn a_stop_that_takes_too_long_is_a_failure() {
    let database = migrated();
    let (process, _deaf) = waiting(&database, "100ms");
    process.signal(Signal::Terminate);
    assert_eq!(process.wait(PATIENCE).code(), Some(1));
    let output = process.output();
    assert!(output.contains("outbox: the relay did not stop within 100ms"), "{output}");
    assert!(!output.contains("the relay has stopped"), "{output}");
}

#[test]
fn no_output_holds_a_secret() {
    let away = "postgres://ann:s3cret@127.0.0.1:1/shop";
    let broken = "postgres://ann:s3cret/1@127.0.0.1/shop";
    for command in ["migrate", "lag", "dead-letters"] {
        let text = failed(&[command, "--database-url", away], 1);
        assert!(text.contains("PostgreSQL at 127.0.0.1:1/shop") && !text.contains("s3cret"), "{text}");
        let text = failed(&[command, "--database-url", broken], 2);
        assert!(text.starts_with("outbox: --database-url: ") && !text.contains("s3cret"), "{text}");
    }
    let settings = ["relay", "--database-url", away, "--brokers", "127.0.0.1:1"];
    for property in ["sasl.pasword=s3cret", "enable.idempotence=s3cret", "linger.ms=s3cret"] {
        let text = failed(&[&settings[..], &["--kafka", property]].concat(), 2);
        let name = property.split('=').next().unwrap();
        let place = format!("outbox: --kafka {name}: ");
        assert!(text.starts_with(&place) && !text.contains("s3cret"), "{text}");
    }
    for command in [&["debezium", "--help"][..], &["debezium", "connector", "--help"], &["wal", "--help"]] {
        assert!(done(command).contains("Usage: outbox"));
    }
    let help = outbox(&["relay", "--help"]).env("OUTBOX_DATABASE_URL", away).output().unwrap();
    assert!(help.status.success() && !String::from_utf8(help.stdout).unwrap().contains("s3cret"));

    let mut command = outbox(&settings);
    command.env("OUTBOX_KAFKA_SASL_PASSWORD", "s3cret").env("RUST_LOG", "trace");
    let process = Process::start(&command);
    process.wait_for_line("that the database failed", PATIENCE, |line| line.contains("the database failed"));
    let log = stopped(&process, Signal::Terminate);
    assert!(!log.contains("s3cret"), "{log}");
}

#[test]
fn a_connector_is_printed_without_the_password() {
    let database = ["--database-url", "postgres://ann:s3cret@db.example:5433/shop?sslmode=verify-full"];
    let print = |arguments: &[&str]| ran(&[&["debezium", "connector"], &database[..], arguments].concat());
    let (json, notes, code) =
        print(&["--topic", "shop.{aggregatetype}", "--slot", "shop", "--schema", "events"]);
    assert_eq!(code, Some(0), "{notes}");
    assert!(!json.contains("s3cret") && !notes.contains("s3cret") && notes.contains("EnvVarConfigProvider"));
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["name"], "outbox");
    for (name, value) in [
        ("connector.class", "io.debezium.connector.postgresql.PostgresConnector"),
        ("database.hostname", "db.example"),
        ("database.port", "5433"),
        ("database.user", "ann"),
        ("database.password", "${env:OUTBOX_DATABASE_PASSWORD}"),
        ("database.dbname", "shop"),
        ("database.sslmode", "verify-full"),
        ("topic.prefix", "outbox"),
        ("table.include.list", "events.outbox"),
        ("slot.name", "shop"),
        ("publication.name", "outbox"),
        ("transforms.outbox.route.topic.replacement", "shop.${routedByValue}"),
    ] {
        assert_eq!(json["config"][name], value, "{name}");
    }
    let (properties, notes, _) = print(&["--format", "properties", "--name", "shop"]);
    assert!(
        properties.starts_with("# ") && properties.contains("\nname=shop\n") && notes.is_empty(),
        "{notes}"
    );
    assert!(
        properties.contains("\ntransforms.outbox.route.topic.replacement=outbox.event.${routedByValue}\n")
    );

    let sql = done(&[&["debezium", "setup-sql"], &database[..], &["--schema", "shop \"events\""]].concat());
    assert!(sql.contains("GRANT SELECT ON \"shop \"\"events\"\"\".outbox TO \"ann\";"), "{sql}");
    let text = failed(&["debezium", "connector", "--database-url", "postgres://ann:s3cret@one,two/shop"], 2);
    assert!(text.starts_with("outbox: --database-url: name one host") && !text.contains("s3cret"), "{text}");
    let text = failed(&["debezium", "setup-sql", "--database-url", "shop.db"], 2);
    assert!(text.contains("Debezium reads no SQLite file"), "{text}");
    let text = failed(&["debezium", "offset", "--database-url", "postgres://ann@db.example/shop"], 2);
    assert!(text.contains("there is no offset to set"), "{text}");
    assert!(
        failed(&["debezium", "check", "--database-url", "postgres://ann@127.0.0.1:1/shop"], 1)
            .contains("cannot connect")
    );
}

#[test]
fn a_connector_for_mariadb_is_stopped_until_it_has_an_offset() {
    let database = ["--database-url", "mariadb://ann:s3cret@db.example:3307/shop", "--schema", "events"];
    let print = |arguments: &[&str]| ran(&[&["debezium", "connector"], &database[..], arguments].concat());
    let (json, notes, code) = print(&["--brokers", "one:9092,two:9092", "--server-id", "7"]);
    assert_eq!(code, Some(0), "{notes}");
    assert!(
        !json.contains("s3cret") && !notes.contains("s3cret") && notes.contains("debezium offset"),
        "{notes}"
    );
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!((&json["name"], &json["initial_state"]), (&"outbox".into(), &"STOPPED".into()));
    for (name, value) in [
        ("connector.class", "io.debezium.connector.mariadb.MariaDbConnector"),
        ("database.hostname", "db.example"),
        ("database.port", "3307"),
        ("database.user", "ann"),
        ("database.password", "${env:OUTBOX_DATABASE_PASSWORD}"),
        ("database.server.id", "7"),
        ("database.include.list", "events"),
        ("table.include.list", "events.outbox"),
        ("schema.history.internal.kafka.bootstrap.servers", "one:9092,two:9092"),
        ("transforms.outbox.route.topic.replacement", "outbox.event.${routedByValue}"),
    ] {
        assert_eq!(json["config"][name], value, "{name}");
    }
    let (_, notes, code) = print(&[]);
    assert!(code == Some(2) && notes.contains("no broker is named: set --brokers"), "{notes}");
    let sql = done(&[&["debezium", "setup-sql"], &database[..]].concat());
    assert!(sql.contains("GRANT SELECT ON `events`.outbox TO `ann`@'%';"), "{sql}");
}

#[test]
fn the_error_of_a_wrong_setting_says_where_it_was_given() {
    let folder = Folder::new("wrong");
    let path = folder.path().join("outbox.toml");
    std::fs::write(&path, "brokerz = 'one:9092'\n").unwrap();
    let path = path.to_str().unwrap();
    let text = failed(&["relay", "--config", path], 2);
    assert!(
        text.starts_with(&format!("outbox: `brokerz` in {path} is not a setting. The settings are ")),
        "{text}"
    );
    assert!(text.contains("brokers, kafka, topic"), "{text}");

    let settings = ["relay", "--database-url", "postgres://localhost/shop", "--brokers", "localhost:9092"];
    let text = failed(&[&settings[..], &["--workers", "17"]].concat(), 2);
    assert_eq!(text, "outbox: --workers: `17` is wrong: it must be 1 to 16\n");
    assert!(failed(&["relay", "--brokers", "localhost:9092"], 2).contains("OUTBOX_DATABASE_URL"));
    assert!(failed(&["relay", "--database-url", "postgres://localhost/shop"], 2).contains("OUTBOX_BROKERS"));
}

#[test]
fn the_error_about_what_is_missing_says_what_to_do() {
    let folder = Folder::new("missing");
    let path = folder.path().join("none.db");
    let text = failed(&["lag", "--database-url", path.to_str().unwrap()], 1);
    assert!(text.contains("there is no database file") && !path.exists(), "{text}");

    let database = Postgres::shared().database();
    let text = failed(&["lag", "--database-url", database.url()], 1);
    assert!(text.contains("make the tables with `outbox migrate`"), "{text}");
}

#[test]
fn dead_letters_are_listed_and_requeued() {
    let database = migrated();
    let mut conn = database.connect();
    let (kafka, topic) = (Kafka::shared(), Kafka::shared().unique("letters"));
    let pattern = format!("{topic}.{{aggregatetype}}");
    let (orders, invoices) = (format!("{topic}.order"), format!("{topic}.invoice"));
    let url = ["--database-url", database.url()];
    let settings = [&url[..], &["--brokers", kafka.brokers(), "--topic", &pattern]].concat();
    let at = |command: &[&'static str]| [command, &url].concat();

    assert_eq!(done(&at(&["dead-letters"])), "no dead letters\n");
    assert_eq!(done(&at(&["requeue", "--all"])), "requeued 0 dead letters\n");
    emit(&mut conn, "order", 1);
    emit(&mut conn, "invoice", 3);
    assert!(done(&at(&["lag"])).starts_with("unsent: 4\noldest: "));
    let by_topic = done(&[&at(&["lag", "--by", "topic"])[..], &["--topic", &pattern]].concat());
    assert!(by_topic.contains(&format!("{invoices}  unsent: 3  oldest: ")), "{by_topic}");
    assert!(by_topic.contains(&format!("{orders}    unsent: 1  oldest: ")), "{by_topic}");
    let process = relay(&[&settings[..], &["--allow-topics", &orders]].concat());
    let dead = "select count(*) from outbox_dead_letter";
    eventually("3 dead letters", PATIENCE, || (number(&mut conn, dead) == 3).then_some(()));
    assert_eq!(kafka.read_at_least(&orders, 1, PATIENCE).len(), 1);
    stopped(&process, Signal::Terminate);

    assert_eq!(done(&at(&["lag"])), "no event waits to be sent\ndead letters: 3\n");
    let json = "{\"blocked_aggregates\":0,\"dead_letters\":3,\"oldest_seconds\":0.0,\"unsent\":0}\n";
    assert_eq!(done(&at(&["lag", "--json"])), json);
    let text = done(&at(&["dead-letters"]));
    assert!(text.contains("OrderPlaced of invoice 2\n") && text.contains(&invoices), "{text}");
    let json = done(&at(&["dead-letters", "--json"]));
    for part in ["[{\"aggregate_id\":\"0\"", "\"aggregate_type\":\"invoice\"", "\"reason\":\"", "\"seq\":"] {
        assert!(json.contains(part), "{part} is not in {json}");
    }
    let (stdout, stderr, _) = ran(&at(&["dead-letters", "--limit", "2"]));
    assert_eq!(stdout.matches("OrderPlaced").count(), 2);
    assert_eq!(stderr, "outbox: there are more than 2: see --limit\n");

    let causes = done(&at(&["dead-letters", "--by-cause"]));
    assert!(causes.contains("  events:  3, OrderPlaced\n"), "{causes}");
    let (key, _) = causes.split_once('\n').unwrap();
    let json = done(&at(&["dead-letters", "--by-cause", "--json"]));
    assert!(json.contains(&format!("\"cause\":\"{key}\",\"dead_letters\":3")), "{json}");
    let of_cause = [&["requeue", "--dry-run", "--cause", key][..], &url].concat();
    assert!(done(&of_cause).ends_with("3 dead letters to be requeued\n"));
    let early = at(&["dead-letters", "drop", "--failed-before", "2020-01-01T00:00:00Z"]);
    assert!(failed(&early, 1).contains("no dead letter matches"));
    assert_eq!(number(&mut conn, dead), 3);

    let unknown = at(&["requeue", "--id", "0198c0de-0000-7000-8000-000000000001"]);
    assert!(failed(&unknown, 1).contains("no dead letter matches"));
    let id: String = diesel::dsl::sql::<Text>("select id::text from outbox_dead_letter order by seq limit 1")
        .get_result(&mut conn)
        .unwrap();
    assert_eq!(done(&[&["requeue", "--id", &id][..], &url].concat()), "requeued 1 dead letter\n");
    assert_eq!(done(&at(&["requeue", "--aggregate", "invoice", "1"])), "requeued 1 dead letter\n");
    assert!(done(&at(&["lag"])).starts_with("unsent: 2\n"));
    assert_eq!(done(&at(&["requeue", "--all"])), "requeued 1 dead letter\n");

    let process = relay(&settings);
    assert_eq!(kafka.read_at_least(&invoices, 3, PATIENCE).len(), 3);
    stopped(&process, Signal::Terminate);
    assert_eq!(done(&at(&["dead-letters"])), "no dead letters\n");
}
