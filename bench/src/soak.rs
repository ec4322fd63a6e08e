//! Whether writers and workers on MariaDB get into each other's way: a deadlock rolls the transaction of one of them back.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use clap::Args;
use diesel::dsl::sql;
use diesel::prelude::*;
use diesel::sql_types::BigInt;
use diesel_outbox::{Emit, Migrations};
use outbox_tests::{Kafka, MariadbDatabase, eventually};

use crate::mariadb::{relay, start_mariadb, status};
use crate::report::{Figure, Report};
use crate::rows::{record, records};
use crate::servers::PATIENCE;
use crate::topics::new_topic;

#[derive(Args)]
pub(crate) struct Soak {
    /// How long the writers write.
    #[arg(long, default_value_t = 10.0)]
    minutes: f64,
    /// How many writers there are, each with a connection.
    #[arg(long, default_value_t = 16)]
    writers: usize,
    /// How many workers the relay has.
    #[arg(long, default_value_t = 4)]
    workers: usize,
    /// Bytes of payload in each event.
    #[arg(long, default_value_t = 200)]
    bytes: usize,
}

/// How long the relay keeps sent rows, so that it prunes while the writers write.
const KEPT: Duration = Duration::from_secs(30);
/// Every tenth transaction emits this many events, and every seventh rolls back.
const MANY: usize = 50;

impl Soak {
    pub(crate) fn run(&self) -> Report {
        let (mariadb, kafka) = (start_mariadb(), Kafka::start_for_benchmark(&[]));
        let database = mariadb.database();
        Migrations::new().run(&mut database.connect()).unwrap();
        let topic = new_topic(&kafka);
        let counter = kafka.counter(&topic);
        let conn = &mut mariadb.connect();
        let mut counted = || ["Innodb_deadlocks", "Innodb_row_lock_waits"].map(|name| status(conn, name));
        let before = counted();
        let relay = relay(&database, &kafka, &topic).workers(self.workers).keep_sent(KEPT).spawn().unwrap();
        let (failed, done) = (AtomicUsize::new(0), AtomicBool::new(false));
        let began = Instant::now();
        let emitted: usize = thread::scope(|scope| {
            let writer = |number| self.write(&database, number, &failed, &done);
            let writers: Vec<_> = (0..self.writers).map(|n| scope.spawn(move || writer(n))).collect();
            thread::sleep(Duration::from_secs_f64(self.minutes * 60.0));
            done.store(true, Ordering::Relaxed);
            writers.into_iter().map(|writer| writer.join().unwrap()).sum()
        });
        let speed = emitted as f64 / began.elapsed().as_secs_f64();
        eventually("the relay to send the rest", PATIENCE, || (counter.count() >= emitted).then_some(()));
        relay.stop_blocking().unwrap();
        let [deadlocks, waits] = counted();
        let unsent = sql::<BigInt>("SELECT count(*) FROM outbox WHERE sent_at IS NULL");
        let unsent: i64 = unsent.get_result(&mut database.connect()).unwrap();
        let count = |name, value: f64| Figure::new(name, "", vec![value]);
        Report {
            benchmark: "soak on MariaDB".into(),
            conditions: format!(
                "{} minutes, {} writers, {} workers, {} bytes of payload; sent rows are pruned after {KEPT:?}",
                self.minutes, self.writers, self.workers, self.bytes
            ),
            figures: vec![
                count("deadlocks (error 1213)", (deadlocks - before[0]) as f64).at_most(0.0),
                count("transactions of writers that failed", failed.into_inner() as f64).at_most(0.0),
                count("unsent at the end", unsent as f64).at_most(0.0),
                count("sent twice", (counter.count() - emitted) as f64).at_most(0.0),
                count("waits for a row's lock", (waits - before[1]) as f64),
                Figure::new("emitted", "events/s", vec![speed]),
            ],
        }
    }

    /// Returns how many events the writer has committed.
    fn write(
        &self,
        database: &MariadbDatabase<'_>,
        number: usize,
        failed: &AtomicUsize,
        done: &AtomicBool,
    ) -> usize {
        let mut conn = database.connect();
        let many = records(MANY, self.bytes);
        let mut emitted = 0;
        for n in (number..).step_by(self.writers) {
            if done.load(Ordering::Relaxed) {
                break;
            }
            let (count, is_rolled_back) = (if n % 10 == 0 { MANY } else { 1 }, n % 7 == 0);
            let written = conn.transaction(|c| {
                match count {
                    1 => c.emit(&record(n, self.bytes)).map(drop)?,
                    _ => c.emit_all(&many).map(drop)?,
                }
                if is_rolled_back { Err(diesel::result::Error::RollbackTransaction) } else { Ok(()) }
            });
            match written {
                Ok(()) => emitted += count,
                Err(diesel::result::Error::RollbackTransaction) => {}
                Err(error) => {
                    failed.fetch_add(1, Ordering::Relaxed);
                    eprintln!("a writer's transaction failed: {error}");
                }
            }
        }
        emitted
    }
}
