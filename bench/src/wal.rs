//! The relay that reads the WAL, beside Debezium, beside polling, and beside the protocol alone.

mod backlog;

use std::time::Instant;

use clap::Args;
use diesel_outbox::Migrations;
use outbox_tests::Debezium;

use self::backlog::Backlog;
use crate::contenders::{Contender, take_turns};
use crate::latency::{CPU_LIMIT, HEAVY, Latency, MODERATE, figures_of, wal_options};
use crate::relays::outbox;
use crate::report::{Figure, Goal, Report};
use crate::rows::{AGGREGATES, Template, records};
use crate::servers::{DatabaseKind, SETTINGS, servers, start_postgres};
use crate::topics::new_topic;

#[derive(Args)]
pub(crate) struct Wal {
    /// How many events wait in the WAL at the beginning of each round.
    #[arg(long, default_value_t = 1_000_000)]
    rows: usize,
    /// Bytes of payload in each.
    #[arg(long, default_value_t = 200)]
    bytes: usize,
    /// How many events a transaction has; several are measured one after the other.
    #[arg(long, value_delimiter = ',', default_values_t = [1, 10, 1_000])]
    transactions: Vec<usize>,
    /// How long latency is measured each time, in seconds.
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    /// How long 20,000 events a second are emitted, in seconds.
    #[arg(long, default_value_t = 60)]
    live: u64,
    /// PostgreSQL's major version.
    #[arg(long, default_value_t = 15)]
    postgres: u32,
    /// How many events nobody has read when `outbox wal drop` begins.
    #[arg(long, default_value_t = 2_000_000)]
    unread: usize,
    /// Measure `outbox wal drop` only.
    #[arg(long)]
    only_drop: bool,
    /// Leave the latency out.
    #[arg(long)]
    without_latency: bool,
}

impl Wal {
    pub(crate) fn run(&self, rounds: usize) -> Report {
        let mut figures = Vec::new();
        if !self.only_drop {
            figures.extend(self.drain(rounds));
            if !self.without_latency {
                figures.extend(self.latency(rounds));
            }
        }
        figures.push(self.take_down());
        Report {
            benchmark: "wal".into(),
            conditions: format!(
                "{} events, {} bytes of payload, PostgreSQL {}; the relay's process, Debezium on Kafka Connect and \
                 pg_recvlogical read the same WAL, one after the other; 20,000/s for {} s: four emitters, 20 events a \
                 transaction",
                self.rows, self.bytes, self.postgres, self.live
            ),
            figures,
        }
    }

    /// Measures `outbox wal drop`, in one round, because filling the table takes longer than the command.
    fn take_down(&self) -> Figure {
        let postgres = start_postgres(self.postgres, SETTINGS);
        let database = postgres.database();
        let template = Template::new(&database, &records(AGGREGATES, self.bytes));
        let drop = || {
            template.empty();
            outbox(database.url(), &["wal", "setup", "--slot", database.name()]);
            template.append_many(self.unread);
            let began = Instant::now();
            outbox(database.url(), &["wal", "drop", "--slot", database.name()]);
            [began.elapsed().as_secs_f64()]
        };
        let name = format!("outbox wal drop, {} unread", self.unread);
        let [[times]] = take_turns(1, vec![Contender::new(&name, drop)]).try_into().unwrap();
        Figure::new(name, "s", times).at_most(15.0 * self.unread as f64 / 2e6)
    }

