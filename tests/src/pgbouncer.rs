//! PgBouncer in front of a test's database. It always runs from a local program, whatever runs the database.

use std::env;
use std::fs;
use std::path::PathBuf;
use std::process::Command;

use diesel::prelude::*;

use crate::artifacts;
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
    /// The sessions are those of the database's owner. It does not know the statements that its clients prepare.
    pub fn start(database: &Database<'_>, pool_mode: &str, sessions: usize) -> Self {
        let program = installed();
        let knows = version(Command::new(&program)) >= KNOWS_STATEMENTS;
        let settings = if knows { "max_prepared_statements = 0\n" } else { "" };
        Self::start_with(Command::new(program), database, pool_mode, sessions, settings)
    }

    /// Starts one in the `pool_mode` `transaction` that knows the statements which its clients prepare. It does not mind that sqlx makes a
    /// setting when it connects.
    pub fn start_knowing_statements(database: &Database<'_>, sessions: usize) -> Self {
        let settings = "max_prepared_statements = 100\nignore_startup_parameters = extra_float_digits\n";
        let program = match Self::fetch_newer() {
            Some(folder) => artifacts::unpacked(&folder, "pgbouncer"),
            None => Command::new(installed()),
        };
        Self::start_with(program, database, "transaction", sessions, settings)
    }

    /// Fetches Debian's newest, and returns its folder. Does nothing if the one that is installed knows what its clients prepare.
    pub fn fetch_newer() -> Option<PathBuf> {
        (version(Command::new(installed())) < KNOWS_STATEMENTS).then(|| artifacts::debian("pgbouncer"))
    }

    fn start_with(
        mut command: Command,
        database: &Database<'_>,
        pool_mode: &str,
        sessions: usize,
        settings: &str,
    ) -> Self {
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
        let file = folder.path().join("pgbouncer.ini");
        let text = format!(
            "[databases]\n{name} = {target}\n\n[pgbouncer]\npool_mode = {pool_mode}\ndefault_pool_size = {sessions}\n\
             listen_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\nauth_type = any\nmax_client_conn = 200\n\
             query_wait_timeout = 60\n{settings}"
        );
        fs::write(&file, text).expect("write the settings of PgBouncer");

        command.arg(&file);
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

/// The first version that can know the statements which its clients prepare.
const KNOWS_STATEMENTS: (u32, u32) = (1, 21);

/// Returns the first two numbers of a program's version.
fn version(mut program: Command) -> (u32, u32) {
    let output = program.arg("--version").output().expect("run PgBouncer");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let mut numbers = text.split(|c: char| !c.is_ascii_digit()).filter_map(|number| number.parse().ok());
    numbers.next().zip(numbers.next()).unwrap_or_else(|| panic!("PgBouncer's version is not in {text:?}"))
}

fn installed() -> PathBuf {
    let path = env::var_os("PATH").unwrap_or_default();
    let folders = env::split_paths(&path).chain([PathBuf::from("/usr/sbin")]);
    folders.map(|folder| folder.join("pgbouncer")).find(|file| file.exists()).unwrap_or_else(|| {
        panic!("`pgbouncer` was not found: install PgBouncer (Debian's package pgbouncer), or let scripts/test do it")
    })
}
