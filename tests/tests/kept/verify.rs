//! `outbox verify` finds what Kafka lacks, has too often, has in another order, or has from nobody, and nothing in what a relay has sent.

use std::time::Duration;

use diesel::connection::SimpleConnection;
use diesel::{Connection, SqliteConnection};
use diesel_outbox::{Emit, OutboxConnection};
use outbox_tests::{Folder, Kafka, Postgres, Process, Signal, Tables, eventually, load, migrated_mariadb};
use serde_json::Value;
use uuid::Uuid;

use super::{Place, emit, outbox, ran};

/// Marks an aggregate's events as sent, as a relay that is broken would.
fn mark(conn: &mut impl SimpleConnection, aggregate: &str) {
    let statement = format!("UPDATE outbox SET sent_at = created_at WHERE aggregateid = '{aggregate}'");
    conn.batch_execute(&statement).unwrap();
}

fn each_planted_fault_is_found<C: OutboxConnection + Emit + SimpleConnection>(
    place: &Place<'_>,
    conn: &mut C,
) {
    let good: Vec<Uuid> = ["1", "2", "3"].iter().flat_map(|aggregate| emit(conn, aggregate, 20)).collect();
    place.relay_until(60);
    let (stdout, stderr, code) = place.verify(&[]);
    assert_eq!((stderr.as_str(), code), ("", Some(0)), "{stdout}");
    for line in [
        "compared 60 events",
        "with 60 records in 1 topic",
        "lost:         0",
        "phantom:      0",
        "out of order: 0",
    ] {
        assert!(stdout.contains(line), "{line}: {stdout}");
    }

    let lost = emit(conn, "lost", 1);
    mark(conn, "lost");
    let swapped = emit(conn, "swapped", 2);
    mark(conn, "swapped");
    place.produce(swapped[1], "swapped");
    place.produce(swapped[0], "swapped");
    place.produce(good[0], "1");
    let phantom = Uuid::now_v7();
    place.produce(phantom, "phantom");

    let (stdout, stderr, code) = place.verify(&["--json"]);
    assert_eq!(code, Some(1), "{stdout}{stderr}");
    assert!(stderr.contains("Kafka does not have what the outbox has"), "{stderr}");
    let found: Value = serde_json::from_str(&stdout).unwrap();
    for (kind, id) in
        [("lost", lost[0]), ("phantom", phantom), ("duplicated", good[0]), ("out_of_order", swapped[0])]
    {
        assert_eq!(found[kind], 1, "{stdout}");
        let of_kind = |finding: &&Value| finding["kind"] == kind;
        let listed: Vec<&Value> = found["findings"].as_array().unwrap().iter().filter(of_kind).collect();
        assert!(listed.len() == 1 && listed[0]["id"] == id.to_string(), "{kind}: {stdout}");
    }
    let (stdout, ..) = place.verify(&[]);
    assert!(stdout.contains(&format!("lost: {} of order lost, number ", lost[0])), "{stdout}");
    assert!(stdout.lines().all(|line| line.len() <= 120), "{stdout}");
}

#[test]
fn on_postgres_each_planted_fault_is_found() {
    let database = load::migrated();
    each_planted_fault_is_found(&Place::new(Tables::url(&database), &[]), &mut database.connect());
}

#[test]
fn from_the_wal_each_planted_fault_is_found() {
    let database = Postgres::shared().database();
    let slot = format!("slot_{}", Uuid::now_v7().simple());
    let names = ["--slot", &slot, "--publication", &slot];
    let of = |command: &[&str]| outbox(&[command, &["--database-url", database.url()][..], &names].concat());
    assert_eq!(ran(&mut outbox(&["migrate", "--database-url", database.url()])).2, Some(0));
    assert_eq!(ran(&mut of(&["wal", "setup"])).2, Some(0));
    let place = Place::new(database.url(), &[&["--source", "wal"], &names[..]].concat());
    each_planted_fault_is_found(&place, &mut database.connect());
    assert_eq!(ran(&mut of(&["wal", "drop"])).2, Some(0));
}

