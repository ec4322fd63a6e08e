//! `outbox migrate`

use super::database::OutboxDatabase;
use super::failure::Failure;
use super::origin::Origins;
use super::output::print;
use super::settings::CommonSettings;

/// Runs the migrations, and prints which it ran.
pub(crate) fn run(common: &CommonSettings, origins: &Origins) -> Result<(), Failure> {
    let database = OutboxDatabase::chosen(&common.database, origins)?;
    let run = database.migrate()?;
    if run.is_empty() {
        return print(&format!("{database} is up to date\n"));
    }
    let lines: String = run.iter().map(|name| format!("ran {name}\n")).collect();
    print(&format!("{lines}{database} is now up to date\n"))
}
