//! The broker and the database go away in the middle of a drain. The relay continues by itself, and nothing is lost.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use diesel::prelude::*;
use diesel::sql_types::BigInt;
use diesel_outbox::{Emit, Record};
use diesel_outbox_relay::source::wal::{WalOptions, setup};
use diesel_outbox_relay::{Kafka as Broker, Relay, RelayHandle};
use outbox_tests::load::{migrated, migrated_on};
use outbox_tests::{
    Database, Kafka, Postgres, Proxy, ReadRecord, Server, Tables, eventually, eventually_ok,
    on_postgres_and_mariadb, on_servers_of_their_own,
};

const PATIENCE: Duration = Duration::from_secs(120);
const EVENTS: usize = 60_000;
const AGGREGATES: usize = 100;
const SHARDS: usize = diesel_outbox_core::SHARDS as usize;

on_postgres_and_mariadb!(
    the_relay_continues_after_the_broker_stops_and_comes_back,
    the_relay_continues_after_the_broker_hangs_for_a_while,
    the_relay_continues_after_its_connection_is_terminated,
    a_topic_that_kafka_makes_when_it_comes_back_makes_no_dead_letters,
);

on_servers_of_their_own!(
    the_relay_continues_after_the_database_restarts,
    the_relay_waits_if_broker_and_database_are_away_when_it_starts,
);

fn relay(tables: &impl Tables, kafka: &Kafka, topic: &str) -> RelayHandle {
    start(tables.relay(), kafka, topic)
}

fn start(relay: Relay, kafka: &Kafka, topic: &str) -> RelayHandle {
    relay
        .broker(Broker::new(kafka.brokers()))
        .topic_naming(topic.parse().unwrap())
        .max_pass_duration(Duration::from_millis(100))
        .stall_timeout(Duration::from_secs(1))
        .spawn()
        .unwrap()
}

fn stop(relay: RelayHandle) {
    relay.stop_blocking().unwrap();
}

fn record(number: usize) -> Record {
    Record::new("order", (number % AGGREGATES).to_string(), number.to_string()).with_payload(vec![b'x'; 200])
}

fn emit(tables: &impl Tables, numbers: std::ops::Range<usize>) {
    let records: Vec<Record> = numbers.map(record).collect();
    tables.connect().transaction(|c| c.emit_all(&records)).unwrap();
}

fn wait_until_sent(tables: &impl Tables) {
    eventually_ok("everything to be sent", PATIENCE, || match tables.unsent() {
        0 => Ok(()),
        unsent => Err(format!("{unsent} are unsent")),
    });
}

/// Checks that every number is there, and that the first occurrences of each aggregate's numbers are in order.
#[track_caller]
fn assert_nothing_lost(received: &[ReadRecord], events: usize) {
    let mut seen = BTreeSet::new();
    let mut last: BTreeMap<&str, usize> = BTreeMap::new();
    for received in received {
        let number: usize = received.header("eventType").unwrap().parse().unwrap();
        if seen.insert(number) {
            let before = last.insert(received.key_text().unwrap(), number);
            assert!(before.is_none_or(|before| before < number), "{number} after {before:?}");
        }
    }
    assert_eq!(seen.len(), events, "events were lost");
    println!("{} of {events} repeated", received.len() - seen.len());
}

/// While the broker is away the relay must not keep a transaction open.
fn wait_for_no_open_transaction(tables: &impl Tables) {
    let mut quiet = 0;
    // Checks several times in a row, because one check could fall between two passes by chance.
    eventually("the relay to hold no transaction", PATIENCE, || {
        quiet = if tables.idle_transactions() == 0 { quiet + 1 } else { 0 };
        (quiet == 50).then_some(())
    });
}

fn the_relay_continues_after_the_broker_stops_and_comes_back(tables: &impl Tables) {
    let kafka = Kafka::start();
    let topic = kafka.unique("broker");
    kafka.create_topic(&topic, 3);
    emit(tables, 0..EVENTS);
    let counter = kafka.counter(&topic);
    let relay = relay(tables, &kafka, &topic);
    for (stop_at, crash) in [(1, true), (EVENTS / 3, false)] {
        eventually("some events", PATIENCE, || (counter.count() >= stop_at).then_some(()));
        if crash {
            kafka.crash()
        } else {
            kafka.stop()
        }
        assert!(tables.unsent() > 0, "the broker stopped after the end");
        wait_for_no_open_transaction(tables);
        kafka.restart();
    }
    wait_until_sent(tables);
    assert_nothing_lost(&kafka.read_all(&topic), EVENTS);
    // The relay is as awake as before.
    emit(tables, EVENTS..EVENTS + 1);
    wait_until_sent(tables);
    stop(relay);
}

