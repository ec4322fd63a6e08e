//! The same on MariaDB, whose server counts the statements.

use std::time::{Duration, Instant};

use diesel::prelude::*;
use diesel_outbox::Migrations;
use outbox_tests::{Kafka, Mariadb, Process};

use super::{Idle, SETTLING_DOWN};
use crate::contenders::{Contender, take_turns};
use crate::cpu::Times;
use crate::mariadb::{start_mariadb, status};
use crate::relays::relay_process;
use crate::report::{Figure, Report};

impl Idle {
    pub(super) fn run_on_mariadb(&self, rounds: usize) -> Report {
        let (mariadb, kafka) = (start_mariadb(), Kafka::start());
        let relays = |count| self.watch_on_mariadb(&mariadb, &kafka, count);
        let many = format!("{} idle relays", self.instances);
        let measured = take_turns(
            rounds,
            vec![
                Contender::new("1 idle relay", || relays(1)),
                Contender::new(&many, || relays(self.instances)),
            ],
        );
        let [[queries, cpu], [queries_many, cpu_many]] = measured.try_into().unwrap();
        Report {
            benchmark: "idle on MariaDB".into(),
            conditions: format!("watched for {} s", self.seconds),
            figures: vec![
                Figure::new("queries of 1 idle relay", "queries/s", queries).at_most(1.0),
                Figure::new(format!("queries of {many}"), "queries/s", queries_many).at_most(8.0),
                Figure::new("CPU of 1 idle relay", "% of a core", cpu),
                Figure::new(format!("CPU of each of {many}"), "% of a core", cpu_many),
            ],
        }
    }

    /// Returns the queries per second of all relays together, and the CPU of each in percent of a core.
    fn watch_on_mariadb(&self, mariadb: &Mariadb, kafka: &Kafka, count: usize) -> [f64; 2] {
        let database = mariadb.database();
        Migrations::new().run(&mut database.connect()).unwrap();
        let topic = kafka.unique("bench");
        let relays: Vec<Process> =
            (0..count).map(|_| relay_process(database.url(), kafka, &topic, &[])).collect();
        std::thread::sleep(SETTLING_DOWN * 2);
        let mut times = Times::default();
        let mut nanoseconds = || {
            let seen = relays.iter().all(|relay| times.look(relay.id(), "outbox"));
            assert!(seen, "the relays must run, and on Linux");
            times.total()
        };
        let conn: &mut MysqlConnection = &mut mariadb.connect();
        let mut asked = || status(conn, "Queries");
        let (began, before, cpu_before) = (Instant::now(), asked(), nanoseconds());
        std::thread::sleep(Duration::from_secs(self.seconds));
        // One of them asks for the number itself.
        let (queries, cpu) = (asked() - before - 1, nanoseconds() - cpu_before);
        let seconds = began.elapsed().as_secs_f64();
        [queries as f64 / seconds, cpu as f64 / 1e9 / seconds / count as f64 * 100.0]
    }
}
