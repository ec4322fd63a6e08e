//! Events of unusual shapes: half of all are of one aggregate, each is of another aggregate, or each topic has only a few. Beside the
//! relay, the bare producer sends the same to the same topics.

use std::time::Instant;

use diesel_outbox::Record;
use outbox_tests::{Database, Kafka, Postgres};

use super::{Overload, PEAK, megabytes, wait_until_all_is_sent};
use crate::contenders::{Contender, take_turns};
use crate::producer::produce_to;
use crate::relays::{relay_process, stop};
use crate::report::Figure;
use crate::rows::{AGGREGATES, Template};
use crate::topics::new_topic;

/// Events, and where they wait.
struct Shape<'a> {
    name: String,
    template: Template<'a>,
    records: Vec<Record>,
    /// As the relay is told.
    naming: String,
    /// Those of the records in turn.
    topics: Vec<String>,
}

impl Overload {
    pub(super) fn shapes(&self, postgres: &Postgres, kafka: &Kafka, rounds: usize) -> Vec<Figure> {
        let databases: [Database<'_>; 4] = std::array::from_fn(|_| postgres.database());
        let prefix = kafka.unique("overload");
        let shape = |database: usize, name: &str, topics: usize, aggregate: &dyn Fn(usize) -> usize| {
            let record = |n: usize| {
                let of = Record::new(format!("t{}", n % topics), aggregate(n).to_string(), "OrderPlaced");
                of.with_payload(vec![b'x'; self.bytes])
            };
            let records: Vec<Record> = (0..self.rows).map(record).collect();
            let (naming, topics) = if topics == 1 {
                let topic = new_topic(kafka);
                (topic.clone(), vec![topic])
            } else {
                let topics: Vec<String> = (0..topics).map(|number| format!("{prefix}.t{number}")).collect();
                kafka.create_topics(&topics.iter().map(String::as_str).collect::<Vec<_>>(), 1);
                (format!("{prefix}.{{aggregatetype}}"), topics)
            };
            let template = Template::new(&databases[database], &records);
            Shape { name: name.to_owned(), template, records, naming, topics }
        };
        let many = format!("{} aggregates", self.rows);
        let shapes = [
            shape(0, "1,000 aggregates, 1 topic", 1, &|n| n % AGGREGATES),
            shape(1, "half of all events of 1 aggregate", 1, &|n| {
                if n % 2 == 0 { AGGREGATES } else { n % AGGREGATES }
            }),
            shape(2, &many, 1, &|n| n),
            shape(3, &format!("{} topics", self.topics), self.topics, &|n| n % AGGREGATES),
        ];
        let contenders = shapes.iter().flat_map(|shape| {
            [
                Contender::new(shape.name.clone(), move || shape.relay(kafka)),
                Contender::new(format!("{}, producer", shape.name), move || [shape.produce(kafka), 0.0]),
            ]
        });
        let measured = take_turns(rounds, contenders.collect());
        let (mut ratios, mut speeds, mut peaks) = (Vec::new(), Vec::<Figure>::new(), Vec::new());
        for (shape, measured) in shapes.iter().zip(measured.chunks_exact(2)) {
            let [[relayed, peak], [produced, _]] = measured else { continue };
            let relayed = Figure::new(shape.name.clone(), "events/s", relayed.clone());
            let produced =
                Figure::new(format!("{}: producer alone", shape.name), "events/s", produced.clone());
            if let Some(usual) = speeds.first() {
                ratios.push(Figure::ratio(format!("{} / {}", shape.name, usual.name), &relayed, usual));
            }
            ratios.push(Figure::ratio(
                format!("{}: relay / producer alone", shape.name),
                &relayed,
                &produced,
            ));
            peaks.push(
                Figure::new(format!("{}: peak of the relay", shape.name), "MB", peak.clone()).below(PEAK),
            );
            speeds.extend([relayed, produced]);
        }
        ratios.into_iter().chain(speeds).chain(peaks).collect()
    }
}

impl Shape<'_> {
    /// Returns the speed of a relay's process, and its peak of memory in MB.
    fn relay(&self, kafka: &Kafka) -> [f64; 2] {
        self.template.refill();
        let database = self.template.database;
        let began = Instant::now();
        let relay = relay_process(database.url(), kafka, &self.naming, &[]);
        wait_until_all_is_sent(database, &relay);
        let speed = self.records.len() as f64 / began.elapsed().as_secs_f64();
        let peak = megabytes(relay.peak_resident_kb());
        stop(&relay);
        assert_eq!(super::count(&mut database.connect(), "outbox_dead_letter"), 0);
        [speed, peak]
    }

    fn produce(&self, kafka: &Kafka) -> f64 {
        let topic = |number: usize| &*self.topics[number % self.topics.len()];
        produce_to(kafka, self.records.iter().enumerate().map(|(number, record)| (topic(number), record)))
    }
}
