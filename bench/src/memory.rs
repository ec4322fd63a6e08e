//! How much memory a relay's process takes, with small and large backlogs.

use clap::Args;
use outbox_tests::{Counter, Database, Kafka, Process, eventually};

use crate::bare::Bare;
use crate::contenders::{Contender, take_turns};
use crate::relays::{relay_process, stop};
use crate::report::{Figure, Report};
use crate::rows::{AGGREGATES, Template, records};
use crate::servers::{PATIENCE, servers};
use crate::topics::new_topic;

#[derive(Args)]
pub(crate) struct Memory {
    /// How many rows the large backlog has.
    #[arg(long, default_value_t = 10_000_000)]
    rows: usize,
    /// How many rows the small backlog has.
    #[arg(long, default_value_t = 10_000)]
    few: usize,
    /// How many rows a backlog has that just fills the pipeline.
    #[arg(long, default_value_t = 100_000)]
    some: usize,
    /// How many rows of the large backlog are drained in a round.
    #[arg(long, default_value_t = 2_000_000)]
    window: usize,
    /// Bytes of payload in each.
    #[arg(long, default_value_t = 200)]
    bytes: usize,
    /// PostgreSQL's major version.
    #[arg(long, default_value_t = 15)]
    postgres: u32,
}

impl Memory {
    /// One process drains all of the large backlog, so that what grows with the rows that it has seen would show. In each
    /// round a new process drains a part of it, which is made up for before the next.
    pub(crate) fn run(&self, rounds: usize) -> Report {
        let (postgres, kafka) = servers(self.postgres);
        let template = records(AGGREGATES, self.bytes);
        let (small, large) = (postgres.database(), postgres.database());
        let (few, many) = (Template::new(&small, &template), Template::new(&large, &template));
        many.empty();
        many.append_many(self.rows);
        many.vacuum();
        let window = self.window.min(self.rows);
        let (whole, _) = relay_peak(&large, &kafka, self.rows);
        many.empty();
        let mut drained = self.rows;
        let drain_all = |rows| {
            few.fill(rows);
            [relay_peak(&small, &kafka, rows).0]
        };
        let drain_bare = |rows| {
            few.fill(rows);
            let topic = new_topic(&kafka);
            let bare = Bare::start(&small, &kafka, &topic, rows, 8_000);
            [peak(&bare, &kafka.counter(&topic), rows)]
        };
        let measured = take_turns(
            rounds,
            vec![
                Contender::new("few waiting", || drain_all(self.few)),
                Contender::new("some waiting", || drain_all(self.some)),
                Contender::new("many waiting", || {
                    many.append_many(drained);
                    many.settle_down();
                    let (peak, events) = relay_peak(&large, &kafka, window);
                    drained = events;
                    [peak]
                }),
                Contender::new("bare libraries, few waiting", || drain_bare(self.few)),
                Contender::new("bare libraries, many waiting", || drain_bare(window)),
            ],
        );
        let [[few], [some], [many], [bare_few], [bare_many]]: [_; 5] = measured.try_into().unwrap();
        let few = Figure::new(format!("peak, {} waiting", self.few), "MB", few);
        let some = Figure::new(format!("peak, {} waiting", self.some), "MB", some);
        let many = Figure::new(format!("peak, {} waiting", self.rows), "MB", many);
        let bare_few =
            Figure::new(format!("peak of the bare libraries, {} waiting", self.few), "MB", bare_few);
        let bare_many = Figure::new(format!("peak of the bare libraries, {window} waiting"), "MB", bare_many);
        let growth = Figure::ratio(format!("{} / {} waiting", self.rows, self.few), &many, &few);
        let bare_growth =
            Figure::ratio(format!("bare libraries, {window} / {} waiting", self.few), &bare_many, &bare_few);
        let limit =
            Figure::ratio("that growth / the bare libraries' growth", &growth, &bare_growth).at_most(1.10);
        let whole = Figure::new(format!("peak, all {} drained", self.rows), "MB", vec![whole]);
        Report {
            benchmark: "memory".into(),
            conditions: format!(
                "{} bytes of payload, 1 worker, PostgreSQL {}; of the {} rows each round's process drains {}; the bare libraries \
                 have as many records in flight as the relay",
                self.bytes, self.postgres, self.rows, window
            ),
            figures: vec![
                growth.at_most(1.10).limited_by(&limit),
                limit,
                bare_growth,
                Figure::ratio(format!("{} / {} waiting", self.rows, self.some), &many, &some).at_most(1.10),
                many.below(60.0),
                whole.below(60.0),
                some,
                few,
                bare_many,
                bare_few,
            ],
        }
    }
}

/// Returns a new relay's peak of memory in MB until it has sent this many events, and how many it has sent when it has stopped.
fn relay_peak(database: &Database<'_>, kafka: &Kafka, events: usize) -> (f64, usize) {
    let topic = new_topic(kafka);
    let counter = kafka.counter(&topic);
    let relay = relay_process(database.url(), kafka, &topic, &[]);
    let peak = peak(&relay, &counter, events);
    stop(&relay);
    (peak, counter.count())
}

/// Returns a process's peak of memory in MB until it has sent this many events.
fn peak(process: &Process, counter: &Counter, events: usize) -> f64 {
    eventually("the events to be sent", PATIENCE, || {
        assert!(process.exited().is_none(), "the process has ended:\n{}", process.output());
        (counter.count() >= events).then_some(())
    });
    let kib = process.peak_resident_kb().expect("a system that reports a process's memory, such as Linux");
    kib as f64 * 1_024.0 / 1e6
}
