//! Databases for the tests of SeaORM's crate, each for one test. A test runs on all of them:
//!
//! ```
//! use outbox_tests_seaorm::{Ground, on_each_database};
//!
//! async fn it_answers(ground: &Ground) {
//!     assert_eq!(ground.count("outbox").await, 0);
//! }
//!
//! on_each_database!(it_answers);
//! # fn main() {}
//! ```

#![expect(missing_debug_implementations, reason = "a test prints what a database says, not the database")]

use diesel::connection::SimpleConnection;
use diesel::{Connection, SqliteConnection};
use outbox_tests::{Database, Folder, Mariadb, MariadbDatabase, Postgres};
use sea_orm::{
    ConnectOptions, ConnectionTrait, DatabaseConnection, DbBackend, QueryResult, Statement, TryGetable,
};
use sea_orm_outbox::Migrations;

/// The crate's documentation of a consumer must compile.
#[cfg(doctest)]
#[doc = include_str!("../../outbox-seaorm/src/consume.md")]
struct Consume;

/// A database, with SeaORM's connections to it.
pub struct Ground {
    /// SeaORM's connections.
    pub db: DatabaseConnection,
    place: Place,
}

enum Place {
    Postgres(Database<'static>),
    Mariadb(MariadbDatabase<'static>),
    Sqlite { _folder: Folder, path: String },
}

impl Ground {
    /// Returns an empty database on PostgreSQL.
    pub async fn empty_postgres() -> Self {
        let database = Postgres::shared().database();
        Self { db: connect(database.url()).await, place: Place::Postgres(database) }
    }

    /// Returns an empty database on MariaDB.
    pub async fn empty_mariadb() -> Self {
        let database = Mariadb::shared().database();
        Self { db: connect(database.url()).await, place: Place::Mariadb(database) }
    }

    /// Returns an empty database on MySQL.
    pub async fn empty_mysql() -> Self {
        let database = Mariadb::shared_mysql().database();
        Self { db: connect(database.url()).await, place: Place::Mariadb(database) }
    }

    /// Returns an empty database in a file.
    pub async fn empty_sqlite() -> Self {
        let folder = Folder::new("seaorm");
        let path = folder.path().join("test.db").display().to_string();
        let db = connect(&format!("sqlite://{path}?mode=rwc")).await;
        db.execute_unprepared("PRAGMA journal_mode = WAL").await.unwrap();
        Self { db, place: Place::Sqlite { _folder: folder, path } }
    }

    /// Creates the outbox and the inbox in it.
    pub async fn migrated(self) -> Self {
        Migrations::new().run(&self.db).await.unwrap();
        self
    }

    /// Returns its URL, or its path if it is a file.
    pub fn url(&self) -> &str {
        match &self.place {
            Place::Postgres(database) => database.url(),
            Place::Mariadb(database) => database.url(),
            Place::Sqlite { path, .. } => path,
        }
    }

    /// Runs this with a connection of Diesel's.
    pub fn with_diesel<T>(&self, run: impl WithDiesel<T>) -> T {
        match &self.place {
            Place::Postgres(database) => run.on(&mut database.connect()),
            Place::Mariadb(database) => run.on(&mut database.connect()),
            Place::Sqlite { path, .. } => {
                let mut conn = SqliteConnection::establish(path).unwrap();
                conn.batch_execute("PRAGMA busy_timeout = 20000").unwrap();
                run.on(&mut conn)
            }
        }
    }

    /// Runs SQL without results.
    pub async fn run(&self, sql: &str) {
        self.db.execute_unprepared(sql).await.unwrap();
    }

    /// Returns the rows that a query selects.
    pub async fn rows(&self, select: &str) -> Vec<QueryResult> {
        let statement = Statement::from_string(self.backend(), select);
        self.db.query_all_raw(statement).await.unwrap()
    }

    /// Returns the first column of what a query selects.
    pub async fn column<T: TryGetable>(&self, select: &str) -> Vec<T> {
        self.rows(select).await.iter().map(|row| row.try_get_by_index(0).unwrap()).collect()
    }

    /// Returns the number of rows in a table.
    pub async fn count(&self, from: &str) -> i64 {
        self.column(&format!("SELECT count(*) FROM {from}")).await[0]
    }

    /// Returns which database it is.
    pub fn backend(&self) -> DbBackend {
        self.db.get_database_backend()
    }
}

/// Something to do with a connection of Diesel's, whatever the database.
pub trait WithDiesel<T> {
    /// Does it.
    fn on<C: diesel_outbox::OutboxConnection + diesel_outbox::MigrateConnection>(self, conn: &mut C) -> T;
}

async fn connect(url: &str) -> DatabaseConnection {
    let mut options = ConnectOptions::new(url);
    options.max_connections(10).sqlx_logging(false);
    sea_orm::Database::connect(options).await.unwrap()
}

/// Makes a test for each database of each of these functions, which take a [`Ground`] with the tables.
#[macro_export]
macro_rules! on_each_database {
    ($($name:ident),* $(,)?) => {
        $crate::on_each_database!(@ postgres, empty_postgres: $($name),*);
        $crate::on_each_database!(@ mariadb, empty_mariadb: $($name),*);
        $crate::on_each_database!(@ mysql, empty_mysql: $($name),*);
        $crate::on_each_database!(@ sqlite, empty_sqlite: $($name),*);
    };
    (@ $database:ident, $empty:ident: $($name:ident),*) => {
        mod $database {
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $name() {
                    super::$name(&$crate::Ground::$empty().await.migrated().await).await;
                }
            )*
        }
    };
}
