//! Why a command failed, for a person to read and as an exit code.

use std::error::Error;

use diesel_outbox::MigrationError;
use diesel_outbox_relay::RelayError;

use super::value::ConfigError;

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error("cannot connect to {database}: {source}")]
    Connect { database: String, source: diesel::ConnectionError },
    #[cfg(feature = "sqlite")]
    #[error("there is no database file {0}: correct the path, or make it with `outbox migrate`")]
    NoFile(String),
    #[error("{database} cannot be migrated: {source}")]
    Migrate { database: String, source: MigrationError },
    #[error("the outbox in {database} cannot be worked with: {source}{}", hint(source))]
    Query { database: String, source: diesel::result::Error },
    #[cfg(feature = "postgres")]
    #[error("{database}: {source}")]
    Wal { database: String, source: diesel_outbox_relay::source::wal::WalError },
    #[cfg(feature = "postgres")]
    #[error("Debezium cannot work yet: {wrong} of these are wrong")]
    DebeziumCheck { wrong: usize },
    #[error("no dead letter matches: see `outbox dead-letters`")]
    NoDeadLetter,
    #[error("{0}")]
    Broker(String),
    #[error(transparent)]
    Relay(#[from] RelayError),
    #[error("the process cannot be prepared for signals: {0}")]
    Signals(std::io::Error),
    #[error("the output cannot be written: {0}")]
    Output(std::io::Error),
}

impl Failure {
    /// 2 where the command was not used as it should be, so that trying again cannot help; else 1.
    pub(crate) fn exit_code(&self) -> u8 {
        match self {
            Self::Config(_) | Self::Broker(_) => 2,
            _ => 1,
        }
    }
}

/// What to do about it, where that is likely.
fn hint(error: &diesel::result::Error) -> &'static str {
    let text = error.to_string();
    if text.contains("does not exist") || text.contains("no such table") {
        "; make the tables with `outbox migrate`, or name the schema that holds them"
    } else {
        ""
    }
}

/// The error and what caused it. A cause that the text already tells is not told again.
pub(crate) fn in_one_line(error: &dyn Error) -> String {
    let mut line = flat(&error.to_string());
    let mut cause = error.source();
    while let Some(error) = cause {
        let text = flat(&error.to_string());
        if !line.contains(&text) {
            line = format!("{line}: {text}");
        }
        cause = error.source();
    }
    line
}

/// The text in one line.
fn flat(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}
