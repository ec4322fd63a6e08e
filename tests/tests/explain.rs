//! `outbox explain` says of an event where it is, why, and what to do.

use std::process::{Command, Output};
use std::time::Duration;

use diesel::connection::{AnsiTransactionManager, SimpleConnection, TransactionManager};
use diesel::prelude::*;
use diesel_outbox::{Emit, OutboxConnection, Record};
use diesel_outbox_relay::{DeadLetterPolicy, Kafka as Broker, Relay};
use outbox_tests::load::{migrated, stop, wal, wal_relay};
use outbox_tests::{
    Database, Folder, Kafka, Mariadb, Process, Server as _, Tables, eventually, migrated_mariadb,
    workspace_binary,
};
use serde_json::Value;
use uuid::Uuid;

const PATIENCE: Duration = Duration::from_secs(60);

/// An outbox, and a topic for its events.
struct Place {
    url: String,
    topic: String,
}

/// What the command has said.
struct Said {
    text: String,
    errors: String,
    code: Option<i32>,
}

impl Said {
    #[track_caller]
    fn has(&self, state: &str, code: i32, parts: &[&str]) {
        let Self { text, errors, .. } = self;
        assert!(text.contains(&format!("state    {state}\n")), "{state}: {text}{errors}");
        assert_eq!(self.code, Some(code), "{text}{errors}");
        assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
        // Lines are broken anywhere.
        let words = text.split_whitespace().collect::<Vec<_>>().join(" ");
        for part in parts {
            assert!(words.contains(part), "{part} is not in {text}");
        }
    }
}

impl Place {
    fn new(url: &str) -> Self {
        let topic = Kafka::shared().unique("explain");
        Kafka::shared().create_topic(&topic, 3);
        Self { url: url.to_owned(), topic }
    }

    fn explain(&self, id: Uuid, arguments: &[&str]) -> Said {
        let mut command = Command::new(workspace_binary("outbox"));
        command.args(["explain", &id.to_string(), "--topic", &self.topic]).args(arguments);
        command.env("OUTBOX_DATABASE_URL", &self.url).env_remove("RUST_LOG").env_remove("DATABASE_URL");
        let Output { status, stdout, stderr } = command.output().unwrap();
        let (text, errors) = (String::from_utf8(stdout).unwrap(), String::from_utf8(stderr).unwrap());
        Said { text, errors, code: status.code() }
    }

    fn with_kafka(&self, id: Uuid) -> Said {
        self.explain(id, &["--brokers", Kafka::shared().brokers()])
    }

    fn relay(&self, relay: Relay) -> Relay {
        relay.broker(Broker::new(Kafka::shared().brokers())).topic_naming(self.topic.parse().unwrap())
    }
}

fn record(aggregate: &str) -> Record {
    Record::new("order", aggregate, "OrderPlaced")
}

fn emit(conn: &mut impl Emit, record: &Record) -> Uuid {
    conn.transaction(|c| c.emit(record)).unwrap()
}

