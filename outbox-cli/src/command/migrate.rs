//! `outbox migrate`

use diesel_outbox::Migrations;

use super::database::OutboxDatabase;
use super::failure::Failure;
use super::origin::Origins;
use super::output::print;
use super::settings::CommonSettings;

/// Runs the migrations, and prints which it ran.
pub(crate) fn run(common: &CommonSettings, origins: &Origins, inbox_only: bool) -> Result<(), Failure> {
    let database = OutboxDatabase::chosen(&common.database, origins)?;
    let migrations = if inbox_only { Migrations::inbox_only() } else { Migrations::new() };
    let run = database.migrate(migrations)?;
    if run.is_empty() {
        return print(&format!("{database} is up to date\n"));
    }
    let lines: String = run.iter().map(|name| format!("ran {name}\n")).collect();
    print(&format!("{lines}{database} is now up to date\n"))
}