fn the_relay_continues_after_the_broker_hangs_for_a_while(tables: &impl Tables) {
    let kafka = Kafka::start();
    let topic = kafka.unique("hang");
    kafka.create_topic(&topic, 3);
    emit(tables, 0..EVENTS);
    let counter = kafka.counter(&topic);
    let relay = relay(tables, &kafka, &topic);
    eventually("some events", PATIENCE, || (counter.count() >= 1).then_some(()));
    kafka.pause();
    assert!(tables.unsent() > 0, "the broker hung after the end");
    wait_for_no_open_transaction(tables);
    kafka.resume();
    wait_until_sent(tables);
    assert_nothing_lost(&kafka.read_all(&topic), EVENTS);
    stop(relay);
}

/// A broker acknowledges a request when it has all of it.
#[test]
fn the_relay_gets_on_though_a_request_takes_longer_than_the_broker_may_be_silent() {
    const RECORDS: usize = 60;
    const SIZE: usize = 20_000;
    let way = Proxy::open();
    let address = format!("PLAINTEXT://127.0.0.1:{}", way.port());
    let kafka = Kafka::start_with(&[("advertised.listeners", &address)]);
    way.lead_to(kafka.brokers());
    let topic = kafka.unique("narrow");
    kafka.create_topic(&topic, 1);
    let tables = &migrated();
    let large = |number: usize| record(number).with_payload(vec![b'x'; SIZE]);
    let records: Vec<Record> = (0..RECORDS).map(large).collect();
    tables.connect().transaction(|c| c.emit_all(&records)).unwrap();
    // All of them take six seconds, and the broker may be silent for one.
    way.limit(RECORDS * SIZE / 6);
    let relay = relay(tables, &kafka, &topic);
    wait_until_sent(tables);
    way.heal();
    let received = kafka.read_all(&topic);
    assert_nothing_lost(&received, RECORDS);
    assert!(received.len() < 3 * RECORDS, "{} records for {RECORDS} events", received.len());
    stop(relay);
}

fn the_relay_continues_after_the_database_restarts(server: &impl Server) {
    let kafka = Kafka::shared();
    let tables = &server.migrated();
    let topic = kafka.unique("database");
    kafka.create_topic(&topic, 3);
    emit(tables, 0..EVENTS);
    let counter = kafka.counter(&topic);
    let relay = relay(tables, kafka, &topic);
    for (stop_at, crash) in [(1, false), (EVENTS / 3, true)] {
        eventually("some events", PATIENCE, || (counter.count() >= stop_at).then_some(()));
        if crash {
            server.crash()
        } else {
            server.stop()
        }
        server.restart();
        assert!(tables.unsent() > 0, "the database stopped after the end");
    }
    wait_until_sent(tables);
    // The relay listens again as well.
    emit(tables, EVENTS..EVENTS + 1);
    wait_until_sent(tables);
    assert_nothing_lost(&kafka.read_all(&topic), EVENTS + 1);
    stop(relay);
}

fn the_relay_continues_after_its_connection_is_terminated(tables: &impl Tables) {
    let kafka = Kafka::shared();
    let topic = kafka.unique("terminated");
    kafka.create_topic(&topic, 3);
    emit(tables, 0..EVENTS);
    let counter = kafka.counter(&topic);
    let relay = relay(tables, kafka, &topic);
    for at in [1, EVENTS / 3, EVENTS / 2] {
        eventually("some events", PATIENCE, || (counter.count() >= at).then_some(()));
        tables.end_sessions();
    }
    wait_until_sent(tables);
    assert_nothing_lost(&kafka.read_all(&topic), EVENTS);
    stop(relay);
}

fn the_relay_waits_if_broker_and_database_are_away_when_it_starts(server: &impl Server) {
    let kafka = Kafka::start();
    let tables = &server.migrated();
    let topic = kafka.unique("absent");
    kafka.create_topic(&topic, 3);
    emit(tables, 0..100);
    server.stop();
    kafka.stop();
    let relay = relay(tables, &kafka, &topic);
    server.restart();
    wait_for_no_open_transaction(tables);
    kafka.restart();
    wait_until_sent(tables);
    assert_nothing_lost(&kafka.read_all(&topic), 100);
    stop(relay);
}