#[test]
fn what_was_sent_from_the_wal_is_missed_and_sent_again_without_a_mark() {
    let database = Postgres::shared().database();
    let slot = format!("slot_{}", Uuid::now_v7().simple());
    let names = ["--slot", &slot, "--publication", &slot];
    let of = |command: &[&str]| outbox(&[command, &["--database-url", database.url()][..], &names].concat());
    assert_eq!(ran(&mut outbox(&["migrate", "--database-url", database.url()])).2, Some(0));
    assert_eq!(ran(&mut of(&["wal", "setup"])).2, Some(0));
    let place = Place::new(database.url(), &[&["--source", "wal"], &names[..]].concat());
    let conn = &mut database.connect();
    emit(conn, "1", 20);
    let relay = Process::start(&place.command("relay", &place.relay));
    let would_send = "would send 20 events\n";
    eventually("the table to learn what was sent", Duration::from_secs(60), || {
        let (stdout, ..) = ran(&mut place.command("replay", &["--since", "1h", "--dry-run"]));
        (stdout == would_send).then_some(())
    });
    relay.signal(Signal::Terminate);
    assert!(relay.wait(Duration::from_secs(60)).success());
    conn.batch_execute("UPDATE outbox SET id = gen_random_uuid() WHERE seq = (SELECT max(seq) FROM outbox)")
        .unwrap();
    let (stdout, _, code) = place.verify(&[]);
    assert_eq!(code, Some(1), "{stdout}");
    for line in ["lost:         1", "phantom:      1"] {
        assert!(stdout.contains(line), "{stdout}");
    }
    assert_eq!(ran(&mut of(&["wal", "drop"])).2, Some(0));
}

#[test]
fn on_mariadb_each_planted_fault_is_found() {
    let database = migrated_mariadb();
    each_planted_fault_is_found(&Place::new(Tables::url(&database), &[]), &mut database.connect());
}

#[test]
fn on_sqlite_each_planted_fault_is_found() {
    let folder = Folder::new("verify");
    let file = folder.path().join("shop.db").display().to_string();
    assert_eq!(ran(&mut outbox(&["migrate", "--database-url", &file])).2, Some(0));
    let mut conn = SqliteConnection::establish(&file).unwrap();
    conn.batch_execute("PRAGMA busy_timeout = 5000").unwrap();
    each_planted_fault_is_found(&Place::new(&file, &[]), &mut conn);
}

#[test]
fn the_window_and_what_others_send_are_left_out() {
    let database = load::migrated();
    let place = Place::new(Tables::url(&database), &[]);
    let conn = &mut database.connect();
    let old = emit(conn, "old", 5);
    place.relay_until(5);
    conn.batch_execute("UPDATE outbox SET created_at = created_at - interval '2 days'").unwrap();
    emit(conn, "new", 3);
    place.relay_until(8);
    let events = |arguments: &[&str]| {
        let (stdout, stderr, code) = place.verify(&[arguments, &["--json"]].concat());
        assert_eq!(code, Some(0), "{stdout}{stderr}");
        serde_json::from_str::<Value>(&stdout).unwrap()["events"].clone()
    };
    assert_eq!(events(&["--since", "1d"]), 3);
    assert_eq!(events(&["--until", "1d", "--shared-topics"]), 5);
    place.produce(Uuid::now_v7(), "foreign");
    assert_eq!(place.verify(&["--since", "1d"]).2, Some(1));
    assert_eq!(events(&["--since", "1d", "--shared-topics"]), 3);
    place.produce(old[0], "old");
    assert_eq!(events(&["--shared-topics"]), 8);
    assert_eq!(place.verify(&["--shared-topics", "--no-duplicates"]).2, Some(1));
    let (_, stderr, code) = place.verify(&["--since", "yesterday"]);
    assert!(code == Some(2) && stderr.contains("how long ago"), "{stderr}");
}

#[test]
fn a_topic_that_does_not_exist_lacks_every_event() {
    let database = load::migrated();
    let conn = &mut database.connect();
    emit(conn, "1", 2);
    mark(conn, "1");
    let missing =
        Place { url: Tables::url(&database), topic: Kafka::shared().unique("missing"), relay: Vec::new() };
    let (stdout, stderr, code) = missing.verify(&[]);
    assert_eq!(code, Some(1), "{stdout}{stderr}");
    assert!(stdout.contains("lost:         2"), "{stdout}");
}
