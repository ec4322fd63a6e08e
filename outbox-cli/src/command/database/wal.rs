//! The settings of PostgreSQL's write-ahead log, as the relay takes them.

#[cfg(feature = "postgres")]
use diesel::pg::PgConnection;
#[cfg(feature = "postgres")]
use diesel_outbox_relay::WalOptions;
#[cfg(feature = "postgres")]
pub(super) use diesel_outbox_relay::source::wal::{WalError, drop, setup};

#[cfg(any(feature = "mysql", feature = "sqlite"))]
use crate::command::failure::Failure;
#[cfg(any(feature = "mysql", feature = "sqlite"))]
use crate::command::origin::Origins;
#[cfg(feature = "postgres")]
use crate::command::settings::{WalReadingSettings, WalSettings};

#[cfg(feature = "postgres")]
pub(super) type Change = fn(&mut PgConnection, &mut PgConnection, &WalOptions) -> Result<(), WalError>;

#[cfg(feature = "postgres")]
pub(super) fn options(settings: &WalSettings) -> WalOptions {
    let mut options = WalOptions::default();
    options.slot.clone_from(&settings.slot);
    options.publication.clone_from(&settings.publication);
    options
}

#[cfg(feature = "postgres")]
pub(super) fn reading_options(settings: &WalSettings, reading: &WalReadingSettings) -> WalOptions {
    let mut options = options(settings);
    options.confirm_interval = reading.confirm_interval.0;
    options.slot_size_warning = reading.slot_size_warning;
    options
}

/// The failure for other databases than PostgreSQL, and which setting is the reason.
#[cfg(any(feature = "mysql", feature = "sqlite"))]
pub(super) fn not_here(origins: &Origins, key: &str) -> Failure {
    origins
        .of(key)
        .wrong("only PostgreSQL's write-ahead log can be read: poll the table of another database")
        .into()
}
