//! What relays without work cost: statements, as pg_stat_statements counts them, and processor time, which the system's scheduler
//! reports in nanoseconds.

mod mariadb;

use std::collections::HashSet;
use std::time::{Duration, Instant};

use clap::Args;
use diesel::dsl::sql;
use diesel::prelude::*;
use diesel::sql_types::{BigInt, Integer, Text};
use diesel_outbox::Migrations;
use outbox_tests::{Database, Debezium, Kafka, Postgres, Process, eventually};

use crate::contenders::{Contender, take_turns};
use crate::cpu::{Times, spent};
use crate::latency::wal_options;
use crate::relays::{outbox, relay_process};
use crate::report::{Figure, Report};
use crate::servers::{DatabaseKind, start_counting_postgres};

#[derive(Args)]
pub(crate) struct Idle {
    /// How long the idle relays are watched in each round. They look at the table every 15 s, so choose a multiple.
    #[arg(long, default_value_t = 30)]
    seconds: u64,
    /// How many relays are many.
    #[arg(long, default_value_t = 50)]
    instances: usize,
    /// The database. On MariaDB, fewer contenders take turns.
    #[arg(long, value_enum, default_value_t = DatabaseKind::Postgres)]
    database: DatabaseKind,
    /// PostgreSQL's major version. It needs the extension pg_stat_statements.
    #[arg(long, default_value_t = 15)]
    postgres: u32,
}

/// A relay looks for notifications ever less often, until it has been quiet for 10 s.
pub(crate) const SETTLING_DOWN: Duration = Duration::from_secs(10);

impl Idle {
    pub(crate) fn run(&self, rounds: usize) -> Report {
        if self.database == DatabaseKind::Mariadb {
            return self.run_on_mariadb(rounds);
        }
        let postgres = start_counting_postgres(self.postgres, &[("wal_level", "logical")]);
        let kafka = Kafka::start();
        let relays = |count| self.watch(&postgres, &kafka, count, false);
        let many = format!("{} idle relays", self.instances);
        let measured = take_turns(
            rounds,
            vec![
                Contender::new("1 idle relay", || relays(1)),
                Contender::new(&many, || relays(self.instances)),
                Contender::new("1 idle WAL relay", || self.watch(&postgres, &kafka, 1, true)),
                Contender::new("idle Debezium", || self.watch_debezium(&postgres, &kafka)),
            ],
        );
        let [[queries, cpu], [queries_many, cpu_many], [wal_queries, wal_cpu], [_, debezium_cpu]] =
            measured.try_into().unwrap();
        Report {
            benchmark: "idle".into(),
            conditions: format!("watched for {} s, PostgreSQL {}", self.seconds, self.postgres),
            figures: vec![
                Figure::new("queries of 1 idle relay", "queries/s", queries).at_most(0.5),
                Figure::new(format!("queries of {many}"), "queries/s", queries_many).at_most(5.0),
                Figure::new("CPU of 1 idle relay", "% of a core", cpu).at_most(0.05),
                Figure::new(format!("CPU of each of {many}"), "% of a core", cpu_many),
                Figure::new("queries of 1 idle WAL relay", "queries/s", wal_queries),
                Figure::new("CPU of 1 idle WAL relay", "% of a core", wal_cpu).at_most(0.05),
                Figure::new("CPU of idle Debezium", "% of a core", debezium_cpu),
            ],
        }
    }

    /// Returns the queries per second of all relays together, and the CPU of each in percent of a core.
    fn watch(&self, postgres: &Postgres, kafka: &Kafka, count: usize, reads_wal: bool) -> [f64; 2] {
        let database = postgres.database();
        Migrations::new().run(&mut database.connect()).unwrap();
        let topic = kafka.unique("bench");
        let wal = wal_options(&database);
        if reads_wal {
            outbox(database.url(), &["wal", "setup", "--slot", database.name()]);
        }
        let options: &[&str] = if reads_wal { &wal } else { &[] };
        let relays: Vec<Process> =
            (0..count).map(|_| relay_process(database.url(), kafka, &topic, options)).collect();
        // Queries in this other database do not count.
        let conn = &mut postgres.connect();
        if !reads_wal {
            wait_until_asleep(conn, &database, count);
        }
        std::thread::sleep(SETTLING_DOWN);
        let mut times = Times::default();
        let mut nanoseconds = || {
            let seen = relays.iter().all(|relay| times.look(relay.id(), "outbox"));
            assert!(seen, "the relays must run, and on Linux");
            times.total()
        };

        let (began, queries_before, cpu_before) = (Instant::now(), queries(conn, &database), nanoseconds());
        std::thread::sleep(Duration::from_secs(self.seconds));
        let (queries, cpu) = (queries(conn, &database) - queries_before, nanoseconds() - cpu_before);
        let seconds = began.elapsed().as_secs_f64();
        [queries as f64 / seconds, cpu as f64 / 1e9 / seconds / count as f64 * 100.0]
    }
}

impl Idle {
    /// Returns Debezium's CPU in percent of a core.
    fn watch_debezium(&self, postgres: &Postgres, kafka: &Kafka) -> [f64; 2] {
        let database = postgres.database();
        Migrations::new().run(&mut database.connect()).unwrap();
        let debezium = Debezium::start(&database, kafka, &kafka.unique("bench"), &Debezium::TUNED);
        let process = debezium.id().expect("Debezium on this machine");
        std::thread::sleep(SETTLING_DOWN);
        let (began, before) = (Instant::now(), spent(process));
        std::thread::sleep(Duration::from_secs(self.seconds));
        [0.0, (spent(process) - before) / began.elapsed().as_secs_f64() * 100.0]
    }
}

/// Waits until each relay has asked nothing for 2 s. It is asleep then, because before it sleeps it asks at least every second.
pub(crate) fn wait_until_asleep(conn: &mut PgConnection, database: &Database<'_>, count: usize) {
    let mut asleep = HashSet::new();
    eventually("the relays to go to sleep", Duration::from_secs(120), || {
        let quiet = sql::<Integer>(
            "SELECT pid FROM pg_stat_activity WHERE application_name = 'outbox relay' AND state = 'idle' \
             AND state_change < clock_timestamp() - interval '2 s' AND datname = ",
        );
        asleep.extend(quiet.bind::<Text, _>(database.name()).load::<i32>(conn).unwrap());
        (asleep.len() == count).then_some(())
    });
}

pub(crate) fn queries(conn: &mut PgConnection, database: &Database<'_>) -> i64 {
    sql::<BigInt>(
        "SELECT coalesce(sum(calls), 0)::bigint FROM pg_stat_statements \
         JOIN pg_database ON pg_database.oid = dbid WHERE datname = ",
    )
    .bind::<Text, _>(database.name())
    .get_result(conn)
    .unwrap()
}
