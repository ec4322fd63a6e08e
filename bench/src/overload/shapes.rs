//! Events of unusual shapes: half of all are of one aggregate, each is of another aggregate, or each topic has only a few.

use std::time::Instant;

use diesel_outbox::Record;
use outbox_tests::{Database, Kafka, Postgres};

use super::{Overload, PEAK, megabytes, wait_until_all_is_sent};
use crate::contenders::{Contender, take_turns};
use crate::relays::{relay_process, stop};
use crate::report::Figure;
use crate::rows::{AGGREGATES, Template};
use crate::topics::new_topic;

impl Overload {
    pub(super) fn shapes(&self, postgres: &Postgres, kafka: &Kafka, rounds: usize) -> Vec<Figure> {
        let databases: [Database<'_>; 4] = std::array::from_fn(|_| postgres.database());
        let [usual, hot, many, topics] = &databases;
        let record = |kind: String, id: usize| {
            Record::new(kind, id.to_string(), "OrderPlaced").with_payload(vec![b'x'; self.bytes])
        };
        let template = |database, record: &dyn Fn(usize) -> Record| {
            Template::new(database, &(0..self.rows).map(record).collect::<Vec<_>>())
        };
        let order = || "order".to_owned();
        let usual = template(usual, &|n| record(order(), n % AGGREGATES));
        let hot = template(hot, &|n| record(order(), if n % 2 == 0 { AGGREGATES } else { n % AGGREGATES }));
        let many = template(many, &|n| record(order(), n));
        let topics = template(topics, &|n| record(format!("t{}", n % self.topics), n % AGGREGATES));
        let prefix = kafka.unique("overload");
        for number in 0..self.topics {
            kafka.create_topic(&format!("{prefix}.t{number}"), 1);
        }
        let one_topic = new_topic(kafka);
        let drain = |template: &Template<'_>, topic: &str| {
            template.refill();
            drain(template.database, kafka, topic)
        };
        let measured = take_turns(
            rounds,
            vec![
                Contender::new("usual", || drain(&usual, &one_topic)),
                Contender::new("hot aggregate", || drain(&hot, &one_topic)),
                Contender::new("many aggregates", || drain(&many, &one_topic)),
                Contender::new("many topics", || drain(&topics, &format!("{prefix}.{{aggregatetype}}"))),
            ],
        );
        let names = [
            "1,000 aggregates, 1 topic".to_owned(),
            "half of all events of 1 aggregate".to_owned(),
            format!("{} aggregates", self.rows),
            format!("{} topics", self.topics),
        ];
        let (speeds, peaks): (Vec<Figure>, Vec<Figure>) = measured
            .into_iter()
            .zip(&names)
            .map(|([speeds, peaks], name)| {
                let peak = Figure::new(format!("{name}: peak of the relay"), "MB", peaks).below(PEAK);
                (Figure::new(name.clone(), "events/s", speeds), peak)
            })
            .unzip();
        // A topic of few records makes small requests: that is Kafka's part.
        let goals = [0.9, 0.9, 0.5].into_iter().zip(&speeds[1..]);
        let ratio = |(goal, speed): (f64, &Figure)| {
            Figure::ratio(format!("{} / {}", speed.name, names[0]), speed, &speeds[0]).at_least(goal)
        };
        let mut figures: Vec<Figure> = goals.map(ratio).collect();
        figures.extend(speeds);
        figures.extend(peaks);
        figures
    }
}

/// Returns the speed of a relay's process, and its peak of memory in MB.
fn drain(database: &Database<'_>, kafka: &Kafka, topic: &str) -> [f64; 2] {
    let rows = super::count(&mut database.connect(), "outbox") as f64;
    let began = Instant::now();
    let relay = relay_process(database.url(), kafka, topic, &[]);
    wait_until_all_is_sent(database, &relay);
    let speed = rows / began.elapsed().as_secs_f64();
    let peak = megabytes(relay.peak_resident_kb());
    stop(&relay);
    assert_eq!(super::count(&mut database.connect(), "outbox_dead_letter"), 0);
    [speed, peak]
}
