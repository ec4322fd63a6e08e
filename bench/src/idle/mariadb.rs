//! The same on MariaDB, whose server counts the statements.

use std::time::{Duration, Instant};

use diesel::connection::SimpleConnection;
use diesel::dsl::sql;
use diesel::prelude::*;
use diesel::sql_types::BigInt;
use diesel_outbox::{Emit, Migrations};
use outbox_tests::{Kafka, Mariadb, Process, eventually};

use super::{Idle, SETTLING_DOWN};
use crate::contenders::{Contender, take_turns};
use crate::cpu::Times;
use crate::mariadb::{CONDITIONS, start_mariadb, status};
use crate::relays::relay_process;
use crate::report::{Figure, Report};
use crate::rows::records;
use crate::servers::PATIENCE;

/// What the outbox was used for before.
#[derive(Clone, Copy, PartialEq)]
enum Before {
    Unused,
    /// Its rows were sent, and pruned later.
    Pruned,
    /// The relay deletes rows as soon as it has sent them.
    Deleted,
}

/// How many events are sent: the bounds move after about a thousand.
const USED: usize = 5_000;

/// Lets the relay send events until its bounds have moved, and deletes what is left of them.
fn use_and_empty(conn: &mut MysqlConnection) {
    let count = |conn: &mut MysqlConnection, from: &str| {
        sql::<BigInt>(&format!("SELECT COUNT(*) FROM {from}")).get_result::<i64>(conn).unwrap()
    };
    eventually("the bounds to move", PATIENCE, || {
        conn.transaction(|c| c.emit_all(records(USED, 200))).unwrap();
        eventually("the relay to send all", PATIENCE, || {
            (count(conn, "outbox WHERE sent_at IS NULL") == 0).then_some(())
        });
        (count(conn, "outbox_shard WHERE sent_through > 0") > 0).then_some(())
    });
    conn.batch_execute("DELETE FROM outbox").unwrap();
}

impl Idle {
    pub(super) fn run_on_mariadb(&self, rounds: usize) -> Report {
        let (mariadb, kafka) = (start_mariadb(), Kafka::start());
        let relays = |count| self.watch_on_mariadb(&mariadb, &kafka, count, Before::Unused);
        let many = format!("{} idle relays", self.instances);
        let measured = take_turns(
            rounds,
            vec![
                Contender::new("1 idle relay", || relays(1)),
                Contender::new("1 idle relay, sent rows pruned", || {
                    self.watch_on_mariadb(&mariadb, &kafka, 1, Before::Pruned)
                }),
                Contender::new("1 idle relay, sent rows deleted", || {
                    self.watch_on_mariadb(&mariadb, &kafka, 1, Before::Deleted)
                }),
                Contender::new(&many, || relays(self.instances)),
            ],
        );
        let [[queries, cpu], [queries_pruned, _], [queries_deleted, _], [queries_many, cpu_many]] =
            measured.try_into().unwrap();
        Report {
            benchmark: "idle --database mariadb".into(),
            conditions: format!("watched for {} s; {CONDITIONS}", self.seconds),
            figures: vec![
                Figure::new("queries of 1 idle relay", "queries/s", queries).at_most(1.0),
                Figure::new("queries of 1 idle relay, sent rows pruned", "queries/s", queries_pruned)
                    .at_most(1.0),
                Figure::new("queries of 1 idle relay, sent rows deleted", "queries/s", queries_deleted)
                    .at_most(1.0),
                Figure::new(format!("queries of {many}"), "queries/s", queries_many).at_most(8.0),
                Figure::new("CPU of 1 idle relay", "% of a core", cpu),
                Figure::new(format!("CPU of each of {many}"), "% of a core", cpu_many),
            ],
        }
    }

    /// Returns the queries per second of all relays together, and the CPU of each in percent of a core.
    fn watch_on_mariadb(&self, mariadb: &Mariadb, kafka: &Kafka, count: usize, before: Before) -> [f64; 2] {
        let database = mariadb.database();
        Migrations::new().run(&mut database.connect()).unwrap();
        let topic = kafka.unique("bench");
        let options: &[&str] = if before == Before::Deleted { &["--delete-sent"] } else { &[] };
        let relays: Vec<Process> =
            (0..count).map(|_| relay_process(database.url(), kafka, &topic, options)).collect();
        if before != Before::Unused {
            use_and_empty(&mut database.connect());
        }
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
