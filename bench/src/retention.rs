//! Whether a table that is pruned keeps its size while many times as many events pass through it, what pruning costs a relay that drains,
//! and whether an emitter notices it while an old snapshot keeps PostgreSQL from cleaning up.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use clap::Args;
use diesel::connection::SimpleConnection;
use diesel::dsl::sql;
use diesel::prelude::*;
use diesel::sql_types::BigInt;
use diesel_outbox::Emit;
use outbox_tests::{Counter, Kafka};

use crate::backlog::pruning;
use crate::contenders::{Contender, take_turns};
use crate::relays::relay;
use crate::report::{Figure, Report};
use crate::rows::{AGGREGATES, Template, record, records};
use crate::servers::servers;
use crate::topics::new_topic;

#[derive(Args)]
pub(crate) struct Retention {
    /// How many events pass through the table.
    #[arg(long, default_value_t = 20_000_000)]
    events: usize,
    /// How many sent rows it keeps.
    #[arg(long, default_value_t = 1_000_000)]
    kept: usize,
    /// How long an emitter is measured beside an old snapshot, and without.
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// Bytes of payload in each event.
    #[arg(long, default_value_t = 200)]
    bytes: usize,
    /// PostgreSQL's major version.
    #[arg(long, default_value_t = 15)]
    postgres: u32,
    /// Measures only the size of the table.
    #[arg(long)]
    size: bool,
}

/// Emitters wait while so many events are not in Kafka yet, because a backlog is not what is measured.
const BEHIND: usize = 20_000;
/// How often the table's size is looked at, as a part of the events.
const LOOKS: usize = 40;
const PACE: Duration = Duration::from_millis(5);
/// So many events a second pass through the table while an emitter is measured.
const FLOW: usize = 10_000;
const MEGABYTE: f64 = 1_000_000.0;

impl Retention {
    pub(crate) fn run(&self, rounds: usize) -> Report {
        let (postgres, kafka) = servers(self.postgres);
        let database = postgres.database();
        let template = Template::new(&database, &records(AGGREGATES, self.bytes));
        let mut figures = self.passes_through(&kafka, &template);
        if !self.size {
            figures.extend(self.drained(rounds, &kafka, &template));
            figures.extend(self.emitted(rounds, &kafka, &template));
        }
        Report {
            benchmark: "retention".into(),
            conditions: format!(
                "{} events through a table that keeps {}; an emitter beside {FLOW} events/s for {} s; {} bytes of payload, 1 worker, \
                 PostgreSQL {}",
                self.events, self.kept, self.seconds, self.bytes, self.postgres
            ),
            figures,
        }
    }

    /// Lets the events pass through the table, as fast as they are sent. The table has its size when several times as many have passed as it
    /// keeps, so the second half is compared with the second quarter.
    fn passes_through(&self, kafka: &Kafka, template: &Template<'_>) -> Vec<Figure> {
        template.empty();
        let topic = new_topic(kafka);
        let counter = kafka.counter(&topic);
        let relay = relay(template.database, kafka, &topic).keep_sent_rows(self.kept as u64).spawn().unwrap();
        let conn = &mut template.database.connect();
        let (mut sizes, mut emitted, began) = (Vec::new(), 0, Instant::now());
        while emitted < self.events {
            emitted += emit_behind(template, &counter, emitted);
            if emitted >= self.events * (sizes.len() + 1) / LOOKS {
                let [size, rows] = [SIZE, ROWS].map(|query| number(conn, query) as f64);
                let seconds = began.elapsed().as_secs();
                eprintln!("{seconds} s: {emitted} events, {rows} rows, {:.0} MB", size / MEGABYTE);
                sizes.push((size / MEGABYTE, rows));
            }
        }
        let speed = emitted as f64 / began.elapsed().as_secs_f64();
        relay.stop_blocking().unwrap();
        let quarter = sizes.len() / 4;
        let mean =
            |sizes: &[(f64, f64)]| sizes.iter().map(|(size, _)| size).sum::<f64>() / sizes.len() as f64;
        let (earlier, later) = (mean(&sizes[quarter..2 * quarter]), mean(&sizes[2 * quarter..]));
        let most = sizes.iter().map(|(_, rows)| *rows).fold(0.0, f64::max);
        vec![
            Figure::new("size, second half / second quarter", "ratio", vec![later / earlier]).at_most(1.1),
            Figure::new("size in the second half", "MB", vec![later]),
            Figure::new("most rows / rows kept", "ratio", vec![most / self.kept as f64]),
            Figure::new("events that passed", "events/s", vec![speed]),
        ]
    }

