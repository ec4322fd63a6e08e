//! Debezium for PostgreSQL.

mod check;
mod connector;
mod setup_sql;

use crate::command::args::DebeziumAction;
use crate::command::database::OutboxDatabase;
use crate::command::database::server::Server;
use crate::command::debezium::properties::InitialState;
use crate::command::failure::Failure;
use crate::command::origin::Origins;
use crate::command::output::print;
use crate::command::settings::WalSettings;

pub(super) fn run(
    action: &DebeziumAction,
    database: &OutboxDatabase,
    origins: &Origins,
) -> Result<(), Failure> {
    match action {
        DebeziumAction::Connector { name, format, wal, topics, .. } => {
            let outbox = DebeziumOutbox::chosen(database, wal, origins)?;
            let connector = connector::connector(&outbox, name, &topics.topic.text);
            format.print(name, &connector, &connector::notes(origins), InitialState::Running)
        }
        DebeziumAction::SetupSql { wal, .. } => {
            print(&setup_sql::text(&DebeziumOutbox::chosen(database, wal, origins)?))
        }
        DebeziumAction::Check { wal, .. } => {
            check::run(database, &DebeziumOutbox::chosen(database, wal, origins)?, origins)
        }
        DebeziumAction::Offset { .. } => Err(origins
            .of("database_url")
            .wrong("on PostgreSQL the replication slot says where Debezium begins: there is no offset to set")
            .into()),
    }
}

/// The outbox as Debezium needs to know it.
#[derive(Debug)]
struct DebeziumOutbox {
    server: Server,
    /// The schema of the table `outbox`.
    schema: String,
    slot: String,
    publication: String,
}

impl DebeziumOutbox {
    fn chosen(database: &OutboxDatabase, wal: &WalSettings, origins: &Origins) -> Result<Self, Failure> {
        let server = database.server(origins)?;
        let (_, schema) = database.place();
        let schema = schema.unwrap_or("public").to_owned();
        for (key, name) in [("slot", &wal.slot), ("publication", &wal.publication)] {
            if !is_plain(name) {
                return Err(origins
                    .of(key)
                    .wrong(format!(
                        "`{name}` is wrong: Debezium takes small letters, digits and `_`, and no digit first"
                    ))
                    .into());
            }
        }
        Ok(Self { server, schema, slot: wal.slot.clone(), publication: wal.publication.clone() })
    }
}

/// Whether PostgreSQL takes the name without quotes. Debezium does not quote it.
fn is_plain(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_lowercase() || c == '_')
        && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
}
