//! A lane: one kind of source, with a database server and a broker of its own, which its faults may stop.

use std::sync::OnceLock;

use outbox_tests::load::wal;
use outbox_tests::{Cluster, Folder, Kafka, Proxy, Server};

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
    /// Those whose database is on a server.
    pub const SERVED: [Self; 3] = [Self::Postgres, Self::Mariadb, Self::Wal];
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Postgres, Self::Mariadb, Self::Wal, Self::Sqlite];

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
    /// The folder of the broker's data, with the records in `records`.
    pub kafka_data: Folder,
    cluster: OnceLock<Cluster>,
    /// The servers of the database.
    pub servers: DatabaseServers,
}

impl Lane {
    /// Starts the servers.
    pub fn start(source: Source) -> Self {
        let kafka_proxy = Proxy::open();
        let address = format!("PLAINTEXT://127.0.0.1:{}", kafka_proxy.port());
        let kafka_data = Folder::new("kafka-data");
        let kafka = Kafka::start_with(&[
            ("advertised.listeners", &address),
            ("log.dirs", &kafka_data.path().join("records").display().to_string()),
            // A disk that is full of records leaves its own log alone.
            ("metadata.log.dir", &kafka_data.path().join("metadata").display().to_string()),
            // Everybody may do what a fault has not forbidden.
            ("authorizer.class.name", "org.apache.kafka.metadata.authorizer.StandardAuthorizer"),
            ("allow.everyone.if.no.acl.found", "true"),
            // A topic that was deleted must not come back by itself.
            ("auto.create.topics.enable", "false"),
        ]);
        kafka_proxy.lead_to(kafka.brokers());
        let servers = DatabaseServers::start(source);
        Self { source, kafka, kafka_proxy, kafka_data, cluster: OnceLock::new(), servers }
    }

    /// Returns three brokers, which start on first use.
    pub fn cluster(&self) -> &Cluster {
        self.cluster.get_or_init(Cluster::start_with_quorum)
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
