//! No secret and no payload is in a log at any level, nor in what the commands print.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};

use diesel::connection::SimpleConnection;
use diesel::prelude::*;
use diesel_outbox::{Emit, InboxEvent, Outbox, Record};
use diesel_outbox_kafka::consumer::Consumer;
use outbox_tests::load::{count, drop_roles, migrated, new_topic, relay_command, stop};
use outbox_tests::{
    Kafka, Process, eventually, logged, migrated_mariadb, start_logging_everything, whole_log,
    workspace_binary,
};
use serde::Deserialize;

use super::PATIENCE;

/// What must be in no log. Each begins like this, and says where it comes from.
const MARK: &str = "s3cret-";
const DATABASE: &str = "s3cret-database-password";
const WRONG: &str = "s3cret-wrong-password";
const IN_ENVIRONMENT: &str = "s3cret-pgpassword";
const SASL: &str = "s3cret-sasl-password";
const KEY: &str = "s3cret-key-password";
const PEM: &str = "-----BEGIN PRIVATE KEY-----\ns3cret-key\n-----END PRIVATE KEY-----";
const PAYLOAD: &str = "s3cret-payload";
const HEADER: &str = "s3cret-header";

#[track_caller]
fn has_no_secret(what: &str, text: &str) {
    let found: Vec<&str> = text.lines().filter(|line| line.contains(MARK)).collect();
    assert!(found.is_empty(), "{what}: {found:#?}");
}

fn traced(mut command: Command) -> Command {
    command.env("RUST_LOG", "trace");
    command
}

fn event(aggregate_type: &str, number: usize) -> Record {
    Record::new(aggregate_type, "1", "Placed")
        .header("authorization", HEADER)
        .with_payload(format!("{{\"card\": \"{PAYLOAD}\", \"number\": {number}}}"))
}

#[test]
fn relays_and_commands_log_no_password_no_payload_and_no_header() {
    let database = migrated();
    let conn = &mut database.connect();
    let role = format!("{}_secret", database.name());
    conn.batch_execute(&format!(
        "CREATE ROLE {role} LOGIN REPLICATION PASSWORD '{DATABASE}'; GRANT outbox_test_relay TO {role}"
    ))
    .unwrap();
    let (url, wrong) = (database.url_as(&role, DATABASE), database.url_as(&role, WRONG));
    let topic = new_topic("secrets");
    let kafka = Kafka::shared().brokers();
    let records: Vec<Record> = (0..300).map(|number| event("order", number)).collect();
    conn.transaction(|c| c.emit_all(&records)).unwrap();
    // Kafka never takes the large one, and the last one has headers that cannot be read.
    let large = event("order", 0).with_payload(format!("{PAYLOAD}{}", "x".repeat(2_000_000)));
    conn.transaction(|c| c.emit(&large)).unwrap();
    conn.batch_execute(&format!(
        "INSERT INTO outbox (id, aggregatetype, aggregateid, type, payload, headers, shard) \
         VALUES (gen_random_uuid(), 'order', '1', 'Odd', '{PAYLOAD}', '[\"{HEADER}\"]', 0)"
    ))
    .unwrap();
    let arguments = ["--kafka", &format!("ssl.key.pem={PEM}"), "--kafka", &format!("ssl.key.password={KEY}")];
    let start = |brokers: &str, url: &str, more: &[&str]| {
        let mut command = traced(relay_command(brokers, url, &topic, &[&arguments[..], more].concat()));
        command.env("OUTBOX_KAFKA_SASL_PASSWORD", SASL).env("PGPASSWORD", IN_ENVIRONMENT);
        Process::start(&command)
    };
    let relay = start(kafka, &url, &["--listen", "127.0.0.1:0", "--lag-interval", "100ms"]);
    eventually("all events", PATIENCE, || (count(conn, "outbox WHERE sent_at IS NULL") == 0).then_some(()));
    eventually("the dead letters", PATIENCE, || (count(conn, "outbox_dead_letter") >= 1).then_some(()));
    // Statements that fail in the middle, with values in them.
    conn.batch_execute("ALTER TABLE outbox_dead_letter ADD CONSTRAINT no CHECK (reason = '') NOT VALID")
        .unwrap();
    conn.transaction(|c| c.emit(&large)).unwrap();
    relay.wait_for_line("that it fails", PATIENCE, |line| line.contains("the database failed while moving"));
    conn.batch_execute("ALTER TABLE outbox_dead_letter DROP CONSTRAINT no").unwrap();
    eventually("the last event", PATIENCE, || {
        (count(conn, "outbox WHERE sent_at IS NULL") == 0).then_some(())
    });
    for path in ["/metrics", "/readyz", "/healthz"] {
        has_no_secret(path, &served(&relay, path));
    }
    stop(&relay);
    assert!(relay.output().contains("TRACE") || relay.output().contains("DEBUG"), "nothing was traced");
    has_no_secret("a relay that works", &relay.output());

    let unreachable = url.replace(&url[url.rfind(':').unwrap()..url.rfind('/').unwrap()], ":1");
    for (what, relay, says) in [
        (
            "an address where nobody listens",
            start(kafka, &unreachable, &["--listen", "127.0.0.1:0", "--ready-timeout", "1ms"]),
            "cannot connect",
        ),
        (
            "a broker that is away",
            start("127.0.0.1:1", &url, &["--listen", "127.0.0.1:0", "--ready-timeout", "1ms"]),
            "Kafka",
        ),
        (
            "SASL without a server for it",
            start(
                kafka,
                &url,
                &[
                    "--kafka",
                    "security.protocol=SASL_PLAINTEXT",
                    "--kafka",
                    "sasl.mechanism=PLAIN",
                    "--kafka",
                    "sasl.username=ann",
                    "--listen",
                    "127.0.0.1:0",
                    "--ready-timeout",
                    "1ms",
                ],
            ),
            "SASL",
        ),
    ] {
        conn.transaction(|c| c.emit(&event("order", 1))).unwrap();
        relay.wait_for_line(what, PATIENCE, |line| line.contains(says));
        has_no_secret(what, &served(&relay, "/readyz"));
        has_no_secret(what, &relay.output());
    }
    for arguments in [
        &["lag"][..],
        &["dead-letters"],
        &["dead-letters", "--json"],
        &["requeue", "--all"],
        &["doctor", "--brokers", kafka, "--kafka", "ssl.key.pem=s3cret-inline"],
        &["doctor", "--json", "--brokers", "127.0.0.1:1", "--kafka", "sasl.password=s3cret-inline"],
        &["migrate", "--roles", "--print"],
        &["wal", "setup", "--slot", "none"],
        &["debezium", "connector", "--brokers", "one:9092"],
        &["debezium", "check"],
        &["debezium", "setup-sql"],
        &[
            "relay",
            "--brokers",
            "one:9092",
            "--kafka",
            "ssl.key.pem=s3cret-inline",
            "--kafka",
            "no.such=s3cret-property",
        ],
    ] {
        for url in [&url, &wrong, &unreachable] {
            let mut command = Command::new(workspace_binary("outbox"));
            command.args(arguments).env("OUTBOX_DATABASE_URL", url);
            let output = traced(command).output().unwrap();
            has_no_secret(&format!("{arguments:?}"), &String::from_utf8_lossy(&output.stdout));
            has_no_secret(&format!("{arguments:?}"), &String::from_utf8_lossy(&output.stderr));
        }
    }

    // The write-ahead log, whose library logs too.
    done_as_owner(&database, "setup");
    conn.transaction(|c| c.emit_all(&records)).unwrap();
    let counter = Kafka::shared().counter(&topic);
    let before = counter.count();
    let log = start(kafka, &url, &["--source", "wal", "--slot", database.name()]);
    eventually("the events of the WAL", PATIENCE, || (counter.count() >= before + 300).then_some(()));
    stop(&log);
    has_no_secret("a relay that reads the write-ahead log", &log.output());
    done_as_owner(&database, "drop");
    drop_roles(conn, &role);
}

