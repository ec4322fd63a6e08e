//! PostgreSQL's write-ahead log as the settings want it.

#[cfg(feature = "postgres")]
use diesel::pg::PgConnection;
#[cfg(feature = "postgres")]
use diesel_outbox_relay::WalOptions;
#[cfg(feature = "postgres")]
pub(super) use diesel_outbox_relay::source::wal::{WalError, drop, setup};

use crate::command::config::Config;
#[cfg(feature = "sqlite")]
use crate::command::failure::Failure;
use crate::command::value::ConfigError;

#[cfg(feature = "postgres")]
pub(super) type Change = fn(&mut PgConnection, &mut PgConnection, &WalOptions) -> Result<(), WalError>;

/// Whether the log is to be read instead of the table.
pub(super) fn is_source(config: &Config) -> Result<bool, ConfigError> {
    let source = config.parsed("source", |text| match text {
        "polling" => Ok(false),
        "wal" => Ok(true),
        _ => Err("it must be polling or wal".into()),
    })?;
    Ok(source.unwrap_or_default())
}

#[cfg(feature = "postgres")]
pub(super) fn options(config: &Config) -> Result<WalOptions, ConfigError> {
    let mut options = WalOptions::default();
    if let Some(slot) = config.text("slot") {
        options.slot = slot.to_owned();
    }
    if let Some(publication) = config.text("publication") {
        options.publication = publication.to_owned();
    }
    if let Some(interval) = config.duration("confirm_interval")? {
        options.confirm_interval = interval;
    }
    if let Some(bytes) = config.number("retained_warning")? {
        options.slot_size_warning = bytes as u64;
    }
    Ok(options)
}

/// SQLite's log cannot be read.
#[cfg(feature = "sqlite")]
pub(super) fn not_here(config: &Config) -> Failure {
    let problem = "SQLite has no write-ahead log that can be read: poll it";
    match config.get("source").or_else(|| config.get("database_url")) {
        Some(given) => given.origin.wrong(problem).into(),
        None => ConfigError::Missing { what: problem, key: "database_url" }.into(),
    }
}
