//! A lane: one kind of source, with a database server and a broker of its own, which its faults may stop.

use outbox_tests::load::wal;
use outbox_tests::{Kafka, Server};

use crate::proxy::Proxy;
use crate::servers::DatabaseServers;
use crate::site::{On, Site};
use crate::sqlite::InFile;
use crate::writers::{Dialect, TwoPhases};

/// Where the relay reads from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Source {
    /// PostgreSQL, polled.
    Postgres,
    /// MariaDB, polled.
    Mariadb,
    /// PostgreSQL's write-ahead log.
    Wal,
    /// SQLite, polled.
    Sqlite,
}

impl Source {
    /// Those with a server.
    pub const ALL: [Self; 3] = [Self::Postgres, Self::Mariadb, Self::Wal];
    /// All of them.
    pub const EVERY: [Self; 4] = [Self::Postgres, Self::Mariadb, Self::Wal, Self::Sqlite];

    /// Returns its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Postgres => "PostgreSQL",
            Self::Mariadb => "MariaDB",
            Self::Wal => "WAL",
            Self::Sqlite => "SQLite",
        }
    }
}

const POSTGRES: Dialect = Dialect { session: "SET lock_timeout = '3s'", two_phases: TwoPhases::Prepared };
const MARIADB: Dialect = Dialect { session: "SET innodb_lock_wait_timeout = 3", two_phases: TwoPhases::Xa };

/// The servers of a source.
pub struct Lane {
    /// The source.
    pub source: Source,
    /// The broker. Clients reach it through [`kafka_proxy`](Self::kafka_proxy), except for their first request.
    pub kafka: Kafka,
    /// The way to the broker.
    pub kafka_proxy: Proxy,
    /// The servers of the database.
    pub servers: DatabaseServers,
}

impl Lane {
    /// Starts the servers.
    pub fn start(source: Source) -> Self {
        let kafka_proxy = Proxy::open();
        let address = format!("PLAINTEXT://127.0.0.1:{}", kafka_proxy.port());
        let kafka = Kafka::start_with(&[
            ("advertised.listeners", &address),
            // A topic that was deleted must not come back by itself.
            ("auto.create.topics.enable", "false"),
        ]);
        kafka_proxy.lead_to(kafka.brokers());
        Self { source, kafka, kafka_proxy, servers: DatabaseServers::start(source) }
    }

    /// Makes a new database with the outbox and the ledger on these servers.
    pub fn site<'a>(&self, servers: &'a DatabaseServers) -> Box<dyn Site + 'a> {
        let site: Box<dyn Site> = match servers {
            DatabaseServers::Postgres(servers) => {
                let tables = servers.first.migrated();
                if self.source == Source::Wal {
                    wal(&tables, "setup");
                }
                Box::new(On::new(servers, tables, POSTGRES, self.source != Source::Wal))
            }
            DatabaseServers::Sqlite(place) => Box::new(InFile::new(place)),
            DatabaseServers::Mariadb(servers) => {
                Box::new(On::new(servers, Server::migrated(&servers.first), MARIADB, true))
            }
        };
        site.execute(&crate::ledger::tables()).expect("make the ledger");
        site
    }
}
