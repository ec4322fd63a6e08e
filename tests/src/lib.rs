//! Real servers for the tests: PostgreSQL, MariaDB and Apache Kafka, each found in this order:
//!
//! 1. at the address in `OUTBOX_TEST_POSTGRES_URL`, `OUTBOX_TEST_KAFKA_BROKERS`, `OUTBOX_TEST_MYSQL_URL`,
//!    `OUTBOX_TEST_NEWEST_MARIADB_URL` or `OUTBOX_TEST_NEWEST_MYSQL_URL`,
//! 2. in a Docker engine that answers,
//! 3. started from local programs on free ports in a temporary folder.
//!
//! [`Debezium`], which reads the one and writes to the other, [`PgBouncer`], which stands before PostgreSQL, and the [`Collector`] of
//! OpenTelemetry are always started from local programs.
//!
//! If a server is missing, the test panics and says how to get it. No test is skipped. Whatever was started here ends with the
//! test process, however that process ends.
//!
//! ```no_run
//! use diesel::prelude::*;
//! use outbox_tests::{Kafka, Postgres};
//!
//! let database = Postgres::shared().database();
//! let mut conn = database.connect();
//! diesel::sql_query("create table note (body text)").execute(&mut conn).unwrap();
//!
//! let kafka = Kafka::shared();
//! let topic = kafka.unique("note");
//! kafka.create_topic(&topic, 3);
//! assert!(kafka.read_all(&topic).is_empty());
//! ```

#![expect(missing_debug_implementations, reason = "a test prints what a server says, not the server")]

pub mod artifacts;
mod authority;
pub mod browser;
mod collector;
mod connect;
mod debezium;
mod disk;
mod docker;
mod host;
mod java;
mod kafka;
pub mod load;
mod log;
mod mariadb;
mod pgbouncer;
mod pools;
mod postgres;
mod process;
mod proxy;
mod roles;
mod scratch;
mod tables;
mod wait;

pub use authority::Authority;
pub use browser::Browser;
pub use collector::{Collector, ReceivedSpan};
pub use connect::Connect;
pub use debezium::{BinlogDebezium, Debezium};
pub use disk::Disk;
pub use kafka::{Cluster, Counter, Kafka, Packing, RawRecord, ReadRecord, TlsKafka};
pub use log::{all_logged, logged, start_logging, start_logging_everything, whole_log};
pub use mariadb::{Mariadb, MariadbDatabase};
pub use pgbouncer::PgBouncer;
pub use pools::{on_an_async_bb8_diesel_pool, r2d2_pool};
pub use postgres::{Database, Postgres};
pub use process::{Process, Signal, workspace_binary};
pub use proxy::Proxy;
pub use scratch::Folder;
pub use tables::{INNODB_TRX_KEPT, Server, Tables, migrated_mariadb};
pub use wait::{eventually, eventually_async, eventually_ok};

/// The code in the README and in the guide must compile: `build.rs` adds what its snippets do not show.
#[cfg(doctest)]
mod pages {
    include!(concat!(env!("OUT_DIR"), "/pages.rs"));
}
