//! One relay for the outboxes of many schemas: what it costs while all are idle, and what a backlog in one costs the others.

use std::time::{Duration, Instant};

use clap::Args;
use diesel::connection::SimpleConnection;
use diesel::prelude::*;
use diesel::sql_types::{BigInt, Text};
use diesel_outbox::{Migrations, Outbox};
use outbox_tests::{Database, Kafka, Postgres};

use crate::contenders::{Contender, take_turns};
use crate::idle::{SETTLING_DOWN, queries, wait_until_asleep};
use crate::latency::{Emitter, Latency, SPREAD};
use crate::relays::{relay_process, stop};
use crate::report::{Figure, Report};
use crate::servers::{DatabaseKind, SETTINGS, start_counting_postgres, warm_kafka};
use crate::topics::PARTITIONS;

#[derive(Args)]
pub(crate) struct Tenants {
    /// How many schemas have an outbox.
    #[arg(long, default_value_t = 100)]
    schemas: usize,
    /// How long the idle relay is watched in each round. It looks at the tables every 15 s, so choose a multiple.
    #[arg(long, default_value_t = 30)]
    seconds: u64,
    /// How long latencies are measured in each round, in seconds.
    #[arg(long, default_value_t = 8)]
    paced_seconds: u64,
    /// The rows of the backlog. They must last for as long as latencies are measured.
    #[arg(long, default_value_t = 1_500_000)]
    rows: usize,
    /// PostgreSQL's major version. It needs the extension pg_stat_statements.
    #[arg(long, default_value_t = 15)]
    postgres: u32,
}

/// Where the backlog is.
#[derive(Clone, Copy, PartialEq)]
enum Backlog {
    None,
    /// In one of the relay's outboxes.
    Shared,
    /// In an outbox that another process relays. It takes as much of the machine.
    Apart,
}

impl Tenants {
    pub(crate) fn run(&self, rounds: usize) -> Report {
        let postgres = start_counting_postgres(self.postgres, SETTINGS);
        let kafka = warm_kafka();
        let database = self.migrated(&postgres);
        let many = format!("{} schemas", self.schemas);
        let paced = |backlog| self.paced(&database, &kafka, backlog);
        let measured = take_turns(
            rounds,
            vec![
                Contender::new(format!("{many}, idle"), || self.idle(&postgres, &database, &kafka)),
                Contender::new(format!("{many}, 100/s"), || paced(Backlog::None)),
                Contender::new(format!("{many}, 100/s, backlog in one"), || paced(Backlog::Shared)),
                Contender::new(format!("{many}, 100/s, backlog of another process"), || {
                    paced(Backlog::Apart)
                }),
            ],
        );
        let [
            [queries, resident, threads, connections],
            [p50, p99, ..],
            [p50_shared, p99_shared, ..],
            [_, p99_apart, ..],
        ] = measured.try_into().unwrap();
        let alone = Figure::new(format!("{many}, 100/s: p99"), "ms", p99);
        let shared = Figure::new(format!("{many}, 100/s, backlog in one: p99"), "ms", p99_shared);
        let apart = Figure::new(format!("{many}, 100/s, backlog of another process: p99"), "ms", p99_apart);
        Report {
            benchmark: "tenants".into(),
            conditions: format!(
                "one relay for {many}, idle for {} s; 100 events/s in turn in all schemas but one, for {} s, beside a backlog \
                 of {} in that one; PostgreSQL {}",
                self.seconds, self.paced_seconds, self.rows, self.postgres
            ),
            figures: vec![
                Figure::new(format!("queries of {many}, idle"), "queries/s", queries).at_most(10.0),
                Figure::new(format!("memory of {many}, idle"), "MB", resident).at_most(60.0),
                Figure::new(format!("threads of {many}, idle"), "", threads),
                Figure::new(format!("connections of {many}, idle"), "", connections),
                Figure::new(format!("{many}, 100/s: p50"), "ms", p50),
                Figure::new(format!("{many}, 100/s, backlog in one: p50"), "ms", p50_shared),
                Figure::ratio("p99 with a backlog in one / without", &shared, &alone).at_most(2.0),
                Figure::ratio("p99 with a backlog in one / of another process", &shared, &apart),
                alone,
                shared,
                apart,
            ],
        }
    }