/// For a topic that Kafka makes on demand, it first answers that the topic does not exist.
fn a_topic_that_kafka_makes_when_it_comes_back_makes_no_dead_letters(tables: &impl Tables) {
    let kafka = Kafka::start();
    let topic = kafka.unique("made");
    kafka.stop();
    let relay = relay(tables, &kafka, &topic);
    emit(tables, 0..100);
    let claims = |claimed: bool| {
        eventually("the relay to begin or to give up a pass", PATIENCE, || {
            ((tables.free_shards().len() < SHARDS) == claimed).then_some(())
        });
    };
    claims(true);
    claims(false);
    kafka.restart();
    wait_until_sent(tables);
    assert_nothing_lost(&kafka.read_all(&topic), 100);
    assert_eq!(tables.count("outbox_dead_letter"), 0);
    stop(relay);
}

/// The relay reads the WAL. In the middle first the broker goes away, then the connection, then the database while the broker
/// is away, so that everything that was read ahead waits.
#[test]
fn a_relay_on_the_wal_loses_nothing_whatever_goes_away() {
    let kafka = Kafka::start();
    let postgres = Postgres::start(15);
    let database = migrated_on(&postgres);
    let topic = kafka.unique("log");
    kafka.create_topic(&topic, 3);
    let wal = WalOptions::default();
    setup(&mut database.connect(), &mut database.connect(), &wal).unwrap();
    let counter = kafka.counter(&topic);
    let relay = start(Relay::postgres_wal(database.relay_url(), wal), &kafka, &topic);
    let has_come = |events| {
        eventually("some events", PATIENCE, || (counter.count() >= events).then_some(()));
    };
    emit(&database, 0..EVENTS / 3);
    has_come(1);
    kafka.crash();
    emit(&database, EVENTS / 3..EVENTS / 2);
    kafka.restart();
    has_come(EVENTS / 3);
    assert_eq!(terminate_senders(&database), 1);
    emit(&database, EVENTS / 2..EVENTS * 2 / 3);
    has_come(EVENTS / 2);
    kafka.stop();
    emit(&database, EVENTS * 2 / 3..EVENTS);
    postgres.crash();
    postgres.restart();
    terminate_senders(&database);
    kafka.restart();
    eventually_ok("everything to come", PATIENCE, || {
        let received = kafka.read_all(&topic);
        let seen: BTreeSet<_> = received.iter().filter_map(|received| received.header("eventType")).collect();
        if seen.len() == EVENTS { Ok(()) } else { Err(format!("{} of {EVENTS} have come", seen.len())) }
    });
    stop(relay);
    assert_nothing_lost(&kafka.read_all(&topic), EVENTS);
}

/// Writers keep writing in the meantime.
#[test]
fn a_relay_on_the_wal_continues_after_the_broker_was_away_for_a_minute() {
    let kafka = Kafka::start();
    let database = migrated();
    let topic = kafka.unique("minute");
    kafka.create_topic(&topic, 3);
    let mut wal = WalOptions::default();
    wal.slot = database.name().to_owned();
    setup(&mut database.connect(), &mut database.connect(), &wal).unwrap();
    let counter = kafka.counter(&topic);
    let relay = start(Relay::postgres_wal(database.relay_url(), wal), &kafka, &topic);
    let has_come = |events| {
        eventually("some events", PATIENCE, || (counter.count() >= events).then_some(()));
    };
    emit(&database, 0..1_000);
    has_come(1_000);
    kafka.crash();
    let (began, mut emitted) = (Instant::now(), 1_000);
    while began.elapsed() < Duration::from_secs(60) {
        emit(&database, emitted..emitted + 100);
        emitted += 100;
        std::thread::sleep(Duration::from_millis(50));
    }
    kafka.restart();
    has_come(emitted);
    stop(relay);
    let received = kafka.read_all(&topic);
    println!("{} of {emitted} were repeated", received.len() - emitted);
    assert_nothing_lost(&received, emitted);
}

/// How many records there were.
fn terminate_senders(database: &Database<'_>) -> i64 {
    let terminate = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_replication";
    diesel::dsl::sql::<BigInt>(terminate).get_result(&mut database.connect()).unwrap()
}
