//! A database of each kind with the tables.

use diesel::connection::SimpleConnection;
use diesel::prelude::*;
use diesel::sql_types::BigInt;
use diesel_outbox_core::Source;
use diesel_outbox_relay::operate::prune::Prunable;
use diesel_outbox_relay::source::{SourceOptions, SqliteSource};
use outbox_tests::{Folder, Tables};

pub(super) trait Site {
    fn url(&self) -> &str;
    fn source(&self, options: SourceOptions) -> Box<dyn Source>;
    fn execute(&self, sql: &str);
    fn count(&self, from: &str) -> usize;

    /// Grants the relay's role what it takes to prune dead letters.
    fn let_prune_dead_letters(&self) {
        self.execute("GRANT DELETE ON outbox_dead_letter TO outbox_test_relay");
    }

    /// Returns an operator's connection.
    fn prunable(&self) -> Box<dyn Prunable> {
        let url = self.url();
        match url.split_once("://") {
            Some(("mysql", _)) => Box::new(diesel_outbox_relay::mysql::Conn::new(url).unwrap()),
            Some(_) => Box::new(PgConnection::establish(url).unwrap()),
            None => Box::new(SqliteConnection::establish(url).unwrap()),
        }
    }
}

impl<T: Tables> Site for T {
    fn url(&self) -> &str {
        Tables::url(self)
    }

    fn source(&self, options: SourceOptions) -> Box<dyn Source> {
        Tables::source(self, options)
    }

    fn execute(&self, sql: &str) {
        self.connect().batch_execute(sql).unwrap();
    }

    fn count(&self, from: &str) -> usize {
        Tables::count(self, from)
    }
}

pub(super) struct OnSqlite {
    _folder: Folder,
    path: String,
}

impl OnSqlite {
    pub(super) fn new() -> Self {
        let (_folder, path) = super::sqlite();
        Self { _folder, path }
    }

    fn connect(&self) -> SqliteConnection {
        let mut conn = SqliteConnection::establish(&self.path).unwrap();
        conn.batch_execute("PRAGMA busy_timeout = 10000").unwrap();
        conn
    }
}

impl Site for OnSqlite {
    /// There are no roles.
    fn let_prune_dead_letters(&self) {}

    fn url(&self) -> &str {
        &self.path
    }

    fn source(&self, options: SourceOptions) -> Box<dyn Source> {
        Box::new(SqliteSource::new(&self.path, options))
    }

    fn execute(&self, sql: &str) {
        self.connect().batch_execute(sql).unwrap();
    }

    fn count(&self, from: &str) -> usize {
        let sql = format!("SELECT count(*) FROM {from}");
        diesel::dsl::sql::<BigInt>(&sql).get_result::<i64>(&mut self.connect()).unwrap() as usize
    }
}

/// Makes a test on each kind of database of each function.
macro_rules! on_each_database {
    ($($name:ident),* $(,)?) => {
        mod on_postgres {
            $(#[test] fn $name() { super::$name(&outbox_tests::load::migrated()); })*
        }
        mod on_mariadb {
            $(#[test] fn $name() { super::$name(&outbox_tests::migrated_mariadb()); })*
        }
        mod on_sqlite {
            $(#[test] fn $name() { super::$name(&crate::site::OnSqlite::new()); })*
        }
    };
}
pub(super) use on_each_database;

/// A time long ago, and one that every database takes for the present.
pub(super) const LONG_AGO: &str = "2001-01-01 00:00:00";
pub(super) const NOW: &str = "2090-01-01 00:00:00";

/// Inserts events with the numbers from `first` to `last`, which were sent at this time.
pub(super) fn insert(site: &dyn Site, first: usize, last: usize, sent_at: Option<&str>) {
    let sent_at = sent_at.map_or("NULL".to_owned(), |at| format!("'{at}'"));
    let rows: Vec<String> = (first..=last)
        .map(|n| {
            format!(
                "({n}, '00000000-0000-0000-0000-{n:012}', 'order', '{n}', 'Placed', {}, '{LONG_AGO}', {sent_at})",
                n % 16
            )
        })
        .collect();
    site.execute(&format!(
        "INSERT INTO outbox (seq, id, aggregatetype, aggregateid, type, shard, created_at, sent_at) VALUES {}",
        rows.join(",")
    ));
}

/// Inserts a dead letter.
pub(super) fn dead_letter(site: &dyn Site, seq: usize, aggregate: &str, failed_at: &str, reason: &str) {
    site.execute(&format!(
        "INSERT INTO outbox_dead_letter (seq, id, aggregatetype, aggregateid, type, shard, created_at, reason, failed_at) \
         VALUES ({seq}, '00000000-0000-0000-0001-{seq:012}', 'order', '{aggregate}', 'Placed', 1, '{LONG_AGO}', '{reason}', '{failed_at}')"
    ));
}

/// The reason of what was held back behind another dead letter.
pub(super) const BLOCKED: &str =
    "blocked: an earlier record of the same aggregate is a dead letter; requeue the aggregate";
