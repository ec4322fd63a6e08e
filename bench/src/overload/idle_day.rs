//! A day without events, in a minute: a relay looks every millisecond instead of every 15 s, until it has made a day's queries. Its
//! memory, its connections and its slot must be as they were.

use std::thread;
use std::time::Duration;

use diesel::connection::SimpleConnection;
use diesel::dsl::sql;
use diesel::prelude::*;
use diesel::sql_types::BigInt;
use diesel_outbox::Migrations;
use outbox_tests::{Kafka, Postgres, eventually};

use super::{Overload, count, megabytes, once};
use crate::idle::queries;
use crate::latency::wal_options;
use crate::relays::{outbox, relay_process, stop};
use crate::report::Figure;
use crate::servers::{PATIENCE, start_counting_postgres};

/// The part of the day after which memory is looked at for the first time: what is made once has been made then.
const MORNING: i64 = 10;

impl Overload {
    pub(super) fn idle_day(&self) -> Vec<Figure> {
        let postgres = start_counting_postgres(self.postgres, &[("wal_level", "logical")]);
        let kafka = Kafka::start();
        [false, true].into_iter().flat_map(|reads_wal| self.day(&postgres, &kafka, reads_wal)).collect()
    }

    fn day(&self, postgres: &Postgres, kafka: &Kafka, reads_wal: bool) -> Vec<Figure> {
        let database = postgres.database();
        let conn = &mut database.connect();
        Migrations::new().run(conn).unwrap();
        let mut options = vec!["--poll-interval", "1ms", "--lag-interval", "1ms"];
        let wal = wal_options(&database);
        if reads_wal {
            outbox(database.url(), &["wal", "setup", "--slot", database.name()]);
            options.extend(wal);
            options.extend(["--confirm-interval", "1ms"]);
        }
        let relay = relay_process(database.url(), kafka, &kafka.unique("idle"), &options);
        // What is written to another database of the server moves the WAL on, and does not count as the relay's.
        let elsewhere = &mut postgres.connect();
        elsewhere.batch_execute("CREATE TABLE IF NOT EXISTS other (n int)").unwrap();
        let mut lives_until = |queries_made: i64| {
            eventually("the day to pass", PATIENCE, || {
                assert!(relay.exited().is_none(), "the relay has ended:\n{}", relay.output());
                elsewhere.batch_execute("INSERT INTO other VALUES (1)").unwrap();
                (queries(elsewhere, &database) >= queries_made).then_some(())
            });
            // Connections that were only for a moment are gone.
            thread::sleep(Duration::from_secs(1));
            let sessions =
                "pg_stat_activity WHERE application_name = 'outbox relay' AND datname = current_database()";
            [megabytes(relay.resident_kb()), count(conn, sessions) as f64]
        };
        let [memory_before, sessions_before] = lives_until(self.queries / MORNING);
        let [memory, sessions] = lives_until(self.queries);
        let slots = count(conn, "pg_replication_slots WHERE database = current_database()") as f64;
        let retained = reads_wal.then(|| {
            let kept = "(SELECT pg_wal_lsn_diff(pg_current_wal_lsn(), confirmed_flush_lsn)::bigint FROM pg_replication_slots \
                        WHERE slot_name = current_database())";
            diesel::select(sql::<BigInt>(kept)).get_result::<i64>(conn).unwrap() as f64
        });
        stop(&relay);
        let source = if reads_wal { "WAL" } else { "polling" };
        let named = |name: &str| format!("idle day, {source}: {name}");
        let mut figures = vec![
            once(&named("memory in the evening"), "MB", memory),
            once(&named("memory, evening / morning"), "ratio", memory / memory_before).at_most(1.05),
            once(&named("connections more than in the morning"), "", sessions - sessions_before).at_most(0.0),
            once(&named("slots"), "", slots).at_most(f64::from(u8::from(reads_wal))),
        ];
        figures
            .extend(retained.map(|bytes| once(&named("WAL not confirmed"), "MB", bytes / 1e6).at_most(1.0)));
        figures
    }
}
