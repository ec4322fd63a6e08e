//! How fast a backlog reaches Kafka.

mod debezium;
mod mariadb;

pub(crate) use self::debezium::resume_and_drain;

use std::time::{Duration, Instant};

use clap::Args;
use diesel_outbox_relay::Relay;
use outbox_tests::{Database, Debezium, Kafka, Postgres, eventually};

use crate::bare;
use crate::contenders::{Contender, take_turns};
use crate::producer::produce;
use crate::relays::relay;
use crate::report::{Figure, Report};
use crate::rows::{Part, Template, records, the_last_are_unsent};
use crate::servers::{DatabaseKind, PATIENCE, SETTINGS, servers, start_postgres};
use crate::topics::new_topic;

/// How many rows each transaction has that Debezium reads.
const TRANSACTION: usize = 1_000;

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
    /// The database. On MariaDB, the bare producer, the relay and Debezium take turns.
    #[arg(long, value_enum, default_value_t = DatabaseKind::Postgres)]
    database: DatabaseKind,
    /// PostgreSQL's major version.
    #[arg(long, default_value_t = 15)]
    postgres: u32,
    /// How many records the relay reads, and settles, at once.
    #[arg(long, default_value_t = 2_000)]
    batch_size: usize,
    /// How many records may be unacknowledged at once.
    #[arg(long, default_value_t = 8_000)]
    max_in_flight: usize,
    /// How long a pass may last, in milliseconds.
    #[arg(long, default_value_t = 500)]
    pass_ms: u64,
    /// Leave Debezium out.
    #[arg(long)]
    without_debezium: bool,
}

impl Drain {
    pub(crate) fn run(&self, rounds: usize) -> Report {
        if self.database == DatabaseKind::Mariadb {
            return self.run_on_mariadb(rounds);
        }
        let (postgres, kafka) = servers(self.postgres);
        let database = postgres.database();
        let records = records(self.rows, self.bytes);
        let template = Template::new(&database, &records);
        let relay = |options: fn(Relay) -> Relay| {
            template.refill();
            [self.drain(&database, &kafka, options)]
        };
        let bare = |settling| {
            template.refill();
            let topic = new_topic(&kafka);
            let parts = [Part::all(self.rows)];
            [self.speed(|| bare::drain(&database, &kafka, &topic, settling, &parts))]
        };
        let without_kafka = |settling| {
            template.refill();
            [self.speed(|| bare::drain_without_kafka(&database, settling))]
        };
        // Debezium reads the WAL of a server of its own, so that it need not read what the relay does to the table.
        let server = (!self.without_debezium).then(|| start_postgres(self.postgres, SETTINGS));
        let for_debezium = server.as_ref().map(Postgres::database);
        let topic = new_topic(&kafka);
        let template = for_debezium.as_ref().map(|database| Template::new(database, &records));
        let debezium = for_debezium.as_ref().map(|database| {
            let debezium = Debezium::start(database, &kafka, &topic, &Debezium::TUNED);
            debezium.pause();
            debezium
        });
        let mut contenders = vec![
            Contender::new("bare producer", || [produce(&kafka, &records)]),
            Contender::new("relay, sent_at kept", || relay(|relay| relay)),
            Contender::new("relay, delete", || relay(Relay::delete_sent)),
            Contender::new("bare libraries, sent_at kept", || bare(bare::MARK)),
            Contender::new("bare libraries, delete", || bare(bare::DELETE)),
            Contender::new("PostgreSQL alone, sent_at kept", || without_kafka(bare::MARK)),
            Contender::new("PostgreSQL alone, delete", || without_kafka(bare::DELETE)),
        ];
        if let (Some(debezium), Some(template)) = (&debezium, &template) {
            let (kafka, topic) = (&kafka, &topic);
            contenders.push(Contender::new("Debezium", move || {
                [drain_debezium(debezium, template, kafka, topic, self.rows)]
            }));
        }
        let names = [
            "bare producer",
            "relay, sent_at kept",
            "relay, delete",
            "bare libraries, sent_at kept",
            "bare libraries, delete",
            "PostgreSQL alone, sent_at kept",
            "PostgreSQL alone, delete",
            "Debezium",
        ];
        let speeds = Figure::speeds(take_turns(rounds, contenders), names);
        let kept = Figure::ratio("sent_at kept / bare libraries", &speeds[1], &speeds[3]).at_least(0.90);
        let deleted = Figure::ratio("delete / bare libraries", &speeds[2], &speeds[4]).at_least(0.90);
        let mut figures = vec![
            Figure::ratio("sent_at kept / bare producer", &speeds[1], &speeds[0])
                .at_least(0.60)
                .limited_by(&kept),
            Figure::ratio("delete / bare producer", &speeds[2], &speeds[0])
                .at_least(0.65)
                .limited_by(&deleted),
            kept,
            deleted,
            Figure::ratio("sent_at kept / PostgreSQL alone", &speeds[1], &speeds[5]),
            Figure::ratio("delete / PostgreSQL alone", &speeds[2], &speeds[6]),
        ];
        if let Some(debezium) = speeds.get(7) {
            figures.push(Figure::ratio("sent_at kept / Debezium", &speeds[1], debezium).at_least(3.0));
        }
        figures.extend(speeds);
        Report {
            benchmark: "drain".into(),
            conditions: format!(
                "{} rows, {} bytes of payload, {} worker(s), `batch_size` {}, `max_in_flight` {}, passes of {} ms, \
                 PostgreSQL {}; Debezium has a server of its own, on which the rows are inserted in transactions of \
                 {TRANSACTION}",
                self.rows,
                self.bytes,
                self.workers,
                self.batch_size,
                self.max_in_flight,
                self.pass_ms,
                self.postgres
            ),
            figures,
        }
    }

    /// Returns the speed of an embedded relay.
    pub(crate) fn drain(&self, database: &Database<'_>, kafka: &Kafka, options: fn(Relay) -> Relay) -> f64 {
        let topic = new_topic(kafka);
        let counter = kafka.counter(&topic);
        let relay = relay(database, kafka, &topic)
            .workers(self.workers)
            .batch_size(self.batch_size)
            .max_in_flight(self.max_in_flight)
            .max_pass_duration(Duration::from_millis(self.pass_ms));
        let conn = &mut database.connect();
        let mut handle = None;
        // A relay that has nothing to do notices within a quarter of a second that it is to stop: that is not part of draining.
        let speed = self.speed(|| {
            handle = Some(options(relay).spawn().unwrap());
            eventually("the relay to publish and settle all", PATIENCE, || {
                (counter.count() >= self.rows && !the_last_are_unsent(conn)).then_some(())
            });
        });
        handle.expect("it was started").stop_blocking().unwrap();
        speed
    }

    /// Returns the events per second from the relay's start to its end.
    fn speed(&self, drain: impl FnOnce()) -> f64 {
        let began = Instant::now();
        drain();
        self.rows as f64 / began.elapsed().as_secs_f64()
    }
}

/// Returns Debezium's speed with rows that were committed while it was frozen.
fn drain_debezium(
    debezium: &Debezium<'_>,
    template: &Template<'_>,
    kafka: &Kafka,
    topic: &str,
    rows: usize,
) -> f64 {
    let before = kafka.counter(topic).count();
    template.empty();
    template.append_in_transactions(rows, TRANSACTION);
    template.settle_down();
    resume_and_drain(debezium, kafka, topic, before, rows)
}
