//! The databases on which the suite runs.

use diesel::connection::SimpleConnection;
use diesel::prelude::*;
use diesel::sql_types::BigInt;
use diesel_outbox::{Emit, Migrations, Record};
use diesel_outbox_core::Source;
use diesel_outbox_relay::operate::Operate;
use diesel_outbox_relay::source::{SourceOptions, SqliteSource};
use outbox_tests::{Database, Folder, Mariadb, MariadbDatabase, Postgres, Server, Tables};

/// A database with the tables in it.
pub(super) trait Store {
    fn source(&self, options: SourceOptions) -> Box<dyn Source>;
    fn emit(&self, records: &[Record]);
    fn execute(&self, sql: &str);
    fn count(&self, from: &str) -> i64;
    fn observe(&self) -> Box<dyn Operate + Send>;
    /// Whether a requeue succeeds while a pass is open.
    fn requeues_at_once(&self) -> bool;
    /// Makes the numbers start from the first one again.
    fn restart_numbers(&self);
}

/// A database on a server, polled.
pub(super) struct OnServer<T> {
    pub(super) tables: T,
    restart_numbers: &'static str,
}

impl<T: Tables> Store for OnServer<T> {
    fn source(&self, options: SourceOptions) -> Box<dyn Source> {
        self.tables.source(options)
    }

    fn emit(&self, records: &[Record]) {
        self.tables.connect_as_emitter().transaction(|c| c.emit_all(records)).unwrap();
    }

    fn execute(&self, sql: &str) {
        self.tables.connect().batch_execute(sql).unwrap();
    }

    fn count(&self, from: &str) -> i64 {
        self.tables.count(from).try_into().unwrap()
    }

    fn observe(&self) -> Box<dyn Operate + Send> {
        self.tables.operate()
    }

    fn requeues_at_once(&self) -> bool {
        false
    }

    fn restart_numbers(&self) {
        self.execute(self.restart_numbers);
    }
}

pub(super) fn mariadb(server: &'static Mariadb) -> OnServer<MariadbDatabase<'static>> {
    OnServer { tables: server.migrated(), restart_numbers: "ALTER TABLE outbox AUTO_INCREMENT = 1" }
}

pub(super) struct OnSqlite {
    _folder: Folder,
    path: String,
}

impl OnSqlite {
    fn connect(&self) -> SqliteConnection {
        let mut conn = SqliteConnection::establish(&self.path).unwrap();
        conn.batch_execute("PRAGMA busy_timeout = 10000").unwrap();
        conn
    }
}

impl Store for OnSqlite {
    fn source(&self, options: SourceOptions) -> Box<dyn Source> {
        Box::new(SqliteSource::new(&self.path, options))
    }

    fn emit(&self, records: &[Record]) {
        self.connect().transaction(|c| c.emit_all(records)).unwrap();
    }

    fn execute(&self, sql: &str) {
        self.connect().batch_execute(sql).unwrap();
    }

    fn count(&self, from: &str) -> i64 {
        let sql = format!("SELECT count(*) FROM {from}");
        diesel::dsl::sql::<BigInt>(&sql).get_result(&mut self.connect()).unwrap()
    }

    fn observe(&self) -> Box<dyn Operate + Send> {
        Box::new(self.connect())
    }

    fn requeues_at_once(&self) -> bool {
        true
    }

    fn restart_numbers(&self) {
        self.execute("DELETE FROM sqlite_sequence");
    }
}

pub(super) fn postgres(major: u32) -> OnServer<Database<'static>> {
    let database = Postgres::shared_version(major).database();
    let conn = &mut database.connect();
    // Far from UTC, so that the test notices a time that is taken for a local one.
    conn.batch_execute(&format!("ALTER DATABASE {} SET timezone = 'Pacific/Kiritimati'", database.name()))
        .unwrap();
    database.migrate();
    OnServer { tables: database, restart_numbers: "ALTER SEQUENCE outbox_seq_seq RESTART" }
}

pub(super) fn sqlite() -> OnSqlite {
    let folder = Folder::new("conformance");
    let path = folder.path().join("outbox.db").display().to_string();
    let store = OnSqlite { _folder: folder, path };
    Migrations::new().run(&mut store.connect()).unwrap();
    store
}