/// Returns what the relay answers.
fn served(relay: &Process, path: &str) -> String {
    let line = relay.wait_for_line("where it serves", PATIENCE, |line| line.contains("serving /metrics"));
    let address = line.split('"').find(|part| part.starts_with("127.0.0.1:")).expect("an address");
    let mut stream = TcpStream::connect(address).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: relay\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 "), "{answer}");
    answer
}

fn done_as_owner(database: &outbox_tests::Database<'_>, command: &str) {
    let mut outbox = Command::new(workspace_binary("outbox"));
    outbox.args(["wal", command, "--slot", database.name()]).env("OUTBOX_DATABASE_URL", database.url());
    let output = traced(outbox).output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{text}");
    has_no_secret(command, &text);
}

#[test]
fn on_mariadb_they_log_none_either() {
    let database = migrated_mariadb();
    let conn = &mut database.connect();
    let user = format!("{}_secret", database.name());
    conn.batch_execute(&format!("CREATE USER {user} IDENTIFIED BY '{DATABASE}'")).unwrap();
    conn.batch_execute(&format!("GRANT ALL ON {}.* TO {user}", database.name())).unwrap();
    let records: Vec<Record> = (0..300).map(|number| event("order", number)).collect();
    conn.transaction(|c| c.emit_all(&records)).unwrap();
    let large = event("order", 0).with_payload(format!("{PAYLOAD}{}", "x".repeat(2_000_000)));
    conn.transaction(|c| c.emit(&large)).unwrap();
    let topic = new_topic("secrets");
    let counter = Kafka::shared().counter(&topic);
    let (url, wrong) = (database.url_as(&user, DATABASE), database.url_as(&user, WRONG));
    let relay = Process::start(&traced(relay_command(Kafka::shared().brokers(), &url, &topic, &[])));
    eventually("all events", PATIENCE, || (counter.count() >= 300).then_some(()));
    relay.wait_for_line("the dead letter", PATIENCE, |line| line.contains("dead letter"));
    stop(&relay);
    has_no_secret("a relay that works", &relay.output());
    let refused = Process::start(&traced(relay_command(Kafka::shared().brokers(), &wrong, &topic, &[])));
    refused.wait_for_line("that it is refused", PATIENCE, |line| line.contains("cannot connect"));
    has_no_secret("a wrong password", &refused.output());
    for arguments in [
        &["lag"][..],
        &["doctor", "--brokers", "127.0.0.1:1"],
        &["dead-letters"],
        &["migrate"],
        &["requeue", "--all"],
    ] {
        for url in [&url, &wrong] {
            let mut command = Command::new(workspace_binary("outbox"));
            command.args(arguments).env("OUTBOX_DATABASE_URL", url);
            let output = traced(command).output().unwrap();
            has_no_secret(&format!("{arguments:?}"), &String::from_utf8_lossy(&output.stdout));
            has_no_secret(&format!("{arguments:?}"), &String::from_utf8_lossy(&output.stderr));
        }
    }
    conn.batch_execute(&format!("DROP USER {user}")).unwrap();
}

