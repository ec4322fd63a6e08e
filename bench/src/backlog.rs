//! What a relay has to live with: a large backlog, a large table, an old snapshot. And what a bystander notices of the relay.

mod mariadb;
pub(crate) mod pruning;
mod writer;

use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use clap::Args;
use diesel::connection::SimpleConnection;
use diesel::prelude::*;
use diesel_outbox_relay::Relay;
use outbox_tests::{Database, Kafka};

use crate::bare;
use crate::contenders::{Contender, take_turns};
use crate::relays::{Window, drain_batches, drain_window};
use crate::report::{Figure, Report};
use crate::rows::{AGGREGATES, Part, Template, records};
use crate::servers::{DatabaseKind, PATIENCE, servers};
use crate::topics::new_topic;

#[derive(Args)]
pub(crate) struct Backlog {
    /// How many rows wait in a large backlog, and how many sent rows are in a large table.
    #[arg(long, default_value_t = 10_000_000)]
    rows: usize,
    /// How many rows wait in a small backlog, of which several are drained one after the other.
    #[arg(long, default_value_t = 100_000)]
    few: usize,
    /// Bytes of payload in each.
    #[arg(long, default_value_t = 200)]
    bytes: usize,
    /// The database. On MariaDB, only what waits is measured.
    #[arg(long, value_enum, default_value_t = DatabaseKind::Postgres)]
    database: DatabaseKind,
    /// PostgreSQL's major version.
    #[arg(long, default_value_t = 15)]
    postgres: u32,
    /// Measures only what an open writer costs.
    #[arg(long)]
    writer: bool,
    /// Measures only what pruning costs.
    #[arg(long, conflicts_with = "writer")]
    pruning: bool,
}

const BATCHES: usize = 4;
/// A relay's lag interval. Measuring the lag takes longer the more rows wait, and in such a window it has its due share.
const WINDOW: Duration = Duration::from_secs(15);
/// How many rows the bare libraries drain: about as long as the window lasts.
const BARE_ROWS: usize = 3_000_000;
/// How many rows of a large backlog they drain.
const BARE_MANY: usize = 1_000_000;
/// The rows that the bystander reads, and the time between two of its queries.
const BYSTANDER_ROWS: i64 = 1_000_000;
const PACE: Duration = Duration::from_millis(2);

impl Backlog {
    pub(crate) fn run(&self, rounds: usize) -> Report {
        if self.database == DatabaseKind::Mariadb {
            return self.run_on_mariadb(rounds);
        }
        let (postgres, kafka) = servers(self.postgres);
        let databases = [postgres.database(), postgres.database()];
        let [small, large] =
            databases.each_ref().map(|each| Template::new(each, &records(AGGREGATES, self.bytes)));
        let alone = |figures| Report {
            benchmark: "backlog".into(),
            conditions: format!("{} bytes of payload, 1 worker, PostgreSQL {}", self.bytes, self.postgres),
            figures,
        };
        if self.writer {
            return alone(writer::figures(rounds, self.bytes, &kafka, &small));
        }
        if self.pruning {
            return alone(pruning::figures(rounds, &kafka, &small));
        }
        let figures = [
            self.waiting(rounds, &kafka, [&small, &large]),
            self.kept(rounds, &kafka, [&small, &large]),
            self.snapshot(rounds, &kafka, &small),
            writer::figures(rounds, self.bytes, &kafka, &small),
            pruning::figures(rounds, &kafka, &small),
        ];
        Report {
            benchmark: "backlog".into(),
            conditions: format!(
                "{} rows, {} s of draining in a round, or {BATCHES} times {}, {} bytes of payload, 1 worker, \
                 PostgreSQL {}; the old snapshot beside {BATCHES} times {} rows",
                self.rows,
                WINDOW.as_secs(),
                self.few,
                self.bytes,
                self.postgres,
                self.few
            ),
            figures: figures.into_iter().flatten().collect(),
        }
    }