    fn drain(&self, rounds: usize) -> Vec<Figure> {
        let (postgres, kafka) = servers(self.postgres);
        // The polled outbox is on a server of its own, so that none of its changes are in the WAL.
        let other = start_postgres(self.postgres, SETTINGS);
        let (wal, polled) = (postgres.database(), other.database());
        let template = records(AGGREGATES, self.bytes);
        let (wal_rows, polled_rows) = (Template::new(&wal, &template), Template::new(&polled, &template));
        let topic = new_topic(&kafka);
        // Making a slot waits for open transactions, and Debezium may be frozen in one.
        backlog::set_up(&wal);
        let debezium = Debezium::start(&wal, &kafka, &topic, &Debezium::TUNED);
        debezium.pause();
        let backlog = Backlog::new(&kafka, &wal_rows, &polled_rows, &debezium, &topic, self.rows);
        let mut contenders: Vec<Contender<'_, { backlog::VALUES }>> = Vec::new();
        for &size in &self.transactions {
            let backlog = &backlog;
            contenders.push(Contender::new(format!("transactions of {size}"), move || backlog.round(size)));
        }
        let measured = take_turns(rounds, contenders);
        let sizes = measured.into_iter().zip(&self.transactions);
        let mut figures: Vec<Figure> = sizes
            .flat_map(|(values, size)| backlog::figures(&values, &format!("transactions of {size}")))
            .collect();
        let large = (0..rounds).map(|_| backlog.large_transaction());
        let (speeds, peaks) = large.unzip();
        let name = format!("one transaction of {}", self.rows);
        figures.push(Figure::new(format!("relay, {name}"), "events/s", speeds));
        figures.push(Figure::new(format!("peak of the relay, {name}"), "MB", peaks).below(100.0));
        figures
    }

    fn latency(&self, rounds: usize) -> Vec<Figure> {
        let (postgres, kafka) = servers(self.postgres);
        let other = start_postgres(self.postgres, SETTINGS);
        let (read, for_debezium, polled) = (postgres.database(), other.database(), postgres.database());
        for database in [&read, &for_debezium, &polled] {
            Migrations::new().run(&mut database.connect()).unwrap();
        }
        outbox(read.url(), &["wal", "setup", "--slot", read.name()]);
        let topic = new_topic(&kafka);
        let debezium = Debezium::start(&for_debezium, &kafka, &topic, &Debezium::TUNED);
        debezium.pause();
        let latency = Latency {
            seconds: self.seconds,
            bytes: self.bytes,
            database: DatabaseKind::Postgres,
            postgres: self.postgres,
        };
        let read_wal = |latency: &Latency, load| latency.through(&read, &kafka, load, &wal_options(&read));
        let measured = take_turns(
            rounds,
            vec![
                Contender::new("relay, 500/s", || read_wal(&latency, MODERATE)),
                Contender::new("polling, 500/s", || latency.through(&polled, &kafka, MODERATE, &[])),
                Contender::new("Debezium, 500/s", || {
                    latency.through_debezium(&debezium, &for_debezium, &kafka, &topic, MODERATE)
                }),
                Contender::new("bare producer, 500/s", || latency.through_kafka_alone(&kafka, MODERATE)),
            ],
        );
        let live = Latency {
            seconds: self.live,
            bytes: self.bytes,
            database: DatabaseKind::Postgres,
            postgres: self.postgres,
        };
        let sustained =
            take_turns(rounds, vec![Contender::new("relay, 20,000/s", || read_wal(&live, HEAVY))]);
        let names =
            ["relay, 500/s", "polling, 500/s", "Debezium, 500/s", "bare producer, 500/s", "relay, 20,000/s"];
        let mut figures = Vec::new();
        for (measured, name) in measured.into_iter().chain(sustained).zip(names) {
            figures.extend(figures_of(name, measured));
        }
        for figure in &mut figures {
            figure.goal = match figure.name.as_str() {
                "relay, 500/s: p50" => Some(Goal::AtMost(0.8)),
                "relay, 500/s: p99" => Some(Goal::AtMost(3.0)),
                "relay, 500/s: CPU" => {
                    figure.limit = Some(CPU_LIMIT.to_owned());
                    Some(Goal::AtMost(3.0))
                }
                CPU_LIMIT => Some(Goal::AtLeast(3.0)),
                "relay, 20,000/s: p99" => Some(Goal::AtMost(50.0)),
                _ => None,
            };
        }
        figures
    }
}
