//! A database with the outbox in it, on either kind of server, for tests that are the same on both.

use std::collections::BTreeSet;
use std::thread;
use std::time::Duration;

use diesel::connection::{AnsiTransactionManager, SimpleConnection};
use diesel::expression::SqlLiteral;
use diesel::prelude::*;
use diesel::query_dsl::methods::LoadQuery;
use diesel::sql_types::{BigInt, SmallInt, Text};
use diesel_outbox::{MigrateConnection, OutboxConnection};
use diesel_outbox_core::Source;
use diesel_outbox_relay::operate::Operate;
use diesel_outbox_relay::source::{MysqlSource, PostgresSource, SourceOptions};
use diesel_outbox_relay::{DatabaseUrl, Relay};

use crate::mariadb::{Mariadb, MariadbDatabase};
use crate::postgres::{Database, Postgres};
use crate::wait::eventually;

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
    /// Returns the database of this name, which the server has already.
    fn existing(&self, name: &str) -> Self::Tables<'_>;
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

    fn existing(&self, name: &str) -> Database<'_> {
        Self::existing(self, name)
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
        database.migrate();
        database
    }

    fn existing(&self, name: &str) -> MariadbDatabase<'_> {
        Self::existing(self, name)
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
    type Conn: OutboxConnection<TransactionManager = AnsiTransactionManager>
        + MigrateConnection
        + SimpleConnection
        + Send;

    /// Returns its URL.
    fn url(&self) -> &str;
    /// Returns its URL for another role.
    fn url_as(&self, role: &str, password: &str) -> String;
    /// Returns its name on the server.
    fn name(&self) -> &str;
    /// Returns what metrics call its outbox.
    fn label(&self) -> String;
    /// Connects to it.
    fn connect(&self) -> Self::Conn;
    /// Returns the number that a query selects.
    fn number(&self, query: &str) -> i64;
    /// Returns the texts that a query selects.
    fn texts(&self, query: &str) -> Vec<String>;
    /// Returns how many sessions relays have, and on MariaDB all others too.
    fn sessions(&self) -> usize;
    /// Creates the tables unless they are there, and lets the roles of the tests' relays, emitters and consumers do there what they need.
    fn migrate(&self);
    /// Returns its URL for a relay, as a role that may do no more than a relay needs.
    fn relay_url(&self) -> String;
    /// Connects as a role that may emit and do nothing else.
    fn connect_as_emitter(&self) -> Self::Conn;
    /// Returns a relay for it that has no broker yet.
    fn relay(&self) -> Relay {
        self.relay_by(self.relay_url())
    }

    /// The same by another URL.
    fn relay_by(&self, url: impl Into<DatabaseUrl>) -> Relay;
    /// Returns a source of what is in it.
    fn source(&self, options: SourceOptions) -> Box<dyn Source>;
    /// Returns what an operator may do.
    fn operate(&self) -> Box<dyn Operate + Send>;
    /// Returns how many of the relays' transactions are open and wait for something that is not the database.
    fn idle_transactions(&self) -> usize;
    /// Returns how many sessions of relays there are, not counting further ones of the same worker.
    fn relays(&self) -> usize;
    /// Takes the locks that this many other workers hold while they work.
    fn others_at_work(&self, count: usize) -> Vec<Self::Conn>;
    /// Returns the shards that nobody has claimed.
    fn free_shards(&self) -> Vec<i16>;
    /// Inserts rows, whose shards are given by an expression in their numbers `n`, from 1. They are unsent, or were sent this long ago.
    fn insert(&self, rows: usize, shard: &str, sent_ago: Option<Duration>);
    /// Returns how many rows of the outbox have been read so far, or on PostgreSQL entries of its indexes.
    fn rows_read(&self) -> usize;
    /// Ends the relays' sessions, and on MariaDB all others too.
    fn end_sessions(&self);

    /// Returns the number of rows.
    fn count(&self, from: &str) -> usize {
        let rows = self.number(&format!("SELECT count(*) FROM {from}"));
        usize::try_from(rows).expect("a number of rows")
    }

    /// Returns the ids of the events that are marked as sent.
    fn sent_ids(&self) -> BTreeSet<String> {
        let ids = self.texts("SELECT CAST(id AS char(36)) FROM outbox WHERE sent_at IS NOT NULL");
        ids.into_iter().collect()
    }

    /// Returns the number of events that are unsent.
    fn unsent(&self) -> usize {
        self.count("outbox WHERE sent_at IS NULL")
    }

    /// Waits until no relay has a session any more.
    fn wait_for_the_relays_end(&self) {
        eventually("the relays' sessions to end", Duration::from_secs(20), || {
            (self.relays() == 0).then_some(())
        });
    }

    /// Returns how many [rows are read](Self::rows_read) by a relay that the closure starts and ends.
    fn rows_read_by(&self, relay: impl FnOnce()) -> usize {
        let before = self.rows_read();
        relay();
        // PostgreSQL adds up what a session has read at the session's end at the latest.
        self.wait_for_the_relays_end();
        self.rows_read() - before
    }
}

