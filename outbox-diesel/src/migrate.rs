#[cfg(feature = "mysql")]
mod mysql;

use std::thread::sleep;
use std::time::{Duration, Instant};

use diesel::connection::{Connection, LoadConnection, TransactionManager};
use diesel::migration::{Migration, MigrationSource};
use diesel::query_builder::{AstPass, Query, QueryFragment, QueryId};
use diesel::result::Error;
use diesel::sql_types::Integer;
use diesel_outbox_core::__private::{
    CREATE_MIGRATION_RECORD, MIGRATION_RECORD as RECORD, quoted_identifier, quoted_literal,
};

#[cfg(feature = "mysql")]
pub use self::mysql::MysqlMigration;
use crate::backend::{InsertVersion, Migrating, OutboxBackend, sealed::Statements};

/// The embedded migrations, which create the tables of the outbox and the inbox or upgrade them.
///
/// They record what has run in a table of their own, `outbox_migration`. They do not touch your own migrations, Diesel's record of
/// them, or your `schema.rs`. Running them again does nothing. Several processes may run them at the same time.
///
/// They need a synchronous connection. If your service has only async ones, use diesel-async's `AsyncConnectionWrapper`: see the
/// [crate's documentation](crate#migrations-on-an-async-connection).
///
/// ```
/// # use diesel::prelude::*;
/// # #[cfg(feature = "sqlite")]
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use diesel_outbox::Migrations;
///
/// let conn = &mut SqliteConnection::establish(":memory:")?;
/// assert_eq!(Migrations::new().run(conn)?.len(), 3);
/// assert!(Migrations::new().run(conn)?.is_empty());
/// # Ok(())
/// # }
/// # #[cfg(not(feature = "sqlite"))]
/// # fn main() {}
/// ```
#[derive(Debug, Clone, Default)]
#[must_use]
pub struct Migrations {
    schema: Option<String>,
    tables: MigratedTables,
}

/// The tables to create.
#[derive(Debug, Clone, Copy, Default)]
enum MigratedTables {
    #[default]
    Both,
    Outbox,
    Inbox,
}

impl MigratedTables {
    /// Returns whether a migration of this name belongs to these tables. The name says whose tables it creates.
    fn has(self, name: &str) -> bool {
        match self {
            Self::Both => true,
            Self::Outbox => !name.ends_with("_inbox"),
            Self::Inbox => name.ends_with("_inbox"),
        }
    }
}

impl Migrations {
    /// Returns all migrations: those of the outbox and of the inbox. They run in the first schema of the connection's
    /// `search_path`.
    pub fn new() -> Self {
        Self::default()
    }

    /// Returns only the migrations of the inbox, for a service that consumes and does not emit. You may run the others later in the
    /// same database.
    pub fn inbox_only() -> Self {
        Self { tables: MigratedTables::Inbox, ..Self::default() }
    }

    /// Returns only the migrations of the outbox, for a service that emits and does not consume. You may run the others later in the
    /// same database.
    pub fn outbox_only() -> Self {
        Self { tables: MigratedTables::Outbox, ..Self::default() }
    }

    /// Sets the schema for the tables, and creates it if it does not exist. Default: the first schema of the connection's `search_path`.
    ///
    /// This is for PostgreSQL only. On other databases [`run`](Self::run) fails then: connect to the database that is to hold the tables.
    ///
    /// Services and the relay must then have the schema in their `search_path` or name it. In a service, that is
    /// [`Outbox::schema`](crate::Outbox::schema) and [`Inbox::schema`](crate::Inbox::schema).
    pub fn schema(mut self, schema: impl Into<String>) -> Self {
        self.schema = Some(schema.into());
        self
    }

    /// Runs the pending migrations and returns their names. If nothing is pending, it takes no lock.
    ///
    /// On PostgreSQL and SQLite, it does so in one transaction. MySQL and MariaDB commit each statement that creates a table, and with
    /// it a transaction that is open around the call.
    ///
    /// # Errors
    /// A [`MigrationError`] if the database refuses. Except on MySQL and MariaDB, nothing is changed then. If another process is
    /// migrating, it waits, but fails after 5 s.
    pub fn run<C: MigrateConnection>(&self, conn: &mut C) -> Result<Vec<String>, MigrationError> {
        conn.migrate(self)
    }

