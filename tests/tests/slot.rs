//! The replication slot on every version of PostgreSQL, and what happens when the server gives it up.

use std::collections::BTreeSet;
use std::time::Duration;

use diesel::connection::SimpleConnection;
use diesel::prelude::*;
use diesel::sql_types::Text;
use diesel_outbox::{Emit, Migrations, Record};
use outbox_tests::load::{
    count, migrated_on, new_topic, relay, relay_to, repetitions, stop, wait_until_confirmed, wal, wal_relay,
    wal_with, write,
};
use outbox_tests::{Kafka, Postgres, Signal, eventually};
use uuid::Uuid;

const PATIENCE: Duration = Duration::from_secs(120);

macro_rules! on {
    ($($version:ident: $major:literal),*) => {
        $(#[test] fn $version() { waits_and_streams_and_catches_up($major); })*
    };
}

on!(postgresql_14: 14, postgresql_15: 15, postgresql_17: 17, postgresql_18: 18);

/// The relay polls what waits, streams new events, and reads a backlog in chunks. What is left when the slot is dropped is
/// polled again.
fn waits_and_streams_and_catches_up(major: u32) {
    let database = migrated_on(Postgres::shared_version(major));
    let topic = new_topic(&format!("version-{major}"));
    let counter = Kafka::shared().counter(&topic);
    let conn = &mut database.connect();
    let mut committed = write(conn, 0, 3, 30, 2_000);
    wal(&database, "setup");
    let log = wal_relay(&database, &topic);
    committed.extend(write(conn, 1, 3, 30, 2_000));
    let have_come = |events| {
        eventually("all events", PATIENCE, || (counter.count() >= events).then_some(()));
    };
    have_come(4_000);
    stop(&log);

    committed.extend(large_events(conn, 200));
    let log = wal_relay(&database, &topic);
    for mode in ["in chunks", "streamed from here on"] {
        log.wait_for_line(mode, PATIENCE, |line| line.contains(mode));
    }
    have_come(4_200);
    stop(&log);

    let failover = "coalesce((SELECT bool_and(to_jsonb(s) ->> 'failover' = 'true')::text FROM pg_replication_slots AS s \
                    WHERE slot_name = current_database()), 'there is none')";
    let failover: Option<String> = diesel::select(diesel::dsl::sql::<Text>(failover)).get_result(conn).ok();
    let expected = if major >= 17 { "true" } else { "there is none" };
    assert_eq!(failover.as_deref(), Some(expected));

    committed.extend(write(conn, 2, 3, 30, 500));
    wal(&database, "drop");
    let polling = relay(&database, &topic, &[]);
    have_come(4_700);
    stop(&polling);
    assert_eq!(repetitions(&Kafka::shared().read_all(&topic), &committed), 0);
}

/// Events of half a megabyte each that cannot be compressed.
fn large_events(conn: &mut PgConnection, count: usize) -> BTreeSet<String> {
    // The events of each call have an aggregate of their own.
    let aggregate = Uuid::now_v7().to_string();
    let mut state = 1_u64;
    let mut noise = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 32) as u32
    };
    let mut event = |n: usize| {
        let payload: Vec<u8> = (0..131_072).flat_map(|_| noise().to_be_bytes()).collect();
        let event = Record::new("order", &aggregate, n.to_string()).with_payload(payload);
        conn.transaction(|c| c.emit(&event)).unwrap().to_string()
    };
    (0..count).map(&mut event).collect()
}

