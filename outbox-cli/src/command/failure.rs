//! Why a command failed, for a person to read and as an exit code.

use diesel_outbox::MigrationError;
use diesel_outbox_relay::RelayError;
pub(crate) use diesel_outbox_status::__private::in_one_line;

use super::origin::ConfigError;

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error("cannot connect to {database}: {source}")]
    Connect { database: String, source: diesel::ConnectionError },
    #[cfg(feature = "sqlite")]
    #[error("there is no database file {0}: correct the path, or make the file with `outbox migrate`")]
    NoFile(String),
    #[error("cannot migrate {database}: {source}")]
    Migrate { database: String, source: MigrationError },
    #[cfg(any(feature = "mysql", feature = "postgres"))]
    #[error(
        "cannot make the roles of {database} and grant them what they need: {source}. Connect as an administrator, or let one run what \
         --roles --print prints"
    )]
    Roles { database: String, source: diesel::result::Error },
    #[cfg(feature = "postgres")]
    #[error("{database}: {problem}")]
    Pooler { database: String, problem: String },
    #[error("cannot query the outbox in {database}: {source}{}", hint(source))]
    Query { database: String, source: diesel::result::Error },
    #[cfg(feature = "postgres")]
    #[error("{database}: {source}")]
    Wal { database: String, source: diesel_outbox_relay::source::wal::WalError },
    #[cfg(any(feature = "mysql", feature = "postgres"))]
    #[error("Debezium cannot start yet: do what the {failed} lines marked FAIL say")]
    DebeziumCheck { failed: usize },
    #[error("the relay does not work, or will soon not: do what the {failed} lines marked FAIL say")]
    Doctor { failed: usize },
    #[error("no dead letter matches: `outbox dead-letters` lists them")]
    NoDeadLetter,
    #[error("{database}: {found}")]
    Verify { database: String, found: String },
    #[error("nobody sends the event {0} before somebody acts, as said above")]
    Unsendable(uuid::Uuid),
    #[error("the event {0} is in no table")]
    NotThere(uuid::Uuid),
    #[error("the replay has not ended: {0}")]
    Replay(String),
    #[error("it was interrupted by a signal: to go on, run it again")]
    Prune,
    #[error("cannot read the topics: {0}")]
    Topics(diesel_outbox_relay::PublishError),
    #[error("{0}")]
    Broker(String),
    #[error(transparent)]
    Relay(#[from] RelayError),
    #[error("{setting}: cannot listen at {address}: {source}")]
    Listen { setting: String, address: String, source: std::io::Error },
    #[error("cannot record metrics: {0}")]
    Metrics(String),
    #[cfg(feature = "opentelemetry")]
    #[error("cannot send spans by OTLP, as the variables OTEL_.. ask: {0}")]
    Traces(String),
    #[error("cannot listen for signals: {0}")]
    Signals(std::io::Error),
    #[error("cannot write the output: {0}")]
    Output(std::io::Error),
}

impl Failure {
    /// 2 if the command was used wrongly, so that trying again cannot help, 3 and 4 for what `outbox explain` has found, else 1.
    pub(crate) fn exit_code(&self) -> u8 {
        match self {
            Self::Config(_) | Self::Broker(_) => 2,
            Self::Unsendable(_) => 3,
            Self::NotThere(_) => 4,
            _ => 1,
        }
    }
}

/// What to do about the error, if we can guess it.
fn hint(error: &diesel::result::Error) -> &'static str {
    let text = error.to_string();
    // PostgreSQL, MySQL and MariaDB, SQLite
    if ["does not exist", "doesn't exist", "no such table"].iter().any(|missing| text.contains(missing)) {
        "; make the tables with `outbox migrate`, or name the schema that holds them"
    } else {
        ""
    }
}

#[cfg(test)]
mod tests {
    use diesel::result::DatabaseErrorKind;

    use super::*;

    fn shown(message: &str) -> String {
        let message = Box::new(message.to_owned());
        let source = diesel::result::Error::DatabaseError(DatabaseErrorKind::Unknown, message);
        Failure::Query { database: "shop".to_owned(), source }.to_string()
    }

    #[test]
    fn an_error_about_a_missing_table_says_what_to_do_on_each_database() {
        for message in [
            "relation \"outbox\" does not exist",
            "MySqlError { ERROR 1146 (42S02): Table 'shop.outbox' doesn't exist }",
            "no such table: outbox",
        ] {
            let line = shown(message);
            assert!(line.contains("outbox migrate"), "{line}");
        }
    }

    #[test]
    fn another_error_has_no_advice() {
        let line = shown("Lock wait timeout exceeded");
        assert!(!line.contains("outbox migrate"), "{line}");
    }
}
