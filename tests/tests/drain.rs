//! Several relay processes on one outbox, and processes that die: nothing is lost, each aggregate keeps its order, and
//! duplicates are only what was in flight.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;
use std::time::Duration;

use diesel::prelude::*;
use diesel::sql_types::{BigInt, Text};
use diesel_outbox::{Emit, Migrations, Record};
use outbox_tests::{Database, Kafka, Postgres, Process, Received, Signal, eventually, workspace_binary};

const PATIENCE: Duration = Duration::from_secs(180);

fn migrated() -> Database<'static> {
    let database = Postgres::shared().database();
    Migrations::new().run(&mut database.connect()).unwrap();
    database
}

fn new_topic(name: &str) -> String {
    let topic = Kafka::shared().unique(name);
    Kafka::shared().create_topic(&topic, 6);
    topic
}

fn relay(database: &Database<'_>, topic: &str, arguments: &[&str]) -> Process {
    let mut command = Command::new(workspace_binary("outbox"));
    command
        .args(["relay", "--brokers", Kafka::shared().brokers(), "--topic", topic])
        .args(arguments)
        .env("OUTBOX_DATABASE_URL", database.url());
    Process::start(&command)
}

fn count(conn: &mut PgConnection, from: &str) -> usize {
    let sql = format!("SELECT count(*) FROM {from}");
    diesel::dsl::sql::<BigInt>(&sql).get_result::<i64>(conn).unwrap().unsigned_abs() as usize
}

fn record(aggregate: usize, number: usize) -> Record {
    Record::new("order", aggregate.to_string(), number.to_string()).with_payload(vec![b'x'; 200])
}

/// Writes events of the aggregates whose number leaves `writer` as the remainder, numbered upwards within each, in
/// transactions of different sizes, one of which in ten is rolled back and one in fifty commits late, when others have gone
/// past its numbers; one of those does so after whole passes. The ids of those that were committed.
fn write(
    conn: &mut PgConnection,
    writer: usize,
    writers: usize,
    aggregates: usize,
    events: usize,
) -> BTreeSet<String> {
    let own: Vec<usize> = (0..aggregates).filter(|aggregate| aggregate % writers == writer).collect();
    let mut written = 0;
    let mut round = 0;
    let mut ids = BTreeSet::new();
    while written < events {
        let size = (1 + (round * 7 + writer) % 40).min(events - written);
        let records: Vec<Record> =
            (written..written + size).map(|number| record(own[number % own.len()], number)).collect();
        let result: QueryResult<()> = conn.transaction(|c| {
            if size == 1 {
                c.emit(&records[0])?;
            } else {
                c.emit_all(&records)?;
            }
            if round % 50 == 25 {
                std::thread::sleep(Duration::from_millis(if round == 125 { 1_500 } else { 20 }));
            }
            if round % 10 == 9 { Err(diesel::result::Error::RollbackTransaction) } else { Ok(()) }
        });
        if result.is_ok() {
            written += size;
            ids.extend(records.iter().map(|record| record.id().to_string()));
        }
        round += 1;
    }
    ids
}

/// As many writers at once.
fn write_together(database: &Database<'_>, writers: usize, events: usize) -> BTreeSet<String> {
    std::thread::scope(|scope| {
        let writers: Vec<_> = (0..writers)
            .map(|writer| {
                let mut conn = database.connect();
                scope.spawn(move || write(&mut conn, writer, writers, 1_000, events / writers))
            })
            .collect();
        writers.into_iter().flat_map(|writer| writer.join().unwrap()).collect()
    })
}

/// How many of the received records are repetitions of an id. Every committed id must be there, and each aggregate's first
/// occurrences in their order.
#[track_caller]
fn repetitions(received: &[Received], committed: &BTreeSet<String>) -> usize {
    let mut seen = BTreeSet::new();
    let mut last: BTreeMap<&str, usize> = BTreeMap::new();
    for received in received {
        let id = received.header("id").unwrap();
        assert!(committed.contains(id), "{id} was never committed");
        if !seen.insert(id) {
            continue;
        }
        let number: usize = received.header("eventType").unwrap().parse().unwrap();
        let aggregate = received.key_text().unwrap();
        let before = last.insert(aggregate, number);
        assert!(before.is_none_or(|before| before < number), "{aggregate}: {number} after {before:?}");
    }
    assert_eq!(seen.len(), committed.len(), "events were lost");
    received.len() - seen.len()
}