#[derive(Debug, Deserialize, InboxEvent)]
#[outbox(type = "Placed")]
struct Placed {
    /// The payload has a text here, so it cannot be decoded.
    #[allow(dead_code)]
    card: u64,
}

/// Everything that this process logs is looked at, also of the libraries.
#[test]
fn emitters_and_consumers_log_none_either() {
    start_logging_everything();
    let database = migrated();
    let conn = &mut database.connect();
    let role = format!("{}_secret_consumer", database.name());
    conn.batch_execute(&format!(
        "CREATE ROLE {role} LOGIN PASSWORD '{DATABASE}'; GRANT outbox_test_consumer TO {role}"
    ))
    .unwrap();
    let emitting = &mut database.connect_as_emitter();
    let outbox = Outbox::new().header("authorization", HEADER);
    emitting.transaction(|c| outbox.emit(c, &event("card", 1))).unwrap();
    // The second has the same id.
    let twice = event("card", 2);
    let too_long = Record::new("x".repeat(300), "1", "Placed").with_payload(PAYLOAD);
    for refused in [&too_long, &twice] {
        let error = emitting.transaction(|c| c.emit(refused).and_then(|_| c.emit_all([refused, &too_long])));
        has_no_secret("the error of an emit", &format!("{:?} {}", error, error.as_ref().unwrap_err()));
    }

    let kafka = Kafka::shared();
    let (topic, dead_letters) = (new_topic("consumed"), new_topic("consumed-dead"));
    let relay = Process::start(&traced(relay_command(kafka.brokers(), &database.relay_url(), &topic, &[])));
    emitting
        .transaction(|c| c.emit(&Record::new("card", "2", "Other").header("h", HEADER).with_payload(PAYLOAD)))
        .unwrap();
    let counter = kafka.counter(&topic);
    eventually("the events", PATIENCE, || (counter.count() == 2).then_some(()));
    stop(&relay);
    has_no_secret("the relay", &relay.output());

    static TRIED: AtomicUsize = AtomicUsize::new(0);
    let name = kafka.unique("secrets");
    let consumer = Consumer::new(kafka.brokers(), &*name)
        .database_url(database.url_as(&role, DATABASE))
        .topics([&*topic])
        .dead_letter_topic(&*dead_letters)
        .max_attempts(2)
        .set("sasl.password", SASL)
        .set("ssl.key.password", KEY)
        .on_event(|_: &mut PgConnection, _: Placed| Ok(()))
        .on("Other", |_, received| {
            TRIED.fetch_add(1, Ordering::Relaxed);
            Err(format!("the handler failed for {}", received.id()).into())
        });
    has_no_secret("the consumer's Debug", &format!("{consumer:?}"));
    let handle = consumer.spawn().unwrap();
    let dead = kafka.counter(&dead_letters);
    eventually("both dead letters", PATIENCE, || (dead.count() == 2).then_some(()));
    assert!(TRIED.load(Ordering::Relaxed) >= 2);
    handle.stop_blocking().unwrap();
    // One that cannot connect.
    let refused = Consumer::new(kafka.brokers(), &*kafka.unique("secrets"))
        .database_url(format!("postgres://ann:{WRONG}@127.0.0.1:1/shop"))
        .topics([&*topic])
        .on("Other", |_: &mut PgConnection, _| Ok(()))
        .spawn();
    if let Ok(handle) = refused {
        eventually("that it cannot connect", PATIENCE, || logged(&["127.0.0.1"]).map(drop));
        let _ = handle.stop_blocking();
    }
    drop_roles(conn, &role);
    assert!(whole_log().contains("dead letter"), "nothing was logged: {}", whole_log());
    has_no_secret("the log of a consumer", &whole_log());
}
