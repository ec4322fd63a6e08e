//! PostgreSQL servers and databases for tests.

mod copies;
mod local;
mod url;

use std::collections::BTreeMap;
use std::env;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, OnceLock};
use std::time::Duration;

use diesel::connection::SimpleConnection;
use diesel::dsl::sql;
use diesel::prelude::*;
use diesel::sql_types::{BigInt, Integer, Text};
use diesel_outbox::Migrations;

use self::url::Address;
use crate::docker;
use crate::host::{Elsewhere, Host, free_port, wait_until_ready};
use crate::roles;
use crate::scratch::Folder;
use crate::wait::eventually;

const ADDRESS: &str = "OUTBOX_TEST_POSTGRES_URL";

/// The settings with which every server is started.
const SETTINGS: [(&str, &str); 5] = [
    ("max_connections", "500"),
    ("wal_level", "logical"),
    ("max_wal_senders", "100"),
    ("max_replication_slots", "100"),
    ("log_line_prefix", "%m [%p] %a %d "),
];

/// A running PostgreSQL server.
pub struct Postgres {
    host: Box<dyn Host>,
    url: String,
    /// Whether the server outlives the tests, so that their databases must be dropped.
    lasting: bool,
    /// The folder of its Unix socket, if it has one on this machine.
    socket: Option<PathBuf>,
}

impl Postgres {
    /// Returns the server that the tests of this process share. It has any version, and starts on first use.
    pub fn shared() -> &'static Self {
        static SHARED: OnceLock<Postgres> = OnceLock::new();
        SHARED.get_or_init(|| match env::var(ADDRESS) {
            Ok(url) => Self::at(url),
            Err(_) => Self::start(local::newest_installed().unwrap_or(18)),
        })
    }

    /// Returns the server of one major version that the tests of this process share. It starts on first use. This is
    /// [`Postgres::shared`] if that has the version.
    pub fn shared_version(major: u32) -> &'static Self {
        if (env::var_os(ADDRESS).is_some() || local::newest_installed() == Some(major))
            && Self::shared().major() == major
        {
            return Self::shared();
        }
        static SHARED: Mutex<BTreeMap<u32, &Postgres>> = Mutex::new(BTreeMap::new());
        // A failed start must not hide its message from the other tests.
        let mut shared = SHARED.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        shared.entry(major).or_insert_with(|| Box::leak(Box::new(Self::start(major))))
    }

    /// Starts a server of a major version for one test, which may stop it.
    pub fn start(major: u32) -> Self {
        Self::start_with(major, &[])
    }

    /// Starts a server of a major version with settings of its own, such as `("fsync", "off")`.
    pub fn start_with(major: u32, settings: &[(&str, &str)]) -> Self {
        let settings: Vec<_> =
            SETTINGS.iter().chain(settings).map(|(key, value)| format!("{key}={value}")).collect();
        let port = free_port();
        let (host, address, socket): (Box<dyn Host>, _, _) = match docker::engine() {
            Some(address) => (Box::new(docker::postgres(major, port, &settings)), address, None),
            None => {
                let server = local::install(Folder::new("postgres"), major, port, &settings);
                let socket = server.folder().to_owned();
                (Box::new(server), "127.0.0.1", Some(socket))
            }
        };
        let url = format!("postgres://postgres@{address}:{port}/postgres");
        let server = Self { host, url, lasting: false, socket };
        server.host.start();
        server.wait_until_ready();
        server
    }

    /// Starts a server with a certificate and its key, from local programs. It takes connections with and without TLS.
    pub fn start_with_tls(major: u32, files: &[PathBuf; 2]) -> Self {
        let port = free_port();
        let settings: Vec<_> = SETTINGS.iter().map(|(key, value)| format!("{key}={value}")).collect();
        let settings =
            [settings, ["ssl=on", "ssl_cert_file=tls.pem", "ssl_key_file=tls.key"].map(str::to_owned).into()];
        let server = local::install(Folder::new("postgres"), major, port, &settings.concat());
        local::give_certificate(&server, files);
        let socket = Some(server.folder().to_owned());
        let url = format!("postgres://postgres@127.0.0.1:{port}/postgres");
        let server = Self { host: Box::new(server), url, lasting: false, socket };
        server.host.start();
        server.wait_until_ready();
        server
    }

    /// Shows this certificate from now on. The server must have been started with TLS.
    pub fn show_certificate(&self, files: &[PathBuf; 2]) {
        let folder = self.socket.as_ref().expect("a server from local programs");
        local::copy_certificate(folder, files);
        let conn = &mut self.connect();
        let loaded = |conn: &mut PgConnection| {
            sql::<Text>("SELECT pg_conf_load_time()::text").get_result::<String>(conn).expect("a time")
        };
        let before = loaded(conn);
        conn.batch_execute("SELECT pg_reload_conf()").expect("let the server read its certificate");
        eventually("the server to read its certificate", Duration::from_secs(10), || {
            (loaded(&mut self.connect()) != before).then_some(())
        });
    }

    fn at(url: String) -> Self {
        let server =
            Self { host: Box::new(Elsewhere { variable: ADDRESS }), url, lasting: true, socket: None };
        server.wait_until_ready();
        server
    }

    fn wait_until_ready(&self) {
        wait_until_ready(&*self.host, "PostgreSQL", || {
            PgConnection::establish(&self.url).map(drop).map_err(|error| error.to_string())
        });
    }

    /// Makes a new, empty database.
    pub fn database(&self) -> Database<'_> {
        self.database_like("template1")
    }

    /// Returns the database of this name, which the server has already.
    pub fn existing(&self, name: &str) -> Database<'_> {
        Database { server: self, url: url::with_database(&self.url, name), name: name.to_owned() }
    }

    fn database_like(&self, template: &str) -> Database<'_> {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let name = format!("outbox_test_{}_{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let create = format!("create database {name} template {template}");
        self.connect().batch_execute(&create).expect("create a database");
        self.existing(&name)
    }

    /// Returns the URL of the server's own database for its superuser.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Connects to the server's own database, as its superuser.
    pub fn connect(&self) -> PgConnection {
        PgConnection::establish(&self.url).expect("connect to PostgreSQL")
    }

    fn major(&self) -> u32 {
        let version =
            diesel::dsl::sql::<Integer>("SELECT current_setting('server_version_num')::integer / 10000");
        let version: i32 = version.get_result(&mut self.connect()).expect("the server's version");
        version.unsigned_abs()
    }

    /// Shuts the server down. It disconnects clients and keeps what was committed.
    pub fn stop(&self) {
        self.host.stop();
    }

    /// Ends the server without a checkpoint, so that its next start recovers from the WAL.
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
pub struct Database<'a> {
    server: &'a Postgres,
    name: String,
    url: String,
}