#[test]
fn three_processes_share_the_work_and_send_every_event_once() {
    let database = migrated();
    let topic = new_topic("shared");
    let relays: Vec<Process> = (0..3).map(|_| relay(&database, &topic, &[])).collect();
    let committed = write_together(&database, 8, 200_000);
    let counter = Kafka::shared().counter(&topic);
    eventually("all events", PATIENCE, || (counter.count() >= 200_000).then_some(()));
    let mut shares = Vec::new();
    for relay in &relays {
        relay.signal(Signal::Terminate);
        assert!(relay.wait(Duration::from_secs(30)).success());
        let line = relay.wait_for_line("what it published", PATIENCE, |line| line.contains("worker stopped"));
        let digits: String =
            line.rsplit("published=").next().unwrap().chars().filter(char::is_ascii_digit).collect();
        shares.push(digits.parse::<usize>().unwrap_or_else(|error| panic!("{line}: {error}")));
    }
    let conn = &mut database.connect();
    assert_eq!(count(conn, "outbox WHERE sent_at IS NULL"), 0);
    let received = Kafka::shared().read_all(&topic);
    assert_eq!(received.len(), 200_000);
    assert_eq!(repetitions(&received, &committed), 0);
    println!("the three relays published {shares:?}");
    assert_eq!(shares.iter().sum::<usize>(), 200_000);
    assert!(shares.iter().all(|share| *share >= 20_000), "unequal shares: {shares:?}");
}

#[test]
fn a_relay_that_is_killed_loses_nothing_and_repeats_only_what_was_in_flight() {
    const EVENTS: usize = 200_000;
    let database = migrated();
    let topic = new_topic("killed");
    let conn = &mut database.connect();
    let committed = write(conn, 0, 1, 1_000, EVENTS);
    let counter = Kafka::shared().counter(&topic);
    let mut in_flight = 0;
    for kill in 0..5 {
        let relay =
            relay(&database, &topic, &["--pass-time", "50ms", "--in-flight", "2000", "--chunk", "500"]);
        let target = counter.count() + 25_000 + 1_000 * kill;
        eventually("some events", PATIENCE, || (counter.count() >= target).then_some(()));
        relay.signal(Signal::Kill);
        relay.wait(PATIENCE);
        eventually("the relay's connection to end", PATIENCE, || {
            let from =
                "pg_stat_activity WHERE application_name = 'outbox relay' AND datname = current_database()";
            (count(conn, from) == 0).then_some(())
        });
        let sent: BTreeSet<String> =
            diesel::dsl::sql::<Text>("SELECT id::text FROM outbox WHERE sent_at IS NOT NULL")
                .load::<String>(conn)
                .unwrap()
                .into_iter()
                .collect();
        let received = Kafka::shared().read_all(&topic);
        let arrived: BTreeSet<&str> = received.iter().filter_map(|received| received.header("id")).collect();
        assert!(sent.iter().all(|id| arrived.contains(id.as_str())), "settled and not on Kafka");
        assert!(sent.len() < EVENTS, "the kill came after the end");
        let of_this_kill = arrived.len() - sent.len();
        // What a pass of 50 ms took on, far less than has arrived.
        assert!(of_this_kill < 20_000, "{of_this_kill} were in flight");
        in_flight += of_this_kill;
    }
    let relay = relay(&database, &topic, &[]);
    eventually("the rest", PATIENCE, || (count(conn, "outbox WHERE sent_at IS NULL") == 0).then_some(()));
    relay.signal(Signal::Terminate);
    assert!(relay.wait(PATIENCE).success());
    let repeated = repetitions(&Kafka::shared().read_all(&topic), &committed);
    println!("{repeated} of {EVENTS} repeated, {in_flight} were in flight");
    assert!(repeated <= in_flight, "{repeated} repeated, though {in_flight} were in flight");
}