/// The states that each database has.
fn each_state_is_named<C: OutboxConnection + Emit + SimpleConnection>(
    place: &Place,
    conn: &mut C,
    relay: impl Fn() -> Relay,
    no_relay: &str,
) {
    let unknown = Uuid::now_v7();
    place.explain(unknown, &[]).has("never seen", 4, &[&unknown.to_string(), "It is in no table", "do "]);
    std::thread::sleep(Duration::from_millis(2));
    let old = place.explain(unknown, &["--keep-sent", "1ms"]);
    old.has("pruned", 4, &["older than sent rows are kept", "look for it on its topic"]);
    place.explain(unknown, &["--delete-sent"]).has("pruned", 4, &["Rows are deleted when they are sent"]);

    let later = conn.transaction(|c| c.emit_after(&record("later"), Duration::from_secs(3_600))).unwrap();
    place.explain(later, &[]).has("scheduled", 0, &["OrderPlaced of order later", "due ", "when it is due"]);

    let (first, second) = (emit(conn, &record("7")), emit(conn, &record("7")));
    place.explain(first, &[]).has("waiting", 0, &["It is the next one of shard", no_relay, "number "]);
    place.explain(second, &[]).has("waiting", 0, &["1 unsent event of shard", "comes before it"]);
    let away = place.explain(second, &["--brokers", "127.0.0.1:1"]);
    away.has("waiting", 0, &["Kafka could not be asked", "nothing is lost"]);

    let working = place.relay(relay()).spawn().unwrap();
    eventually("the event to be sent", PATIENCE, || {
        place.explain(second, &[]).text.contains("sent\n").then_some(())
    });
    place.explain(second, &[]).has("sent", 0, &["name the --brokers"]);
    let place_of = &format!("kafka {}, partition", place.topic);
    place.with_kafka(first).has("sent", 0, &["emitted ", "sent ", place_of, "offset"]);
    let json: Value =
        serde_json::from_str(&place.explain(first, &["--json", "--brokers", Kafka::shared().brokers()]).text)
            .unwrap();
    assert_eq!((&json["state"], &json["topic"]), (&Value::from("sent"), &Value::from(place.topic.as_str())));
    assert!(json["sent_at"].is_string() && json["partition"].is_i64() && json["offset"].is_i64(), "{json}");
    working.stop_blocking().unwrap();

    let large = record("8").with_payload(vec![b'x'; 2_000_000]);
    let (dead, behind) =
        conn.transaction(|c| QueryResult::Ok((c.emit(&large)?, c.emit(&record("8"))?))).unwrap();
    let blocking = place.relay(relay()).dead_letter_policy(DeadLetterPolicy::Block).spawn().unwrap();
    eventually("both dead letters", PATIENCE, || {
        let are_dead = [dead, behind].map(|id| place.explain(id, &[]).code == Some(3));
        (are_dead == [true, true]).then_some(())
    });
    let requeue = format!("outbox requeue --id {dead}");
    place.explain(dead, &[]).has("dead", 3, &["failed ", "too large", &requeue]);
    let holds = format!("The dead letter {dead} of its aggregate holds it back");
    place.explain(behind, &[]).has("blocked", 3, &[&holds, "outbox requeue --aggregate order 8"]);
    blocking.stop_blocking().unwrap();

    // The relay of before has sent it, and a crash has undone that.
    conn.batch_execute(&format!("UPDATE outbox SET sent_at = NULL WHERE id = '{first}'")).unwrap();
    let noted = "Kafka has it, and the relay has not noted that";
    place.with_kafka(first).has("sent", 0, &[noted, place_of]);
}

#[test]
fn each_state_is_named_on_postgres() {
    let database = migrated();
    let place = Place::new(&database.relay_url());
    each_state_is_named(&place, &mut database.connect(), || database.relay(), "No relay is connected");
}

#[test]
fn each_state_is_named_on_mariadb() {
    let database = migrated_mariadb();
    let place = Place::new(&database.relay_url());
    each_state_is_named(&place, &mut database.connect(), || database.relay(), "No relay is connected");
}

#[test]
fn each_state_is_named_on_mysql() {
    let database = Mariadb::shared_mysql().migrated();
    let place = Place::new(database.url());
    each_state_is_named(&place, &mut database.connect(), || database.relay(), "No relay is connected");
}

#[test]
fn each_state_is_named_on_sqlite() {
    let folder = Folder::new("explain");
    let path = folder.path().join("shop.db").display().to_string();
    let conn = &mut SqliteConnection::establish(&path).unwrap();
    conn.batch_execute("PRAGMA journal_mode = WAL; PRAGMA busy_timeout = 20000").unwrap();
    diesel_outbox::Migrations::new().run(conn).unwrap();
    let place = Place::new(&path);
    each_state_is_named(&place, conn, || Relay::sqlite(&path), "does not show whether a relay works");
}

/// Returns the process of a session.
fn session(database: &Database<'_>, application: &str) -> i64 {
    database.number(&format!(
        "SELECT pid::bigint FROM pg_stat_activity WHERE datname = current_database() AND application_name = '{application}'"
    ))
}

