//! `outbox migrate`

use diesel_outbox::Migrations;

use super::args::RoleSettings;
use super::database::{OutboxDatabase, Roles};
use super::failure::Failure;
use super::origin::Origins;
use super::outboxes::Outboxes;
use super::output::print;
use super::settings::CommonSettings;

/// Runs the migrations in each outbox, and prints which it ran. Then lets roles do what they need there, if that is asked for.
pub(crate) fn run(
    common: &CommonSettings,
    origins: &Origins,
    inbox_only: bool,
    settings: &RoleSettings,
) -> Result<(), Failure> {
    let roles = settings.roles.then(|| Roles::named_by(settings, inbox_only));
    Outboxes::chosen(common, origins)?.each(|database| match &roles {
        Some(roles) if settings.print => {
            let statements = database.role_statements(roles, origins)?;
            print(&format!("-- {database}\n\n{}\n\n", statements.join("\n\n")))
        }
        Some(roles) => {
            // A database without roles is not migrated.
            let statements = database.role_statements(roles, origins)?;
            migrate(database, inbox_only)?;
            database.run_statements(&statements)?;
            print(&format!("granted what they need to {}\n", roles.list()))
        }
        None => migrate(database, inbox_only),
    })
}

fn migrate(database: &OutboxDatabase, inbox_only: bool) -> Result<(), Failure> {
    let migrations = if inbox_only { Migrations::inbox_only() } else { Migrations::new() };
    let run = database.migrate(migrations)?;
    if run.is_empty() {
        return print(&format!("{database} is up to date\n"));
    }
    let lines: String = run.iter().map(|name| format!("ran {name}\n")).collect();
    print(&format!("{lines}{database} is now up to date\n"))
}
