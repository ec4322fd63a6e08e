//! `outbox debezium`: what is needed for Debezium to relay this outbox.

mod check;
mod connector;
mod properties;
mod sql;

pub(crate) use self::properties::Format;
use super::config::Config;
use super::database::Database;
use super::database::server::Server;
use super::failure::Failure;
use super::output::{print, tell};

/// What is asked for.
pub(crate) enum Debezium {
    Connector { name: String, format: Format },
    Sql,
    Check,
}

pub(crate) fn run(config: &Config, what: &Debezium) -> Result<(), Failure> {
    let outbox = Outbox::chosen(config)?;
    match what {
        Debezium::Connector { name, format } => {
            let (connector, notes) = connector::connector(config, &outbox, name)?;
            // JSON has no place for notes.
            if *format == Format::Json {
                notes.iter().for_each(|note| tell(note));
            }
            print(&format.text(name, &connector, &notes))
        }
        Debezium::Sql => print(&sql::text(&outbox)),
        Debezium::Check => check::run(config, &outbox),
    }
}

/// The outbox as Debezium is told of it.
struct Outbox {
    server: Server,
    /// The schema of the table `outbox`.
    schema: String,
    slot: String,
    publication: String,
}

impl Outbox {
    fn chosen(config: &Config) -> Result<Self, Failure> {
        let server = Database::chosen(config)?.server(config)?;
        let schema = config.text("schema").unwrap_or("public").to_owned();
        let plain = |key| {
            let name = config.shown(key);
            let is_plain = name.starts_with(|c: char| c.is_ascii_lowercase() || c == '_')
                && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_');
            match config.get(key) {
                Some(given) if !is_plain => Err(given.origin.wrong(format!(
                    "`{name}` is wrong: Debezium takes small letters, digits and `_`, and no digit first"
                ))),
                _ => Ok(name.to_owned()),
            }
        };
        let (slot, publication) = (plain("slot")?, plain("publication")?);
        Ok(Self { server, schema, slot, publication })
    }
}
