//! The broker and the database go away in the middle of a drain. The relay continues by itself, and nothing is lost.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use diesel::connection::SimpleConnection;
use diesel::prelude::*;
use diesel::sql_types::BigInt;
use diesel_outbox::{Emit, Migrations, Record};
use diesel_outbox_relay::source::wal::{WalOptions, setup};
use diesel_outbox_relay::{Kafka as Broker, Relay, RelayHandle};
use outbox_tests::{Database, Kafka, Postgres, ReadRecord, eventually, eventually_ok};

const PATIENCE: Duration = Duration::from_secs(120);
const EVENTS: usize = 60_000;
const AGGREGATES: usize = 100;

fn migrated(postgres: &Postgres) -> Database<'_> {
    let database = postgres.database();
    Migrations::new().run(&mut database.connect()).unwrap();
    database
}

fn relay(database: &Database<'_>, kafka: &Kafka, topic: &str) -> RelayHandle {
    start(Relay::postgres(database.url()), kafka, topic)
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
    tokio::runtime::Runtime::new().unwrap().block_on(relay.stop()).unwrap();
}

fn record(number: usize) -> Record {
    Record::new("order", (number % AGGREGATES).to_string(), number.to_string()).with_payload(vec![b'x'; 200])
}

fn emit(database: &Database<'_>, numbers: std::ops::Range<usize>) {
    let records: Vec<Record> = numbers.map(record).collect();
    database.connect().transaction(|c| c.emit_all(&records)).unwrap();
}

fn unsent(database: &Database<'_>) -> i64 {
    diesel::dsl::sql::<BigInt>("SELECT count(*) FROM outbox WHERE sent_at IS NULL")
        .get_result(&mut database.connect())
        .unwrap()
}

