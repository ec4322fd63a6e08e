//! How fast one relay drains while one thing grows and the others stay as they are: the curves for planning a capacity.
//! And what an event costs.

mod costs;
mod events;
mod points;

use std::collections::{BTreeMap, BTreeSet};

use clap::Args;
use outbox_tests::{Database, Kafka};

use self::costs::{check_server, costs};
use self::events::Events;
use self::points::{Point, points};
use crate::contenders::{Contender, take_turns};
use crate::relays::drain_batches;
use crate::report::{Figure, Report};
use crate::rows::{AGGREGATES, Template};
use crate::servers::servers;

#[derive(Args)]
pub(crate) struct Growth {
    /// How many rows wait in the largest backlog.
    #[arg(long, default_value_t = 1_000_000)]
    rows: usize,
    /// PostgreSQL's major version.
    #[arg(long, default_value_t = 15)]
    postgres: u32,
}

impl Growth {
    pub(crate) fn run(&self, rounds: usize) -> Report {
        let (postgres, kafka) = servers(self.postgres);
        check_server(&postgres);
        let (points, kafka) = (points(self.rows), &kafka);
        let events: BTreeSet<Events> = points.iter().map(|point| point.events).collect();
        let databases: Vec<Database<'_>> = events.iter().map(|_| postgres.database()).collect();
        let templates: BTreeMap<Events, Template<'_>> = events
            .into_iter()
            .zip(&databases)
            .map(|(events, database)| (events, Template::new(database, &events.records())))
            .collect();
        templates.values().for_each(Template::empty);
        let contenders = points.iter().map(|point| {
            let template = &templates[&point.events];
            Contender::new(&point.name, move || [drain(point, template, kafka)])
        });
        let measured = take_turns(rounds, contenders.collect());
        let speeds = points.iter().zip(measured);
        let speeds = speeds.map(|(point, [values])| Figure::new(&point.name, "events/s", values));
        let figures = speeds.chain(costs(rounds, &templates[&Events::USUAL], kafka)).collect();
        Report {
            benchmark: "growth".into(),
            conditions: format!(
                "1 relay; unless a figure says otherwise, {AGGREGATES} aggregates in all shards, 200 bytes of payload that \
                 nothing can compress, default limits, 1 worker, 200000 rows (400000 for costs); `max_in_flight` is four times \
                 `batch_size`; PostgreSQL {}",
                self.postgres
            ),
            figures,
        }
    }
}

/// Returns the speed at this point. It leaves an empty table, so that the server has nothing to tidy up during the next one.
fn drain(point: &Point, template: &Template<'_>, kafka: &Kafka) -> f64 {
    let speed = drain_batches(template, kafka, |relay| point.set_up(relay), point.batches, point.rows);
    template.empty();
    speed
}
