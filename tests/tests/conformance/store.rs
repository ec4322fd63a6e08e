//! The databases on which the suite runs.

use diesel::connection::SimpleConnection;
use diesel::prelude::*;
use diesel::sql_types::BigInt;
use diesel_outbox::{Emit, Migrations, Record};
use diesel_outbox_core::Source;
use diesel_outbox_relay::operate::Operate;
use diesel_outbox_relay::source::{MysqlSource, PostgresSource, SourceOptions, SqliteSource};
use outbox_tests::{Database, Folder, Mariadb, MariadbDatabase, Postgres};

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

/// PostgreSQL, polled.
pub(super) struct OnPostgres(pub(super) Database<'static>);

impl Store for OnPostgres {
    fn source(&self, options: SourceOptions) -> Box<dyn Source> {
        Box::new(PostgresSource::new(self.0.url(), options))
    }

    fn emit(&self, records: &[Record]) {
        self.0.connect().transaction(|c| c.emit_all(records)).unwrap();
    }

    fn execute(&self, sql: &str) {
        self.0.connect().batch_execute(sql).unwrap();
    }

    fn count(&self, from: &str) -> i64 {
        let sql = format!("SELECT count(*) FROM {from}");
        diesel::dsl::sql::<BigInt>(&sql).get_result(&mut self.0.connect()).unwrap()
    }

    fn observe(&self) -> Box<dyn Operate + Send> {
        Box::new(self.0.connect())
    }

    fn requeues_at_once(&self) -> bool {
        false
    }

    fn restart_numbers(&self) {
        self.execute("ALTER SEQUENCE outbox_seq_seq RESTART");
    }
}

pub(super) struct OnMariadb(MariadbDatabase<'static>);

impl Store for OnMariadb {
    fn source(&self, options: SourceOptions) -> Box<dyn Source> {
        Box::new(MysqlSource::new(self.0.url(), options))
    }

    fn emit(&self, records: &[Record]) {
        self.0.connect().transaction(|c| c.emit_all(records)).unwrap();
    }

    fn execute(&self, sql: &str) {
        self.0.connect().batch_execute(sql).unwrap();
    }

    fn count(&self, from: &str) -> i64 {
        let sql = format!("SELECT count(*) FROM {from}");
        diesel::dsl::sql::<BigInt>(&sql).get_result(&mut self.0.connect()).unwrap()
    }

    fn observe(&self) -> Box<dyn Operate + Send> {
        Box::new(diesel_outbox_relay::mysql::Conn::new(self.0.url()).unwrap())
    }

    fn requeues_at_once(&self) -> bool {
        false
    }

    fn restart_numbers(&self) {
        self.execute("ALTER TABLE outbox AUTO_INCREMENT = 1");
    }
}

pub(super) fn mariadb(server: &'static Mariadb) -> OnMariadb {
    let database = server.database();
    Migrations::new().run(&mut database.connect()).unwrap();
    OnMariadb(database)
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

pub(super) fn postgres(major: u32) -> OnPostgres {
    let database = Postgres::shared_version(major).database();
    let conn = &mut database.connect();
    // Far from UTC, so that the test notices a time that is taken for a local one.
    conn.batch_execute(&format!("ALTER DATABASE {} SET timezone = 'Pacific/Kiritimati'", database.name()))
        .unwrap();
    Migrations::new().run(conn).unwrap();
    OnPostgres(database)
}

pub(super) fn sqlite() -> OnSqlite {
    let folder = Folder::new("conformance");
    let path = folder.path().join("outbox.db").display().to_string();
    let store = OnSqlite { _folder: folder, path };
    Migrations::new().run(&mut store.connect()).unwrap();
    store
}
