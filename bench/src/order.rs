//! What order costs: relays that share an outbox beside one that has it for itself.

use std::thread;

use clap::Args;
use outbox_tests::{Kafka, Process, ReadRecord};
use serde_json::Value;

use crate::bare;
use crate::contenders::{Contender, take_turns};
use crate::relays::{Window, relay_process, stop};
use crate::report::{Figure, Report};
use crate::rows::{AGGREGATES, Part, Template, record};
use crate::servers::{PATIENCE, servers};
use crate::topics::new_topic;

#[derive(Args)]
pub(crate) struct Order {
    /// How many rows wait in the outbox at the beginning of each round.
    #[arg(long, default_value_t = 1_000_000)]
    rows: usize,
    /// Bytes of payload in each.
    #[arg(long, default_value_t = 200)]
    bytes: usize,
    /// PostgreSQL's major version.
    #[arg(long, default_value_t = 15)]
    postgres: u32,
}

impl Order {
    pub(crate) fn run(&self, rounds: usize) -> Report {
        let (postgres, kafka) = servers(self.postgres);
        let database = postgres.database();
        let template = {
            let bytes = self.bytes;
            let numbered = |n| record(n, bytes).with_payload(format!("{n:0bytes$}"));
            Template::new(&database, &(0..self.rows).map(numbered).collect::<Vec<_>>())
        };
        let drain = |relays, workers| {
            template.refill();
            self.drain(database.url(), &kafka, relays, workers)
        };
        let (whole, quarters) = ([Part::all(self.rows)], template.parts(4));
        let bare = |parts: &[Part]| {
            template.refill();
            let topic = new_topic(&kafka);
            let counter = kafka.counter(&topic);
            thread::scope(|scope| {
                scope.spawn(|| bare::drain(&database, &kafka, &topic, bare::MARK, parts));
                [Window::speed(&[Window::watch(&counter, 0, self.rows, PATIENCE)]), 1.0]
            })
        };
        let names = [
            "one relay, one worker",
            "one relay, two workers",
            "two relays, two workers each",
            "bare libraries",
            "bare libraries, four",
        ];
        let measured = take_turns(
            rounds,
            vec![
                Contender::new(names[0], || drain(1, 1)),
                Contender::new(names[1], || drain(1, 2)),
                Contender::new(names[2], || drain(2, 2)),
                Contender::new(names[3], || bare(&whole)),
                Contender::new(names[4], || bare(&quarters)),
            ],
        );
        let (speeds, shares): (Vec<_>, Vec<_>) =
            measured.into_iter().map(|[speeds, shares]| (speeds, shares)).unzip();
        let share = Figure::new("two relays: share of the lesser relay", "share", shares[2].clone());
        let speeds: Vec<Figure> = speeds
            .into_iter()
            .zip(names)
            .map(|(speeds, name)| Figure::new(name, "events/s", speeds))
            .collect();
        let ratio = |of: usize, to: usize| {
            Figure::ratio(format!("{} / {}", names[of], names[to]), &speeds[of], &speeds[to])
        };
        let limit = ratio(2, 4).at_least(0.9);
        let mut figures = vec![
            ratio(2, 0).at_least(0.9).limited_by(&limit),
            share.at_least(0.3),
            ratio(1, 0),
            ratio(4, 3),
            ratio(0, 3),
            limit,
        ];
        figures.extend(speeds);
        Report {
            benchmark: "order".into(),
            conditions: format!(
                "{} rows of {AGGREGATES} aggregates, {} bytes of payload, PostgreSQL {}; from the first arrival to the \
                 last; the relays' records are read back and found in order; the bare libraries keep no order if \
                 something fails",
                self.rows, self.bytes, self.postgres
            ),
            figures,
        }
    }

    /// Returns the events per second, and the share of the relay that published least.
    fn drain(&self, database_url: &str, kafka: &Kafka, relays: usize, workers: usize) -> [f64; 2] {
        let topic = new_topic(kafka);
        let counter = kafka.counter(&topic);
        let options = ["--workers", &workers.to_string()];
        let relays: Vec<Process> =
            (0..relays).map(|_| relay_process(database_url, kafka, &topic, &options)).collect();
        let window = Window::watch(&counter, 0, self.rows, PATIENCE);
        let published: Vec<usize> = relays
            .iter()
            .map(|relay| {
                stop(relay);
                published(relay)
            })
            .collect();
        assert_eq!(published.iter().sum::<usize>(), self.rows, "published by the relays: {published:?}");
        check_order(&kafka.read_all(&topic), self.rows);
        let least = published.into_iter().min().unwrap_or_default();
        [Window::speed(&[window]), least as f64 / self.rows as f64]
    }
}

/// Returns how many events a relay has published. Each of its workers logs that when it stops.
fn published(relay: &Process) -> usize {
    let lines = relay.lines().into_iter().filter_map(|line| serde_json::from_str::<Value>(&line).ok());
    let stopped = lines.filter(|line| line["message"] == "a relay worker stopped");
    stopped.map(|line| line["published"].as_u64().unwrap() as usize).sum()
}

/// Checks that every aggregate's events have come once and in order. They are numbered, the aggregates in turn.
fn check_order(events: &[ReadRecord], rows: usize) {
    let mut next: Vec<usize> = (0..AGGREGATES).collect();
    for event in events {
        let number: usize = event.text().unwrap().parse().unwrap();
        let aggregate: usize = event.key_text().unwrap().parse().unwrap();
        assert_eq!(number, next[aggregate], "the next event of aggregate {aggregate} is another one");
        next[aggregate] += AGGREGATES;
    }
    assert_eq!(events.len(), rows, "events are missing");
}
