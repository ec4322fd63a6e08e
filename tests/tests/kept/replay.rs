//! `outbox replay` sends kept events again, under their ids and in order.

use std::time::{Duration, Instant};

use diesel::connection::SimpleConnection;
use diesel::{Connection, SqliteConnection};
use diesel_outbox::wire::REPLAYED_HEADER;
use diesel_outbox::{Emit, OutboxConnection};
use outbox_tests::{Folder, Kafka, Process, ReadRecord, Signal, Tables, load, migrated_mariadb};
use serde_json::Value;
use uuid::Uuid;

use super::{PATIENCE, Place, emit, outbox, ran};

/// The ids of an aggregate's records, in their order.
fn ids(records: &[ReadRecord], aggregate: &str) -> Vec<Uuid> {
    let of = records.iter().filter(|record| record.key_text() == Some(aggregate));
    of.map(|record| record.header("id").unwrap().parse().unwrap()).collect()
}

fn replayed(records: Vec<ReadRecord>) -> Vec<ReadRecord> {
    records.into_iter().filter(|record| record.header(REPLAYED_HEADER).is_some()).collect()
}

fn kept_events_are_sent_again<C: OutboxConnection + Emit + SimpleConnection>(
    place: &Place<'_>,
    conn: &mut C,
) {
    let first = emit(conn, "1", 30);
    emit(conn, "2", 20);
    place.relay_until(50);
    // Nobody has sent this one, so it is not replayed either.
    emit(conn, "3", 1);

    let replay = |arguments: &[&str]| {
        let (stdout, stderr, code) =
            ran(&mut place.command("replay", &[&["--since", "1h"], arguments].concat()));
        assert_eq!((stderr.as_str(), code), ("", Some(0)), "{stdout}");
        stdout
    };
    assert_eq!(replay(&["--dry-run"]), "would send 50 events\n");
    assert_eq!(replay(&["--dry-run", "--json", "--type", "Event7"]), "{\"would_send\":2}\n");
    assert_eq!(replay(&["--dry-run", "--id", &first[3].to_string()]), "would send 1 event\n");
    let unknown = Uuid::now_v7().to_string();
    let (_, stderr, code) = ran(&mut place.command("replay", &["--id", &unknown]));
    assert!(code == Some(1) && stderr.contains("no such event"), "{stderr}");
    assert_eq!(replay(&["--aggregate", "order", "1"]), "sent 30 events again\n");
    let records = replayed(Kafka::shared().read_all(&place.topic));
    assert_eq!(ids(&records, "1"), first);
    assert_eq!(records.len(), 30);
    // What a replay repeats, nobody complains of.
    assert_eq!(place.verify(&["--no-duplicates"]).2, Some(0));
    let original = &Kafka::shared().read_at_least(&place.topic, 80, PATIENCE)[0];
    assert!(original.header(REPLAYED_HEADER).is_none());

    let other = Kafka::shared().unique("replay");
    let arguments =
        ["replay", "--database-url", place.url, "--brokers", Kafka::shared().brokers(), "--topic", &other];
    let found: Value =
        serde_json::from_str(&ran(&mut outbox(&[&arguments[..], &["--since", "1h", "--json"]].concat())).0)
            .unwrap();
    assert_eq!((&found["sent"], &found["refused"]), (&Value::from(50), &Value::from(0)));
    assert_eq!(replayed(Kafka::shared().read_all(&other)).len(), 50);
    assert_eq!(Kafka::shared().read_all(&place.topic).len(), 80);
}

#[test]
fn on_postgres_kept_events_are_sent_again() {
    let database = load::migrated();
    kept_events_are_sent_again(&Place::new(Tables::url(&database), &[]), &mut database.connect());
}

#[test]
fn on_mariadb_kept_events_are_sent_again() {
    let database = migrated_mariadb();
    kept_events_are_sent_again(&Place::new(Tables::url(&database), &[]), &mut database.connect());
}

#[test]
fn on_sqlite_kept_events_are_sent_again() {
    let folder = Folder::new("replay");
    let file = folder.path().join("shop.db").display().to_string();
    assert_eq!(ran(&mut outbox(&["migrate", "--database-url", &file])).2, Some(0));
    let mut conn = SqliteConnection::establish(&file).unwrap();
    conn.batch_execute("PRAGMA busy_timeout = 5000").unwrap();
    kept_events_are_sent_again(&Place::new(&file, &[]), &mut conn);
}

#[test]
fn a_replay_that_is_interrupted_says_how_to_go_on_and_nothing_is_left_out_or_sent_twice() {
    let database = load::migrated();
    let place = Place::new(Tables::url(&database), &[]);
    let all = emit(&mut database.connect(), "1", 400);
    place.relay_until(400);
    let began = Instant::now();
    let replay = Process::start(&place.command("replay", &["--since", "1h", "--rate", "200"]));
    Kafka::shared().read_at_least(&place.topic, 450, PATIENCE);
    replay.signal(Signal::Interrupt);
    assert_eq!(replay.wait(PATIENCE).code(), Some(1));
    let output = replay.output();
    assert!(began.elapsed() >= Duration::from_millis(200), "200 a second");
    let after = output.split("--after ").nth(1).expect(&output).split_whitespace().next().unwrap();
    let (stdout, stderr, code) = ran(&mut place.command("replay", &["--since", "1h", "--after", after]));
    assert_eq!((stderr.as_str(), code), ("", Some(0)), "{stdout}");
    assert_eq!(ids(&replayed(Kafka::shared().read_all(&place.topic)), "1"), all);
}

#[test]
fn a_replay_of_what_kafka_never_takes_says_why_and_sends_the_rest() {
    let database = load::migrated();
    let conn = &mut database.connect();
    let place = Place::new(Tables::url(&database), &[]);
    emit(conn, "1", 3);
    place.relay_until(3);
    let small = Kafka::shared().unique("small");
    Kafka::shared().create_topic_with(&small, 1, &[("max.message.bytes", "1000")]);
    let large = (0..5_000_u64).map(|n| (n.wrapping_mul(n) >> 3) as u8).collect::<Vec<_>>();
    let record = diesel_outbox::Record::new("order", "1", "Large").with_payload(large);
    conn.transaction(|c| c.emit(&record)).unwrap();
    place.relay_until(4);
    let arguments =
        ["replay", "--database-url", place.url, "--brokers", Kafka::shared().brokers(), "--topic", &small];
    let (stdout, stderr, code) = ran(&mut outbox(&[&arguments[..], &["--since", "1h"]].concat()));
    assert_eq!((stdout.as_str(), code), ("sent 3 events again\n", Some(1)), "{stderr}");
    assert!(stderr.contains("max.message.bytes"), "{stderr}");
}
