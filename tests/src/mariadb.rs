//! MariaDB and MySQL servers, and databases on them, for tests.

mod copies;
mod local;

use std::env;
use std::path::PathBuf;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

use diesel::connection::SimpleConnection;
use diesel::prelude::*;
use diesel_outbox::Migrations;

use crate::authority::Authority;
use crate::disk::Disk;
use crate::docker;
use crate::host::{Elsewhere, Host, free_port, wait_until_ready};
use crate::roles;
use crate::scratch::Folder;

/// The settings with which every server is started.
const SETTINGS: [&str; 7] = [
    "max_connections=500",
    "server_id=1",
    "log_bin=binlog",
    "binlog_format=ROW",
    "innodb_buffer_pool_size=256M",
    // Commits last over a crash of the server, and need not last over one of the machine.
    "innodb_flush_log_at_trx_commit=2",
    "sync_binlog=0",
];

/// Where local servers are.
const LOCALHOST: &str = "127.0.0.1";

/// Which server.
#[derive(Clone, Copy)]
pub(crate) enum Server {
    /// The version that Debian 12 has.
    Mariadb,
    NewerMariadb,
    Mysql,
}

impl Server {
    /// The variable that has the address of such a server, if one runs before the tests.
    fn variable(self) -> &'static str {
        match self {
            Self::Mariadb => "OUTBOX_TEST_MYSQL_URL",
            Self::NewerMariadb => "OUTBOX_TEST_NEWEST_MARIADB_URL",
            Self::Mysql => "OUTBOX_TEST_NEWEST_MYSQL_URL",
        }
    }
}

/// A running server of MariaDB or MySQL. The one at the address in `OUTBOX_TEST_MYSQL_URL` may be of either.
pub struct Mariadb {
    host: Box<dyn Host>,
    url: String,
    /// Whether the server outlives the tests, so that their databases must be dropped.
    lasting: bool,
}

impl Mariadb {
    /// Returns the server that the tests of this process share. It starts on first use.
    pub fn shared() -> &'static Self {
        static SHARED: OnceLock<Mariadb> = OnceLock::new();
        SHARED.get_or_init(|| Self::find_or_start(Server::Mariadb))
    }

    /// Returns a server of the newest MariaDB that the tests of this process share.
    pub fn shared_newer() -> &'static Self {
        static SHARED: OnceLock<Mariadb> = OnceLock::new();
        SHARED.get_or_init(|| Self::find_or_start(Server::NewerMariadb))
    }

    /// Returns a server of MySQL that the tests of this process share.
    pub fn shared_mysql() -> &'static Self {
        static SHARED: OnceLock<Mariadb> = OnceLock::new();
        SHARED.get_or_init(|| Self::find_or_start(Server::Mysql))
    }

    fn find_or_start(server: Server) -> Self {
        let variable = server.variable();
        match env::var(variable) {
            Ok(url) => {
                let url = url.trim_end_matches('/').to_owned();
                let server = Self { host: Box::new(Elsewhere { variable }), url, lasting: true };
                server.wait_until_ready();
                server
            }
            Err(_) => Self::start_server(server, &[], &[]),
        }
    }

    /// Starts a server for one test, which may stop it.
    pub fn start() -> Self {
        Self::start_with(&[])
    }

    /// Starts a server with settings of its own, such as `binlog_format=STATEMENT`.
    pub fn start_with(settings: &[&str]) -> Self {
        Self::start_server(Server::Mariadb, settings, &[])
    }

    /// Starts a server with a certificate of this authority.
    pub fn start_with_tls(authority: &Authority) -> Self {
        Self::start_certified(Server::Mariadb, authority)
    }

    /// Starts a server of MySQL with a certificate of this authority.
    pub fn start_mysql_with_tls(authority: &Authority) -> Self {
        Self::start_certified(Server::Mysql, authority)
    }

    /// Starts a server with a certificate of this authority that has expired.
    pub fn start_with_expired_tls(authority: &Authority) -> Self {
        let files = authority.certify_expired(docker::engine().unwrap_or(LOCALHOST));
        Self::start_with_files(Server::Mariadb, &files)
    }

    fn start_certified(server: Server, authority: &Authority) -> Self {
        Self::start_with_files(server, &authority.certify(docker::engine().unwrap_or(LOCALHOST)))
    }

    fn start_with_files(server: Server, files: &[PathBuf; 2]) -> Self {
        let [certificate, key] = files.each_ref().map(|file| file.display());
        let settings = [format!("ssl-cert={certificate}"), format!("ssl-key={key}")];
        Self::start_server(server, &settings.each_ref().map(String::as_str), files)
    }

    /// Starts a server of MySQL for one test, which may stop it.
    pub fn start_mysql() -> Self {
        Self::start_server(Server::Mysql, &[], &[])
    }

    /// The server must be able to read the files, which its settings name.
    fn start_server(server: Server, settings: &[&str], files: &[PathBuf]) -> Self {
        let settings: Vec<_> =
            SETTINGS.iter().chain(settings).map(|setting| format!("--{setting}")).collect();
        let port = free_port();
        let (host, address): (Box<dyn Host>, _) = match docker::engine() {
            Some(address) => (Box::new(docker::mariadb(server, port, &settings, files)), address),
            None => (Box::new(local::install(Folder::new("mariadb"), server, port, &settings)), LOCALHOST),
        };
        Self::run(host, address, port)
    }

    /// Starts a server from local programs, with a disk of its own that has room for so many megabytes. This takes the right to mount.
    pub fn start_on_small_disk(megabytes: usize) -> (Self, Disk) {
        let settings: Vec<_> = SETTINGS
            .iter()
            .chain(&["innodb_log_file_size=16M"])
            .map(|setting| format!("--{setting}"))
            .collect();
        let (folder, disk) = Disk::mounted(megabytes);
        let port = free_port();
        let host = local::install(folder, Server::Mariadb, port, &settings);
        (Self::run(Box::new(host), LOCALHOST, port), disk)
    }

    fn run(host: Box<dyn Host>, address: &str, port: u16) -> Self {
        let server = Self { host, url: format!("mysql://root@{address}:{port}"), lasting: false };
        server.host.start();
        server.wait_until_ready();
        server
    }

    fn wait_until_ready(&self) {
        wait_until_ready(&*self.host, "MariaDB", || {
            MysqlConnection::establish(&self.url_of("mysql")).map(drop).map_err(|error| error.to_string())
        });
    }

    /// Returns the URL of the server, without a database.
    pub fn url(&self) -> &str {
        &self.url
    }

    fn url_of(&self, database: &str) -> String {
        format!("{}/{database}", self.url)
    }

    /// Makes a new, empty database.
    pub fn database(&self) -> MariadbDatabase<'_> {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let name = format!("outbox_test_{}_{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        self.connect().batch_execute(&format!("CREATE DATABASE {name}")).expect("create a database");
        self.existing(&name)
    }

    /// Returns the database of this name, which the server has already.
    pub fn existing(&self, name: &str) -> MariadbDatabase<'_> {
        MariadbDatabase { server: self, url: self.url_of(name), name: name.to_owned() }
    }

    /// Connects to the server's own database, as its administrator.
    pub fn connect(&self) -> MysqlConnection {
        MysqlConnection::establish(&self.url_of("mysql")).expect("connect to MariaDB")
    }

    /// Shuts the server down. It disconnects clients and keeps what was committed.
    pub fn stop(&self) {
        self.host.stop();
    }

    /// Kills the server, so that its next start recovers.
    pub fn crash(&self) {
        self.host.crash();
    }

    /// Starts the server again on the same port with its data. If it runs, it is stopped first.
    pub fn restart(&self) {
        self.host.stop();
        self.host.start();
        self.wait_until_ready();
    }
}

