use diesel::connection::{Connection, LoadConnection};
use diesel::migration::{Migration, MigrationSource};
use diesel::query_builder::{AstPass, Query, QueryFragment, QueryId};
use diesel::sql_types::Integer;
use diesel_outbox_core::__private::{quoted_identifier, quoted_literal};

use crate::MigrateConnection;
use crate::backend::{InsertVersion, OutboxBackend, sealed::Statements};

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
/// assert_eq!(Migrations::new().run(conn)?.len(), 2);
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

    /// Sets the schema for the tables (PostgreSQL only), and creates it if it does not exist. Default: the first schema of the
    /// connection's `search_path`.
    ///
    /// Services and the relay must then have the schema in their `search_path` or name it. In a service, that is
    /// [`Outbox::schema`](crate::Outbox::schema) and [`Inbox::schema`](crate::Inbox::schema).
    pub fn schema(mut self, schema: impl Into<String>) -> Self {
        self.schema = Some(schema.into());
        self
    }

    /// Runs the pending migrations in one transaction and returns their names. If nothing is pending, it takes no lock.
    ///
    /// # Errors
    /// A [`MigrationError`] if the database refuses. Nothing is changed then. On PostgreSQL it waits for another process that
    /// migrates, but fails after 5 s.
    pub fn run<C: MigrateConnection>(&self, conn: &mut C) -> Result<Vec<String>, MigrationError> {
        conn.migrate(self)
    }

    pub(crate) fn run_on<C>(&self, conn: &mut C) -> Result<Vec<String>, MigrationError>
    where
        C: Connection<Backend: OutboxBackend> + LoadConnection + 'static,
    {
        let lock = <C::Backend as Statements>::migration_lock();
        // If the tables exist, a service must be able to start no matter who holds the lock.
        if lock.is_some() && self.are_run(conn)? {
            return Ok(Vec::new());
        }
        conn.transaction(|c| {
            if let Some(lock) = &lock {
                c.batch_execute(lock)?;
            }
            if let Some(quoted) = self.quoted_schema() {
                c.batch_execute(&format!("CREATE SCHEMA IF NOT EXISTS {quoted}"))?;
                c.batch_execute(&format!("SET LOCAL search_path TO {quoted}"))?;
            }
            c.batch_execute(
                "CREATE TABLE IF NOT EXISTS outbox_migration \
                 (version varchar(50) PRIMARY KEY, run_at timestamp NOT NULL DEFAULT CURRENT_TIMESTAMP)",
            )?;
            let mut run = Vec::new();
            for migration in self.embedded::<C::Backend>()? {
                let name = migration.name().to_string();
                let version = migration.name().version().to_string();
                if c.execute_returning_count(&InsertVersion { version: &version })? == 1 {
                    migration
                        .run(c)
                        .map_err(|source| MigrationError::Migration { name: name.clone(), source })?;
                    run.push(name);
                }
            }
            Ok(run)
        })
    }

    /// Returns whether all migrations have run, in a database with schemas.
    fn are_run<C>(&self, conn: &mut C) -> Result<bool, MigrationError>
    where
        C: Connection<Backend: OutboxBackend> + LoadConnection,
    {
        let table = match self.quoted_schema() {
            Some(quoted) => format!("{quoted}.outbox_migration"),
            None => "outbox_migration".to_owned(),
        };
        // Without a schema, the table is created in the first schema of the search_path, whatever the others contain.
        let place = match &self.schema {
            Some(_) => quoted_literal(&table),
            None => "quote_ident(current_schema()) || '.outbox_migration'".to_owned(),
        };
        if count(conn, &format!("SELECT 1 WHERE to_regclass({place}) IS NOT NULL"))? == 0 {
            return Ok(false);
        }
        let migrations = self.embedded::<C::Backend>()?;
        let versions: Vec<String> = migrations
            .iter()
            .map(|migration| quoted_literal(&migration.name().version().to_string()))
            .collect();
        let versions = versions.join(", ");
        Ok(count(conn, &format!("SELECT 1 FROM {table} WHERE version IN ({versions})"))? == migrations.len())
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

/// The reason why the migrations could not run. The database is unchanged.
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
    /// The database failed outside a migration, for example because another process held the lock for too long.
    #[error("the migrations could not be run: {0}")]
    Database(#[from] diesel::result::Error),
}
