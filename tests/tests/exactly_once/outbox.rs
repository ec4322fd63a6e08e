use diesel_outbox_relay::Relay;
use diesel_outbox_relay::source::wal::WalOptions;
use outbox_tests::load::{migrated, wait_until_confirmed, wal};
use outbox_tests::{Database, Tables, eventually};

use super::PATIENCE;

/// An outbox, and how its relays get at it.
pub(super) trait Outbox {
    type Tables: Tables;

    fn tables(&self) -> &Self::Tables;

    /// Returns the slot if the WAL is read.
    fn slot(&self) -> Option<&str> {
        None
    }

    fn relay(&self) -> Relay {
        Tables::relay(self.tables())
    }

    fn wait_until_settled(&self);
}

/// It is polled.
impl<T: Tables> Outbox for T {
    type Tables = T;

    fn tables(&self) -> &T {
        self
    }

    #[track_caller]
    fn wait_until_settled(&self) {
        eventually("everything to be settled", PATIENCE, || (self.unsent() == 0).then_some(()));
    }
}

/// It is read from the WAL.
pub(super) struct FromWal<'a>(Database<'a>);

impl FromWal<'static> {
    pub(super) fn new() -> Self {
        let database = migrated();
        wal(&database, "setup");
        Self(database)
    }
}

impl<'a> FromWal<'a> {
    pub(super) fn of(database: Database<'a>) -> Self {
        Self(database)
    }
}

impl<'a> Outbox for FromWal<'a> {
    type Tables = Database<'a>;

    fn tables(&self) -> &Database<'a> {
        &self.0
    }

    fn slot(&self) -> Option<&str> {
        Some(self.0.name())
    }

    fn relay(&self) -> Relay {
        Relay::postgres_wal(self.0.relay_url(), WalOptions::default().slot(self.0.name()))
    }

    #[track_caller]
    fn wait_until_settled(&self) {
        wait_until_confirmed(&mut self.0.connect(), PATIENCE);
    }
}