/// A database for one test. On a server that ran before the tests, it is dropped together with this value.
pub struct MariadbDatabase<'a> {
    server: &'a Mariadb,
    name: String,
    url: String,
}

impl MariadbDatabase<'_> {
    /// Returns its URL.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Returns its URL for another role.
    pub fn url_as(&self, role: &str, password: &str) -> String {
        let (_, server) = self.url.rsplit_once('@').expect("a user in the address");
        format!("mysql://{role}:{password}@{server}")
    }

    /// Returns its name on the server.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Creates the tables, and lets the users of the tests' relays, emitters and consumers do there what they need.
    pub fn migrate(&self) {
        let conn = &mut self.connect();
        Migrations::new().run(conn).expect("create the tables");
        roles::grant_on_mariadb(conn, &self.name);
    }

    /// Returns its URL for a relay, as a user that may do no more than a relay needs. The tables must have been made by
    /// [`migrate`](Self::migrate).
    pub fn relay_url(&self) -> String {
        self.url_as(roles::RELAY, roles::RELAY)
    }

    /// Connects as a user that may emit and do nothing else.
    pub fn connect_as_emitter(&self) -> MysqlConnection {
        let url = self.url_as(roles::EMITTER, roles::EMITTER);
        MysqlConnection::establish(&url).expect("connect to the test's database as the emitter")
    }

    /// Connects to it as the server's administrator.
    pub fn connect(&self) -> MysqlConnection {
        MysqlConnection::establish(&self.url).expect("connect to the test's database")
    }
}

impl Drop for MariadbDatabase<'_> {
    fn drop(&mut self) {
        if self.server.lasting
            && let Ok(mut conn) = MysqlConnection::establish(&self.server.url_of("mysql"))
        {
            // If a transaction is still open on its tables, it stays.
            let _ = conn.batch_execute(&format!("SET lock_wait_timeout = 3; DROP DATABASE {}", self.name));
        }
    }
}
