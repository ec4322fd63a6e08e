use diesel::connection::{Connection, LoadConnection};
use diesel::migration::{Migration, MigrationSource};
use diesel::query_builder::{AstPass, Query, QueryFragment, QueryId};
use diesel::sql_types::Integer;

use crate::MigrateConnection;
use crate::backend::{InsertVersion, OutboxBackend, quoted, sealed::Statements};

/// Creates the outbox's and the inbox's tables, or brings them up to date.
///
/// Which migrations have been run is kept in a table of its own, `outbox_migration`: your own migrations, their
/// record and your `schema.rs` are not touched. Running it again does nothing, and several processes may run it at
/// the same time.
///
/// It takes a synchronous connection. If there is none, diesel-async's `AsyncConnectionWrapper` is one: see the
/// [crate](crate#migrations-on-an-async-connection).
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
    part: Part,
}

/// Whose tables are made.
#[derive(Debug, Clone, Copy, Default)]
enum Part {
    #[default]
    Both,
    Outbox,
    Inbox,
}

impl Part {
    /// Whether a migration of this name belongs to it; the name says whose tables it makes.
    fn has(self, name: &str) -> bool {
        match self {
            Self::Both => true,
            Self::Outbox => !name.ends_with("_inbox"),
            Self::Inbox => name.ends_with("_inbox"),
        }
    }
}

impl Migrations {
    /// All migrations, in the schema that the connection uses.
    pub fn new() -> Self {
        Self::default()
    }

    /// The migrations of the inbox alone, for a service that consumes and does not emit. Others may be run later in the same
    /// database.
    pub fn inbox_only() -> Self {
        Self { part: Part::Inbox, ..Self::default() }
    }

    /// The migrations of the outbox alone, for a service that emits and does not consume. Others may be run later in the same
    /// database.
    pub fn outbox_only() -> Self {
        Self { part: Part::Outbox, ..Self::default() }
    }

    /// Puts the tables into this schema, which is made where it is missing (PostgreSQL). The service that emits and the
    /// relay must then have the schema in their `search_path`, or name it: [`Outbox::schema`](crate::Outbox::schema) and
    /// [`Inbox::schema`](crate::Inbox::schema).
    pub fn schema(mut self, schema: impl Into<String>) -> Self {
        self.schema = Some(schema.into());
        self
    }

    /// Runs what has not been run yet, all in one transaction, and returns the names of the migrations it ran. If there are none it takes
    /// no lock.
    ///
    /// # Errors
    /// The database's; nothing is changed then. On PostgreSQL another process that migrates is waited for, but no longer than 5 s.
    pub fn run<C: MigrateConnection>(&self, conn: &mut C) -> Result<Vec<String>, MigrationError> {
        conn.migrate(self)
    }

    pub(crate) fn run_on<C>(&self, conn: &mut C) -> Result<Vec<String>, MigrationError>
    where
        C: Connection<Backend: OutboxBackend> + LoadConnection + 'static,
    {
        let lock = <C::Backend as Statements>::MIGRATION_LOCK;
        // Who holds the lock is not to keep a service from starting whose tables are there.
        if !lock.is_empty() && self.are_run(conn)? {
            return Ok(Vec::new());
        }
        conn.transaction(|c| {
            if !lock.is_empty() {
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

    /// Whether all have been run, for a database with schemas.
    fn are_run<C>(&self, conn: &mut C) -> Result<bool, MigrationError>
    where
        C: Connection<Backend: OutboxBackend> + LoadConnection,
    {
        let table = match self.quoted_schema() {
            Some(quoted) => format!("{quoted}.outbox_migration"),
            None => "outbox_migration".to_owned(),
        };
        // Without a schema it is made in the first of the search_path, whatever others hold.
        let place = match &self.schema {
            Some(_) => literal(&table),
            None => "quote_ident(current_schema()) || '.outbox_migration'".to_owned(),
        };
        if count(conn, &format!("SELECT 1 WHERE to_regclass({place}) IS NOT NULL"))? == 0 {
            return Ok(false);
        }
        let migrations = self.embedded::<C::Backend>()?;
        let versions: Vec<String> =
            migrations.iter().map(|migration| literal(&migration.name().version().to_string())).collect();
        let versions = versions.join(", ");
        Ok(count(conn, &format!("SELECT 1 FROM {table} WHERE version IN ({versions})"))? == migrations.len())
    }

    fn quoted_schema(&self) -> Option<String> {
        self.schema.as_deref().map(quoted)
    }

    fn embedded<DB: OutboxBackend>(&self) -> Result<Vec<Box<dyn Migration<DB>>>, MigrationError> {
        let all: Vec<Box<dyn Migration<DB>>> = <DB as Statements>::MIGRATIONS
            .migrations()
            .map_err(|source| MigrationError::Migration { name: "embedded".into(), source })?;
        Ok(all.into_iter().filter(|migration| self.part.has(&migration.name().to_string())).collect())
    }
}

fn literal(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

/// How many rows this selects.
fn count<C>(conn: &mut C, select: &str) -> diesel::QueryResult<usize>
where
    C: Connection<Backend: OutboxBackend> + LoadConnection,
{
    conn.load(Select(select))?.try_fold(0, |count, row| row.map(|_| count + 1))
}

/// A query for any database, as the text says; Diesel's own needs a backend that it knows.
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

/// Why the tables could not be created.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MigrationError {
    /// One of the migrations failed; none was kept.
    #[error("the migration {name} failed: {source}")]
    Migration {
        /// The migration's name.
        name: String,
        /// What the database said.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The database could not be worked with at all.
    #[error("the migrations could not be run: {0}")]
    Database(#[from] diesel::result::Error),
}
