//! `outbox wal setup` and `outbox wal drop`

use super::args::WalAction;
use super::database::OutboxDatabase;
use super::failure::Failure;
use super::origin::Origins;
use super::output::print;

pub(crate) fn run(action: &WalAction, origins: &Origins) -> Result<(), Failure> {
    match action {
        WalAction::Setup { common, wal } => {
            let database = OutboxDatabase::only_chosen(&common.database, origins)?;
            database.set_up_wal(wal, origins)?;
            let slot = &wal.slot;
            print(&format!(
                "{database}: later events are read from the slot {slot}, earlier ones are polled.\n\
                 Start a relay with --source wal. It sends both, one after the other.\n"
            ))
        }
        WalAction::Drop { common, wal } => {
            let database = OutboxDatabase::only_chosen(&common.database, origins)?;
            database.drop_wal(wal, origins)?;
            print(&format!("{database}: no slot is read any more, and all events are polled.\n"))
        }
    }
}
