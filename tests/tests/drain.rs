//! Several relay processes on one outbox, and processes that die. Nothing is lost, each aggregate keeps its order, and only
//! records in flight are sent twice.

use std::collections::BTreeSet;
use std::time::Duration;

use diesel::connection::SimpleConnection;
use diesel::dsl::sql;
use diesel::prelude::*;
use diesel::sql_types::BigInt;
use diesel_outbox::Migrations;
use outbox_tests::load::{
    kill_relays_while_events_are_written, new_topic, relay_command, repetitions, write, write_together_on,
};
use outbox_tests::{Folder, Kafka, Process, Signal, Tables, eventually, on_postgres_and_mariadb};

const PATIENCE: Duration = Duration::from_secs(180);

on_postgres_and_mariadb!(
    another_relay_takes_over_the_shards_of_a_frozen_one_which_then_goes_on,
    a_relay_that_is_stopped_by_a_signal_repeats_nothing,
    a_relay_that_is_killed_loses_nothing_and_repeats_only_what_was_in_flight,
    relays_that_die_while_events_are_written_and_deleted_lose_nothing,
    relays_that_die_while_events_are_written_lose_nothing,
    three_processes_share_the_work_and_send_every_event_once,
);

fn three_processes_share_the_work_and_send_every_event_once(tables: &impl Tables) {
    const EVENTS: usize = 200_000;
    let topic = new_topic("shared");
    let relays: Vec<Process> = (0..3).map(|_| start_and_connect(tables, &topic)).collect();
    let committed = write_together_on(|| tables.connect(), 8, EVENTS);
    let counter = Kafka::shared().counter(&topic);
    eventually("all events", PATIENCE, || (counter.count() >= EVENTS).then_some(()));
    let mut shares = Vec::new();
    for relay in &relays {
        relay.signal(Signal::Terminate);
        assert!(relay.wait(Duration::from_secs(30)).success());
        let line = relay.wait_for_line("what it published", PATIENCE, |line| line.contains("worker stopped"));
        let digits: String =
            line.rsplit("published=").next().unwrap().chars().filter(char::is_ascii_digit).collect();
        shares.push(digits.parse::<usize>().unwrap_or_else(|error| panic!("{line}: {error}")));
    }
    assert_eq!(tables.unsent(), 0);
    let received = Kafka::shared().read_all(&topic);
    assert_eq!(received.len(), EVENTS);
    assert_eq!(repetitions(&received, &committed), 0);
    println!("the three relays published {shares:?}");
    assert_eq!(shares.iter().sum::<usize>(), EVENTS);
    // A busy machine may give one of them little time.
    assert!(shares.iter().all(|share| *share >= 2_000), "unequal shares: {shares:?}");
}

/// Starts a relay and waits until it has connected.
fn start_and_connect(tables: &impl Tables, topic: &str) -> Process {
    let sessions = tables.sessions();
    let relay = start(tables, topic, &[]);
    eventually("the relay to connect", PATIENCE, || (tables.sessions() > sessions).then_some(()));
    relay
}

fn a_relay_that_is_killed_loses_nothing_and_repeats_only_what_was_in_flight(tables: &impl Tables) {
    const EVENTS: usize = 200_000;
    let topic = new_topic("killed");
    let committed = write(&mut tables.connect(), 0, 1, 1_000, EVENTS);
    let counter = Kafka::shared().counter(&topic);
    let mut in_flight = 0;
    for kill in 0..5 {
        let options = ["--max-pass-duration", "50ms", "--max-in-flight", "2000", "--batch-size", "500"];
        let relay = start(tables, &topic, &options);
        let target = counter.count() + 25_000 + 1_000 * kill;
        eventually("some events", PATIENCE, || (counter.count() >= target).then_some(()));
        relay.signal(Signal::Kill);
        relay.wait(PATIENCE);
        eventually("the relay's connections to end", PATIENCE, || (tables.sessions() == 0).then_some(()));
        let sent = tables.sent_ids();
        let received = Kafka::shared().read_all(&topic);
        let arrived: BTreeSet<&str> = received.iter().filter_map(|received| received.header("id")).collect();
        assert!(sent.iter().all(|id| arrived.contains(id.as_str())), "settled and not on Kafka");
        assert!(sent.len() < EVENTS, "the kill came after the end");
        let of_this_kill = arrived.len() - sent.len();
        // No more than a pass of 50 ms takes, which is far less than has arrived.
        assert!(of_this_kill < 20_000, "{of_this_kill} were in flight");
        in_flight += of_this_kill;
    }
    let relay = start(tables, &topic, &[]);
    eventually("the rest", PATIENCE, || (tables.unsent() == 0).then_some(()));
    relay.signal(Signal::Terminate);
    assert!(relay.wait(PATIENCE).success());
    let repeated = repetitions(&Kafka::shared().read_all(&topic), &committed);
    println!("{repeated} of {EVENTS} repeated, {in_flight} were in flight");
    assert!(repeated <= in_flight, "{repeated} repeated, though {in_flight} were in flight");
}