/// PostgreSQL shows no row of an open transaction, but who has one open.
#[test]
fn on_postgres_an_event_that_is_not_committed_is_said_to_be_that_of_an_open_transaction() {
    let database = migrated();
    let place = Place::new(database.url());
    let writer = &mut database.connect();
    writer.batch_execute("SET application_name = 'checkout'").unwrap();
    let id = Uuid::now_v7();
    place.explain(id, &[]).has("never seen", 4, &["No transaction that may have emitted it is open"]);
    AnsiTransactionManager::begin_transaction(writer).unwrap();
    writer.emit(&record("7").with_id(id)).unwrap();
    let pid = session(&database, "checkout");
    let who = format!("process {pid} of role");
    place.explain(id, &[]).has("never seen", 4, &[&who, "(checkout), open for", "wait until that ends"]);

    // Another one that has claimed its shard, as a relay does in a pass.
    AnsiTransactionManager::commit_transaction(writer).unwrap();
    let relay = &mut database.connect();
    relay.batch_execute("SET application_name = 'outbox relay'").unwrap();
    place.explain(id, &[]).has(
        "waiting",
        0,
        &["No relay has claimed the shard at this moment", "outbox doctor"],
    );
    AnsiTransactionManager::begin_transaction(relay).unwrap();
    relay.batch_execute("SELECT FROM outbox_shard FOR UPDATE").unwrap();
    let pid = session(&database, "outbox relay");
    let claimed = format!("A relay has claimed the shard (process {pid} of the server)");
    place.explain(id, &[]).has("in flight", 0, &[&claimed, "Kafka may be away"]);
    AnsiTransactionManager::rollback_transaction(relay).unwrap();
}

fn an_open_transaction_shows_its_event(server: &Mariadb) {
    let database = server.migrated();
    let place = Place::new(database.url());
    let writer = &mut database.connect();
    AnsiTransactionManager::begin_transaction(writer).unwrap();
    let id = writer.emit(&record("7")).unwrap();
    place.explain(id, &[]).has(
        "not committed",
        0,
        &["OrderPlaced of order 7", "connection ", "after the commit"],
    );
    AnsiTransactionManager::rollback_transaction(writer).unwrap();
    place.explain(id, &[]).has("never seen", 4, &["rolled back"]);

    let id = emit(writer, &record("7"));
    let relay = &mut database.connect();
    AnsiTransactionManager::begin_transaction(relay).unwrap();
    relay.batch_execute("SELECT shard FROM outbox_shard FOR UPDATE").unwrap();
    place.explain(id, &[]).has("in flight", 0, &["A relay has claimed the shard"]);
    AnsiTransactionManager::rollback_transaction(relay).unwrap();
}

#[test]
fn on_mariadb_an_open_transaction_shows_its_event() {
    an_open_transaction_shows_its_event(Mariadb::shared());
}

#[test]
fn on_mysql_an_open_transaction_shows_its_event() {
    an_open_transaction_shows_its_event(Mariadb::shared_mysql());
}

#[test]
fn an_event_that_is_read_from_the_wal_waits_for_who_reads_the_slot_until_the_slot_has_confirmed_it() {
    let database = migrated();
    let place = Place::new(database.url());
    let conn = &mut database.connect();
    wal(&database, "setup");
    let id = emit(conn, &record("7"));
    let nobody = format!("No relay reads the slot {}", database.name());
    place.explain(id, &[]).has("waiting", 0, &[&nobody, "outbox relay --source wal"]);
    let relay: Process = wal_relay(&database, &place.topic);
    eventually("it to be sent", PATIENCE, || {
        place.with_kafka(id).text.contains("state    sent").then_some(())
    });
    let place_of = format!("kafka {}, partition", place.topic);
    place.with_kafka(id).has("sent", 0, &[&place_of]);
    eventually("the slot to confirm it", PATIENCE, || {
        place.explain(id, &[]).text.contains("state    sent").then_some(())
    });
    stop(&relay);
}

/// An outbox of several says in which of them it is.
#[test]
fn an_event_is_looked_for_in_each_schema() {
    let database = migrated();
    database.migrate_in("events");
    let place = Place::new(database.url());
    let conn = &mut database.connect();
    let id =
        conn.transaction(|c| diesel_outbox::Outbox::new().schema("events").emit(c, &record("7"))).unwrap();
    let said = place.explain(id, &["--schema", "public,events"]);
    assert!(said.text.contains("events") && said.text.contains("state    waiting"), "{}", said.text);
    assert_eq!(said.text.matches("state").count(), 1, "{}", said.text);
    let none = place.explain(Uuid::now_v7(), &["--schema", "public,events"]);
    assert_eq!((none.code, none.text.matches("state    never seen").count()), (Some(4), 1), "{}", none.text);
}