#[test]
fn a_relay_whose_slot_the_server_gave_up_stops_and_after_another_setup_the_rest_is_sent() {
    let postgres = Postgres::start_with(17, &[("max_slot_wal_keep_size", "16MB"), ("max_wal_size", "32MB")]);
    let database = migrated_on(&postgres);
    let topic = new_topic("given-up");
    let counter = Kafka::shared().counter(&topic);
    let conn = &mut database.connect();
    wal(&database, "setup");
    let mut committed = write(conn, 0, 2, 20, 1_000);
    let relay = wal_relay(&database, &topic);
    eventually("the first events", PATIENCE, || (counter.count() >= 1_000).then_some(()));
    // When the slot is lost, only the table says what was sent.
    eventually("it to be known", PATIENCE, || {
        (count(conn, "outbox WHERE seq > (SELECT min(sent_through) FROM outbox_shard)") == 0).then_some(())
    });
    stop(&relay);
    committed.extend(large_events(conn, 120));
    committed.extend(write(conn, 1, 2, 20, 100));
    eventually("the slot to be lost", PATIENCE, || {
        conn.batch_execute("SELECT pg_switch_wal(); CHECKPOINT").unwrap();
        (count(conn, "pg_replication_slots WHERE wal_status = 'lost'") == 1).then_some(())
    });
    let stopped = wal_relay(&database, &topic);
    assert_eq!(stopped.wait(PATIENCE).code(), Some(1));
    stopped.wait_for_line("what to do", PATIENCE, |line| {
        line.contains("has given up the replication slot")
            && line.contains(&format!("run `outbox wal setup --slot {}`", database.name()))
    });

    wal(&database, "setup");
    let relay = wal_relay(&database, &topic);
    eventually("the rest", PATIENCE, || (counter.count() >= committed.len()).then_some(()));
    stop(&relay);
    assert_eq!(repetitions(&Kafka::shared().read_all(&topic), &committed), 0);
}

/// Otherwise the server would keep its snapshot as long as the broker is away.
#[test]
fn a_batch_that_the_broker_does_not_take_is_given_up_and_streamed() {
    let kafka = Kafka::start();
    let topic = kafka.unique("not-taken");
    kafka.create_topic(&topic, 3);
    let counter = kafka.counter(&topic);
    let database = migrated_on(Postgres::shared());
    wal(&database, "setup");
    let conn = &mut database.connect();
    let mut committed = large_events(conn, 100);
    committed.extend(write(conn, 0, 1, 10, 2_000));
    committed.extend(large_events(conn, 200));
    let log = relay_to(&kafka, &database, &topic, &["--source", "wal", "--slot", database.name()]);
    eventually("some events", PATIENCE, || (counter.count() >= 10).then_some(()));
    kafka.crash();
    let mode = |mode: &str| {
        log.wait_for_line(mode, PATIENCE, |line| line.contains(mode));
    };
    mode("in chunks");
    let copies = "pg_replication_slots WHERE temporary AND database = current_database()";
    eventually("the chunks to be given up", PATIENCE, || (count(conn, copies) == 0).then_some(()));
    kafka.restart();
    mode("streamed from here on");
    eventually("all events", PATIENCE, || (counter.count() >= committed.len()).then_some(()));
    wait_until_confirmed(conn, PATIENCE);
    stop(&log);
    repetitions(&kafka.read_all(&topic), &committed);
}

#[test]
fn a_relay_streams_if_no_slots_are_free_for_copies() {
    let postgres = Postgres::start_with(15, &[("max_replication_slots", "1")]);
    let database = migrated_on(&postgres);
    let topic = new_topic("no-copies");
    let counter = Kafka::shared().counter(&topic);
    wal(&database, "setup");
    let committed = large_events(&mut database.connect(), 200);
    let log = wal_relay(&database, &topic);
    for line in ["in chunks", "could not be copied", "streamed from here on"] {
        log.wait_for_line(line, PATIENCE, |printed| printed.contains(line));
    }
    eventually("all events", PATIENCE, || (counter.count() >= 200).then_some(()));
    stop(&log);
    assert_eq!(repetitions(&Kafka::shared().read_all(&topic), &committed), 0);
}

/// The publication of all tables also contains the events of the other schema.
#[test]
fn a_relay_ignores_events_of_another_outbox_in_its_publication() {
    let database = migrated_on(Postgres::shared());
    let conn = &mut database.connect();
    Migrations::new().schema("other").run(conn).unwrap();
    conn.batch_execute("CREATE PUBLICATION everything FOR ALL TABLES").unwrap();
    let names = ["--slot", database.name(), "--publication", "everything"];
    wal_with(&database, &[&["setup"], &names[..]].concat());
    let topic = new_topic("ours");
    let log = relay(&database, &topic, &[&["--source", "wal"], &names[..]].concat());
    for round in 0..10 {
        for schema in ["public", "other"] {
            conn.batch_execute(&format!("SET search_path = {schema}")).unwrap();
            conn.transaction(|c| c.emit(&Record::new("order", schema, round.to_string()))).unwrap();
        }
    }
    let received = Kafka::shared().read_at_least(&topic, 10, PATIENCE);
    conn.batch_execute("SET search_path = public").unwrap();
    wait_until_confirmed(conn, PATIENCE);
    stop(&log);
    assert!(received.iter().all(|event| event.key_text() == Some("public")));
    assert_eq!(Kafka::shared().read_all(&topic).len(), 10);
}