/// One of two relays works, and the other one takes over when it is killed.
#[test]
fn on_sqlite_killed_relays_lose_nothing_and_keep_the_order() {
    let folder = Folder::new("killed");
    let path = folder.path().join("outbox.db").display().to_string();
    let connect = || {
        let mut conn = SqliteConnection::establish(&path).unwrap();
        conn.batch_execute("PRAGMA busy_timeout = 60000; PRAGMA journal_mode = WAL").unwrap();
        conn
    };
    Migrations::new().run(&mut connect()).unwrap();
    let sent = || {
        let sent = sql::<BigInt>("SELECT count(*) FROM outbox WHERE sent_at IS NOT NULL");
        sent.get_result::<i64>(&mut connect()).unwrap().unsigned_abs() as usize
    };
    kill_relays_while_events_are_written(&path, 2, 8_000, connect, sent);
}

/// If sent rows are deleted, other rows soon take their places in the table.
fn relays_that_die_while_events_are_written_and_deleted_lose_nothing(tables: &impl Tables) {
    die_while_events_are_written(tables, 60_000, &["--delete-sent"], 0);
}

fn relays_that_die_while_events_are_written_lose_nothing(tables: &impl Tables) {
    const EVENTS: usize = 200_000;
    die_while_events_are_written(tables, EVENTS, &["--workers", "2"], EVENTS);
}

/// Eight writers, three relays at a time, and five kills. `kept` is how many rows are left in the end.
fn die_while_events_are_written(tables: &impl Tables, events: usize, options: &[&str], kept: usize) {
    const KILLS: usize = 5;
    let topic = new_topic("dying");
    let counter = Kafka::shared().counter(&topic);
    let (committed, relays) = std::thread::scope(|scope| {
        let written = scope.spawn(|| write_together_on(|| tables.connect(), 8, events));
        let mut relays: Vec<Process> = (0..3).map(|_| start(tables, &topic, options)).collect();
        for kill in 1..=KILLS {
            let target = kill * events / (KILLS + 2);
            eventually("some events", PATIENCE, || (counter.count() >= target).then_some(()));
            let victim = relays.remove(0);
            victim.signal(Signal::Kill);
            victim.wait(PATIENCE);
            relays.push(start(tables, &topic, options));
        }
        (written.join().unwrap(), relays)
    });
    eventually("the rest", PATIENCE, || (tables.unsent() == 0).then_some(()));
    for relay in relays {
        relay.signal(Signal::Terminate);
        assert!(relay.wait(PATIENCE).success());
    }
    let repeated = repetitions(&Kafka::shared().read_all(&topic), &committed);
    println!("{repeated} of {events} repeated in {KILLS} kills with {options:?}");
    // Each kill repeats what was in flight and what a pass had not settled yet.
    assert!(repeated < events / 2, "{repeated} repeated");
    assert_eq!(tables.count("outbox"), kept);
}

fn a_relay_that_is_stopped_by_a_signal_repeats_nothing(tables: &impl Tables) {
    let topic = new_topic("stopped");
    let committed = write(&mut tables.connect(), 0, 1, 500, 100_000);
    let counter = Kafka::shared().counter(&topic);
    for signal in [Signal::Terminate, Signal::Interrupt] {
        let relay = start(tables, &topic, &[]);
        let target = counter.count() + 10_000;
        eventually("some events", PATIENCE, || (counter.count() >= target).then_some(()));
        relay.signal(signal);
        assert!(relay.wait(Duration::from_secs(30)).success());
        assert_eq!(counter.count(), tables.count("outbox WHERE sent_at IS NOT NULL"));
        assert!(counter.count() < 100_000, "the stop came after the end");
    }
    let relay = start(tables, &topic, &[]);
    eventually("the rest", PATIENCE, || (counter.count() >= 100_000).then_some(()));
    relay.signal(Signal::Terminate);
    assert!(relay.wait(PATIENCE).success());
    assert_eq!(repetitions(&Kafka::shared().read_all(&topic), &committed), 0);
}

fn start(tables: &impl Tables, topic: &str, options: &[&str]) -> Process {
    Process::start(&relay_command(Kafka::shared().brokers(), &tables.relay_url(), topic, options))
}

/// A frozen process keeps its connection, but must not keep its shards. When it goes on it finds that it has lost them, and works like
/// any other.
fn another_relay_takes_over_the_shards_of_a_frozen_one_which_then_goes_on(tables: &impl Tables) {
    let topic = new_topic("frozen");
    let mut committed = write(&mut tables.connect(), 0, 2, 100, 50_000);
    let counter = Kafka::shared().counter(&topic);
    let frozen = start(tables, &topic, &[]);
    eventually("some events", PATIENCE, || (counter.count() >= 1_000).then_some(()));
    frozen.signal(Signal::Stop);
    assert!(tables.unsent() > 0, "it was frozen after the end");
    let second = start(tables, &topic, &[]);
    eventually("the rest", PATIENCE, || (tables.unsent() == 0).then_some(()));
    frozen.signal(Signal::Continue);
    second.signal(Signal::Terminate);
    assert!(second.wait(PATIENCE).success());
    // The first one is alone now.
    committed.extend(write(&mut tables.connect(), 1, 2, 100, 5_000));
    eventually("later events", PATIENCE, || (tables.unsent() == 0).then_some(()));
    frozen.signal(Signal::Terminate);
    assert!(frozen.wait(PATIENCE).success(), "{}", frozen.output());
    repetitions(&Kafka::shared().read_all(&topic), &committed);
}
