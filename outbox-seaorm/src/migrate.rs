mod embedded;
mod error;
#[cfg(feature = "migrator")]
mod migrator;

use diesel_outbox_core::__private::{
    CREATE_MIGRATION_RECORD, MIGRATION_RECORD as RECORD, MYSQL_FIND_MIGRATION_RECORD, MYSQL_MIGRATION_LOCK,
    MYSQL_MIGRATION_UNLOCK, SQLITE_FIND_MIGRATION_RECORD, postgres_migration_lock, quoted_identifier,
    quoted_literal,
};
use sea_orm::{
    ConnectionTrait, DbBackend, DbErr, SqliteTransactionMode, Statement, TransactionOptions,
    TransactionSession, TransactionTrait,
};

use self::embedded::Embedded;
pub use self::error::MigrationError;

/// The embedded migrations, which create the tables of the outbox and the inbox or upgrade them.
///
/// They record what has run in a table of their own, `outbox_migration`. They do not touch your own migrations or SeaORM's record of
/// them. Running them again does nothing. Several processes may run them at the same time, and so may a service on Diesel or
/// `outbox migrate`: all share the record.
///
/// If you use sea-orm-migration, turn on the feature `migrator` and add them to your own with
/// `Migrations::for_migrator`.
///
/// ```
/// # #[cfg(feature = "sqlite")]
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), sea_orm::DbErr> {
/// use sea_orm::Database;
/// use sea_orm_outbox::Migrations;
///
/// let db = Database::connect("sqlite::memory:").await?;
/// assert_eq!(Migrations::new().run(&db).await?.len(), 3);
/// assert!(Migrations::new().run(&db).await?.is_empty());
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

/// The tables to create.
#[derive(Debug, Clone, Copy, Default)]
enum Part {
    #[default]
    Both,
    Outbox,
    Inbox,
    #[cfg(feature = "migrator")]
    One(&'static str),
}

impl Part {
    /// Returns whether a migration of this name belongs to the part. The name says whose tables it creates.
    fn has(self, name: &str) -> bool {
        match self {
            Self::Both => true,
            Self::Outbox => !name.ends_with("_inbox"),
            Self::Inbox => name.ends_with("_inbox"),
            #[cfg(feature = "migrator")]
            Self::One(only) => name == only,
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
        Self { part: Part::Inbox, ..Self::default() }
    }

    /// Returns only the migrations of the outbox, for a service that emits and does not consume. You may run the others later in the
    /// same database.
    pub fn outbox_only() -> Self {
        Self { part: Part::Outbox, ..Self::default() }
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
    /// On PostgreSQL and SQLite, it does so in one transaction. MySQL and MariaDB commit each statement that creates a table, so give it
    /// a connection there, and not a transaction.
    ///
    /// # Errors
    /// A [`MigrationError`] if the database refuses, which `?` turns into a [`DbErr`]. Except on MySQL and MariaDB, nothing is changed
    /// then. If another process is migrating, it waits, but fails after 5 s.
    pub async fn run<C>(&self, db: &C) -> Result<Vec<String>, MigrationError>
    where
        C: ConnectionTrait + TransactionTrait,
    {
        let all = embedded::of(db.get_database_backend())?;
        let wanted: Vec<&Embedded> = all.iter().filter(|migration| self.part.has(migration.name)).collect();
        match db.get_database_backend() {
            DbBackend::Postgres => self.run_in_schema(db, &wanted).await,
            _ if self.schema.is_some() => Err(MigrationError::NoSchemas),
            DbBackend::MySql => run_under_lock(db, &wanted).await,
            _ => {
                // A service must be able to start no matter who writes.
                if count(db, SQLITE_FIND_MIGRATION_RECORD).await? > 0 && have_run(db, RECORD, &wanted).await?
                {
                    return Ok(Vec::new());
                }
                let txn = begin(db).await?;
                let run = run_pending(&txn, &wanted, true).await?;
                txn.commit().await?;
                Ok(run)
            }
        }
    }

    async fn run_in_schema<C>(&self, db: &C, wanted: &[&Embedded]) -> Result<Vec<String>, MigrationError>
    where
        C: ConnectionTrait + TransactionTrait,
    {
        // If the tables exist, a service must be able to start no matter who holds the lock.
        if self.are_run_in_schema(db, wanted).await? {
            return Ok(Vec::new());
        }
        let txn = begin(db).await?;
        txn.execute_unprepared(&postgres_migration_lock()).await?;
        let search_path = self.enter_schema(&txn).await?;
        let run = run_pending(&txn, wanted, true).await?;
        leave_schema(&txn, search_path).await?;
        txn.commit().await?;
        Ok(run)
    }

    /// Creates the schema, makes it the first of the `search_path`, and returns the `search_path` as it was.
    async fn enter_schema<C: ConnectionTrait>(&self, txn: &C) -> Result<Option<String>, DbErr> {
        let Some(schema) = &self.schema else { return Ok(None) };
        let quoted = quoted_identifier(schema);
        let query = Statement::from_string(DbBackend::Postgres, "SELECT current_setting('search_path')");
        let own = match txn.query_one_raw(query).await? {
            Some(row) => row.try_get_by_index(0)?,
            None => String::new(),
        };
        txn.execute_unprepared(&format!("CREATE SCHEMA IF NOT EXISTS {quoted}")).await?;
        txn.execute_unprepared(&format!("SET LOCAL search_path TO {quoted}, pg_temp")).await?;
        Ok(Some(own))
    }

    /// Returns whether all migrations have run, in a database with schemas.
    async fn are_run_in_schema<C>(&self, db: &C, wanted: &[&Embedded]) -> Result<bool, DbErr>
    where
        C: ConnectionTrait,
    {
        let table = match &self.schema {
            Some(schema) => format!("{}.{RECORD}", quoted_identifier(schema)),
            None => RECORD.to_owned(),
        };
        // Without a schema, the table is created in the first schema of the search_path, whatever the others contain.
        let place = match &self.schema {
            Some(_) => quoted_literal(&table),
            None => format!("pg_catalog.quote_ident(current_schema()) || '.{RECORD}'"),
        };
        if count(db, &format!("SELECT 1 WHERE to_regclass({place}) IS NOT NULL")).await? == 0 {
            return Ok(false);
        }
        have_run(db, &table, wanted).await
    }
}

/// The transaction may be within another one, which must not keep the `search_path` of this one.
async fn leave_schema<C: ConnectionTrait>(txn: &C, search_path: Option<String>) -> Result<(), DbErr> {
    if let Some(own) = search_path {
        let set = format!("SELECT set_config('search_path', {}, true)", quoted_literal(&own));
        txn.execute_unprepared(&set).await?;
    }
    Ok(())
}

async fn begin<C: TransactionTrait>(db: &C) -> Result<C::Transaction, DbErr> {
    // SQLite's begins as the writer, so that two processes wait for each other.
    let options = TransactionOptions {
        sqlite_transaction_mode: Some(SqliteTransactionMode::Immediate),
        ..TransactionOptions::default()
    };
    db.begin_with_options(options).await
}

/// The transaction only keeps the session, whose lock this is: MySQL and MariaDB end it with the first table.
async fn run_under_lock<C>(db: &C, wanted: &[&Embedded]) -> Result<Vec<String>, MigrationError>
where
    C: ConnectionTrait + TransactionTrait,
{
    if count(db, MYSQL_FIND_MIGRATION_RECORD).await? > 0 && have_run(db, RECORD, wanted).await? {
        return Ok(Vec::new());
    }
    let session = db.begin().await?;
    if count(&session, MYSQL_MIGRATION_LOCK).await? == 0 {
        return Err(MigrationError::Locked);
    }
    let run = run_pending(&session, wanted, false).await;
    session.execute_unprepared(MYSQL_MIGRATION_UNLOCK).await?;
    session.commit().await?;
    run
}

/// Runs what has not run yet. In a transaction each migration is recorded first. Elsewhere it is recorded last: if it fails half way it
/// runs again, and finds what is there already.
async fn run_pending<C: ConnectionTrait>(
    c: &C,
    wanted: &[&Embedded],
    in_transaction: bool,
) -> Result<Vec<String>, MigrationError> {
    c.execute_unprepared(CREATE_MIGRATION_RECORD).await?;
    let mut run = Vec::new();
    for &migration in wanted {
        let version = quoted_literal(&migration.version());
        let record = format!("INSERT INTO {RECORD} (version) VALUES ({version})");
        let is_recorded = match in_transaction {
            true => {
                let record = format!("{record} ON CONFLICT DO NOTHING");
                c.execute_unprepared(&record).await?.rows_affected() == 0
            }
            false => have_run(c, RECORD, &[migration]).await?,
        };
        if is_recorded {
            continue;
        }
        let name = migration.name.to_owned();
        match c.execute_unprepared(migration.up).await {
            Ok(_) => {}
            Err(source) => return Err(MigrationError::Migration { name, source }),
        }
        if !in_transaction {
            c.execute_unprepared(&record).await?;
        }
        run.push(name);
    }
    Ok(run)
}

/// Returns whether this table names all of these migrations.
async fn have_run<C: ConnectionTrait>(c: &C, table: &str, wanted: &[&Embedded]) -> Result<bool, DbErr> {
    let versions: Vec<String> = wanted.iter().map(|migration| quoted_literal(&migration.version())).collect();
    if versions.is_empty() {
        return Ok(true);
    }
    // As this type, because it is compared by an operator of PostgreSQL's own. For varchar another role's would be a better fit.
    let select =
        format!("SELECT 1 FROM {table} WHERE CAST(version AS char(50)) IN ({})", versions.join(", "));
    Ok(count(c, &select).await? == versions.len())
}

/// Returns the number of rows that the query selects.
async fn count<C: ConnectionTrait>(c: &C, select: &str) -> Result<usize, DbErr> {
    let select = Statement::from_string(c.get_database_backend(), select);
    Ok(c.query_all_raw(select).await?.len())
}