    fn migrated<'a>(&self, postgres: &'a Postgres) -> Database<'a> {
        let database = postgres.database();
        let conn = &mut database.connect();
        for number in 0..self.schemas {
            Migrations::new().schema(format!("tenant_{number}")).run(conn).unwrap();
        }
        Migrations::new().schema("apart").run(conn).unwrap();
        database
    }

    /// Returns the queries per second, the memory in MB, the threads and the connections of an idle relay.
    fn idle(&self, postgres: &Postgres, database: &Database<'_>, kafka: &Kafka) -> [f64; 4] {
        let topic = kafka.unique("bench");
        let relay = relay_process(database.url(), kafka, &topic, &["--schema", "tenant_*"]);
        let conn = &mut postgres.connect();
        wait_until_asleep(conn, database, CONNECTIONS);
        std::thread::sleep(SETTLING_DOWN);
        let (began, before) = (Instant::now(), queries(conn, database));
        std::thread::sleep(Duration::from_secs(self.seconds));
        let queries = (queries(conn, database) - before) as f64 / began.elapsed().as_secs_f64();
        let resident = relay.resident_kb().expect("Linux") as f64 / 1_000.0;
        let threads = std::fs::read_dir(format!("/proc/{}/task", relay.id())).expect("Linux").count();
        let connections: i64 = diesel::dsl::sql::<BigInt>(
            "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'outbox%' AND datname = ",
        )
        .bind::<Text, _>(database.name())
        .get_result(conn)
        .unwrap();
        stop(&relay);
        [queries, resident, threads as f64, connections as f64]
    }

    /// Returns the median and the 99th percentile of the latency of events in all schemas but the first, in milliseconds, and the
    /// relay's CPU in percent of a core.
    fn paced(&self, database: &Database<'_>, kafka: &Kafka, backlog: Backlog) -> [f64; 4] {
        let topic = kafka.unique("bench");
        let (quiet, busy) = (format!("{topic}.order"), format!("{topic}.busy"));
        kafka.create_topic(&quiet, PARTITIONS);
        kafka.create_topic(&busy, PARTITIONS);
        let conn = &mut database.connect();
        let schema = if backlog == Backlog::Apart { "apart" } else { "tenant_0" };
        conn.batch_execute(&format!("TRUNCATE {schema}.outbox")).unwrap();
        if backlog != Backlog::None {
            conn.batch_execute(&format!(
                "INSERT INTO {schema}.outbox (id, aggregatetype, aggregateid, type, payload, shard) \
                 SELECT gen_random_uuid(), 'busy', (n % 1000)::text, 'Busy', decode(repeat('78', 200), 'hex'), n % 16 \
                 FROM generate_series(1, {}) AS n; ANALYZE {schema}.outbox; CHECKPOINT",
                self.rows
            ))
            .unwrap();
        }
        let topics = format!("{topic}.{{aggregatetype}}");
        let start = |schema| relay_process(database.url(), kafka, &topics, &["--schema", schema]);
        let relay = start("tenant_*");
        let other = (backlog == Backlog::Apart).then(|| start("apart"));
        let latency = Latency {
            seconds: self.paced_seconds,
            bytes: 200,
            database: DatabaseKind::Postgres,
            postgres: self.postgres,
        };
        let [p50, p99, cpu] =
            latency.measure(kafka, &quiet, SPREAD, Some((relay.id(), "outbox")), &|| self.emitter(database));
        if backlog != Backlog::None {
            let left: i64 = diesel::dsl::sql::<BigInt>(&format!(
                "SELECT count(*) FROM {schema}.outbox WHERE sent_at IS NULL"
            ))
            .get_result(conn)
            .unwrap();
            assert!(left > 0, "the backlog was sent before the end: choose more --rows");
        }
        stop(&relay);
        other.iter().for_each(stop);
        [p50, p99, cpu, f64::NAN]
    }

    /// Emits each event into the next schema.
    fn emitter<'a>(&self, database: &Database<'_>) -> Emitter<'a> {
        let mut conn = database.connect();
        let outboxes: Vec<Outbox> =
            (1..self.schemas).map(|number| Outbox::new().schema(format!("tenant_{number}"))).collect();
        let mut count = 0;
        Box::new(move |events| {
            let outbox = &outboxes[count % outboxes.len()];
            count += 1;
            let mut committing = None;
            let emitted: QueryResult<()> = conn.transaction(|c| {
                outbox.emit_all(c, events)?;
                committing = Some(Instant::now());
                Ok(())
            });
            emitted.unwrap();
            committing.unwrap()
        })
    }
}

/// One that watches, and one for each of two workers.
const CONNECTIONS: usize = 3;
