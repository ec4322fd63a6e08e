//! What `outbox relay --listen` serves, and what is made of it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::time::Duration;

use diesel::prelude::*;
use diesel_outbox::{Emit, Record};
use outbox_tests::{
    Folder, Kafka, Postgres, Process, Tables, artifacts, eventually, on_postgres_and_mariadb,
    workspace_binary,
};

const PATIENCE: Duration = Duration::from_secs(60);

on_postgres_and_mariadb!(
    a_relay_says_why_it_is_not_ready,
    what_waits_is_known_for_each_aggregate_type_and_shard,
);

fn outbox() -> Command {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    Command::new(BINARY.get_or_init(|| workspace_binary("outbox")))
}

/// A running relay, and the address where it serves.
struct Relay {
    process: Process,
    address: String,
}

impl Relay {
    fn start(database_url: &str, brokers: &str, more: &[&str]) -> Self {
        let mut command = outbox();
        command.args(["relay", "--database-url", database_url, "--brokers", brokers]);
        command
            .args(["--listen", "127.0.0.1:0", "--lag-interval", "100ms", "--log-format", "json"])
            .args(more);
        let process = Process::start(&command);
        let line =
            process.wait_for_line("where it serves", PATIENCE, |line| line.contains("serving /metrics"));
        let line: serde_json::Value = serde_json::from_str(&line).unwrap();
        let address = line["address"].as_str().expect("an address").to_owned();
        Self { process, address }
    }

    /// Returns the status and the body of an answer.
    fn get(&self, path: &str) -> (u16, String) {
        let mut stream = TcpStream::connect(&self.address).unwrap();
        write!(stream, "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").expect("a head and a body");
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
        (status.expect("a status"), body.to_owned())
    }

    fn wait_until_ready(&self) {
        eventually("the relay to be ready", PATIENCE, || (self.get("/readyz").0 == 200).then_some(()));
    }

    /// Waits until it is not ready for this reason.
    fn wait_until_not_ready(&self, reason: &str) {
        eventually("the relay not to be ready", PATIENCE, || {
            let (status, body) = self.get("/readyz");
            (status == 503 && body.starts_with("not ready: ") && body.contains(reason)).then_some(())
        });
    }
}

fn record(aggregate_type: &str, id: usize) -> Record {
    Record::new(aggregate_type, id.to_string(), "Placed").with_payload(*b"{}")
}

fn a_relay_says_why_it_is_not_ready(tables: &impl Tables) {
    let away = Relay::start(&tables.relay_url(), "127.0.0.1:1", &["--ready-timeout", "1s"]);
    // It has nothing to send, so it needs no broker.
    away.wait_until_ready();
    let conn = &mut tables.connect();
    conn.transaction(|c| c.emit(&record("order", 1))).unwrap();
    away.wait_until_not_ready("each attempt has failed for ");
    assert_eq!(away.get("/healthz"), (200, "alive\n".to_owned()));
    assert_eq!(away.get("/nothing").0, 404);
    // No answer has a secret.
    let secret = tables.relay_url();
    let secret = secret.split(['@', ':']).nth(2).expect("a password");
    for path in ["/metrics", "/readyz"] {
        assert!(!away.get(path).1.contains(secret), "{path}");
    }
    let topic = Kafka::shared().unique("ready");
    let sends = Relay::start(&tables.relay_url(), Kafka::shared().brokers(), &["--topic", &topic]);
    sends.wait_until_ready();
    Kafka::shared().read_at_least(&topic, 1, PATIENCE);
    assert_eq!(sends.get("/readyz"), (200, "ready\n".to_owned()));
}

