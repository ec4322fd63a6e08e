//! A database of SQLite. There is no server: only what acts on relays, on the broker, or on the file applies.

use std::any::Any;

use diesel::connection::SimpleConnection;
use diesel::dsl::sql;
use diesel::prelude::*;
use diesel::sql_types::{BigInt, Text};
use diesel_outbox::Migrations;
use diesel_outbox_relay::operate::{Operate, Requeue};
use fastrand::Rng;
use uuid::Uuid;

use crate::servers::Place;
use crate::site::{Site, emit, emit_and_wait};
use crate::writers::{Dialect, Orders, TwoPhases, write};

/// A database in a file.
pub struct InFile {
    path: String,
    name: String,
}

const DIALECT: Dialect = Dialect { session: "PRAGMA busy_timeout = 3000", two_phases: TwoPhases::None };

impl InFile {
    /// Makes a new one.
    pub fn new(place: &Place) -> Self {
        let name = Uuid::now_v7().simple().to_string();
        let path = place.folder.path().join(&name).display().to_string();
        let file = Self { path, name };
        let conn = &mut file.connect();
        conn.batch_execute("PRAGMA journal_mode = WAL").expect("a write-ahead log");
        Migrations::new().run(conn).expect("create the tables");
        file
    }

    fn connect(&self) -> SqliteConnection {
        let mut conn = SqliteConnection::establish(&self.path).expect("open the file");
        conn.batch_execute("PRAGMA busy_timeout = 60000").expect("a longer wait");
        conn
    }
}

impl Site for InFile {
    fn url(&self) -> &str {
        &self.path
    }

    fn relay_url(&self) -> String {
        self.path.clone()
    }

    fn grant(&self) {}

    fn name(&self) -> &str {
        &self.name
    }

    fn execute(&self, sql: &str) -> Result<(), String> {
        self.connect().batch_execute(sql).map_err(|error| error.to_string())
    }

    fn number(&self, query: &str) -> i64 {
        sql::<BigInt>(query)
            .get_result(&mut self.connect())
            .unwrap_or_else(|error| panic!("{error}: {query}"))
    }

    fn texts(&self, query: &str) -> Vec<String> {
        sql::<Text>(query).load(&mut self.connect()).unwrap_or_else(|error| panic!("{error}: {query}"))
    }

    fn hold(&self, sql: &str) -> Box<dyn Any + Send> {
        let mut conn = self.connect();
        conn.batch_execute(sql).unwrap_or_else(|error| panic!("{error}: {sql}"));
        Box::new(conn)
    }

    fn emit(&self, aggregates: &[u32], poison: Option<usize>) {
        emit(&mut self.connect(), aggregates, poison);
    }

    fn emit_and_wait(&self, aggregate: u32) -> Box<dyn FnOnce() + Send> {
        emit_and_wait(self.connect(), aggregate)
    }

    fn write(&self, name: usize, rng: Rng, orders: &Orders) {
        write::<SqliteConnection>(&|| self.url(), name, rng, DIALECT, orders);
    }

    fn end_sessions(&self) {}

    fn take_connections(&self) -> (usize, Box<dyn Any + Send>) {
        (0, Box::new(()))
    }

    fn move_over(&self) {}

    fn unsent(&self) -> usize {
        let rows = self.number("SELECT count(*) FROM outbox WHERE sent_at IS NULL");
        usize::try_from(rows).expect("a number of rows")
    }

    fn requeue(&self) {
        self.connect().requeue(&Requeue::All).expect("requeue the dead letters");
    }

    fn stop(&self) {}

    fn crash(&self) {}

    fn restart(&self) {}
}
