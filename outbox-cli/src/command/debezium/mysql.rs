//! Debezium for MySQL and MariaDB.

mod check;
mod connector;
mod offset;
mod setup_sql;

use diesel_outbox_relay::mysql::prelude::{FromRow, Queryable};
use diesel_outbox_relay::mysql::{Conn, Error, Opts, Result as QueryResult, Row};

use crate::command::args::DebeziumAction;
use crate::command::database::OutboxDatabase;
use crate::command::database::mysql::Flavor;
use crate::command::debezium::properties::InitialState;
use crate::command::failure::Failure;
use crate::command::origin::Origins;
use crate::command::output::print;

pub(super) fn run(
    action: &DebeziumAction,
    database: &OutboxDatabase,
    opts: &Opts,
    flavor: Flavor,
    origins: &Origins,
) -> Result<(), Failure> {
    let outbox = DebeziumOutbox::named_by(opts, flavor)
        .map_err(|problem| origins.of("database_url").wrong(problem))?;
    match action {
        DebeziumAction::Connector { name, format, server_id, brokers, topics, .. } => {
            let server_id = server_id.unwrap_or_else(|| connector::server_id(&outbox, name));
            let brokers = brokers.list()?;
            let connector = connector::connector(&outbox, name, server_id, &brokers, &topics.topic.text);
            let notes = connector::notes(server_id, origins);
            format.print(name, &connector, &notes, InitialState::Stopped)
        }
        DebeziumAction::SetupSql { .. } => print(&setup_sql::text(&outbox)),
        DebeziumAction::Check { .. } => check::run(database, opts, &outbox),
        DebeziumAction::Offset { name, .. } => {
            let mut conn = database.mysql_connection(opts)?;
            let offset = offset::now(&mut conn, flavor).map_err(|error| failed(database, &error))?;
            print(&offset.text(name))
        }
    }
}

fn failed(database: &OutboxDatabase, error: &Error) -> Failure {
    database.failed(diesel::result::Error::DatabaseError(
        diesel::result::DatabaseErrorKind::Unknown,
        Box::new(error.to_string()),
    ))
}

/// The outbox as Debezium needs to know it.
#[derive(Debug)]
struct DebeziumOutbox {
    flavor: Flavor,
    host: String,
    port: String,
    user: String,
    database: String,
    tls: Option<Tls>,
}

/// What the URL asks of TLS.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Tls {
    Required,
    VerifyAuthority,
    VerifyHost,
}

impl DebeziumOutbox {
    fn named_by(opts: &Opts, flavor: Flavor) -> Result<Self, &'static str> {
        if opts.get_socket().is_some() {
            return Err("name the server's host in the URL: Debezium does not connect by a Unix socket");
        }
        let user = opts.get_user().filter(|user| !user.is_empty());
        let tls =
            opts.get_ssl_opts().map(|tls| match (tls.accept_invalid_certs(), tls.skip_domain_validation()) {
                (true, _) => Tls::Required,
                (false, true) => Tls::VerifyAuthority,
                (false, false) => Tls::VerifyHost,
            });
        Ok(Self {
            flavor,
            host: opts.get_ip_or_hostname().into_owned(),
            port: opts.get_tcp_port().to_string(),
            user: user.ok_or("name the user in the URL: Debezium needs it")?.to_owned(),
            database: opts.get_db_name().unwrap_or_default().to_owned(),
            tls,
        })
    }
}

/// A name as SQL has it.
fn quoted(name: &str) -> String {
    format!("`{}`", name.replace('`', "``"))
}

fn load<T: FromRow>(conn: &mut Conn, query: &str) -> QueryResult<Vec<T>> {
    conn.query_iter(query)?.map(|row| row_of(row?)).collect()
}

/// The driver's own conversions panic if a column has another type.
fn row_of<T: FromRow>(row: Row) -> QueryResult<T> {
    T::from_row_opt(row).map_err(|error| Error::FromRowError(error.0))
}