/// Where sent rows are deleted their places are soon those of other rows.
#[test]
fn relays_that_die_while_events_are_written_lose_nothing() {
    const EVENTS: usize = 160_000;
    for options in [&["--delete-sent"][..], &["--workers", "2"]] {
        let database = migrated();
        let topic = new_topic("dying");
        let counter = Kafka::shared().counter(&topic);
        let (committed, relays) = std::thread::scope(|scope| {
            let written = scope.spawn(|| write_together(&database, 4, EVENTS));
            let mut relays = vec![relay(&database, &topic, options), relay(&database, &topic, options)];
            for kill in 1..=6 {
                let target = kill * EVENTS / 8;
                eventually("some events", PATIENCE, || (counter.count() >= target).then_some(()));
                let victim = relays.remove(0);
                victim.signal(Signal::Kill);
                victim.wait(PATIENCE);
                relays.push(relay(&database, &topic, options));
            }
            (written.join().unwrap(), relays)
        });
        let conn = &mut database.connect();
        eventually("the rest", PATIENCE, || (count(conn, "outbox WHERE sent_at IS NULL") == 0).then_some(()));
        for relay in relays {
            relay.signal(Signal::Terminate);
            assert!(relay.wait(PATIENCE).success());
        }
        let repeated = repetitions(&Kafka::shared().read_all(&topic), &committed);
        println!("{repeated} of {} repeated with {options:?}", committed.len());
        let kept = if options == ["--delete-sent"] { 0 } else { committed.len() };
        assert_eq!(count(conn, "outbox"), kept);
    }
}

#[test]
fn a_relay_that_is_stopped_by_a_signal_repeats_nothing() {
    let database = migrated();
    let topic = new_topic("stopped");
    let conn = &mut database.connect();
    let committed = write(conn, 0, 1, 500, 100_000);
    let counter = Kafka::shared().counter(&topic);
    for signal in [Signal::Terminate, Signal::Interrupt] {
        let relay = relay(&database, &topic, &[]);
        let target = counter.count() + 10_000;
        eventually("some events", PATIENCE, || (counter.count() >= target).then_some(()));
        relay.signal(signal);
        assert!(relay.wait(Duration::from_secs(30)).success());
        assert_eq!(counter.count(), count(conn, "outbox WHERE sent_at IS NOT NULL"));
        assert!(counter.count() < 100_000, "the stop came after the end");
    }
    let relay = relay(&database, &topic, &[]);
    eventually("the rest", PATIENCE, || (counter.count() >= 100_000).then_some(()));
    relay.signal(Signal::Terminate);
    assert!(relay.wait(PATIENCE).success());
    assert_eq!(repetitions(&Kafka::shared().read_all(&topic), &committed), 0);
}

/// A process that is frozen keeps its connection, and must not keep its shards.
#[test]
fn a_frozen_relay_is_taken_over() {
    let database = migrated();
    let topic = new_topic("frozen");
    let conn = &mut database.connect();
    let committed = write(conn, 0, 1, 100, 50_000);
    let counter = Kafka::shared().counter(&topic);
    let frozen = relay(&database, &topic, &[]);
    eventually("some events", PATIENCE, || (counter.count() >= 1_000).then_some(()));
    frozen.signal(Signal::Stop);
    assert!(count(conn, "outbox WHERE sent_at IS NULL") > 0, "it was frozen after the end");
    let second = relay(&database, &topic, &[]);
    eventually("the rest", PATIENCE, || (count(conn, "outbox WHERE sent_at IS NULL") == 0).then_some(()));
    repetitions(&Kafka::shared().read_all(&topic), &committed);
    second.signal(Signal::Terminate);
    assert!(second.wait(PATIENCE).success());
}