    pub(crate) fn run_on<C>(&self, conn: &mut C) -> Result<Vec<String>, MigrationError>
    where
        C: Connection<Backend: OutboxBackend> + LoadConnection + 'static,
    {
        match <C::Backend as Statements>::MIGRATING {
            Migrating::InSchema(lock) => {
                // If the tables exist, a service must be able to start no matter who holds the lock.
                if self.are_run_in_schema(conn)? {
                    return Ok(Vec::new());
                }
                conn.transaction(|c| {
                    c.batch_execute(&lock())?;
                    if let Some(quoted) = self.quoted_schema() {
                        c.batch_execute(&format!("CREATE SCHEMA IF NOT EXISTS {quoted}"))?;
                        c.batch_execute(&format!("SET LOCAL search_path TO {quoted}, pg_temp"))?;
                    }
                    self.run_pending(c, true)
                })
            }
            _ if self.schema.is_some() => Err(MigrationError::NoSchemas),
            Migrating::AsWriter { begin, find_record } => {
                let are_run = |c: &mut C| Ok(count(c, find_record)? > 0 && self.are_run(c, RECORD)?);
                if patiently(|| are_run(conn))? {
                    return Ok(Vec::new());
                }
                as_writer(conn, begin, |c| self.run_pending(c, true))
            }
            Migrating::UnderLock { lock, unlock, find_record } => {
                if count(conn, find_record)? > 0 && self.are_run(conn, RECORD)? {
                    return Ok(Vec::new());
                }
                if count(conn, lock)? == 0 {
                    return Err(MigrationError::Locked);
                }
                let run = self.run_pending(conn, false);
                conn.batch_execute(unlock)?;
                run
            }
        }
    }

    /// Runs what has not run yet. In a transaction each migration is recorded first. Elsewhere it is recorded last: if it fails half way
    /// it runs again, and finds what is there already.
    fn run_pending<C>(&self, conn: &mut C, in_transaction: bool) -> Result<Vec<String>, MigrationError>
    where
        C: Connection<Backend: OutboxBackend> + LoadConnection + 'static,
    {
        conn.batch_execute(CREATE_MIGRATION_RECORD)?;
        let mut run = Vec::new();
        for migration in self.embedded::<C::Backend>()? {
            let name = migration.name().to_string();
            let version = migration.name().version().to_string();
            let record = InsertVersion { version: &version };
            let is_recorded = match in_transaction {
                true => conn.execute_returning_count(&record)? == 0,
                false => has_run(conn, RECORD, &[&*version])?,
            };
            if is_recorded {
                continue;
            }
            migration.run(conn).map_err(|source| MigrationError::Migration { name: name.clone(), source })?;
            if !in_transaction {
                conn.execute_returning_count(&record)?;
            }
            run.push(name);
        }
        Ok(run)
    }

    /// Returns whether all migrations have run, in a database with schemas.
    fn are_run_in_schema<C>(&self, conn: &mut C) -> Result<bool, MigrationError>
    where
        C: Connection<Backend: OutboxBackend> + LoadConnection,
    {
        let table = match self.quoted_schema() {
            Some(quoted) => format!("{quoted}.{RECORD}"),
            None => RECORD.to_owned(),
        };
        // Without a schema, the table is created in the first schema of the search_path, whatever the others contain.
        let place = match &self.schema {
            Some(_) => quoted_literal(&table),
            None => format!("pg_catalog.quote_ident(current_schema()) || '.{RECORD}'"),
        };
        if count(conn, &format!("SELECT 1 WHERE to_regclass({place}) IS NOT NULL"))? == 0 {
            return Ok(false);
        }
        self.are_run(conn, &table)
    }

    /// Returns whether this table says that all migrations have run.
    fn are_run<C>(&self, conn: &mut C, table: &str) -> Result<bool, MigrationError>
    where
        C: Connection<Backend: OutboxBackend> + LoadConnection,
    {
        let versions: Vec<String> = self
            .embedded::<C::Backend>()?
            .iter()
            .map(|migration| migration.name().version().to_string())
            .collect();
        let versions: Vec<&str> = versions.iter().map(String::as_str).collect();
        Ok(has_run(conn, table, &versions)?)
    }

    fn quoted_schema(&self) -> Option<String> {
        self.schema.as_deref().map(quoted_identifier)
    }

    fn embedded<DB: OutboxBackend>(&self) -> Result<Vec<Box<dyn Migration<DB>>>, MigrationError> {
        let all: Vec<Box<dyn Migration<DB>>> = <DB as Statements>::MIGRATIONS
            .migrations()
            .map_err(|source| MigrationError::Migration { name: "embedded".into(), source })?;
        Ok(all.into_iter().filter(|migration| self.tables.has(&migration.name().to_string())).collect())
    }
}

/// A synchronous connection on which [`Migrations`] can run. It is implemented for the same connections as
/// [`OutboxConnection`](crate::OutboxConnection).
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a connection to a database that can hold an outbox",
    note = "turn on the feature `postgres`, `mysql` or `sqlite` of diesel-outbox; for an enum with `#[derive(MultiConnection)]`, call \
            `diesel_outbox::multi_connection!`",
    note = "migrations take a synchronous connection: wrap an async one in diesel-async's `AsyncConnectionWrapper`, and run them in \
            `tokio::task::spawn_blocking`"
)]
pub trait MigrateConnection: Connection {
    /// Runs the migrations.
    ///
    /// # Errors
    /// As for [`Migrations::run`].
    #[doc(hidden)]
    fn migrate(&mut self, migrations: &Migrations) -> Result<Vec<String>, MigrationError>;
}

