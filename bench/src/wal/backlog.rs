//! A backlog in the WAL, which each contender reads in turn.

use std::cell::Cell;
use std::process::Command;
use std::time::{Duration, Instant};

use diesel::dsl::sql;
use diesel::prelude::*;
use diesel::sql_types::Text;
use outbox_tests::{Database, Debezium, Kafka, Process, eventually};

use crate::cpu::{server_spent, spent};
use crate::drain::resume_and_drain;
use crate::relays::{outbox, relay, relay_process, stop};
use crate::report::Figure;
use crate::rows::Template;
use crate::servers::PATIENCE;
use crate::topics::new_topic;

pub(super) const VALUES: usize = 10;

pub(super) struct Backlog<'a> {
    kafka: &'a Kafka,
    wal: &'a Template<'a>,
    polled: &'a Template<'a>,
    debezium: &'a Debezium<'a>,
    /// The topic to which Debezium publishes.
    topic: &'a str,
    rows: usize,
    rounds: Cell<usize>,
}

/// How one contender read it.
#[derive(Default)]
struct Read {
    speed: f64,
    peak_mb: f64,
    /// Processor seconds for a million events: the contender's own, and the server's.
    own: f64,
    server: f64,
}

/// The slot that pg_recvlogical reads.
const PROTOCOL_SLOT: &str = "bench_protocol";

/// Makes the slots of the relay and of pg_recvlogical.
pub(super) fn set_up(database: &Database<'_>) {
    outbox(database.url(), &["wal", "setup", "--slot", database.name()]);
    let make = format!("(pg_create_logical_replication_slot('{PROTOCOL_SLOT}', 'pgoutput')).slot_name::text");
    diesel::select(sql::<Text>(&make)).get_result::<String>(&mut database.connect()).unwrap();
}

impl<'a> Backlog<'a> {
    pub(super) fn new(
        kafka: &'a Kafka,
        wal: &'a Template<'a>,
        polled: &'a Template<'a>,
        debezium: &'a Debezium<'a>,
        topic: &'a str,
        rows: usize,
    ) -> Self {
        Self { kafka, wal, polled, debezium, topic, rows, rounds: Cell::new(0) }
    }

    /// Lets events wait in transactions of this size, and each contender read them. Another contender begins each time.
    pub(super) fn round(&self, size: usize) -> [f64; VALUES] {
        let published = self.kafka.counter(self.topic).count();
        self.wal.empty();
        self.wal.append_in_transactions(self.rows, size);
        self.wal.settle_down();
        let [mut ours, mut debezium, mut protocol] = [Read::default(), Read::default(), Read::default()];
        let round = self.rounds.replace(self.rounds.get() + 1);
        for turn in 0..3 {
            match (round + turn) % 3 {
                0 => ours = self.relay(),
                1 => debezium = self.debezium(published),
                _ => protocol = self.protocol(),
            }
        }
        self.polled.fill(self.rows);
        let polling = self.polling();
        [
            ours.speed,
            debezium.speed,
            protocol.speed,
            polling,
            ours.peak_mb,
            debezium.peak_mb,
            ours.own,
            ours.server,
            debezium.own,
            debezium.server,
        ]
    }

    /// Returns the relay's events per second and its peak in MB if all events are in one transaction. Debezium and pg_recvlogical
    /// skip that transaction.
    pub(super) fn large_transaction(&self) -> (f64, f64) {
        self.wal.fill(self.rows);
        let read = self.relay();
        eprintln!("one transaction: {:.0} events/s, {:.1} MB", read.speed, read.peak_mb);
        (read.speed, read.peak_mb)
    }

