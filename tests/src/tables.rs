//! A database with the outbox in it, on either kind of server, for tests that are the same on both.

use std::thread;
use std::time::Duration;

use diesel::connection::SimpleConnection;
use diesel::expression::SqlLiteral;
use diesel::prelude::*;
use diesel::query_dsl::methods::LoadQuery;
use diesel::sql_types::BigInt;
use diesel_outbox::{Migrations, OutboxConnection};
use diesel_outbox_core::Source;
use diesel_outbox_relay::Relay;
use diesel_outbox_relay::operate::Operate;
use diesel_outbox_relay::source::{MysqlSource, PostgresSource, SourceOptions};

use crate::mariadb::{Mariadb, MariadbDatabase};
use crate::postgres::{Database, Postgres};

/// Makes a test on PostgreSQL and one on MariaDB of each function, which takes a new database with the tables.
#[macro_export]
macro_rules! on_postgres_and_mariadb {
    ($($name:ident),* $(,)?) => {
        mod on_postgres {
            $(#[test] fn $name() { super::$name(&$crate::load::migrated()); })*
        }
        mod on_mariadb {
            $(#[test] fn $name() { super::$name(&$crate::migrated_mariadb()); })*
        }
    };
}

/// Makes a test on PostgreSQL 15 and one on MariaDB of each function, which takes a server that it may stop.
#[macro_export]
macro_rules! on_servers_of_their_own {
    ($($name:ident),* $(,)?) => {
        mod on_a_postgres_of_its_own {
            $(#[test] fn $name() { super::$name(&$crate::Postgres::start(15)); })*
        }
        mod on_a_mariadb_of_its_own {
            $(#[test] fn $name() { super::$name(&$crate::Mariadb::start()); })*
        }
    };
}

/// The server shows the same transactions again to whoever looks sooner after the last look.
pub const INNODB_TRX_KEPT: Duration = Duration::from_millis(120);

/// Makes a new database with the tables on the MariaDB that the tests of this process share.
pub fn migrated_mariadb() -> MariadbDatabase<'static> {
    Mariadb::shared().migrated()
}

/// A server that a test may stop.
pub trait Server {
    /// Its databases.
    type Tables<'a>: Tables
    where
        Self: 'a;

    /// Makes a new database with the tables.
    fn migrated(&self) -> Self::Tables<'_>;
    /// Shuts the server down.
    fn stop(&self);
    /// Kills the server.
    fn crash(&self);
    /// Starts the server again with its data.
    fn restart(&self);
}

impl Server for Postgres {
    type Tables<'a> = Database<'a>;

    fn migrated(&self) -> Database<'_> {
        crate::load::migrated_on(self)
    }

    fn stop(&self) {
        Self::stop(self);
    }

    fn crash(&self) {
        Self::crash(self);
    }

    fn restart(&self) {
        Self::restart(self);
    }
}

impl Server for Mariadb {
    type Tables<'a> = MariadbDatabase<'a>;

    fn migrated(&self) -> MariadbDatabase<'_> {
        let database = self.database();
        Migrations::new().run(&mut database.connect()).expect("create the tables");
        database
    }

    fn stop(&self) {
        Self::stop(self);
    }

    fn crash(&self) {
        Self::crash(self);
    }

    fn restart(&self) {
        Self::restart(self);
    }
}

/// A database with the tables.
pub trait Tables: Sync {
    /// Its connections.
    type Conn: OutboxConnection + SimpleConnection + Send;

    /// Returns its URL.
    fn url(&self) -> &str;
    /// Connects to it.
    fn connect(&self) -> Self::Conn;
    /// Returns the number of rows.
    fn count(&self, from: &str) -> usize;
    /// Returns a relay for it that has no broker yet.
    fn relay(&self) -> Relay;
    /// Returns a source of what is in it.
    fn source(&self, options: SourceOptions) -> Box<dyn Source>;
    /// Returns what an operator may do.
    fn operate(&self) -> Box<dyn Operate + Send>;
    /// Returns how many of the relays' transactions are open and wait for something that is not the database.
    fn idle_transactions(&self) -> usize;
    /// Ends the relays' sessions, and on MariaDB all others too.
    fn end_sessions(&self);

    /// Returns the number of events that are unsent.
    fn unsent(&self) -> usize {
        self.count("outbox WHERE sent_at IS NULL")
    }
}

fn count<C>(conn: &mut C, from: &str) -> usize
where
    C: Connection,
    SqlLiteral<BigInt>: for<'a> LoadQuery<'a, C, i64>,
{
    let sql = format!("SELECT count(*) FROM {from}");
    let rows = diesel::dsl::sql::<BigInt>(&sql).get_result::<i64>(conn).expect("count the rows");
    usize::try_from(rows).expect("a number of rows")
}

impl Tables for Database<'_> {
    type Conn = PgConnection;

    fn url(&self) -> &str {
        self.url()
    }

    fn connect(&self) -> PgConnection {
        self.connect()
    }

    fn count(&self, from: &str) -> usize {
        count::<PgConnection>(&mut self.connect(), from)
    }

    fn relay(&self) -> Relay {
        Relay::postgres(self.url())
    }

    fn source(&self, options: SourceOptions) -> Box<dyn Source> {
        Box::new(PostgresSource::new(self.url(), options))
    }

    fn operate(&self) -> Box<dyn Operate + Send> {
        Box::new(self.connect())
    }

    fn idle_transactions(&self) -> usize {
        self.count(
            "pg_stat_activity WHERE application_name = 'outbox relay' AND datname = current_database() \
             AND xact_start IS NOT NULL AND state <> 'active'",
        )
    }

    fn end_sessions(&self) {
        let end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
                   WHERE application_name = 'outbox relay' AND datname = current_database()";
        self.connect().batch_execute(end).expect("end the relays' sessions");
    }
}

impl Tables for MariadbDatabase<'_> {
    type Conn = MysqlConnection;

    fn url(&self) -> &str {
        self.url()
    }

    fn connect(&self) -> MysqlConnection {
        self.connect()
    }

    fn count(&self, from: &str) -> usize {
        count::<MysqlConnection>(&mut self.connect(), from)
    }

    fn relay(&self) -> Relay {
        Relay::mysql(self.url())
    }

    fn source(&self, options: SourceOptions) -> Box<dyn Source> {
        Box::new(MysqlSource::new(self.url(), options))
    }

    fn operate(&self) -> Box<dyn Operate + Send> {
        let conn = diesel_outbox_relay::mysql::Conn::new(self.url()).expect("connect to the test's database");
        Box::new(conn)
    }

    fn idle_transactions(&self) -> usize {
        thread::sleep(INNODB_TRX_KEPT);
        self.count(
            "information_schema.innodb_trx AS t JOIN information_schema.processlist AS p ON p.id = t.trx_mysql_thread_id \
             WHERE p.db = DATABASE() AND p.command = 'Sleep'",
        )
    }

    fn end_sessions(&self) {
        let conn = &mut self.connect();
        let others =
            "SELECT id FROM information_schema.processlist WHERE db = DATABASE() AND id <> CONNECTION_ID()";
        let others = diesel::dsl::sql::<BigInt>(others).load::<i64>(conn).expect("the other sessions");
        for id in others {
            // It may have ended by itself.
            let _ = conn.batch_execute(&format!("KILL {id}"));
        }
    }
}
