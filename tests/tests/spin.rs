//! A waiting relay does not use the processor.

use std::thread;
use std::time::{Duration, Instant};

use diesel::prelude::*;
use diesel_outbox::{Emit, Record};
use outbox_tests::load::{migrated, relay_command, wal};
use outbox_tests::{Process, Tables, eventually, on_postgres_and_mariadb};
use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::mocking::MockCluster;

const PATIENCE: Duration = Duration::from_secs(30);
const TOPIC: &str = "spin";

on_postgres_and_mariadb!(a_polling_relay_waits_without_spinning);

fn a_polling_relay_waits_without_spinning(tables: &impl Tables) {
    waits_without_spinning(tables, &[]);
}

#[test]
fn a_relay_on_the_wal_waits_without_spinning() {
    let database = migrated();
    wal(&database, "setup");
    waits_without_spinning(&database, &["--source", "wal", "--slot", database.name()]);
}

/// The relay spins neither while it waits for acknowledgements, nor while it waits for events, whether they arrive one by one
/// or not at all.
fn waits_without_spinning(tables: &impl Tables, options: &[&str]) {
    const SECONDS: usize = 2;
    const RATE: usize = 500;
    let cluster = MockCluster::new(1).unwrap();
    cluster.create_topic(TOPIC, 1, 1).unwrap();
    let answers_after = |time| cluster.broker_round_trip_time(1, time).unwrap();
    let brokers = cluster.bootstrap_servers();
    let consumer: BaseConsumer = ClientConfig::new().set("bootstrap.servers", &brokers).create().unwrap();
    let have_come = |events: usize| {
        eventually("the events", PATIENCE, || {
            let (_, end) = consumer.fetch_watermarks(TOPIC, 0, PATIENCE).unwrap();
            (end == events as i64).then_some(())
        });
    };
    let relay = Process::start(&relay_command(&brokers, tables.url(), TOPIC, options));
    let conn = &mut tables.connect();
    let mut emit = || conn.transaction(|c| c.emit(&Record::new("order", "1", "Paced"))).unwrap();
    emit();
    have_come(1);

    answers_after(Duration::from_millis(2));
    let busy = share_of_a_core(&relay, || {
        let began = Instant::now();
        for count in 0..SECONDS * RATE {
            let due = began + Duration::from_secs(1).mul_f64(count as f64 / RATE as f64);
            thread::sleep(due.saturating_duration_since(Instant::now()));
            emit();
        }
    });
    have_come(1 + SECONDS * RATE);

    assert!(busy < 40.0, "{busy:.1} % of a core at {RATE} events a second");

    // A spinning relay takes what it can get of a core, even if others want it too.
    answers_after(Duration::from_secs(2));
    let waiting = share_of_a_core(&relay, || {
        emit();
        thread::sleep(Duration::from_millis(1_500));
    });
    answers_after(Duration::ZERO);
    have_come(2 + SECONDS * RATE);
    assert!(waiting < 10.0, "{waiting:.1} % of a core while one event is not acknowledged");

    // The relay looks for events less and less often.
    eventually("a relay without work to leave the processor alone", PATIENCE, || {
        let idle = share_of_a_core(&relay, || thread::sleep(Duration::from_secs(2)));
        (idle < 1.0).then_some(())
    });
}

/// How much of a core the relay takes in the meantime, in percent.
fn share_of_a_core(relay: &Process, meanwhile: impl FnOnce()) -> f64 {
    let (began, before) = (Instant::now(), relay.processor_time().unwrap());
    meanwhile();
    let spent = relay.processor_time().unwrap() - before;
    spent.as_secs_f64() / began.elapsed().as_secs_f64() * 100.0
}
