//! `outbox migrate`

use super::config::Config;
use super::database::Database;
use super::failure::Failure;
use super::output::print;

/// Runs the migrations and tells which it ran.
pub(crate) fn run(config: &Config) -> Result<(), Failure> {
    let database = Database::chosen(config)?;
    let run = database.migrate()?;
    if run.is_empty() {
        return print(&format!("{database} is up to date\n"));
    }
    let lines: String = run.iter().map(|name| format!("ran {name}\n")).collect();
    print(&format!("{lines}{database} is now up to date\n"))
}
