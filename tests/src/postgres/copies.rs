//! Servers with a copy of another one's data, and servers whose disk is small. All run from local programs.

use std::time::Duration;

use diesel::connection::SimpleConnection;
use diesel::dsl::sql;
use diesel::prelude::*;
use diesel::sql_types::Bool;

use super::{Postgres, SETTINGS, local};
use crate::disk::Disk;
use crate::host::{Local, free_port};
use crate::scratch::Folder;
use crate::wait::eventually;

/// How long a server may take to copy or to recover.
const PATIENCE: Duration = Duration::from_secs(90);
/// Keeps the WAL beside the data. The server runs this in its data folder.
const ARCHIVE: [(&str, &str); 2] =
    [("archive_mode", "on"), ("archive_command", "mkdir -p ../archive && cp %p ../archive/%f")];

impl Postgres {
    /// Starts a server and a standby of it. Commits on the first wait for the second as soon as `synchronous_standby_names` has
    /// the name `standby`.
    pub fn start_pair(major: u32) -> (Self, Self) {
        Self::start_pair_with(major, &[], |primary| (primary, &[][..]))
    }

    /// The same with settings for both. The closure gets the port of the first, and returns the port by which the second reaches
    /// it, and the second's own settings.
    pub fn start_pair_with<'s>(
        major: u32,
        settings: &[(&str, &str)],
        way: impl FnOnce(u16) -> (u16, &'s [(&'s str, &'s str)]),
    ) -> (Self, Self) {
        let (primary_port, standby_port) = (free_port(), free_port());
        let settings = with(settings);
        let (port, of_standby) = way(primary_port);
        let source = format!(
            "primary_conninfo=host=127.0.0.1 port={port} user=postgres dbname=postgres application_name=standby"
        );
        let of_standby = of_standby.iter().map(|(key, value)| format!("{key}={value}"));
        let of_standby: Vec<String> = settings.iter().cloned().chain([source]).chain(of_standby).collect();
        let primary = local::install(Folder::new("postgres"), major, primary_port, &settings);
        let standby = local::install_copy(&primary, major, standby_port, &of_standby);
        (Self::run(primary, primary_port), Self::run(standby, standby_port))
    }

    /// Starts a server with a disk of its own that has room for so many megabytes. This takes the right to mount.
    pub fn start_on_small_disk(major: u32, megabytes: usize, settings: &[(&str, &str)]) -> (Self, Disk) {
        let (folder, disk) = Disk::mounted(megabytes);
        let port = free_port();
        (Self::run(local::install(folder, major, port, &with(settings)), port), disk)
    }

    /// Starts a server that archives its WAL, so that it can be [restored](Self::restore).
    pub fn start_archiving(major: u32, settings: &[(&str, &str)]) -> Self {
        let port = free_port();
        let settings = with(&[settings, &ARCHIVE].concat());
        Self::run(local::install(Folder::new("postgres"), major, port, &settings), port)
    }

    /// Takes a base backup of it.
    pub fn back_up(&self, major: u32) -> Folder {
        local::back_up(&self.url, major)
    }

    /// Starts a server from a backup of this one and its archive, as it was at a named restore point.
    pub fn restore(&self, backup: Folder, major: u32, point: &str, settings: &[(&str, &str)]) -> Self {
        let port = free_port();
        let archive = self.socket.as_ref().expect("a server from local programs").join("archive");
        let restore = format!("cp {}/%f %p", archive.display());
        let target = [
            ("restore_command", &*restore),
            ("recovery_target_name", point),
            ("recovery_target_action", "promote"),
        ];
        let host = local::recover(backup, major, port, &with(&[settings, &target].concat()));
        let server = Self::run(host, port);
        server.wait_until_promoted();
        server
    }

    /// Makes a standby a server of its own.
    pub fn promote(&self) {
        self.connect().batch_execute("SELECT pg_promote()").expect("promote the standby");
        self.wait_until_promoted();
    }

    fn wait_until_promoted(&self) {
        eventually("the server to be promoted", PATIENCE, || {
            let in_recovery =
                sql::<Bool>("SELECT pg_is_in_recovery()").get_result::<bool>(&mut self.connect());
            (in_recovery == Ok(false)).then_some(())
        });
    }

    /// Copies a database of this server into a new one of another server, with `pg_dump`.
    pub fn dump_into(&self, name: &str, to: &Self) {
        to.connect()
            .batch_execute(&format!("CREATE DATABASE {name} TEMPLATE template0"))
            .expect("create a database");
        local::dump(self.existing(name).url(), to.existing(name).url());
    }

    fn run(host: Local, port: u16) -> Self {
        let socket = Some(host.folder().to_owned());
        let url = format!("postgres://postgres@127.0.0.1:{port}/postgres");
        let server = Self { host: Box::new(host), url, lasting: false, socket };
        server.host.start();
        server.wait_until_ready();
        server
    }
}

fn with(settings: &[(&str, &str)]) -> Vec<String> {
    SETTINGS.iter().chain(settings).map(|(key, value)| format!("{key}={value}")).collect()
}