    /// Measures a relay's process from its start to the last event.
    fn relay(&self) -> Read {
        let database = self.wal.database;
        let topic = new_topic(self.kafka);
        let counter = self.kafka.counter(&topic);
        let (server, began) = (server_spent(database), Instant::now());
        let options = ["--source", "wal", "--slot", database.name()];
        let process = relay_process(database.url(), self.kafka, &topic, &options);
        eventually("the relay to publish all", PATIENCE, || {
            assert!(process.exited().is_none(), "the relay has ended:\n{}", process.output());
            (counter.count() >= self.rows).then_some(())
        });
        let speed = self.rows as f64 / began.elapsed().as_secs_f64();
        let own = self.for_a_million(spent(process.id()));
        let server = self.for_a_million(server_spent(database) - server);
        let peak =
            process.peak_resident_kb().expect("a system that reports a process's memory, such as Linux");
        stop(&process);
        Read { speed, peak_mb: peak as f64 * 1_024.0 / 1e6, own, server }
    }

    fn debezium(&self, published: usize) -> Read {
        let database = self.wal.database;
        let process = self.debezium.id().expect("Debezium at work");
        let (server, own) = (server_spent(database), spent(process));
        let speed = resume_and_drain(self.debezium, self.kafka, self.topic, published, self.rows);
        Read {
            speed,
            peak_mb: self.debezium.resident_kb().map_or(0.0, |kib| kib as f64 * 1_024.0 / 1e6),
            own: self.for_a_million(spent(process) - own),
            server: self.for_a_million(server_spent(database) - server),
        }
    }

    /// Measures pg_recvlogical to /dev/null, up to the present end of the WAL.
    fn protocol(&self) -> Read {
        let database = self.wal.database;
        let conn = &mut database.connect();
        let mut text =
            |sql_text: &str| diesel::select(sql::<Text>(sql_text)).get_result::<String>(conn).unwrap();
        let end = text("pg_current_wal_lsn()::text");
        let folder = text("(SELECT setting FROM pg_config WHERE name = 'BINDIR')");
        let mut command = Command::new(format!("{folder}/pg_recvlogical"));
        command.args([
            "--start",
            "--no-loop",
            "--file",
            "/dev/null",
            "--slot",
            PROTOCOL_SLOT,
            "--endpos",
            &end,
        ]);
        // The relay's publication exists, and has the same events.
        command.args(["-o", "proto_version=1", "-o", "publication_names=outbox", "--dbname", database.url()]);
        let began = Instant::now();
        let status = Process::start(&command).wait(Duration::from_secs(600));
        assert!(status.success(), "pg_recvlogical ended with {status}");
        Read { speed: self.rows as f64 / began.elapsed().as_secs_f64(), ..Read::default() }
    }

    fn polling(&self) -> f64 {
        let topic = new_topic(self.kafka);
        let counter = self.kafka.counter(&topic);
        let relay = relay(self.polled.database, self.kafka, &topic);
        let began = Instant::now();
        let handle = relay.spawn().unwrap();
        eventually("the relay to publish all", PATIENCE, || (counter.count() >= self.rows).then_some(()));
        let speed = self.rows as f64 / began.elapsed().as_secs_f64();
        handle.stop_blocking().unwrap();
        speed
    }

    fn for_a_million(&self, seconds: f64) -> f64 {
        seconds * 1e6 / self.rows as f64
    }
}

pub(super) fn figures(values: &[Vec<f64>; VALUES], what: &str) -> Vec<Figure> {
    let figure =
        |name: &str, unit, place: usize| Figure::new(format!("{name}, {what}"), unit, values[place].clone());
    let relay = figure("relay", "events/s", 0);
    let debezium = figure("Debezium", "events/s", 1);
    let protocol = figure("pg_recvlogical", "events/s", 2);
    let polling = figure("polling", "events/s", 3);
    vec![
        Figure::ratio(format!("relay / Debezium, {what}"), &relay, &debezium).at_least(2.0),
        Figure::ratio(format!("relay / pg_recvlogical, {what}"), &relay, &protocol),
        Figure::ratio(format!("relay / polling, {what}"), &relay, &polling),
        relay,
        debezium,
        protocol,
        polling,
        figure("peak of the relay", "MB", 4).below(50.0),
        figure("Debezium's resident", "MB", 5),
        figure("processor, relay", "s/million", 6),
        figure("processor, server of the relay", "s/million", 7),
        figure("processor, Debezium", "s/million", 8),
        figure("processor, server of Debezium", "s/million", 9),
    ]
}