fn what_waits_is_known_for_each_aggregate_type_and_shard(tables: &impl Tables) {
    let records = (1..=8).map(|id| record("order", id)).chain((1..=3).map(|id| record("invoice", id)));
    let records: Vec<Record> = records.collect();
    let mut expected = BTreeMap::<(String, i16), u64>::new();
    for record in &records {
        *expected.entry((record.aggregate_type().to_owned(), record.shard())).or_default() += 1;
    }
    tables.connect().transaction(|c| c.emit_all(&records)).unwrap();
    let unsent = tables.operate().unsent().unwrap();
    assert!(unsent.iter().all(|waiting| waiting.oldest > Duration::ZERO), "{unsent:?}");
    let counts = unsent.into_iter().map(|waiting| ((waiting.aggregate_type, waiting.shard), waiting.count));
    assert_eq!(counts.collect::<BTreeMap<_, _>>(), expected);
}

#[test]
fn a_relay_is_ready_as_soon_as_the_tables_are_there() {
    let database = Postgres::shared().database();
    let relay = Relay::start(database.url(), Kafka::shared().brokers(), &[]);
    relay.wait_until_not_ready("the relay has not made its first pass: the table `outbox` does not exist");
    database.migrate();
    relay.wait_until_ready();
}

#[test]
fn a_relay_that_stands_by_is_ready_while_the_other_one_is_not() {
    let folder = Folder::new("stand-by");
    let path = folder.path().join("outbox.db");
    let url = path.to_str().unwrap();
    let mut conn = SqliteConnection::establish(url).unwrap();
    diesel_outbox::Migrations::new().run(&mut conn).unwrap();
    conn.transaction(|c| c.emit(&record("order", 1))).unwrap();
    let works = Relay::start(url, "127.0.0.1:1", &["--ready-timeout", "1s"]);
    works.wait_until_not_ready("");
    let stands_by = Relay::start(url, "127.0.0.1:1", &["--ready-timeout", "1s"]);
    stands_by.wait_until_ready();
    // The first one still has the lock and still fails.
    assert_eq!((works.get("/readyz").0, stands_by.get("/readyz").0), (503, 200));
}

#[test]
fn an_address_that_is_taken_is_a_failure_with_its_setting() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let mut command = outbox();
    command.args(["relay", "--database-url", "postgres://127.0.0.1:1/shop", "--brokers", "127.0.0.1:1"]);
    let output = command.args(["--listen", &address]).output().unwrap();
    let error = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{error}");
    assert!(error.contains(&format!("--listen: cannot listen at {address}: ")), "{error}");
}

/// The types of the metrics, and the names of their labels.
type Metrics = BTreeMap<String, (String, BTreeSet<String>)>;

/// Reads Prometheus' text format.
fn exported(text: &str) -> Metrics {
    let types = text.lines().filter_map(|line| line.strip_prefix("# TYPE "));
    let mut metrics: Metrics = types
        .map(|line| {
            let (name, kind) = line.split_once(' ').expect("a name and a type");
            (name.to_owned(), (kind.to_owned(), BTreeSet::new()))
        })
        .collect();
    for line in text.lines().filter(|line| !line.starts_with('#') && !line.is_empty()) {
        let end = line.find(['{', ' ']).expect("a value");
        let name = metric(&line[..end], &metrics);
        let labels = line[end..].strip_prefix('{').map_or("", |rest| rest.split('}').next().unwrap());
        // No value of these tests has a comma.
        let labels =
            labels.split(',').filter_map(|label| label.split('=').next()).filter(|label| !label.is_empty());
        let (_, known) = metrics.get_mut(&name).unwrap_or_else(|| panic!("{name} has no type"));
        known.extend(labels.filter(|label| *label != "le").map(str::to_owned));
    }
    metrics
}

/// The metric to which a series belongs: a histogram has several.
fn metric(series: &str, metrics: &Metrics) -> String {
    let endings = ["_bucket", "_sum", "_count"].iter().filter_map(|ending| series.strip_suffix(ending));
    endings.into_iter().find(|name| metrics.contains_key(*name)).unwrap_or(series).to_owned()
}

