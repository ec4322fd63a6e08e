//! PgBouncer in front of a test's database. It always runs from a local program, whatever runs the database.

use std::env;
use std::fs;
use std::path::PathBuf;
use std::process::Command;

use diesel::prelude::*;

use crate::host::{Host, Local, free_port, wait_until_ready};
use crate::postgres::Database;
use crate::process::Signal;
use crate::scratch::{Folder, scratch};

/// A running PgBouncer that leads to one database.
pub struct PgBouncer {
    host: Local,
    url: String,
}

impl PgBouncer {
    /// Starts one whose clients share this many sessions of the database, in this `pool_mode`: `session`, `transaction` or `statement`.
    /// The sessions are those of the database's owner.
    pub fn start(database: &Database<'_>, pool_mode: &str, sessions: usize) -> Self {
        let folder = Folder::new("pgbouncer");
        let (name, port, server) = (database.name(), free_port(), database.address());
        let quoted = |value: &str| format!("'{}'", value.replace('\'', "''"));
        let mut target = format!(
            "dbname={name} host={} port={} user={}",
            quoted(&server.host),
            server.port,
            quoted(&server.user)
        );
        if !server.password.is_empty() {
            target += &format!(" password={}", quoted(&server.password));
        }
        let settings = folder.path().join("pgbouncer.ini");
        let text = format!(
            "[databases]\n{name} = {target}\n\n[pgbouncer]\npool_mode = {pool_mode}\ndefault_pool_size = {sessions}\n\
             listen_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\nauth_type = any\nmax_client_conn = 200\n\
             query_wait_timeout = 60\n"
        );
        fs::write(&settings, text).expect("write the settings of PgBouncer");

        let mut command = Command::new(program());
        command.arg(&settings);
        if scratch().is_root() {
            command.arg("--user=nobody"); // it refuses to run as root
        }
        let host = Local::new(command, folder, Signal::Terminate, Signal::Kill);
        host.start();
        let bouncer = Self { host, url: format!("postgres://anybody@127.0.0.1:{port}/{name}") };
        wait_until_ready(&bouncer.host, "PgBouncer", || {
            PgConnection::establish(&bouncer.url).map(drop).map_err(|error| error.to_string())
        });
        bouncer
    }

    /// Returns the database's URL by way of PgBouncer.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Connects to the database by way of PgBouncer.
    pub fn connect(&self) -> PgConnection {
        PgConnection::establish(&self.url).expect("connect to PgBouncer")
    }
}

fn program() -> PathBuf {
    let path = env::var_os("PATH").unwrap_or_default();
    let folders = env::split_paths(&path).chain([PathBuf::from("/usr/sbin")]);
    folders.map(|folder| folder.join("pgbouncer")).find(|file| file.exists()).unwrap_or_else(|| {
        panic!("`pgbouncer` was not found: install PgBouncer (Debian's package pgbouncer), or let scripts/test do it")
    })
}