    fn drained(&self, rounds: usize, kafka: &Kafka, template: &Template<'_>) -> Vec<Figure> {
        // All that was sent before is beyond a thousand rows.
        let drained = |rows| pruning::work(kafka, template, move |relay| relay.keep_sent_rows(rows));
        let measured = take_turns(
            rounds,
            vec![
                Contender::new("all kept", || drained(u64::MAX)),
                Contender::new("pruned by number", || drained(1_000)),
            ],
        );
        let [[speed, _], [pruning_speed, pruned]]: [_; 2] = measured.try_into().unwrap();
        let speed = Figure::new("drained beside kept rows", "events/s", speed);
        let pruning_speed = Figure::new("drained while rows are pruned by number", "events/s", pruning_speed);
        vec![
            Figure::ratio("drained, pruned by number / kept", &pruning_speed, &speed).at_least(0.95),
            Figure::new("rows pruned by number for each that is drained", "", pruned),
            speed,
            pruning_speed,
        ]
    }

    /// The 99th percentile of a transaction that emits one event, in the last third of the time over the first one.
    fn emitted(&self, rounds: usize, kafka: &Kafka, template: &Template<'_>) -> Vec<Figure> {
        let measured = take_turns(
            rounds,
            vec![
                Contender::new("emitted", || self.latencies(kafka, template, false)),
                Contender::new("emitted, old snapshot", || self.latencies(kafka, template, true)),
            ],
        );
        let [[first, last], [first_held, last_held]]: [_; 2] = measured.try_into().unwrap();
        let figures = |name: &str, first, last| {
            let first = Figure::new(format!("p99 of emit{name}, first third"), "ms", first);
            let last = Figure::new(format!("p99 of emit{name}, last third"), "ms", last);
            [Figure::ratio(format!("p99 of emit{name}, last third / first"), &last, &first), first, last]
        };
        let [ratio, rest @ ..] = figures("", first, last);
        let [held_ratio, held_rest @ ..] = figures(" with an old snapshot", first_held, last_held);
        [held_ratio.at_most(1.5), ratio].into_iter().chain(held_rest).chain(rest).collect()
    }

    fn latencies(&self, kafka: &Kafka, template: &Template<'_>, old_snapshot: bool) -> [f64; 2] {
        template.empty();
        template.append_sent(self.kept.min(100_000));
        template.vacuum();
        let topic = new_topic(kafka);
        let counter = kafka.counter(&topic);
        let relay = relay(template.database, kafka, &topic).keep_sent_rows(1_000).spawn().unwrap();
        let mut snapshot = template.database.connect();
        if old_snapshot {
            snapshot
                .batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT 1 FROM template LIMIT 1")
                .unwrap();
        }
        let done = AtomicBool::new(false);
        let times = thread::scope(|scope| {
            scope.spawn(|| {
                let (mut emitted, began) = (0, Instant::now());
                while !done.load(Ordering::Relaxed) {
                    let due = Duration::from_secs_f64(emitted as f64 / FLOW as f64);
                    thread::sleep(due.saturating_sub(began.elapsed()));
                    emitted += emit_behind(template, &counter, emitted);
                }
            });
            let times = emit_at_a_pace(template, Duration::from_secs(self.seconds), self.bytes);
            done.store(true, Ordering::Relaxed);
            times
        });
        relay.stop_blocking().unwrap();
        let third = times.len() / 3;
        [&times[..third], &times[2 * third..]].map(p99)
    }
}

/// The table's size with its indexes, and its rows.
const SIZE: &str = "pg_total_relation_size('outbox')";
const ROWS: &str = "(SELECT count(*) FROM outbox)";

fn number(conn: &mut PgConnection, expression: &str) -> i64 {
    diesel::select(sql::<BigInt>(expression)).get_result(conn).unwrap()
}

/// Emits the template's events in one transaction, as soon as the relay is not far behind. Returns how many there are.
fn emit_behind(template: &Template<'_>, counter: &Counter, emitted: usize) -> usize {
    while emitted > counter.count() + BEHIND {
        thread::sleep(Duration::from_millis(1));
    }
    template.append_many(AGGREGATES);
    AGGREGATES
}

/// Emits one event after the other, and returns how long each transaction took.
fn emit_at_a_pace(template: &Template<'_>, time: Duration, bytes: usize) -> Vec<Duration> {
    let mut conn = template.database.connect();
    let (mut times, began) = (Vec::new(), Instant::now());
    while began.elapsed() < time {
        let since = Instant::now();
        conn.transaction(|c| c.emit(&record(times.len(), bytes))).unwrap();
        times.push(since.elapsed());
        thread::sleep(PACE.saturating_sub(since.elapsed()));
    }
    times
}

fn p99(times: &[Duration]) -> f64 {
    let mut times = times.to_vec();
    times.sort_unstable();
    times.get(times.len() * 99 / 100).map_or(f64::NAN, |time| time.as_secs_f64() * 1_000.0)
}
