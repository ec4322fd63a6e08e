//! What sending exactly once costs: speed and latency beside the same relay that sends at least once.

use std::time::Instant;

use clap::Args;
use diesel_outbox::Migrations;
use diesel_outbox_relay::source::wal::WalOptions;
use diesel_outbox_relay::{Kafka as Broker, Relay};
use outbox_tests::{Database, Kafka, eventually};

use crate::contenders::{Contender, take_turns};
use crate::latency::{Latency, MODERATE, SPREAD, figures_of, wal_options};
use crate::producer::{produce, produce_in_transactions};
use crate::relays::{outbox, relay};
use crate::report::{Figure, Report};
use crate::rows::{Template, records};
use crate::servers::{DatabaseKind, PATIENCE, SETTINGS, servers, start_postgres};
use crate::topics::new_topic;

#[derive(Args)]
pub(crate) struct ExactlyOnce {
    /// How many rows wait in the outbox, or in the WAL, at the beginning of each round.
    #[arg(long, default_value_t = 400_000)]
    rows: usize,
    /// Bytes of payload in each.
    #[arg(long, default_value_t = 200)]
    bytes: usize,
    /// PostgreSQL's major version.
    #[arg(long, default_value_t = 15)]
    postgres: u32,
    /// How long each contender is measured for its latency, in seconds.
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    /// Leave the speed out.
    #[arg(long)]
    without_drain: bool,
    /// Leave the latency out.
    #[arg(long)]
    without_latency: bool,
}

/// How many events a transaction has in the WAL.
const TRANSACTION: usize = 1_000;
/// How many it has in Kafka, as the relay's.
const OF_KAFKA: usize = 100_000;

impl ExactlyOnce {
    pub(crate) fn run(&self, rounds: usize) -> Report {
        let (postgres, kafka) = servers(self.postgres);
        let wal_server = start_postgres(self.postgres, SETTINGS);
        let mut figures = Vec::new();
        if !self.without_drain {
            figures.extend(self.speeds(rounds, &postgres.database(), &wal_server.database(), &kafka));
        }
        if !self.without_latency {
            figures.extend(self.latencies(rounds, &postgres.database(), &wal_server.database(), &kafka));
        }
        Report {
            benchmark: "exactly once".into(),
            conditions: format!(
                "{} rows, {} bytes of payload, 1 worker, in the WAL in transactions of {TRANSACTION}; latency from commit to a consumer of \
                 what is committed, {} s each, one event a transaction; PostgreSQL {}",
                self.rows, self.bytes, self.seconds, self.postgres
            ),
            figures,
        }
    }

    fn speeds(
        &self,
        rounds: usize,
        polled: &Database<'_>,
        read: &Database<'_>,
        kafka: &Kafka,
    ) -> Vec<Figure> {
        let records_in_memory = records(self.rows, self.bytes);
        let template = Template::new(polled, &records_in_memory);
        let drain = |exactly_once| {
            template.fill(self.rows);
            self.drain(kafka, exactly_once, |topic| relay(polled, kafka, topic))
        };
        let for_wal = Template::new(read, &records(TRANSACTION, self.bytes));
        for_wal.empty();
        outbox(read.url(), &["wal", "setup", "--slot", read.name()]);
        let drain_wal = |exactly_once| {
            for_wal.append_in_transactions(self.rows, TRANSACTION);
            for_wal.settle_down();
            self.drain(kafka, exactly_once, |topic| {
                Relay::postgres_wal(read.url(), WalOptions::default().slot(read.name()))
                    .broker(Broker::new(kafka.brokers()))
                    .topic_naming(topic.parse().unwrap())
            })
        };
        let bare = |speed| [speed, f64::NAN];
        let names = [
            "at least once",
            "exactly once",
            "WAL, at least once",
            "WAL, exactly once",
            "bare producer",
            "bare producer in transactions",
        ];
        let measured = take_turns(
            rounds,
            vec![
                Contender::new(names[0], || drain(false)),
                Contender::new(names[1], || drain(true)),
                Contender::new(names[2], || drain_wal(false)),
                Contender::new(names[3], || drain_wal(true)),
                Contender::new(names[4], || bare(produce(kafka, &records_in_memory))),
                Contender::new(names[5], || {
                    bare(produce_in_transactions(kafka, &records_in_memory, OF_KAFKA))
                }),
            ],
        );
        let mut speeds = Vec::new();
        let mut starts = Vec::new();
        for (name, [speed, start]) in names.into_iter().zip(measured) {
            speeds.push(Figure::new(name, "events/s", speed));
            if start.iter().all(|seconds| seconds.is_finite()) {
                starts.push(Figure::new(format!("{name}, start"), "s", start));
            }
        }
        let mut figures = vec![
            Figure::ratio("exactly once / at least once", &speeds[1], &speeds[0]).at_least(0.90),
            Figure::ratio("WAL, exactly once / at least once", &speeds[3], &speeds[2]).at_least(0.90),
            Figure::ratio("bare producer, in transactions / without", &speeds[5], &speeds[4]),
        ];
        figures.extend(speeds);
        figures.extend(starts);
        figures
    }

