//! A lane: one kind of source, with a database server and a broker of its own, which its faults may stop.

use std::sync::OnceLock;

use outbox_tests::load::wal;
use outbox_tests::{Cluster, Folder, Kafka, Mariadb, Postgres, Server};

use crate::proxy::Proxy;
use crate::site::{On, Site};
use crate::writers::Dialect;

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
}

impl Source {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Postgres, Self::Mariadb, Self::Wal];

    /// Returns its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Postgres => "PostgreSQL",
            Self::Mariadb => "MariaDB",
            Self::Wal => "WAL",
        }
    }
}

const POSTGRES: Dialect = Dialect { session: "SET lock_timeout = '3s'", prepares: true };
const MARIADB: Dialect = Dialect { session: "SET innodb_lock_wait_timeout = 3", prepares: false };

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
    server: DatabaseServer,
}

enum DatabaseServer {
    Postgres(Postgres),
    Mariadb(Mariadb),
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
        let server = match source {
            Source::Mariadb => DatabaseServer::Mariadb(Mariadb::start()),
            Source::Postgres | Source::Wal => {
                let settings = [("max_prepared_transactions", "50")];
                DatabaseServer::Postgres(Postgres::start_with(15, &settings))
            }
        };
        Self { source, kafka, kafka_proxy, kafka_data, cluster: OnceLock::new(), server }
    }

    /// Returns three brokers, which start on first use.
    pub fn cluster(&self) -> &Cluster {
        self.cluster.get_or_init(Cluster::start_with_quorum)
    }

    /// Makes a new database with the outbox and the ledger.
    pub fn site(&self) -> Box<dyn Site + '_> {
        let site: Box<dyn Site> = match &self.server {
            DatabaseServer::Postgres(server) => {
                let tables = server.migrated();
                if self.source == Source::Wal {
                    wal(&tables, "setup");
                }
                Box::new(On { server, tables, dialect: POSTGRES, marks_sent: self.source != Source::Wal })
            }
            DatabaseServer::Mariadb(server) => {
                Box::new(On { server, tables: Server::migrated(server), dialect: MARIADB, marks_sent: true })
            }
        };
        site.execute(&crate::ledger::tables()).expect("make the ledger");
        site
    }
}
