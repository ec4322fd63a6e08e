//! `outbox migrate` on the relay's driver, so that one URL serves both, with the same parameters and the same TLS.

use diesel_outbox::__private::{
    CREATE_MIGRATION_RECORD, MIGRATION_RECORD, MYSQL_FIND_MIGRATION_RECORD, MYSQL_MIGRATION_LOCK,
    quoted_literal,
};
use diesel_outbox::{MigrationError, Migrations, MysqlMigration};
use diesel_outbox_relay::mysql::prelude::Queryable;
use diesel_outbox_relay::mysql::{Conn, Error};

use super::as_diesel;

/// Runs the pending migrations as [`Migrations::run`] does, with its record and under its lock, which ends with the connection.
pub(in crate::command::database) fn migrate(
    conn: &mut Conn,
    migrations: &Migrations,
) -> Result<Vec<String>, MigrationError> {
    let wanted = migrations.on_mysql();
    if count(conn, MYSQL_FIND_MIGRATION_RECORD)? > 0 && have_run(conn, &wanted)? {
        return Ok(Vec::new());
    }
    if count(conn, MYSQL_MIGRATION_LOCK)? == 0 {
        return Err(MigrationError::Locked);
    }
    execute(conn, CREATE_MIGRATION_RECORD).map_err(failed)?;
    let mut run = Vec::new();
    for migration in wanted {
        if have_run(conn, std::slice::from_ref(&migration))? {
            continue;
        }
        let MysqlMigration { name, version, up } = migration;
        execute(conn, up)
            .map_err(|source| MigrationError::Migration { name: name.to_owned(), source: source.into() })?;
        let version = quoted_literal(&version);
        execute(conn, &format!("INSERT INTO {MIGRATION_RECORD} (version) VALUES ({version})"))
            .map_err(failed)?;
        run.push(name.to_owned());
    }
    Ok(run)
}

/// Runs these statements one after the other.
pub(in crate::command::database) fn run(conn: &mut Conn, statements: &[String]) -> diesel::QueryResult<()> {
    statements.iter().try_for_each(|statement| execute(conn, statement)).map_err(|error| as_diesel(&error))
}

fn have_run(conn: &mut Conn, wanted: &[MysqlMigration]) -> Result<bool, MigrationError> {
    let versions: Vec<String> = wanted.iter().map(|migration| quoted_literal(&migration.version)).collect();
    let select = format!("SELECT 1 FROM {MIGRATION_RECORD} WHERE version IN ({})", versions.join(", "));
    Ok(count(conn, &select)? == wanted.len())
}

/// Returns the number of rows that the query selects.
fn count(conn: &mut Conn, query: &str) -> Result<usize, MigrationError> {
    let mut rows = conn.query_iter(query).map_err(failed)?;
    rows.try_fold(0, |count, row| row.map(|_| count + 1)).map_err(failed)
}

/// Runs statements. The driver keeps the failure of each but the first from whoever does not read all results.
fn execute(conn: &mut Conn, statements: &str) -> Result<(), Error> {
    let mut results = conn.query_iter(statements)?;
    while let Some(mut rows) = results.iter() {
        rows.try_for_each(|row| row.map(drop))?;
    }
    Ok(())
}

fn failed(error: Error) -> MigrationError {
    MigrationError::Database(as_diesel(&error))
}
