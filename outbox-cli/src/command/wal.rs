//! `outbox wal setup` and `outbox wal drop`

use super::config::Config;
use super::database::Database;
use super::failure::Failure;
use super::output::print;

/// Makes the publication and the slot.
pub(crate) fn setup(config: &Config) -> Result<(), Failure> {
    let database = Database::chosen(config)?;
    database.set_up_wal(config)?;
    let slot = config.shown("slot");
    print(&format!(
        "{database}: events from now on are read from the slot {slot}. What was emitted before is polled.\n\
         Start a relay with --source wal. It sends both, one after the other.\n"
    ))
}

/// Drops them.
pub(crate) fn drop(config: &Config) -> Result<(), Failure> {
    let database = Database::chosen(config)?;
    database.drop_wal(config)?;
    print(&format!("{database}: no slot is read any more, and all events are polled.\n"))
}