    /// Returns how many events a relay sends per second from the first on, and the seconds from its start to the first.
    fn drain(&self, kafka: &Kafka, exactly_once: bool, relay: impl FnOnce(&str) -> Relay) -> [f64; 2] {
        let topic = new_topic(kafka);
        let counter = kafka.counter(&topic);
        let relay = relay(&topic).exactly_once(exactly_once);
        let began = Instant::now();
        let relay = relay.spawn().unwrap();
        let first =
            eventually("the first event", PATIENCE, || Some(counter.count()).filter(|count| *count > 0));
        let (start, flowing) = (began.elapsed(), Instant::now());
        eventually("the relay to publish all", PATIENCE, || (counter.count() >= self.rows).then_some(()));
        let speed = self.rows.saturating_sub(first) as f64 / flowing.elapsed().as_secs_f64();
        // It ends its pass first, so the next round does not begin with records that the broker has.
        relay.stop_blocking().unwrap();
        [speed, start.as_secs_f64()]
    }

    fn latencies(
        &self,
        rounds: usize,
        polled: &Database<'_>,
        read: &Database<'_>,
        kafka: &Kafka,
    ) -> Vec<Figure> {
        for database in [polled, read] {
            Migrations::new().run(&mut database.connect()).unwrap();
        }
        outbox(read.url(), &["wal", "setup", "--slot", read.name()]);
        let latency = Latency {
            seconds: self.seconds,
            bytes: self.bytes,
            database: DatabaseKind::Postgres,
            postgres: self.postgres,
        };
        let through = |database: &Database<'_>, load, exactly_once: bool, options: &[&str]| {
            let mut options = options.to_vec();
            options.extend(exactly_once.then_some("--exactly-once"));
            latency.through(database, kafka, load, &options)
        };
        let polled = |load, exactly_once| through(polled, load, exactly_once, &[]);
        let read = |load, exactly_once| through(read, load, exactly_once, &wal_options(read));
        let names = [
            "at least once, 500/s",
            "exactly once, 500/s",
            "at least once, 100/s",
            "exactly once, 100/s",
            "WAL, at least once, 500/s",
            "WAL, exactly once, 500/s",
        ];
        let measured = take_turns(
            rounds,
            vec![
                Contender::new(names[0], || polled(MODERATE, false)),
                Contender::new(names[1], || polled(MODERATE, true)),
                Contender::new(names[2], || polled(SPREAD, false)),
                Contender::new(names[3], || polled(SPREAD, true)),
                Contender::new(names[4], || read(MODERATE, false)),
                Contender::new(names[5], || read(MODERATE, true)),
            ],
        );
        measured.into_iter().zip(names).flat_map(|(measured, name)| figures_of(name, measured)).collect()
    }
}