/// Each outbox has a slot and a publication of its own.
#[test]
fn two_outboxes_in_one_database_can_be_read_from_two_slots() {
    let database = Postgres::shared().database();
    let conn = &mut database.connect();
    let relays: Vec<_> = ["first", "second"]
        .map(|schema| {
            database.migrate_in(schema);
            let slot = format!("{}_{schema}", database.name());
            let names = ["--schema", schema, "--slot", &slot, "--publication", schema];
            wal_with(&database, &[&["setup"], &names[..]].concat());
            let topic = new_topic(schema);
            let relay = relay(&database, &topic, &[&["--source", "wal"], &names[..]].concat());
            (schema, topic, relay)
        })
        .into();
    for (schema, ..) in &relays {
        conn.batch_execute(&format!("SET search_path = {schema}")).unwrap();
        let events: Vec<Record> =
            (0..100).map(|n| Record::new("order", "1", format!("{schema} {n}"))).collect();
        conn.transaction(|c| c.emit_all(&events)).unwrap();
    }
    for (schema, topic, relay) in &relays {
        let received = Kafka::shared().read_at_least(topic, 100, PATIENCE);
        stop(relay);
        assert!(received.iter().all(|event| event.header("eventType").unwrap().starts_with(schema)));
        assert_eq!(Kafka::shared().read_all(topic).len(), 100);
    }
}

/// Its place in the WAL, and therefore in the order, is that of `COMMIT PREPARED`.
#[test]
fn the_events_of_a_prepared_transaction_are_sent_when_it_commits() {
    let postgres = Postgres::start_with(15, &[("max_prepared_transactions", "5")]);
    let database = migrated_on(&postgres);
    let topic = new_topic("prepared");
    let counter = Kafka::shared().counter(&topic);
    wal(&database, "setup");
    let log = wal_relay(&database, &topic);
    let conn = &mut database.connect();
    conn.batch_execute("BEGIN").unwrap();
    let insert = "INSERT INTO outbox (id, aggregatetype, aggregateid, type, shard) \
                  VALUES (gen_random_uuid(), 'order', 'prepared', 'Placed', 0)";
    conn.batch_execute(insert).unwrap();
    conn.batch_execute("PREPARE TRANSACTION 'later'").unwrap();
    write(conn, 0, 1, 10, 500);
    eventually("the others", PATIENCE, || (counter.count() >= 500).then_some(()));
    stop(&log);
    let log = wal_relay(&database, &topic);
    conn.batch_execute("COMMIT PREPARED 'later'").unwrap();
    eventually("the prepared", PATIENCE, || (counter.count() >= 501).then_some(()));
    stop(&log);
    assert_eq!(Kafka::shared().read_all(&topic).len(), 501);
}

/// The connections of the frozen relay stay open, but the server ends them after half a minute.
#[test]
fn a_relay_that_is_frozen_is_replaced_and_stands_by_afterwards() {
    let database = migrated_on(Postgres::shared());
    let topic = new_topic("frozen");
    let counter = Kafka::shared().counter(&topic);
    wal(&database, "setup");
    let conn = &mut database.connect();
    let mut committed = write(conn, 0, 3, 30, 1_000);
    let frozen = wal_relay(&database, &topic);
    eventually("the first events", PATIENCE, || (counter.count() >= 1_000).then_some(()));
    frozen.signal(Signal::Stop);
    let other = wal_relay(&database, &topic);
    committed.extend(write(conn, 1, 3, 30, 1_000));
    eventually("the next events", PATIENCE, || (counter.count() >= 2_000).then_some(()));
    frozen.signal(Signal::Continue);
    committed.extend(write(conn, 2, 3, 30, 1_000));
    wait_until_confirmed(conn, PATIENCE);
    stop(&other);
    stop(&frozen);
    repetitions(&Kafka::shared().read_all(&topic), &committed);
}
