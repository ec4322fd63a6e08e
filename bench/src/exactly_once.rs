//! What sending exactly once costs: speed and latency beside the same relay that sends at least once.

use clap::Args;
use diesel_outbox::Migrations;
use diesel_outbox_relay::Relay;

use crate::contenders::{Contender, take_turns};
use crate::drain::Drain;
use crate::latency::{Latency, MODERATE, SPREAD, figures_of};
use crate::report::{Figure, Report};
use crate::rows::{Template, records};
use crate::servers::{DatabaseKind, servers};

#[derive(Args)]
pub(crate) struct ExactlyOnce {
    /// How many rows wait in the outbox at the beginning of each round.
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
}

const EXACTLY_ONCE: &[&str] = &["--exactly-once"];

impl ExactlyOnce {
    pub(crate) fn run(&self, rounds: usize) -> Report {
        let (postgres, kafka) = servers(self.postgres);
        let database = postgres.database();
        let template = Template::new(&database, &records(self.rows, self.bytes));
        let measured = Drain::of(self.rows, self.bytes);
        let drain = |options: fn(Relay) -> Relay| {
            template.refill();
            [measured.drain(&database, &kafka, options)]
        };
        let speeds = take_turns(
            rounds,
            vec![
                Contender::new("at least once", || drain(|relay| relay)),
                Contender::new("exactly once", || drain(|relay| relay.exactly_once(true))),
            ],
        );
        let names = ["at least once", "exactly once"];
        let speeds: Vec<Figure> = speeds
            .into_iter()
            .zip(names)
            .map(|([values], name)| Figure::new(name, "events/s", values))
            .collect();
        let mut figures =
            vec![Figure::ratio("exactly once / at least once", &speeds[1], &speeds[0]).at_least(0.90)];
        figures.extend(speeds);
        figures.extend(self.latencies(rounds, &postgres, &kafka));
        Report {
            benchmark: "exactly once".into(),
            conditions: format!(
                "{} rows, {} bytes of payload, 1 worker; latency from commit to a consumer of what is committed, {} s each, one event a \
                 transaction; PostgreSQL {}",
                self.rows, self.bytes, self.seconds, self.postgres
            ),
            figures,
        }
    }

    fn latencies(
        &self,
        rounds: usize,
        postgres: &outbox_tests::Postgres,
        kafka: &outbox_tests::Kafka,
    ) -> Vec<Figure> {
        let database = postgres.database();
        Migrations::new().run(&mut database.connect()).unwrap();
        let latency = Latency {
            seconds: self.seconds,
            bytes: self.bytes,
            database: DatabaseKind::Postgres,
            postgres: self.postgres,
        };
        let through = |load, options| latency.through(&database, kafka, load, options);
        let names =
            ["at least once, 500/s", "exactly once, 500/s", "at least once, 100/s", "exactly once, 100/s"];
        let measured = take_turns(
            rounds,
            vec![
                Contender::new(names[0], || through(MODERATE, &[])),
                Contender::new(names[1], || through(MODERATE, EXACTLY_ONCE)),
                Contender::new(names[2], || through(SPREAD, &[])),
                Contender::new(names[3], || through(SPREAD, EXACTLY_ONCE)),
            ],
        );
        measured.into_iter().zip(names).flat_map(|(measured, name)| figures_of(name, measured)).collect()
    }
}
