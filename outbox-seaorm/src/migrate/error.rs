use sea_orm::DbErr;

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
        source: DbErr,
    },
    /// A schema was set, but only PostgreSQL has schemas within a database.
    #[error(
        "only PostgreSQL has schemas within a database: do not call `.schema(..)`, and connect to the database in which the tables are \
         to be"
    )]
    NoSchemas,
    /// The database is none of those that can hold an outbox.
    #[error("{database} cannot hold an outbox: connect to PostgreSQL, MySQL, MariaDB or SQLite")]
    NoOutbox {
        /// The database's name.
        database: &'static str,
    },
    /// On MySQL or MariaDB, another session has held the lock that keeps two processes from migrating at the same time for 5 s.
    #[error(
        "another session has held the lock that keeps two processes from migrating at the same time for 5 s, so nothing was changed: \
         if it is migrating, run this again when it is done; if not, end it: SELECT IS_USED_LOCK(CONCAT('outbox_migration_', \
         CRC32(DATABASE()))) returns the number for KILL"
    )]
    Locked,
    /// The database failed outside a migration, for example because another process held the lock for too long.
    #[error("the migrations could not be run: {0}")]
    Database(#[from] DbErr),
}

/// An error of the database becomes itself, and all others a `DbErr::Migration`.
impl From<MigrationError> for DbErr {
    fn from(error: MigrationError) -> Self {
        match error {
            MigrationError::Database(error) => error,
            error => Self::Migration(error.to_string()),
        }
    }
}