impl<C> MigrateConnection for C
where
    C: Connection<Backend: OutboxBackend> + LoadConnection + 'static,
{
    fn migrate(&mut self, migrations: &Migrations) -> Result<Vec<String>, MigrationError> {
        migrations.run_on(self)
    }
}

/// How long to wait for another process that migrates, whatever the connection's own patience is, and how often to look.
const PATIENCE: Duration = Duration::from_secs(5);
const PAUSE: Duration = Duration::from_millis(20);

/// Does this in a transaction that begins with this statement. Diesel's own begins as a reader, and SQLite refuses at once to make it
/// the writer if another process has written since.
fn as_writer<C, T>(
    conn: &mut C,
    begin: &str,
    work: impl FnOnce(&mut C) -> Result<T, MigrationError>,
) -> Result<T, MigrationError>
where
    C: Connection,
{
    if C::TransactionManager::transaction_manager_status_mut(conn).transaction_depth()?.is_some() {
        return conn.transaction(work);
    }
    patiently(|| Ok(conn.batch_execute(begin)?))?;
    // The commit waits for those who read, and may be tried again.
    let done = work(conn).and_then(|done| patiently(|| Ok(conn.batch_execute("COMMIT")?)).map(|()| done));
    if done.is_err() {
        // If this fails too, the first error says more.
        let _ = conn.batch_execute("ROLLBACK");
    }
    done
}

/// Tries again for a while if the database is locked.
fn patiently<T>(mut attempt: impl FnMut() -> Result<T, MigrationError>) -> Result<T, MigrationError> {
    let began = Instant::now();
    loop {
        match attempt() {
            Err(MigrationError::Database(Error::DatabaseError(_, information)))
                if information.message() == "database is locked" && began.elapsed() < PATIENCE =>
            {
                sleep(PAUSE);
            }
            done => return done,
        }
    }
}

/// Returns whether this table names all of these versions.
fn has_run<C>(conn: &mut C, table: &str, versions: &[&str]) -> diesel::QueryResult<bool>
where
    C: Connection<Backend: OutboxBackend> + LoadConnection,
{
    let quoted: Vec<String> = versions.iter().map(|version| quoted_literal(version)).collect();
    // As this type, because it is compared by an operator of PostgreSQL's own. For varchar another role's would be a better fit.
    let select = format!("SELECT 1 FROM {table} WHERE CAST(version AS char(50)) IN ({})", quoted.join(", "));
    Ok(count(conn, &select)? == versions.len())
}

/// Returns the number of rows that the query selects.
fn count<C>(conn: &mut C, select: &str) -> diesel::QueryResult<usize>
where
    C: Connection<Backend: OutboxBackend> + LoadConnection,
{
    conn.load(Select(select))?.try_fold(0, |count, row| row.map(|_| count + 1))
}

/// A query for any database, given as text. Diesel's `sql_query` cannot be loaded from a generic backend.
struct Select<'a>(&'a str);

impl<DB: OutboxBackend> QueryFragment<DB> for Select<'_> {
    fn walk_ast<'b>(&'b self, mut out: AstPass<'_, 'b, DB>) -> diesel::QueryResult<()> {
        out.push_sql(self.0);
        Ok(())
    }
}

impl QueryId for Select<'_> {
    type QueryId = Select<'static>;
    const HAS_STATIC_QUERY_ID: bool = false;
}

impl Query for Select<'_> {
    type SqlType = Integer;
}

/// The reason why the migrations could not run. The database is unchanged, except on MySQL and MariaDB, where each statement commits by
/// itself: tables that were created stay, and the next run goes on with what is missing.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MigrationError {
    /// One of the migrations failed. All were rolled back.
    #[error("the migration {name} failed: {source}")]
    Migration {
        /// The migration's name.
        name: String,
        /// The database's error.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A schema was set, but only PostgreSQL has schemas within a database.
    #[error(
        "only PostgreSQL has schemas within a database: do not call `.schema(..)`, and connect to the database in which the tables are \
         to be"
    )]
    NoSchemas,
    /// On MySQL or MariaDB, another session has held the lock that keeps two processes from migrating at the same time for 5 s.
    #[error(
        "another session has held the lock that keeps two processes from migrating at the same time for 5 s, so nothing was changed: \
         if it is migrating, run this again when it is done; if not, end it: SELECT IS_USED_LOCK(CONCAT('outbox_migration_', \
         CRC32(DATABASE()))) returns the number for KILL"
    )]
    Locked,
    /// The database failed outside a migration, for example because another process held the lock for too long.
    #[error("the migrations could not be run: {0}")]
    Database(#[from] diesel::result::Error),
}