fn wait_until_sent(database: &Database<'_>) {
    eventually_ok("everything to be sent", PATIENCE, || match unsent(database) {
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
fn wait_for_no_open_transaction(database: &Database<'_>) {
    let sql = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'outbox relay' \
               AND datname = current_database() AND xact_start IS NOT NULL AND state <> 'active'";
    let mut conn = database.connect();
    let mut quiet = 0;
    // Checks several times in a row, because one check could fall between two passes by chance.
    eventually("the relay to hold no transaction", PATIENCE, || {
        let open: i64 = diesel::dsl::sql::<BigInt>(sql).get_result(&mut conn).unwrap();
        quiet = if open == 0 { quiet + 1 } else { 0 };
        (quiet == 50).then_some(())
    });
}

#[test]
fn the_relay_continues_after_the_broker_stops_and_comes_back() {
    let kafka = Kafka::start();
    let database = migrated(Postgres::shared());
    let topic = kafka.unique("broker");
    kafka.create_topic(&topic, 3);
    emit(&database, 0..EVENTS);
    let counter = kafka.counter(&topic);
    let relay = relay(&database, &kafka, &topic);
    for (stop_at, crash) in [(1, true), (EVENTS / 3, false)] {
        eventually("some events", PATIENCE, || (counter.count() >= stop_at).then_some(()));
        if crash {
            kafka.crash()
        } else {
            kafka.stop()
        }
        assert!(unsent(&database) > 0, "the broker stopped after the end");
        wait_for_no_open_transaction(&database);
        kafka.restart();
    }
    wait_until_sent(&database);
    assert_nothing_lost(&kafka.read_all(&topic), EVENTS);
    // The relay is as awake as before.
    emit(&database, EVENTS..EVENTS + 1);
    wait_until_sent(&database);
    stop(relay);
}

#[test]
fn the_relay_continues_after_the_broker_hangs_for_a_while() {
    let kafka = Kafka::start();
    let database = migrated(Postgres::shared());
    let topic = kafka.unique("hang");
    kafka.create_topic(&topic, 3);
    emit(&database, 0..EVENTS);
    let counter = kafka.counter(&topic);
    let relay = relay(&database, &kafka, &topic);
    eventually("some events", PATIENCE, || (counter.count() >= 1).then_some(()));
    kafka.pause();
    assert!(unsent(&database) > 0, "the broker hung after the end");
    wait_for_no_open_transaction(&database);
    kafka.resume();
    wait_until_sent(&database);
    assert_nothing_lost(&kafka.read_all(&topic), EVENTS);
    stop(relay);
}

#[test]
fn the_relay_continues_after_the_database_restarts() {
    let postgres = Postgres::start(15);
    let kafka = Kafka::shared();
    let database = migrated(&postgres);
    let topic = kafka.unique("database");
    kafka.create_topic(&topic, 3);
    emit(&database, 0..EVENTS);
    let counter = kafka.counter(&topic);
    let relay = relay(&database, kafka, &topic);
    for (stop_at, crash) in [(1, false), (EVENTS / 3, true)] {
        eventually("some events", PATIENCE, || (counter.count() >= stop_at).then_some(()));
        if crash {
            postgres.crash()
        } else {
            postgres.stop()
        }
        postgres.restart();
        assert!(unsent(&database) > 0, "the database stopped after the end");
    }
    wait_until_sent(&database);
    // The relay listens again as well.
    emit(&database, EVENTS..EVENTS + 1);
    wait_until_sent(&database);
    assert_nothing_lost(&kafka.read_all(&topic), EVENTS + 1);
    stop(relay);
}

#[test]
fn the_relay_continues_after_its_connection_is_terminated() {
    let database = migrated(Postgres::shared());
    let kafka = Kafka::shared();
    let topic = kafka.unique("terminated");
    kafka.create_topic(&topic, 3);
    emit(&database, 0..EVENTS);
    let counter = kafka.counter(&topic);
    let relay = relay(&database, kafka, &topic);
    for at in [1, EVENTS / 3, EVENTS / 2] {
        eventually("some events", PATIENCE, || (counter.count() >= at).then_some(()));
        database
            .connect()
            .batch_execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
                 WHERE application_name = 'outbox relay' AND datname = current_database()",
            )
            .unwrap();
    }
    wait_until_sent(&database);
    assert_nothing_lost(&kafka.read_all(&topic), EVENTS);
    stop(relay);
}

#[test]
fn the_relay_waits_if_broker_and_database_are_away_when_it_starts() {
    let (postgres, kafka) = (Postgres::start(15), Kafka::start());
    let database = migrated(&postgres);
    let topic = kafka.unique("absent");
    kafka.create_topic(&topic, 3);
    emit(&database, 0..100);
    postgres.stop();
    kafka.stop();
    let relay = relay(&database, &kafka, &topic);
    postgres.restart();
    wait_for_no_open_transaction(&database);
    kafka.restart();
    wait_until_sent(&database);
    assert_nothing_lost(&kafka.read_all(&topic), 100);
    stop(relay);
}

/// For a topic that Kafka makes on demand, it first answers that the topic does not exist.
#[test]
fn a_topic_that_kafka_makes_when_it_comes_back_makes_no_dead_letters() {
    let kafka = Kafka::start();
    let database = migrated(Postgres::shared());
    let topic = kafka.unique("made");
    kafka.stop();
    let relay = relay(&database, &kafka, &topic);
    emit(&database, 0..100);
    let conn = &mut database.connect();
    let mut claims = |claimed: bool| {
        let sql = "SELECT count(*) FROM pg_locks JOIN pg_database d ON d.oid = database \
                   WHERE d.datname = current_database() AND relation = 'outbox_shard'::regclass AND mode = 'RowShareLock'";
        eventually("the relay to begin or to give up a pass", PATIENCE, || {
            let claims: i64 = diesel::dsl::sql::<BigInt>(sql).get_result(conn).unwrap();
            ((claims > 0) == claimed).then_some(())
        });
    };
    claims(true);
    claims(false);
    kafka.restart();
    wait_until_sent(&database);
    assert_nothing_lost(&kafka.read_all(&topic), 100);
    stop(relay);
}

/// The relay reads the WAL. In the middle first the broker goes away, then the connection, then the database while the broker
/// is away, so that everything that was read ahead waits.
#[test]
fn a_relay_on_the_wal_loses_nothing_whatever_goes_away() {
    let kafka = Kafka::start();
    let postgres = Postgres::start(15);
    let database = migrated(&postgres);
    let topic = kafka.unique("log");
    kafka.create_topic(&topic, 3);
    let wal = WalOptions::default();
    setup(&mut database.connect(), &mut database.connect(), &wal).unwrap();
    let counter = kafka.counter(&topic);
    let relay = start(Relay::postgres_wal(database.url(), wal), &kafka, &topic);
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
    let database = migrated(Postgres::shared());
    let topic = kafka.unique("minute");
    kafka.create_topic(&topic, 3);
    let mut wal = WalOptions::default();
    wal.slot = database.name().to_owned();
    setup(&mut database.connect(), &mut database.connect(), &wal).unwrap();
    let counter = kafka.counter(&topic);
    let relay = start(Relay::postgres_wal(database.url(), wal), &kafka, &topic);
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
