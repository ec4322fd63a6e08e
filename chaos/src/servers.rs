//! The database servers of a lane, or those that one fault needs for itself.

use std::sync::OnceLock;

use diesel::connection::SimpleConnection;
use outbox_tests::{Disk, Folder, Mariadb, Postgres, Proxy, Server, Tables, eventually};

use crate::lanes::Source;
use crate::scene::PATIENCE;

/// What a fault needs that a lane's server is not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Own {
    /// A disk that can be filled.
    SmallDisk,
    /// A standby of this version, which has every commit before anybody hears of it, or has it some time later.
    Standby {
        /// The version.
        major: u32,
        /// Whether commits wait for the standby.
        is_synchronous: bool,
    },
    /// A replica of MariaDB, likewise.
    Replica {
        /// Whether commits wait for the replica.
        is_semi_synchronous: bool,
    },
    /// Another server, which takes over.
    Another,
    /// An archive of the WAL.
    Archive,
}

/// The version of a lane's PostgreSQL.
pub const MAJOR: u32 = 15;
/// The settings of each PostgreSQL.
pub const SETTINGS: [(&str, &str); 1] = [("max_prepared_transactions", "50")];

/// A server, and what a fault needs besides it.
pub struct Servers<S> {
    /// The server on which everything begins.
    pub first: S,
    /// The one that takes over, if it is there yet.
    pub second: OnceLock<S>,
    /// The disk of the first one, if it can be filled.
    pub disk: Option<Disk>,
    /// The way from a standby or replica to the first one.
    pub replication: Option<Proxy>,
}

impl<S> Servers<S> {
    fn one(first: S) -> Self {
        Self { first, second: OnceLock::new(), disk: None, replication: None }
    }

    fn with_disk((first, disk): (S, Disk)) -> Self {
        Self { disk: Some(disk), ..Self::one(first) }
    }

    fn with_second(first: S, second: S) -> Self {
        Self { second: OnceLock::from(second), ..Self::one(first) }
    }
}

/// The servers of either kind.
pub enum DatabaseServers {
    /// Of PostgreSQL.
    Postgres(Servers<Postgres>),
    /// Of MariaDB.
    Mariadb(Servers<Mariadb>),
    /// No server, but a folder for files of SQLite.
    Sqlite(Place),
}

/// The server on which everything begins, of whatever kind.
pub trait First {
    /// Kills it.
    fn crash(&self);
    /// Shuts it down.
    fn stop(&self);
    /// Starts it again, and returns what a query selects in one of its databases.
    fn restart_and_ask(&self, database: &str, query: &str) -> Vec<String>;
}

impl<S: Server> First for S {
    fn crash(&self) {
        Server::crash(self);
    }

    fn stop(&self) {
        Server::stop(self);
    }

    fn restart_and_ask(&self, database: &str, query: &str) -> Vec<String> {
        self.restart();
        self.existing(database).texts(query)
    }
}

/// A folder for files of SQLite.
pub struct Place {
    /// The folder.
    pub folder: Folder,
    /// The disk of its own, if it has one.
    pub disk: Option<Disk>,
}

/// How many megabytes a small disk has.
const SMALL: usize = 256;
const SMALL_FILE: usize = 16;
/// What a standby of PostgreSQL 17 and later needs, so that a slot goes on there.
const KEEPS_SLOTS: [(&str, &str); 3] =
    [("sync_replication_slots", "on"), ("hot_standby_feedback", "on"), ("primary_slot_name", "standby")];

impl DatabaseServers {
    /// Starts the server of a lane.
    pub fn start(source: Source) -> Self {
        match source {
            Source::Mariadb => Self::Mariadb(Servers::one(Mariadb::start())),
            Source::Sqlite => Self::Sqlite(Place { folder: Folder::new("sqlite"), disk: None }),
            Source::Postgres | Source::Wal => {
                Self::Postgres(Servers::one(Postgres::start_with(MAJOR, &SETTINGS)))
            }
        }
    }