impl Database<'_> {
    /// Returns its URL.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Returns its URL for another role.
    pub fn url_as(&self, role: &str, password: &str) -> String {
        let (_, server) = self.url.rsplit_once('@').expect("a user in the address");
        format!("postgres://{role}:{password}@{server}")
    }

    /// Creates the tables, and lets the roles of the tests' relays, emitters and consumers do there what they need.
    pub fn migrate(&self) {
        self.migrate_in("public");
    }

    /// The same in this schema.
    pub fn migrate_in(&self, schema: &str) {
        let conn = &mut self.connect();
        Migrations::new().schema(schema).run(conn).expect("create the tables");
        roles::grant_on_postgres(conn, schema);
    }

    /// Returns its URL for a relay, as a role that may do no more than a relay needs. The tables must have been made by
    /// [`migrate`](Self::migrate).
    pub fn relay_url(&self) -> String {
        self.url_as(roles::RELAY, roles::RELAY)
    }

    /// Returns its URL for a consumer, likewise.
    pub fn consumer_url(&self) -> String {
        self.url_as(roles::CONSUMER, roles::CONSUMER)
    }

    /// Connects as a role that may emit and do nothing else.
    pub fn connect_as_emitter(&self) -> PgConnection {
        let url = self.url_as(roles::EMITTER, roles::EMITTER);
        PgConnection::establish(&url).expect("connect to the test's database as the emitter")
    }

    /// Returns its URL by Unix socket, if the server was started from local programs.
    pub fn socket_url(&self) -> Option<String> {
        let port = url::port(&self.url)?;
        let folder = self.server.socket.as_ref()?.display();
        Some(format!("postgres://postgres@/{}?host={folder}&port={port}", self.name))
    }

    /// Returns its name on the server.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Copies it on the same server. Nobody else may be connected to it during that.
    pub fn copy(&self) -> Self {
        let sessions = format!("select count(*) from pg_stat_activity where datname = '{}'", self.name);
        let mut conn = self.server.connect();
        eventually("the database's sessions to end", Duration::from_secs(20), || {
            (sql::<BigInt>(&sessions).get_result::<i64>(&mut conn) == Ok(0)).then_some(())
        });
        self.server.database_like(&self.name)
    }

    /// Returns the address and the user of its server, for a client that takes no URL.
    pub(crate) fn address(&self) -> Address {
        Address::of(&self.url)
    }

    /// Connects to it as its owner.
    pub fn connect(&self) -> PgConnection {
        PgConnection::establish(&self.url).expect("connect to the test's database")
    }
}

impl Drop for Database<'_> {
    fn drop(&mut self) {
        if self.server.lasting
            && let Ok(mut conn) = PgConnection::establish(&self.server.url)
        {
            let _ = conn.batch_execute(&format!("drop database {} with (force)", self.name));
        }
    }
}
