//! `outbox debezium`: all that Debezium needs to relay this outbox.

mod check;
mod connector;
mod properties;
mod setup_sql;

pub(crate) use self::connector::connector_name;
pub(crate) use self::properties::Format;
use super::args::DebeziumAction;
use super::database::OutboxDatabase;
use super::database::server::Server;
use super::failure::Failure;
use super::origin::Origins;
use super::output::{print, say};
use super::settings::{CommonSettings, WalSettings};

pub(crate) fn run(action: &DebeziumAction, origins: &Origins) -> Result<(), Failure> {
    match action {
        DebeziumAction::Connector { name, format, common, wal, topics } => {
            let outbox = DebeziumOutbox::chosen(common, wal, origins)?;
            let connector = connector::connector(&outbox, name, &topics.topic.text);
            let notes = connector::notes(origins);
            // JSON has no place for notes.
            if *format == Format::Json {
                notes.iter().for_each(|note| say(note));
            }
            print(&format.text(name, &connector, &notes))
        }
        DebeziumAction::SetupSql { common, wal } => {
            print(&setup_sql::text(&DebeziumOutbox::chosen(common, wal, origins)?))
        }
        DebeziumAction::Check { common, wal } => {
            let outbox = DebeziumOutbox::chosen(common, wal, origins)?;
            check::run(&OutboxDatabase::only_chosen(&common.database, origins)?, &outbox, origins)
        }
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
    fn chosen(common: &CommonSettings, wal: &WalSettings, origins: &Origins) -> Result<Self, Failure> {
        let database = OutboxDatabase::only_chosen(&common.database, origins)?;
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