    /// Compares a large backlog with a small one. Each round drains the large one for a window of time, and refills it before the
    /// next. A speed counts from the first event that reaches Kafka to the last one, so that no relay's start is in it. The bare
    /// libraries show what draining does to a bystander, whoever drains.
    fn waiting(&self, rounds: usize, kafka: &Kafka, [small, large]: [&Template<'_>; 2]) -> Vec<Figure> {
        large.empty();
        large.append_many(self.rows);
        large.vacuum();
        let mut drained = 0;
        make_bystander(small.database);
        make_bystander(large.database);
        let measured = take_turns(
            rounds,
            vec![
                Contender::new("few waiting", || {
                    small.empty();
                    beside_bystander(small.database, || {
                        drain_batches(small, kafka, |relay| relay, BATCHES, self.few)
                    })
                }),
                Contender::new("many waiting", || {
                    large.append_many(drained);
                    large.settle_down();
                    beside_bystander(large.database, || {
                        let speed;
                        (speed, drained) = drain_window(large, kafka, self.rows, WINDOW);
                        speed
                    })
                }),
                Contender::new("bare libraries", || {
                    small.fill(BARE_ROWS);
                    beside_bystander(small.database, || {
                        let parts = [Part::all(BARE_ROWS)];
                        bare::drain(small.database, kafka, &new_topic(kafka), bare::MARK, &parts);
                        0.0
                    })
                }),
                Contender::new("no relay", || {
                    beside_bystander(large.database, || {
                        thread::sleep(WINDOW);
                        0.0
                    })
                }),
            ],
        );
        large.empty();
        let [[few, _], [many, beside], [_, bare], [_, alone]]: [_; 4] = measured.try_into().unwrap();
        let beside = Figure::new("bystander's p99 while many are drained", "ms", beside);
        let bare = Figure::new("bystander's p99 while the bare libraries drain", "ms", bare);
        let alone = Figure::new("bystander's p99 while no relay works", "ms", alone);
        let limit =
            Figure::ratio("bystander's p99, many drained / bare libraries", &beside, &bare).at_most(1.1);
        let p99 = Figure::ratio("bystander's p99, many drained / no relay", &beside, &alone)
            .at_most(1.5)
            .limited_by(&limit);
        let [ratio, many, few] = compare("many waiting", many, "few waiting", few);
        let [bare_ratio, bare_many, bare_few] = self.waiting_for_bare(rounds, kafka, [small, large]);
        let growth = Figure::ratio("many / few, of the relay / of the bare libraries", &ratio, &bare_ratio);
        let growth = growth.at_least(0.9);
        let ratio = ratio.limited_by(&growth);
        vec![ratio, growth, bare_ratio, many, few, bare_many, bare_few, p99, limit, beside, bare, alone]
    }

    /// Compares the same for the bare libraries. They come after the relay, because they leave the shards' lower bounds alone.
    fn waiting_for_bare(
        &self,
        rounds: usize,
        kafka: &Kafka,
        [small, large]: [&Template<'_>; 2],
    ) -> [Figure; 3] {
        large.append_many(self.rows);
        large.vacuum();
        let mut drained = 0;
        let measured = take_turns(
            rounds,
            vec![
                Contender::new("bare libraries, few waiting", || {
                    small.empty();
                    let speeds = (0..BATCHES).map(|_| {
                        small.append_many(self.few);
                        bare_speed(small, kafka, self.few)
                    });
                    [BATCHES as f64 / speeds.map(f64::recip).sum::<f64>()]
                }),
                Contender::new("bare libraries, many waiting", || {
                    large.append_many(drained);
                    large.settle_down();
                    drained = BARE_MANY;
                    [bare_speed(large, kafka, BARE_MANY)]
                }),
            ],
        );
        large.empty();
        let [[few], [many]]: [_; 2] = measured.try_into().unwrap();
        let [ratio, many, few] =
            compare("bare libraries, many waiting", many, "bare libraries, few waiting", few);
        [Figure { goal: None, ..ratio }, many, few]
    }

    /// Compares a table with many sent rows and an empty one.
    fn kept(&self, rounds: usize, kafka: &Kafka, [small, large]: [&Template<'_>; 2]) -> Vec<Figure> {
        large.append_sent(self.rows);
        large.vacuum();
        let drain = |template| [drain_batches(template, kafka, |relay| relay, 1, BATCHES * self.few)];
        let measured = take_turns(
            rounds,
            vec![
                Contender::new("empty table", || {
                    small.empty();
                    drain(small)
                }),
                Contender::new("sent rows kept", || drain(large)),
            ],
        );
        large.empty();
        let [[empty], [kept]]: [_; 2] = measured.try_into().unwrap();
        compare("sent rows kept", kept, "empty table", empty).into()
    }

    /// Compares draining beside a snapshot that is older than all rows, so that the server can clear nothing away, and without one.
    fn snapshot(&self, rounds: usize, kafka: &Kafka, template: &Template<'_>) -> Vec<Figure> {
        let work = |options: fn(Relay) -> Relay, hold: bool| {
            template.empty();
            let mut reader = template.database.connect();
            let look = "BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT 1 FROM outbox LIMIT 1";
            reader.batch_execute(if hold { look } else { "SELECT 1" }).unwrap();
            [drain_batches(template, kafka, options, BATCHES, self.few)]
        };
        let measured = take_turns(
            rounds,
            vec![
                Contender::new("sent_at kept", || work(|relay| relay, false)),
                Contender::new("sent_at kept, old snapshot", || work(|relay| relay, true)),
                Contender::new("delete", || work(Relay::delete_sent, false)),
                Contender::new("delete, old snapshot", || work(Relay::delete_sent, true)),
            ],
        );
        let [[kept], [kept_held], [delete], [delete_held]]: [_; 4] = measured.try_into().unwrap();
        let kept = compare("sent_at kept, old snapshot", kept_held, "sent_at kept", kept);
        kept.into_iter().chain(compare("delete, old snapshot", delete_held, "delete", delete)).collect()
    }
}

/// Returns the ratio of two speeds, and both.
fn compare(name: &str, values: Vec<f64>, usual_name: &str, usual: Vec<f64>) -> [Figure; 3] {
    let (speed, usual) = (Figure::new(name, "events/s", values), Figure::new(usual_name, "events/s", usual));
    [Figure::ratio(format!("{name} / {usual_name}"), &speed, &usual).at_least(0.9), speed, usual]
}

/// Returns the speed of the bare libraries with the oldest rows, from the first arrival to the last.
fn bare_speed(template: &Template<'_>, kafka: &Kafka, rows: usize) -> f64 {
    let topic = new_topic(kafka);
    let counter = kafka.counter(&topic);
    thread::scope(|scope| {
        let parts = [Part::all(rows)];
        scope.spawn(move || bare::drain(template.database, kafka, &topic, bare::MARK, &parts));
        Window::speed(&[Window::watch(&counter, 0, rows, PATIENCE)])
    })
}

diesel::table!(bystander (id) { id -> BigInt, body -> Text, });

fn make_bystander(database: &Database<'_>) {
    let mut conn = database.connect();
    let table = format!(
        "CREATE TABLE bystander AS SELECT id, repeat('x', 100) AS body \
         FROM generate_series(1::bigint, {BYSTANDER_ROWS}) AS id; ALTER TABLE bystander ADD PRIMARY KEY (id)"
    );
    conn.batch_execute(&table).unwrap();
    conn.batch_execute("VACUUM (ANALYZE) bystander").unwrap();
}

/// Returns the work's result, and the 99th percentile of another service's queries meanwhile, in milliseconds.
fn beside_bystander(database: &Database<'_>, work: impl FnOnce() -> f64) -> [f64; 2] {
    let (working, done) = channel();
    thread::scope(|scope| {
        let bystander = scope.spawn(|| query(database, done));
        let worked = work();
        drop(working);
        let mut times = bystander.join().unwrap();
        times.sort();
        [worked, times[times.len() * 99 / 100].as_secs_f64() * 1_000.0]
    })
}

/// Looks up rows at a fixed pace. A query that had to wait for the one before counts from when it was due.
fn query(database: &Database<'_>, done: Receiver<()>) -> Vec<Duration> {
    let mut conn = database.connect();
    let mut times = Vec::new();
    let mut due = Instant::now();
    for number in 1.. {
        due += PACE;
        let wait = due.saturating_duration_since(Instant::now());
        if done.recv_timeout(wait) == Err(RecvTimeoutError::Disconnected) {
            break;
        }
        let began = if wait.is_zero() { due } else { Instant::now() };
        // A prime steps from one row to another at the other end of the table.
        let id = number * 2_654_435_761 % BYSTANDER_ROWS + 1;
        bystander::table.find(id).select(bystander::body).get_result::<String>(&mut conn).unwrap();
        times.push(began.elapsed());
    }
    times
}