    /// Starts what a fault needs.
    pub fn start_own(source: Source, own: Own) -> Self {
        match (source, own) {
            (Source::Mariadb, Own::SmallDisk) => {
                Self::Mariadb(Servers::with_disk(Mariadb::start_on_small_disk(SMALL)))
            }
            (Source::Mariadb, Own::Replica { is_semi_synchronous }) => {
                let replication = Proxy::open();
                let (first, second) = Mariadb::start_pair(is_semi_synchronous, |port| {
                    replication.lead_to(&format!("127.0.0.1:{port}"));
                    replication.port()
                });
                let servers = Servers::with_second(first, second);
                Self::Mariadb(Servers { replication: Some(replication), ..servers })
            }
            (Source::Mariadb, _) => Self::Mariadb(Servers::with_second(Mariadb::start(), Mariadb::start())),
            (Source::Sqlite, _) => {
                let (folder, disk) = Disk::mounted(SMALL_FILE);
                Self::Sqlite(Place { folder, disk: Some(disk) })
            }
            (_, Own::SmallDisk) => {
                let settings = [&SETTINGS[..], &[("max_wal_size", "64MB")]].concat();
                Self::Postgres(Servers::with_disk(Postgres::start_on_small_disk(MAJOR, SMALL, &settings)))
            }
            (_, Own::Standby { major, is_synchronous }) => Self::Postgres(pair(major, is_synchronous)),
            (_, Own::Another | Own::Replica { .. }) => {
                let start = || Postgres::start_with(MAJOR, &SETTINGS);
                Self::Postgres(Servers::with_second(start(), start()))
            }
            (_, Own::Archive) => Self::Postgres(Servers::one(Postgres::start_archiving(MAJOR, &SETTINGS))),
        }
    }

    /// Returns them, if they are of PostgreSQL.
    ///
    /// # Panics
    /// If they are not.
    pub fn postgres(&self) -> &Servers<Postgres> {
        match self {
            Self::Postgres(servers) => servers,
            _ => panic!("this fault is one of PostgreSQL"),
        }
    }

    /// Returns the way from a standby or replica to the first server.
    ///
    /// # Panics
    /// If there is neither.
    pub fn replication(&self) -> &Proxy {
        let replication = match self {
            Self::Postgres(servers) => &servers.replication,
            Self::Mariadb(servers) => &servers.replication,
            Self::Sqlite(_) => &None,
        };
        replication.as_ref().expect("a way to the copy")
    }

    /// Makes the second server, which has copied the first one so far, a server of its own.
    ///
    /// # Panics
    /// If there is none.
    pub fn promote(&self) {
        match self {
            Self::Postgres(servers) => servers.second.get().expect("a standby").promote(),
            Self::Mariadb(servers) => servers.second.get().expect("a replica").promote(),
            Self::Sqlite(_) => panic!("a file has no copy"),
        }
    }

    /// Copies a database of the first server to the second one.
    ///
    /// # Panics
    /// If there is none.
    pub fn dump(&self, name: &str) {
        match self {
            Self::Postgres(Servers { first, second, .. }) => {
                first.dump_into(name, second.get().expect("another server"))
            }
            Self::Mariadb(Servers { first, second, .. }) => {
                first.dump_into(name, second.get().expect("another server"))
            }
            Self::Sqlite(_) => panic!("a file is not dumped"),
        }
    }

    /// Returns the first server.
    ///
    /// # Panics
    /// If there is none.
    pub fn first(&self) -> &dyn First {
        match self {
            Self::Postgres(servers) => &servers.first,
            Self::Mariadb(servers) => &servers.first,
            Self::Sqlite(_) => panic!("a file has no server"),
        }
    }

    /// Returns the disk that can be filled.
    ///
    /// # Panics
    /// If there is none.
    pub fn disk(&self) -> &Disk {
        let disk = match self {
            Self::Postgres(servers) => &servers.disk,
            Self::Mariadb(servers) => &servers.disk,
            Self::Sqlite(place) => &place.disk,
        };
        disk.as_ref().expect("a small disk")
    }
}

/// A primary with a standby, whose connection can be held. The standby keeps a copy of each slot, as docs/wal.md advises.
fn pair(major: u32, is_synchronous: bool) -> Servers<Postgres> {
    let replication = Proxy::open();
    let (first, second) = Postgres::start_pair_with(major, &SETTINGS, |port| {
        replication.lead_to(&format!("127.0.0.1:{port}"));
        (replication.port(), &KEEPS_SLOTS[..])
    });
    let database = first.existing("postgres");
    let mut conn = database.connect();
    let mut run = |sql: &str| conn.batch_execute(sql).unwrap_or_else(|error| panic!("{error}: {sql}"));
    run("SELECT pg_create_physical_replication_slot('standby')");
    let until = |what: &str, number: i64, from: &str| {
        let query = format!("SELECT count(*) FROM {from}");
        eventually(what, PATIENCE, || (database.number(&query) == number).then_some(()));
    };
    until("the standby", 1, "pg_replication_slots WHERE slot_name = 'standby' AND active");
    run("ALTER SYSTEM SET synchronized_standby_slots = 'standby'");
    if is_synchronous {
        run("ALTER SYSTEM SET synchronous_standby_names = 'standby'");
    }
    run("SELECT pg_reload_conf()");
    let names = "('synchronized_standby_slots', 'synchronous_standby_names')";
    let set = format!("pg_settings WHERE setting = 'standby' AND name IN {names}");
    until("the settings", 1 + i64::from(is_synchronous), &set);
    drop(database);
    Servers { replication: Some(replication), ..Servers::with_second(first, second) }
}
