use diesel::connection::Connection;
use diesel::migration::{Migration, MigrationSource};

use crate::backend::{InsertVersion, OutboxBackend, sealed::Statements};

/// Creates the outbox's and the inbox's tables, or brings them up to date.
///
/// Which migrations have been run is kept in a table of its own, `outbox_migration`: your own migrations, their
/// record and your `schema.rs` are not touched. Running it again does nothing, and several processes may run it at
/// the same time.
///
/// It takes a synchronous connection. Where there is none, diesel-async's `AsyncConnectionWrapper` is one, within
/// `tokio::task::spawn_blocking`.
///
/// ```
/// # use diesel::prelude::*;
/// # #[cfg(feature = "sqlite")]
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use diesel_outbox::Migrations;
///
/// let conn = &mut SqliteConnection::establish(":memory:")?;
/// assert_eq!(Migrations::new().run(conn)?.len(), 1);
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
}

impl Migrations {
    /// All migrations, in the schema that the connection uses.
    pub fn new() -> Self {
        Self::default()
    }

    /// Puts the tables into this schema, which is made where it is missing (PostgreSQL). The service that emits and the
    /// relay must then have the schema in their `search_path`.
    pub fn schema(mut self, schema: impl Into<String>) -> Self {
        self.schema = Some(schema.into());
        self
    }

    /// Runs what has not been run yet, all in one transaction, and returns the names of the migrations it ran.
    ///
    /// # Errors
    /// The database's; nothing is changed then.
    pub fn run<C>(&self, conn: &mut C) -> Result<Vec<String>, MigrationError>
    where
        C: Connection<Backend: OutboxBackend> + 'static,
    {
        conn.transaction(|c| {
            if !<C::Backend as Statements>::MIGRATION_LOCK.is_empty() {
                c.batch_execute(<C::Backend as Statements>::MIGRATION_LOCK)?;
            }
            if let Some(schema) = &self.schema {
                let quoted = format!("\"{}\"", schema.replace('"', "\"\""));
                c.batch_execute(&format!("CREATE SCHEMA IF NOT EXISTS {quoted}"))?;
                c.batch_execute(&format!("SET LOCAL search_path TO {quoted}"))?;
            }
            c.batch_execute(
                "CREATE TABLE IF NOT EXISTS outbox_migration \
                 (version varchar(50) PRIMARY KEY, run_at timestamp NOT NULL DEFAULT CURRENT_TIMESTAMP)",
            )?;
            let migrations: Vec<Box<dyn Migration<C::Backend>>> = <C::Backend as Statements>::MIGRATIONS
                .migrations()
                .map_err(|source| MigrationError::Migration { name: "embedded".into(), source })?;
            let mut run = Vec::new();
            for migration in migrations {
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