fn number<C>(conn: &mut C, query: &str) -> i64
where
    C: Connection,
    SqlLiteral<BigInt>: for<'a> LoadQuery<'a, C, i64>,
{
    diesel::dsl::sql::<BigInt>(query).get_result(conn).unwrap_or_else(|error| panic!("{error}: {query}"))
}

fn texts<C>(conn: &mut C, query: &str) -> Vec<String>
where
    C: Connection,
    SqlLiteral<Text>: for<'a> LoadQuery<'a, C, String>,
{
    diesel::dsl::sql::<Text>(query).load(conn).unwrap_or_else(|error| panic!("{error}: {query}"))
}

/// Claims the free shards for a moment.
fn free_shards<C>(conn: &mut C) -> Vec<i16>
where
    C: Connection,
    SqlLiteral<SmallInt>: for<'a> LoadQuery<'a, C, i16>,
{
    let sql = "SELECT shard FROM outbox_shard ORDER BY shard FOR UPDATE SKIP LOCKED";
    diesel::dsl::sql::<SmallInt>(sql).load::<i16>(conn).expect("the free shards")
}

impl Tables for Database<'_> {
    type Conn = PgConnection;

    fn url(&self) -> &str {
        self.url()
    }

    fn url_as(&self, role: &str, password: &str) -> String {
        self.url_as(role, password)
    }

    fn migrate(&self) {
        self.migrate();
    }

    fn relay_url(&self) -> String {
        self.relay_url()
    }

    fn connect_as_emitter(&self) -> Self::Conn {
        self.connect_as_emitter()
    }

    fn name(&self) -> &str {
        self.name()
    }

    fn label(&self) -> String {
        format!("{}.public", self.name())
    }

    fn connect(&self) -> PgConnection {
        self.connect()
    }

    fn number(&self, query: &str) -> i64 {
        number::<PgConnection>(&mut self.connect(), query)
    }

    fn texts(&self, query: &str) -> Vec<String> {
        texts::<PgConnection>(&mut self.connect(), query)
    }

    fn sessions(&self) -> usize {
        self.count(
            "pg_stat_activity WHERE application_name = 'outbox relay' AND datname = current_database()",
        )
    }

    fn relay_by(&self, url: impl Into<DatabaseUrl>) -> Relay {
        Relay::postgres(url)
    }

    fn source(&self, options: SourceOptions) -> Box<dyn Source> {
        Box::new(PostgresSource::new(self.relay_url(), options))
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

    fn relays(&self) -> usize {
        self.sessions()
    }

    fn others_at_work(&self, count: usize) -> Vec<PgConnection> {
        let at_work = |_| {
            let mut conn = self.connect();
            conn.batch_execute("SELECT pg_advisory_lock_shared(1869968484, 'outbox'::regclass::oid::int4)")
                .expect("the lock of a worker");
            conn
        };
        (0..count).map(at_work).collect()
    }

    fn free_shards(&self) -> Vec<i16> {
        free_shards::<Self::Conn>(&mut self.connect())
    }

    fn insert(&self, rows: usize, shard: &str, sent_ago: Option<Duration>) {
        let sent_at = sent_ago.map_or("NULL::timestamptz".to_owned(), |ago| {
            format!("clock_timestamp() - interval '{} s'", ago.as_secs())
        });
        let insert = format!(
            "INSERT INTO outbox (id, aggregatetype, aggregateid, type, shard, sent_at) \
             SELECT gen_random_uuid(), 'order', '1', 'OrderPlaced', {shard}, {sent_at} FROM generate_series(1, {rows}) AS n"
        );
        self.connect().batch_execute(&format!("{insert}; ANALYZE outbox")).expect("insert rows");
    }

    fn rows_read(&self) -> usize {
        let read = "SELECT sum(idx_tup_read)::bigint FROM pg_stat_user_indexes WHERE relname = 'outbox'";
        usize::try_from(self.number(read)).expect("a number of entries")
    }
}

