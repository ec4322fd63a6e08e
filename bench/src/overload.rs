//! What becomes of a relay that gets more, larger or stranger work than it is used to: it must stay as small and as fast as it was,
//! and bring everything to its end.

mod dead_letters;
mod idle_day;
mod payloads;
mod shapes;
mod slow_broker;

use clap::{Args, ValueEnum};
use diesel::dsl::sql;
use diesel::prelude::*;
use diesel::sql_types::BigInt;
use outbox_tests::{Database, Process, eventually};

use crate::report::{Figure, Report};
use crate::rows::the_last_are_unsent;
use crate::servers::{PATIENCE, SETTINGS, servers, start_postgres};

#[derive(Args)]
pub(crate) struct Overload {
    /// Run this part alone.
    #[arg(long, value_enum)]
    only: Option<Part>,
    /// How long the emitters emit while the broker is slow, in minutes.
    #[arg(long, default_value_t = 10.0)]
    minutes: f64,
    /// How many rows wait, and how many aggregates there are if there are many.
    #[arg(long, default_value_t = 1_000_000)]
    rows: usize,
    /// How many topics there are if there are many.
    #[arg(long, default_value_t = 1_000)]
    topics: usize,
    /// How many dead letters there are.
    #[arg(long, default_value_t = 100_000)]
    dead_letters: usize,
    /// How many queries an idle relay makes. A day has 43,200 if there is one every two seconds.
    #[arg(long, default_value_t = 43_200)]
    queries: i64,
    /// Bytes of payload in each event.
    #[arg(long, default_value_t = 200)]
    bytes: usize,
    /// PostgreSQL's major version.
    #[arg(long, default_value_t = 15)]
    postgres: u32,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    /// Emitters at full speed while the way to the broker is narrow.
    SlowBroker,
    /// Half of all events are of one aggregate; each event is of another aggregate; there are many topics.
    Shapes,
    /// Payloads of 0 bytes, and of as many as the broker takes.
    Payloads,
    /// Many dead letters.
    DeadLetters,
    /// What a relay does in a day without events, in a minute.
    IdleDay,
}

/// The most memory that a relay may take, in MB: what the benchmark `memory` asks for.
const PEAK: f64 = 60.0;

impl Overload {
    /// The parts run once, but for the shapes, which are compared in rounds.
    pub(crate) fn run(&self, rounds: usize) -> Report {
        let mut figures = Vec::new();
        let is_chosen = |part| self.only.is_none_or(|only| only == part);
        if is_chosen(Part::SlowBroker) {
            figures.extend(self.slow_broker(&start_postgres(self.postgres, SETTINGS)));
        }
        let has_own_servers = |part| matches!(part, Part::SlowBroker | Part::IdleDay);
        if Part::value_variants().iter().any(|&part| !has_own_servers(part) && is_chosen(part)) {
            let (postgres, kafka) = servers(self.postgres);
            if is_chosen(Part::Shapes) {
                figures.extend(self.shapes(&postgres, &kafka, rounds));
            }
            if is_chosen(Part::Payloads) {
                figures.extend(self.payloads(&postgres, &kafka));
            }
            if is_chosen(Part::DeadLetters) {
                figures.extend(self.dead_letters(&postgres, &kafka, rounds));
            }
        }
        if is_chosen(Part::IdleDay) {
            figures.extend(self.idle_day());
        }
        Report {
            benchmark: "overload".into(),
            conditions: format!(
                "{} minutes of a slow broker, {} rows, {} topics, {} dead letters, {} queries of an idle relay, {} bytes of payload, \
                 PostgreSQL {}",
                self.minutes,
                self.rows,
                self.topics,
                self.dead_letters,
                self.queries,
                self.bytes,
                self.postgres
            ),
            figures,
        }
    }
}

/// Waits until nothing is unsent.
fn wait_until_all_is_sent(database: &Database<'_>, relay: &Process) {
    let conn = &mut database.connect();
    eventually("all to be sent", PATIENCE, || {
        assert!(relay.exited().is_none(), "the relay has ended:\n{}", relay.output());
        // Only if the last rows are sent are all counted, because that takes long.
        (!the_last_are_unsent(conn) && count(conn, "outbox WHERE sent_at IS NULL") == 0).then_some(())
    });
}

fn count(conn: &mut PgConnection, from: &str) -> i64 {
    sql::<BigInt>(&format!("SELECT count(*) FROM {from}")).get_result(conn).unwrap()
}

fn megabytes(kib: Option<u64>) -> f64 {
    kib.expect("a system that reports a process's memory, such as Linux") as f64 * 1_024.0 / 1e6
}

/// A figure that is one value.
fn once(name: &str, unit: &'static str, value: f64) -> Figure {
    Figure::new(name, unit, vec![value])
}
