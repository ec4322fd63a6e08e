//! A transaction inserts an order and an event. One that emits the event is measured against the same transaction with an
//! ordinary Diesel insert of the same row into the same table, so that the ratio shows what `emit` costs besides the row.
//!
//! If a relay drains the outbox meanwhile, it does so for both: what publishing takes from the machine is not a cost of `emit`,
//! and has a figure of its own.

mod clients;
mod ground;
mod mariadb;
mod tables;

use std::time::Duration;

use clap::Args;
use outbox_tests::Kafka;
use tokio::runtime::Runtime;

use self::clients::{Clients, How};
use self::ground::Ground;
use crate::contenders::{Contender, take_turns};
use crate::report::{Figure, Report};
use crate::servers::{DatabaseKind, SETTINGS, start_postgres};

#[derive(Args)]
pub(crate) struct Emit {
    /// How long each contender runs in each round.
    #[arg(long, default_value_t = 2.0)]
    seconds: f64,
    /// Bytes of payload in each event.
    #[arg(long, default_value_t = 200)]
    bytes: usize,
    /// The database. On MariaDB, fewer contenders take turns.
    #[arg(long, value_enum, default_value_t = DatabaseKind::Postgres)]
    database: DatabaseKind,
    /// PostgreSQL's major version.
    #[arg(long, default_value_t = 15)]
    postgres: u32,
    /// Let the server lose commits if the machine fails: it is faster then, and emit's share of the time is larger.
    #[arg(long)]
    no_fsync: bool,
}

/// One piece of work, done with an emit and with an insert.
struct Pair<'a> {
    name: &'static str,
    unit: &'static str,
    goal: f64,
    measure: Box<dyn Fn(How) -> f64 + 'a>,
}

const BATCH: usize = 1_000;
/// Longer than a relay without work stays awake.
const SPARSE: Duration = Duration::from_millis(100);
/// Sparse transactions are measured this many times as long, because there are few of them.
const SPARSE_TIMES: f64 = 5.0;

impl Emit {
    pub(crate) fn run(&self, rounds: usize) -> Report {
        if self.database == DatabaseKind::Mariadb {
            return self.run_on_mariadb(rounds);
        }
        let fsync = if self.no_fsync { "off" } else { "on" };
        let settings = [SETTINGS, &[("fsync", fsync)]].concat();
        let postgres = start_postgres(self.postgres, &settings);
        let kafka = Kafka::start_for_benchmark(&[]);
        let database = postgres.database();
        let ground = Ground::new(&database, &kafka);
        let runtime = Runtime::new().unwrap();
        let pairs = self.pairs(&ground, &runtime);
        let measured = take_turns(rounds, contenders(&pairs));
        Report {
            benchmark: "emit".into(),
            conditions: format!(
                "{} s each, {} if sparse, {} bytes of payload, PostgreSQL {} ({}); beside a relay both emit and \
                 insert, and the relay looks for what was inserted every 100 ms",
                self.seconds,
                self.seconds * SPARSE_TIMES,
                self.bytes,
                self.postgres,
                ground.settings()
            ),
            figures: figures(&pairs, measured.into_iter().map(|[values]| values)),
        }
    }

    fn pairs<'a>(&self, ground: &'a Ground<'a>, runtime: &'a Runtime) -> Vec<Pair<'a>> {
        let time = Duration::from_secs_f64(self.seconds);
        let one = Clients { count: 1, time, pause: Duration::ZERO, bytes: self.bytes };
        let many = Clients { count: 16, ..one };
        let sparse = Clients { pause: SPARSE, time: time.mul_f64(SPARSE_TIMES), ..one };
        let database = ground.database;
        let threads = move |clients: Clients| move |how| clients.on_threads(database, how);
        let tasks = move |clients: Clients| move |how| clients.as_tasks(runtime, database, how);
        let batches = move |how| one.in_batches(database, how, BATCH);
        let unit = "transactions/s";
        vec![
            Pair::new("sync, 1 client", unit, 0.90, ground.alone(threads(one))),
            Pair::new("sync, 16 clients", unit, 0.90, ground.alone(threads(many))),
            Pair::new("async, 1 client", unit, 0.90, ground.alone(tasks(one))),
            Pair::new("async, 16 clients", unit, 0.90, ground.alone(tasks(many))),
            Pair::new("sync, 1 client, relay", unit, 0.85, ground.beside_relay(threads(one))),
            Pair::new("sync, 16 clients, relay", unit, 0.85, ground.beside_relay(threads(many))),
            Pair::new("async, 1 client, relay", unit, 0.85, ground.beside_relay(tasks(one))),
            Pair::new("async, 16 clients, relay", unit, 0.85, ground.beside_relay(tasks(many))),
            Pair::new("sparse, each wakes the relay", unit, 0.85, ground.beside_relay(threads(sparse))),
            Pair::new("1,000 events at once", "events/s", 0.90, ground.alone(batches)),
        ]
    }
}

/// Both ways of doing each.
fn contenders<'a>(pairs: &'a [Pair<'_>]) -> Vec<Contender<'a, 1>> {
    let both = [("emit", How::Emit), ("insert", How::Insert)];
    let contenders = pairs.iter().flat_map(|pair| {
        both.map(|(how_name, how)| {
            Contender::new(format!("{how_name}, {}", pair.name), move || [(pair.measure)(how)])
        })
    });
    contenders.collect()
}

impl<'a> Pair<'a> {
    fn new(name: &'static str, unit: &'static str, goal: f64, measure: impl Fn(How) -> f64 + 'a) -> Self {
        Self { name, unit, goal, measure: Box::new(measure) }
    }
}

/// Returns the speeds of each pair.
fn speeds(pairs: &[Pair<'_>], mut values: impl Iterator<Item = Vec<f64>>) -> Vec<(Figure, Figure)> {
    let mut next = |how: &str, pair: &Pair<'_>| {
        Figure::new(format!("{how}, {}", pair.name), pair.unit, values.next().unwrap())
    };
    pairs.iter().map(|pair| (next("emit", pair), next("insert", pair))).collect()
}

/// Returns how many of an insert's transactions an emit makes.
fn ratios(pairs: &[Pair<'_>], speeds: &[(Figure, Figure)]) -> Vec<Figure> {
    let ratio = |(pair, (emit, insert)): (&Pair<'_>, &(Figure, Figure))| {
        Figure::ratio(format!("emit / insert, {}", pair.name), emit, insert).at_least(pair.goal)
    };
    pairs.iter().zip(speeds).map(ratio).collect()
}

/// Returns the ratios, then what publishing costs the machine besides, then the speeds.
fn figures(pairs: &[Pair<'_>], values: impl Iterator<Item = Vec<f64>>) -> Vec<Figure> {
    let speeds = speeds(pairs, values);
    let relay = (0..4).map(|alone| {
        let name = format!("emit beside relay / emit alone, {}", pairs[alone].name);
        Figure::ratio(name, &speeds[alone + 4].0, &speeds[alone].0)
    });
    let mut figures: Vec<Figure> = ratios(pairs, &speeds).into_iter().chain(relay).collect();
    figures.extend(speeds.into_iter().flat_map(|(emit, insert)| [emit, insert]));
    figures
}