impl Tables for MariadbDatabase<'_> {
    type Conn = MysqlConnection;

    fn url(&self) -> &str {
        self.url()
    }

    fn url_as(&self, role: &str, password: &str) -> String {
        self.url_as(role, password)
    }

    fn migrate(&self) {
        self.migrate();
    }

    fn relay_url(&self) -> String {
        self.relay_url()
    }

    fn connect_as_emitter(&self) -> Self::Conn {
        self.connect_as_emitter()
    }

    fn name(&self) -> &str {
        self.name()
    }

    fn label(&self) -> String {
        self.name().to_owned()
    }

    fn connect(&self) -> MysqlConnection {
        self.connect()
    }

    fn number(&self, query: &str) -> i64 {
        number::<MysqlConnection>(&mut self.connect(), query)
    }

    fn texts(&self, query: &str) -> Vec<String> {
        texts::<MysqlConnection>(&mut self.connect(), query)
    }

    fn sessions(&self) -> usize {
        self.count("information_schema.processlist WHERE db = DATABASE() AND id <> CONNECTION_ID()")
    }

    fn relay_by(&self, url: impl Into<DatabaseUrl>) -> Relay {
        Relay::mysql(url)
    }

    fn source(&self, options: SourceOptions) -> Box<dyn Source> {
        Box::new(MysqlSource::new(self.relay_url(), options))
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
    fn relays(&self) -> usize {
        let numbers = numbers(2);
        self.count(&format!("{numbers} WHERE n < 64 AND IS_USED_LOCK(CONCAT({LOCKS}, 'r', n)) IS NOT NULL"))
    }

    fn others_at_work(&self, count: usize) -> Vec<MysqlConnection> {
        // The relays take the first of the 64 places.
        let at_work = |number| {
            let mut conn = self.connect();
            conn.batch_execute(&format!("DO GET_LOCK(CONCAT({LOCKS}, 'w{}'), 0)", 63 - number))
                .expect("the lock of a worker");
            conn
        };
        (0..count).map(at_work).collect()
    }

    fn free_shards(&self) -> Vec<i16> {
        free_shards::<Self::Conn>(&mut self.connect())
    }

    fn insert(&self, rows: usize, shard: &str, sent_ago: Option<Duration>) {
        let sent_at = sent_ago
            .map_or("NULL".to_owned(), |ago| format!("UTC_TIMESTAMP(3) - INTERVAL {} SECOND", ago.as_secs()));
        let insert = format!(
            "INSERT INTO outbox (id, aggregatetype, aggregateid, type, shard, created_at, sent_at) \
             SELECT UUID(), 'order', '1', 'OrderPlaced', {shard}, UTC_TIMESTAMP(3), {sent_at} \
             FROM (SELECT n + 1 AS n FROM {} WHERE n < {rows}) AS of_rows",
            numbers(rows.ilog10() + 1)
        );
        self.connect().batch_execute(&insert).expect("insert rows");
    }

    /// Only MariaDB counts this.
    fn rows_read(&self) -> usize {
        self.connect().batch_execute("SET GLOBAL userstat = 1").expect("statistics of the tables");
        let read = "SELECT CAST(COALESCE(SUM(rows_read), 0) AS SIGNED) FROM information_schema.table_statistics \
                    WHERE table_schema = DATABASE() AND table_name = 'outbox'";
        usize::try_from(self.number(read)).expect("a number of rows")
    }
}

/// What the names of the locks begin with on which the relays agree.
const LOCKS: &str = "'outbox_', LEFT(DATABASE(), 36), '_', CRC32(DATABASE()), '_'";

/// Returns a table of all numbers `n` that have up to so many digits.
fn numbers(digits: u32) -> String {
    let digit = (1..10)
        .fold("SELECT 0 AS d".to_owned(), |digits, digit| format!("{digits} UNION ALL SELECT {digit}"));
    let places: Vec<String> =
        (0..digits).map(|place| format!("d{place}.d * {}", 10_u32.pow(place))).collect();
    let tables: Vec<String> = (0..digits).map(|place| format!("({digit}) AS d{place}")).collect();
    format!("(SELECT {} AS n FROM {}) AS numbers", places.join(" + "), tables.join(" CROSS JOIN "))
}
