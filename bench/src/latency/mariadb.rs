//! The same on MariaDB, which has no notifications: the relay looks at the table.

use diesel_outbox::Migrations;

use super::{CPU_LIMIT, HEAVY, Latency, MODERATE, SPARSE, emitter_on, figures_of};
use crate::contenders::{Contender, take_turns};
use crate::mariadb::start_mariadb;
use crate::report::{Goal, Report};
use crate::servers::warm_kafka;

const NAMES: [&str; 5] =
    ["relay, 500/s", "bare producer, 500/s", "commit alone, 500/s", "relay, 20,000/s", "relay, 1/s"];

impl Latency {
    pub(super) fn run_on_mariadb(&self, rounds: usize) -> Report {
        let (mariadb, kafka) = (start_mariadb(), warm_kafka());
        let (polled, unread) = (mariadb.database(), mariadb.database());
        for database in [&polled, &unread] {
            Migrations::new().run(&mut database.connect()).unwrap();
        }
        let relay =
            |load| self.through_process(polled.url(), &kafka, load, &[], &|| emitter_on(polled.connect()));
        let measured = take_turns(
            rounds,
            vec![
                Contender::new(NAMES[0], || relay(MODERATE)),
                Contender::new(NAMES[1], || self.through_kafka_alone(&kafka, MODERATE)),
                Contender::new(NAMES[2], || self.commits(emitter_on(unread.connect()), MODERATE)),
                Contender::new(NAMES[3], || relay(HEAVY)),
                Contender::new(NAMES[4], || relay(SPARSE)),
            ],
        );
        let mut figures: Vec<_> =
            measured.into_iter().zip(NAMES).flat_map(|(measured, name)| figures_of(name, measured)).collect();
        for figure in &mut figures {
            figure.goal = match figure.name.as_str() {
                "relay, 500/s: p50" => Some(Goal::AtMost(8.0)),
                "relay, 500/s: p99" => Some(Goal::AtMost(25.0)),
                _ => None,
            };
            if figure.name == "relay, 500/s: CPU" {
                figure.limit = Some(CPU_LIMIT.to_owned());
            }
        }
        Report {
            benchmark: "latency on MariaDB".into(),
            conditions: format!(
                "commit to consumer, {} bytes of payload, {} s each; 500/s: one event a transaction; 20,000/s: four \
                 emitters, 20 events a transaction",
                self.bytes, self.seconds
            ),
            figures,
        }
    }
}
