//! `outbox debezium`: all that Debezium needs to relay this outbox.

mod connector;
mod finding;
#[cfg(feature = "mysql")]
mod mysql;
#[cfg(feature = "postgres")]
mod postgres;
mod properties;

pub(crate) use self::connector::connector_name;
pub(crate) use self::properties::Format;
use super::args::DebeziumAction;
use super::database::OutboxDatabase;
use super::failure::Failure;
use super::origin::Origins;

pub(crate) fn run(action: &DebeziumAction, origins: &Origins) -> Result<(), Failure> {
    let database = OutboxDatabase::only_chosen(&action.common().database, origins)?;
    match &database {
        #[cfg(feature = "mysql")]
        OutboxDatabase::Mysql { opts, flavor, .. } => mysql::run(action, &database, opts, *flavor, origins),
        #[cfg(feature = "postgres")]
        OutboxDatabase::Postgres { .. } => postgres::run(action, &database, origins),
        #[cfg(feature = "sqlite")]
        OutboxDatabase::Sqlite { .. } => Err(origins
            .of("database_url")
            .wrong("Debezium reads no SQLite file: name a PostgreSQL, MySQL or MariaDB database")
            .into()),
    }
}
