use std::time::{Duration, Instant};

use clap::Args;
use diesel_outbox_relay::{Kafka as Broker, Limits, Relay, Topics};
use outbox_tests::{Database, Kafka, Postgres};

use crate::contenders::{Contender, take_turns};
use crate::producer::{new_topic, produce};
use crate::report::{Figure, Report};
use crate::rows::{Template, records};

#[derive(Args)]
pub(crate) struct Drain {
    /// How many rows wait in the outbox at the beginning of each round.
    #[arg(long, default_value_t = 400_000)]
    rows: usize,
    /// Bytes of payload in each.
    #[arg(long, default_value_t = 200)]
    bytes: usize,
    /// Workers of the relay.
    #[arg(long, default_value_t = 1)]
    workers: usize,
    /// PostgreSQL's major version.
    #[arg(long, default_value_t = 15)]
    postgres: u32,
    /// How long the relay goes on before it commits, in milliseconds.
    #[arg(long, default_value_t = 500)]
    pass_ms: u64,
}

impl Drain {
    pub(crate) fn run(&self, rounds: usize) -> Report {
        let postgres =
            Postgres::start_with(self.postgres, &[("shared_buffers", "1GB"), ("max_wal_size", "8GB")]);
        let kafka = Kafka::start();
        let database = postgres.database();
        let records = records(self.rows, self.bytes);
        let template = Template::new(&database, &records);
        let relay = |options: fn(Relay) -> Relay| {
            template.refill();
            [self.drain(&database, &kafka, options)]
        };
        let measured = take_turns(
            rounds,
            vec![
                Contender::new("bare producer", || [produce(&kafka, &records)]),
                Contender::new("relay, sent_at kept", || relay(|relay| relay)),
                Contender::new("relay, delete", || relay(Relay::delete_sent)),
            ],
        );
        let names = ["bare producer", "relay, sent_at kept", "relay, delete"];
        let mut speeds =
            measured.into_iter().zip(names).map(|([values], name)| Figure::new(name, "events/s", values));
        let (bare, kept, delete) = (speeds.next().unwrap(), speeds.next().unwrap(), speeds.next().unwrap());
        Report {
            benchmark: "drain",
            conditions: format!(
                "{} rows, {} bytes of payload, {} worker(s), PostgreSQL {}",
                self.rows, self.bytes, self.workers, self.postgres
            ),
            figures: vec![
                Figure::ratio("sent_at kept / bare producer", &kept, &bare).at_least(0.60),
                Figure::ratio("delete / bare producer", &delete, &bare).at_least(0.65),
                bare,
                kept,
                delete,
            ],
        }
    }

    fn drain(&self, database: &Database<'_>, kafka: &Kafka, options: fn(Relay) -> Relay) -> f64 {
        let topic = new_topic(kafka);
        let counter = kafka.counter(&topic);
        let mut limits = Limits::default();
        limits.pass_time = Duration::from_millis(self.pass_ms);
        let relay = Relay::postgres(database.url())
            .publisher(Broker::new(kafka.brokers()))
            .topics(Topics::pattern(&topic).unwrap())
            .workers(self.workers)
            .limits(limits);
        let began = Instant::now();
        let handle = options(relay).spawn().unwrap();
        while counter.count() < self.rows {
            std::thread::sleep(Duration::from_millis(20));
        }
        handle.stop_blocking().unwrap();
        self.rows as f64 / began.elapsed().as_secs_f64()
    }
}