fn read(path: &str) -> String {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    fs::read_to_string(workspace.join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// The table in the documentation.
fn documented() -> Metrics {
    let page = read("docs/metrics.md");
    let rows = page.lines().filter(|line| line.starts_with("| `outbox_"));
    let code = |cell: &str| cell.split('`').skip(1).step_by(2).map(str::to_owned).collect::<Vec<_>>();
    rows.map(|row| {
        let cells: Vec<&str> = row.split('|').map(str::trim).collect();
        let [_, name, kind, _unit, labels, meaning, _] = cells[..] else { panic!("{row}") };
        assert!(!meaning.is_empty(), "{row}");
        (code(name).remove(0), (kind.to_owned(), code(labels).into_iter().collect()))
    })
    .collect()
}

/// Feeds a program, which must be content and say nothing.
fn is_content(command: &mut Command, input: &str) {
    let child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let mut child = child.unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    assert!(output.status.success(), "{}\n{input}", String::from_utf8_lossy(&said));
}

/// A relay that sends exactly once from the WAL has all metrics that there are.
#[test]
fn the_documentation_the_dashboard_and_the_alerts_know_each_metric_of_a_relay_and_no_other() {
    let database = outbox_tests::load::migrated();
    diesel_outbox_relay::source::wal::setup(
        &mut database.connect(),
        &mut database.connect(),
        &options(&database),
    )
    .unwrap();
    let topic = Kafka::shared().unique("metrics");
    let slot = options(&database).slot;
    let settings = [
        "--source",
        "wal",
        "--slot",
        &slot,
        "--exactly-once",
        "--topic",
        &format!("{topic}.{{aggregatetype}}"),
    ];
    let allowed = format!("{topic}.order");
    let prefix = Kafka::shared().unique("progress");
    let more = ["--allow-topics", &allowed, "--exactly-once-prefix", &prefix];
    let relay = Relay::start(database.url(), Kafka::shared().brokers(), &[&settings[..], &more].concat());
    let conn = &mut database.connect();
    conn.transaction(|c| c.emit_all([record("order", 1), record("invoice", 1)])).unwrap();
    Kafka::shared().read_at_least(&allowed, 1, PATIENCE);
    database.end_sessions();
    let documented = documented();
    let metrics = eventually("all metrics", PATIENCE, || {
        let (status, text) = relay.get("/metrics");
        assert_eq!(status, 200);
        (exported(&text).len() >= documented.len()).then_some(text)
    });
    assert_eq!(exported(&metrics), documented);
    assert!(relay.process.exited().is_none());

    is_content(Command::new(artifacts::promtool()).args(["check", "metrics"]), &metrics);
    let rules = "deploy/prometheus/alerts.yml";
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join(rules);
    is_content(Command::new(artifacts::promtool()).args(["check", "rules"]).arg(&path), "");
    let mut test = Command::new(artifacts::promtool());
    is_content(test.args(["test", "rules"]).arg(path.with_file_name("alerts_test.yml")), "");
    for file in [rules, "deploy/grafana/dashboard.json"] {
        let text = read(file);
        let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
        let named = words.filter(|word| word.starts_with("outbox_") && word.len() > "outbox_".len());
        let named: BTreeSet<String> = named.map(|series| metric(series, &documented)).collect();
        let unknown: Vec<_> = named.iter().filter(|name| !documented.contains_key(*name)).collect();
        assert!(unknown.is_empty(), "{file} names {unknown:?}");
    }
    // The alerts come with what they mean and what to do.
    let alerts = read(rules);
    let of = |key: &str| alerts.matches(&format!("\n          {key}: \"")).count();
    let count = alerts.matches("- alert: ").count();
    assert_eq!([of("summary"), of("meaning"), of("action")], [count; 3]);
    assert!(
        alerts
            .find("- alert: ")
            .is_some_and(|first| alerts[first..].starts_with("- alert: OutboxEventsWait\n"))
    );
}

fn options(database: &impl Tables) -> diesel_outbox_relay::WalOptions {
    let mut options = diesel_outbox_relay::WalOptions::default();
    options.slot = format!("probes_{}", database.name());
    options
}
