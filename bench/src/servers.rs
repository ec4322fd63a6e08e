//! The servers of a benchmark.

use std::collections::BTreeSet;
use std::sync::Mutex;
use std::time::Duration;

use clap::ValueEnum;
use diesel::connection::SimpleConnection;
use diesel::dsl::sql;
use diesel::prelude::*;
use diesel::sql_types::Text;
use outbox_tests::{Kafka, Postgres};

use crate::producer::produce;
use crate::rows::records;

/// A database that a benchmark can run on.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum DatabaseKind {
    Postgres,
    Mariadb,
}

/// Longer than anything that a benchmark waits for.
pub(crate) const PATIENCE: Duration = Duration::from_secs(3_600);

/// Room for large tables, and no timeout for connections that are frozen while others are measured.
pub(crate) const SETTINGS: &[(&str, &str)] =
    &[("shared_buffers", "1GB"), ("max_wal_size", "8GB"), ("wal_sender_timeout", "0")];

/// Starts PostgreSQL and a broker, and sends two million records to the broker: its virtual machine has then compiled some of what
/// it runs, and goes on compiling for some twenty million more.
pub(crate) fn servers(postgres: u32) -> (Postgres, Kafka) {
    (start_postgres(postgres, SETTINGS), warm_kafka())
}

/// Starts a broker and sends it those records.
pub(crate) fn warm_kafka() -> Kafka {
    warm_kafka_with(&[], |_| {})
}

/// Starts a broker with server properties of its own, opens the way to it, and sends it those records.
pub(crate) fn warm_kafka_with(properties: &[(&str, &str)], open: impl FnOnce(&Kafka)) -> Kafka {
    let kafka = Kafka::start_for_benchmark(properties);
    open(&kafka);
    let records = records(250_000, 200);
    for _ in 0..8 {
        produce(&kafka, &records);
    }
    kafka
}

/// Starts PostgreSQL, and notes the version that it reports.
pub(crate) fn start_postgres(major: u32, settings: &[(&str, &str)]) -> Postgres {
    let postgres = Postgres::start_with(major, settings);
    let version = sql::<Text>("SELECT current_setting('server_version')").get_result(&mut postgres.connect());
    VERSIONS.lock().unwrap().insert(version.unwrap());
    postgres
}

/// Does the same, and lets the server count the queries in each database.
pub(crate) fn start_counting_postgres(major: u32, settings: &[(&str, &str)]) -> Postgres {
    let counting = [("shared_preload_libraries", "pg_stat_statements"), ("pg_stat_statements.track", "all")];
    let postgres = start_postgres(major, &[settings, &counting].concat());
    let create = "CREATE EXTENSION pg_stat_statements";
    postgres.connect().batch_execute(create).expect("the extensions that come with PostgreSQL (contrib)");
    postgres
}

static VERSIONS: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());

/// Returns the versions of PostgreSQL that were started until now.
pub(crate) fn postgres_versions() -> Vec<String> {
    VERSIONS.lock().unwrap().iter().cloned().collect()
}
