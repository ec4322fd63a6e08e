//! `outbox migrate`

use diesel_outbox::Migrations;

use super::failure::Failure;
use super::origin::Origins;
use super::outboxes::Outboxes;
use super::output::print;
use super::settings::CommonSettings;

/// Runs the migrations in each outbox, and prints which it ran.
pub(crate) fn run(common: &CommonSettings, origins: &Origins, inbox_only: bool) -> Result<(), Failure> {
    Outboxes::chosen(common, origins)?.each(|database| {
        let migrations = if inbox_only { Migrations::inbox_only() } else { Migrations::new() };
        let run = database.migrate(migrations)?;
        if run.is_empty() {
            return print(&format!("{database} is up to date\n"));
        }
        let lines: String = run.iter().map(|name| format!("ran {name}\n")).collect();
        print(&format!("{lines}{database} is now up to date\n"))
    })
}
