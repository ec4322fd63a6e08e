//! Servers of MariaDB with a copy of another one's data. All run from local programs.

use std::time::Duration;

use diesel::connection::SimpleConnection;
use diesel::prelude::*;
use diesel::sql_types::Text;

use super::{LOCALHOST, Mariadb, SETTINGS, Server, local};
use crate::host::free_port;
use crate::scratch::Folder;
use crate::tables::Tables;
use crate::wait::eventually;

/// How long a replica may take to catch up.
const PATIENCE: Duration = Duration::from_secs(90);
/// Longer than a test.
const NO_TIMEOUT_MS: u32 = 3_600_000;
/// What a server is started with that is a replica, and takes over.
const OF_REPLICA: [&str; 3] = ["server_id=2", "log_slave_updates=1", "rpl_semi_sync_slave_enabled=1"];

#[derive(QueryableByName)]
struct Created {
    #[diesel(sql_type = Text, column_name = "Create Table")]
    statement: String,
}

impl Mariadb {
    /// Starts a server and a replica of it. The closure gets the port of the first, and returns the port by which the second reaches it.
    /// If it is semi-synchronous, a commit waits until the replica has got it, and nobody sees it before.
    pub fn start_pair(is_semi_synchronous: bool, way: impl FnOnce(u16) -> u16) -> (Self, Self) {
        let (first, port) = Self::start_local(&[]);
        let (second, _) = Self::start_local(&OF_REPLICA);
        let begin = format!(
            "CHANGE MASTER TO MASTER_HOST = '{LOCALHOST}', MASTER_PORT = {}, MASTER_USER = 'root', MASTER_USE_GTID = slave_pos, \
             MASTER_CONNECT_RETRY = 1; START SLAVE",
            way(port)
        );
        second.connect().batch_execute(&begin).expect("begin to replicate");
        first.wait_until_one("the replica", "command = 'Binlog Dump'");
        if is_semi_synchronous {
            let wait = format!(
                "SET GLOBAL rpl_semi_sync_master_wait_point = 'AFTER_SYNC', GLOBAL rpl_semi_sync_master_timeout = {NO_TIMEOUT_MS}, \
                 GLOBAL rpl_semi_sync_master_enabled = 1"
            );
            first.connect().batch_execute(&wait).expect("let commits wait");
        }
        (first, second)
    }

    /// Makes a replica a server of its own, when it has done all that it has got.
    pub fn promote(&self) {
        let conn = &mut self.connect();
        conn.batch_execute("STOP SLAVE IO_THREAD").expect("get no more");
        let has_done_all = "command = 'Slave_SQL' AND state LIKE 'Slave has read all relay log%'";
        self.wait_until_one("the replica to catch up", has_done_all);
        conn.batch_execute("STOP SLAVE; RESET SLAVE ALL").expect("promote the replica");
    }

    /// Copies a database of this server into a new one of another server, by files of its tables.
    pub fn dump_into(&self, name: &str, to: &Self) {
        let folder = Folder::new("dump");
        to.connect().batch_execute(&format!("CREATE DATABASE {name}")).expect("create a database");
        let (database, to) = (self.existing(name), to.existing(name));
        let (from, to) = (&mut database.connect(), &mut to.connect());
        let tables = "SELECT table_name FROM information_schema.tables WHERE table_schema = DATABASE()";
        for table in database.texts(tables) {
            let created: Created =
                diesel::sql_query(format!("SHOW CREATE TABLE {table}")).get_result(from).expect("a table");
            let file = folder.path().join(&table);
            let file = file.display();
            from.batch_execute(&format!("SELECT * INTO OUTFILE '{file}' CHARACTER SET binary FROM {table}"))
                .expect("dump a table");
            to.batch_execute(&format!(
                "{}; LOAD DATA INFILE '{file}' INTO TABLE {table} CHARACTER SET binary",
                created.statement
            ))
            .expect("restore a table");
        }
    }

    fn wait_until_one(&self, what: &str, session: &str) {
        let database = self.existing("mysql");
        let query = format!("SELECT COUNT(*) FROM information_schema.processlist WHERE {session}");
        eventually(what, PATIENCE, || (database.number(&query) == 1).then_some(()));
    }

    /// Starts a server with further settings, and returns its port.
    fn start_local(settings: &[&str]) -> (Self, u16) {
        let settings: Vec<_> =
            SETTINGS.iter().chain(settings).map(|setting| format!("--{setting}")).collect();
        let port = free_port();
        let host = local::install(Folder::new("mariadb"), Server::Mariadb, port, &settings);
        (Self::run(Box::new(host), LOCALHOST, port), port)
    }
}
