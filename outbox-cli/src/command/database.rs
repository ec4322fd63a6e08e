//! Which database the outbox is in. Nothing here shows its credentials.

#[cfg(feature = "postgres")]
mod address;
#[cfg(feature = "sqlite")]
mod file;
#[cfg(feature = "mysql")]
pub(crate) mod mysql;
mod roles;
#[cfg(feature = "postgres")]
pub(crate) mod server;
mod wal;

use std::fmt;

#[cfg(feature = "postgres")]
use diesel::connection::{CacheSize, SimpleConnection};
#[cfg(any(feature = "postgres", feature = "sqlite"))]
use diesel::prelude::*;
use diesel_outbox_relay::Relay;
use diesel_outbox_relay::operate::explain::Explain;
use diesel_outbox_relay::operate::kept::Kept;
use diesel_outbox_relay::operate::prune::Prunable;
use diesel_outbox_relay::operate::{Examine, Finding};
#[cfg(feature = "postgres")]
use diesel_outbox_relay::operate::{Verdict, examine_wal};
#[cfg(feature = "postgres")]
use diesel_outbox_relay::source::{enter_schema, pooler_problem};

pub(crate) use self::roles::Roles;
use super::failure::Failure;
use super::origin::{ConfigError, Layer, Origin, Origins};
use super::settings::{
    DatabaseSettings, DatabaseTable, ReadFrom, Secret, SourceSettings, WalSettings, items,
};

/// The database that holds the outbox.
#[derive(Debug, Clone)]
pub(crate) enum OutboxDatabase {
    #[cfg(feature = "mysql")]
    Mysql { url: Secret, opts: diesel_outbox_relay::mysql::Opts, address: String, flavor: mysql::Flavor },
    #[cfg(feature = "postgres")]
    Postgres { url: Secret, address: String, schemas: Vec<String> },
    #[cfg(feature = "sqlite")]
    Sqlite { url: Secret, file: file::DatabaseFile },
}

// A binary for one database needs fewer of the parameters.
#[cfg_attr(not(all(feature = "mysql", feature = "postgres", feature = "sqlite")), allow(unused_variables))]
/// Defines functions that connect for the purpose of a trait: to PostgreSQL by another function, and a file must be there.
macro_rules! connection {
    ($($(#[$doc:meta])* $name:ident: $connection:ty, $postgres:ident;)+) => {$(
        $(#[$doc])*
        pub(crate) fn $name(&self) -> Result<$connection, Failure> {
            Ok(match self {
                #[cfg(feature = "mysql")]
                Self::Mysql { opts, .. } => Box::new(self.mysql_connection(opts)?),
                #[cfg(feature = "postgres")]
                Self::Postgres { url, schemas, .. } => Box::new(self.$postgres(url, schemas)?),
                #[cfg(feature = "sqlite")]
                Self::Sqlite { url, file } => {
                    file.require()?;
                    Box::new(self.connect_sqlite(url)?)
                }
            })
        }
    )+};
}

impl OutboxDatabase {
    /// The databases that the settings name.
    pub(crate) fn chosen(settings: &DatabaseSettings, origins: &Origins) -> Result<Vec<Self>, ConfigError> {
        let (own, own_origin) = (items(&settings.schema), origins.of("schema"));
        let Some(url) = &settings.database_url else {
            if settings.databases.is_empty() {
                return Err(ConfigError::Missing { what: "no database is named", key: "database_url" });
            }
            // What the file says of one database covers what it says of all, and a higher layer covers both.
            let is_covered = own_origin.layer > Layer::File;
            let named = settings.databases.iter().map(|DatabaseTable { url, origin, schema }| match schema {
                Some((schema, of_schema)) if !is_covered => {
                    Self::named(url, origin, &items(schema), of_schema)
                }
                _ => Self::named(url, origin, &own, &own_origin),
            });
            return Ok(named.collect::<Result<Vec<_>, _>>()?.into_iter().flatten().collect());
        };
        Self::named(url, &origins.of("database_url"), &own, &own_origin)
    }

    /// The only outbox that the settings name, for what is about one.
    pub(crate) fn only_chosen(settings: &DatabaseSettings, origins: &Origins) -> Result<Self, ConfigError> {
        const ONE: &str = "this is about one outbox: name one database";
        let mut chosen = Self::chosen(settings, origins)?;
        let (Some(only), None) = (chosen.pop(), chosen.pop()) else {
            let is_schema = settings.databases.is_empty();
            return Err(origins.of(if is_schema { "schema" } else { "database_url" }).wrong(ONE));
        };
        if only.has_several() {
            return Err(origins.of("schema").wrong("this is about one outbox: name one schema, without `*`"));
        }
        Ok(only)
    }

    /// The database with this URL; on MySQL, where a schema is a database, all of them.
    fn named(
        url: &Secret,
        origin: &Origin,
        schemas: &[&str],
        of_schemas: &Origin,
    ) -> Result<Vec<Self>, ConfigError> {
        if schemas.is_empty() && of_schemas.layer > Layer::Default {
            return Err(
                of_schemas.wrong("it names no schema: leave it out if the search_path has the tables")
            );
        }
        let wrong = |problem: String| origin.wrong(problem);
        let scheme = url.reveal().split_once("://").map(|(scheme, _)| scheme);
        match scheme {
            Some("postgres" | "postgresql") => Ok(vec![Self::postgres(url, schemas).map_err(wrong)?]),
            Some("mysql" | "mariadb") => {
                if schemas.iter().any(|schema| schema.contains('*')) {
                    return Err(
                        of_schemas.wrong("only on PostgreSQL can a schema have a `*`: name each of them")
                    );
                }
                let named = schemas.iter().map(|schema| Self::mysql(url, Some(schema)));
                let one = schemas.is_empty().then(|| Self::mysql(url, None));
                named.chain(one).collect::<Result<_, _>>().map_err(wrong)
            }
            None | Some("sqlite" | "file") => {
                if !schemas.is_empty() {
                    return Err(of_schemas.wrong("SQLite has no schemas: leave it out"));
                }
                Ok(vec![Self::sqlite(url).map_err(wrong)?])
            }
            Some(_) => Err(wrong("it is neither a postgres://, mysql:// or sqlite:// URL nor a path".into())),
        }
    }

    #[cfg(feature = "postgres")]
    fn postgres(url: &Secret, schemas: &[&str]) -> Result<Self, String> {
        let address = address::without_credentials(url.reveal())?;
        let schemas = schemas.iter().map(|schema| (*schema).to_owned()).collect();
        Ok(Self::Postgres { url: url.clone(), address, schemas })
    }

    #[cfg(not(feature = "postgres"))]
    fn postgres(_url: &Secret, _schemas: &[&str]) -> Result<Self, String> {
        Err("this binary was built without PostgreSQL: build it with the feature `postgres`".into())
    }

    /// A schema is a database there.
    #[cfg(feature = "mysql")]
    fn mysql(url: &Secret, schema: Option<&str>) -> Result<Self, String> {
        let flavor = mysql::Flavor::named_by(url.reveal());
        let (url, opts) = mysql::url(url.reveal(), schema)?;
        let address = mysql::address(&opts)?;
        Ok(Self::Mysql { url: Secret::from(url), opts, address, flavor })
    }

    #[cfg(not(feature = "mysql"))]
    fn mysql(_url: &Secret, _schema: Option<&str>) -> Result<Self, String> {
        Err("this binary was built without MySQL and MariaDB: build it with the feature `mysql`".into())
    }

    #[cfg(feature = "sqlite")]
    fn sqlite(url: &Secret) -> Result<Self, String> {
        let file = file::DatabaseFile::named_by(url.reveal())?;
        Ok(Self::Sqlite { url: url.clone(), file })
    }

    #[cfg(not(feature = "sqlite"))]
    fn sqlite(_url: &Secret) -> Result<Self, String> {
        Err("this binary was built without SQLite: build it with the feature `sqlite`".into())
    }

    /// Whether it can have several outboxes.
    pub(crate) fn has_several(&self) -> bool {
        match self {
            #[cfg(feature = "postgres")]
            Self::Postgres { schemas, .. } => {
                schemas.len() > 1 || schemas.iter().any(|schema| schema.contains('*'))
            }
            #[allow(unreachable_patterns)]
            _ => false,
        }
    }

    /// Each of its outboxes.
    pub(crate) fn outboxes(self) -> Result<Vec<Self>, Failure> {
        match &self {
            #[cfg(feature = "postgres")]
            Self::Postgres { url, address, schemas } if self.has_several() => {
                let (patterns, names): (Vec<String>, Vec<String>) =
                    schemas.iter().cloned().partition(|schema| schema.contains('*'));
                let mut all = names;
                if !patterns.is_empty() {
                    let mut conn = self.connect::<PgConnection>(url)?;
                    let found = diesel_outbox_relay::operate::schemas(&mut conn, patterns)
                        .map_err(|error| self.failed(error))?;
                    all.extend(found);
                }
                let mut seen = std::collections::BTreeSet::new();
                all.retain(|schema| seen.insert(schema.clone()));
                let outbox = |schema| Self::Postgres {
                    url: url.clone(),
                    address: address.clone(),
                    schemas: vec![schema],
                };
                Ok(all.into_iter().map(outbox).collect())
            }
            #[allow(unreachable_patterns)]
            _ => Ok(vec![self]),
        }
    }

    /// Where it is: the database, and the schema if one is named.
    pub(crate) fn place(&self) -> (String, Option<&str>) {
        match self {
            #[cfg(feature = "mysql")]
            Self::Mysql { address, .. } => (address.clone(), None),
            #[cfg(feature = "postgres")]
            Self::Postgres { address, schemas, .. } => (address.clone(), schemas.first().map(String::as_str)),
            #[cfg(feature = "sqlite")]
            Self::Sqlite { file, .. } => (file.to_string(), None),
        }
    }

    /// Its server, as far as an address names one.
    pub(crate) fn server_name(&self) -> String {
        let (address, _) = self.place();
        let server = address.rsplit_once('/').map(|(server, _)| server.to_owned());
        // The address may be a socket in the root, and no database.
        server.filter(|server| !server.is_empty()).unwrap_or(address)
    }

    /// A relay for this database.
    pub(crate) fn relay(&self, settings: &SourceSettings, origins: &Origins) -> Result<Relay, Failure> {
        match self {
            #[cfg(feature = "mysql")]
            Self::Mysql { url, .. } => {
                if settings.source == ReadFrom::Wal {
                    return Err(wal::not_here(origins, "source"));
                }
                Ok(Relay::mysql(url.reveal()))
            }
            #[cfg(feature = "postgres")]
            Self::Postgres { url, schemas, .. } => {
                if settings.source == ReadFrom::Wal && self.has_several() {
                    return Err(origins
                        .of("schema")
                        .wrong(
                            "the WAL is read for one outbox at a time: start a process for each schema, each with a slot \
                             of its own (--slot), or poll the tables",
                        )
                        .into());
                }
                let relay = match settings.source {
                    ReadFrom::Polling => Relay::postgres(url.reveal()),
                    ReadFrom::Wal => Relay::postgres_wal(
                        url.reveal(),
                        wal::reading_options(&settings.wal, &settings.reading),
                    ),
                };
                Ok(if schemas.is_empty() { relay } else { relay.schemas(schemas) })
            }
            #[cfg(feature = "sqlite")]
            Self::Sqlite { url, file } => {
                if settings.source == ReadFrom::Wal {
                    return Err(wal::not_here(origins, "source"));
                }
                file.require()?;
                Ok(Relay::sqlite(url.reveal()))
            }
        }
    }

    /// Runs the migrations that have not been run, and returns their names.
    pub(crate) fn migrate(&self, migrations: diesel_outbox::Migrations) -> Result<Vec<String>, Failure> {
        let failed = |source| Failure::Migrate { database: self.to_string(), source };
        match self {
            #[cfg(feature = "mysql")]
            Self::Mysql { opts, .. } => {
                mysql::migrate(&mut self.mysql_connection(opts)?, &migrations).map_err(failed)
            }
            #[cfg(feature = "postgres")]
            Self::Postgres { url, schemas, .. } => {
                let migrations = match schemas.first() {
                    Some(schema) => migrations.schema(schema.as_str()),
                    None => migrations,
                };
                migrations.run(&mut self.connect_postgres(url, None)?).map_err(failed)
            }
            #[cfg(feature = "sqlite")]
            Self::Sqlite { url, .. } => migrations.run(&mut self.connect_sqlite(url)?).map_err(failed),
        }
    }

    /// The statements that make roles and grant each what it needs. On PostgreSQL this asks the server for the schema if none is named.
    pub(crate) fn role_statements(
        &self,
        roles: &Roles<'_>,
        origins: &Origins,
    ) -> Result<Vec<String>, Failure> {
        match self {
            #[cfg(feature = "mysql")]
            Self::Mysql { opts, .. } => Ok(roles.on_mysql(opts.get_db_name().unwrap_or_default())),
            #[cfg(feature = "postgres")]
            Self::Postgres { url, schemas, .. } => match schemas.first() {
                Some(schema) => Ok(roles.on_postgres(schema)),
                None => {
                    // That is where the migrations make the tables.
                    let current = diesel::dsl::sql::<diesel::sql_types::Text>(
                        "SELECT pg_catalog.current_schema()::pg_catalog.text",
                    );
                    let schema: String = current
                        .get_result(&mut self.connect_postgres(url, None)?)
                        .map_err(|error| self.failed(error))?;
                    Ok(roles.on_postgres(&schema))
                }
            },
            #[cfg(feature = "sqlite")]
            Self::Sqlite { .. } => {
                Err(origins.of("database_url").wrong("SQLite has no roles: leave --roles out").into())
            }
        }
    }

    /// Runs these statements of [`role_statements`](Self::role_statements): on PostgreSQL all or none.
    pub(crate) fn run_statements(&self, statements: &[String]) -> Result<(), Failure> {
        #[cfg(any(feature = "mysql", feature = "postgres"))]
        let failed = |source| Failure::Roles { database: self.to_string(), source };
        match self {
            #[cfg(feature = "mysql")]
            Self::Mysql { opts, .. } => {
                mysql::run(&mut self.mysql_connection(opts)?, statements).map_err(failed)
            }
            #[cfg(feature = "postgres")]
            Self::Postgres { url, .. } => {
                let mut conn = self.connect_postgres(url, None)?;
                conn.transaction(|conn| conn.batch_execute(&statements.join("\n"))).map_err(failed)
            }
            #[cfg(feature = "sqlite")]
            Self::Sqlite { .. } => Ok(()),
        }
    }

    connection! {
        /// A connection for what is kept.
        kept: Box<dyn Kept + Send>, in_schema;
        /// A connection for what becomes of an event.
        explainer: Box<dyn Explain>, in_schema;
        /// A connection for the state, lag, dead letters and requeue.
        operations: diesel_outbox_status::Connection, in_schema;
        /// A connection for the status page, which sets limits on it.
        observed: diesel_outbox_status::Connection, own_session;
        /// A connection for pruning. It keeps settings and a lock for longer than a transaction.
        prunable: Box<dyn Prunable>, own_session;
    }

    /// Looks for everything that can go wrong with it, and returns that with the aggregate types of recent events. `slot` is the one that
    /// the relay reads, if it reads the WAL.
    pub(crate) fn examine(&self, slot: Option<&str>) -> Result<(Vec<Finding>, Vec<String>), Failure> {
        match self {
            #[cfg(feature = "mysql")]
            Self::Mysql { opts, .. } => Ok(examined(&mut self.mysql_connection(opts)?)),
            #[cfg(feature = "postgres")]
            Self::Postgres { url, schemas, .. } => {
                let mut conn = self.connect::<PgConnection>(url)?;
                conn.set_prepared_statement_cache_size(CacheSize::Disabled);
                let pooler = self.connect::<PgConnection>(url).ok().map(|mut second| {
                    pooler_problem(&mut conn, &mut second).map_err(|error| self.failed(error))
                });
                if let Some(problem) = pooler.transpose()?.flatten() {
                    return Ok((vec![Finding::new("pooler", Verdict::Fail, problem)], Vec::new()));
                }
                enter_schema(&mut conn, schemas.first().map(String::as_str))
                    .map_err(|error| self.failed(error))?;
                let (mut findings, types) = examined(&mut conn);
                findings.insert(
                    0,
                    Finding::new("pooler", Verdict::Ok, "each connection has a session of its own"),
                );
                if findings.iter().any(|finding| finding.check == "lag") {
                    findings.extend(examine_wal(&mut conn, slot));
                }
                Ok((findings, types))
            }
            #[cfg(feature = "sqlite")]
            Self::Sqlite { url, file } => {
                file.require()?;
                Ok(examined(&mut self.connect_sqlite(url)?))
            }
        }
    }

    /// Makes the publication and the slot, so that later events are read from the WAL.
    pub(crate) fn set_up_wal(&self, settings: &WalSettings, origins: &Origins) -> Result<(), Failure> {
        match self {
            #[cfg(feature = "postgres")]
            Self::Postgres { url, schemas, .. } => {
                self.change_wal(settings, url, schemas.first().map(String::as_str), wal::setup)
            }
            #[cfg(feature = "mysql")]
            Self::Mysql { .. } => Err(wal::not_here(origins, "database_url")),
            #[cfg(feature = "sqlite")]
            Self::Sqlite { .. } => Err(wal::not_here(origins, "database_url")),
        }
    }

    /// Drops them, so that the whole table is polled again.
    pub(crate) fn drop_wal(&self, settings: &WalSettings, origins: &Origins) -> Result<(), Failure> {
        match self {
            #[cfg(feature = "postgres")]
            Self::Postgres { url, schemas, .. } => {
                self.change_wal(settings, url, schemas.first().map(String::as_str), wal::drop)
            }
            #[cfg(feature = "mysql")]
            Self::Mysql { .. } => Err(wal::not_here(origins, "database_url")),
            #[cfg(feature = "sqlite")]
            Self::Sqlite { .. } => Err(wal::not_here(origins, "database_url")),
        }
    }

    #[cfg(feature = "postgres")]
    fn change_wal(
        &self,
        settings: &WalSettings,
        url: &Secret,
        schema: Option<&str>,
        change: wal::Change,
    ) -> Result<(), Failure> {
        let mut conn = self.connect_postgres(url, schema)?;
        let mut lock = self.connect_postgres(url, schema)?;
        if schema.is_none() {
            // Another session for each transaction is refused below, and must not be changed before.
            let problem = pooler_problem(&mut conn, &mut lock).map_err(|error| self.failed(error))?;
            if problem.is_none() {
                for conn in [&mut conn, &mut lock] {
                    enter_schema(conn, None).map_err(|error| self.failed(error))?;
                }
            }
        }
        change(&mut conn, &mut lock, &wal::options(settings))
            .map_err(|source| Failure::Wal { database: self.to_string(), source })
    }

    /// Where the server is, and as which role the relay connects to it.
    #[cfg(feature = "postgres")]
    pub(crate) fn server(&self, origins: &Origins) -> Result<server::Server, Failure> {
        match self {
            Self::Postgres { url, .. } => Ok(server::Server::named_by(url.reveal())
                .map_err(|problem| origins.of("database_url").wrong(problem))?),
            #[cfg(feature = "mysql")]
            Self::Mysql { .. } => Err(wal::not_here(origins, "database_url")),
            #[cfg(feature = "sqlite")]
            Self::Sqlite { .. } => Err(wal::not_here(origins, "database_url")),
        }
    }

    /// A connection to the server, whose search_path is the schema of the tables.
    #[cfg(feature = "postgres")]
    pub(crate) fn postgres_connection(&self, origins: &Origins) -> Result<PgConnection, Failure> {
        match self {
            Self::Postgres { url, schemas, .. } => {
                self.connect_postgres(url, schemas.first().map(String::as_str))
            }
            #[cfg(feature = "mysql")]
            Self::Mysql { .. } => Err(wal::not_here(origins, "database_url")),
            #[cfg(feature = "sqlite")]
            Self::Sqlite { .. } => Err(wal::not_here(origins, "database_url")),
        }
    }

    /// A connection to a MySQL or MariaDB server.
    #[cfg(feature = "mysql")]
    pub(crate) fn mysql_connection(
        &self,
        opts: &diesel_outbox_relay::mysql::Opts,
    ) -> Result<diesel_outbox_relay::mysql::Conn, Failure> {
        mysql::connect(opts).map_err(|problem| Failure::Connect {
            database: self.to_string(),
            source: diesel::ConnectionError::BadConnection(problem),
        })
    }

    /// The failure of a query.
    pub(crate) fn failed(&self, source: diesel::result::Error) -> Failure {
        Failure::Query { database: self.to_string(), source }
    }

    /// Connects, and enters the schema if one is named.
    #[cfg(feature = "postgres")]
    fn in_schema(&self, url: &Secret, schemas: &[String]) -> Result<PgConnection, Failure> {
        self.connect_postgres(url, schemas.first().map(String::as_str))
    }

    /// Does the same, with a session that no pooler gives to others.
    #[cfg(feature = "postgres")]
    fn own_session(&self, url: &Secret, schemas: &[String]) -> Result<PgConnection, Failure> {
        let mut conn = self.in_schema(url, schemas)?;
        if schemas.is_empty() {
            self.require_own_session(&mut conn, url)?;
        }
        Ok(conn)
    }

    #[cfg(feature = "postgres")]
    fn connect_postgres(&self, url: &Secret, schema: Option<&str>) -> Result<PgConnection, Failure> {
        let mut conn = self.connect::<PgConnection>(url)?;
        // Each statement runs once, and a pooler in transaction mode would lose what is cached.
        conn.set_prepared_statement_cache_size(CacheSize::Disabled);
        if let Some(schema) = schema {
            self.require_own_session(&mut conn, url)?;
            enter_schema(&mut conn, Some(schema)).map_err(|error| self.failed(error))?;
        }
        Ok(conn)
    }

    /// Refuses a pooler whose other clients would have what is set on the connection.
    #[cfg(feature = "postgres")]
    fn require_own_session(&self, conn: &mut PgConnection, url: &Secret) -> Result<(), Failure> {
        // The role may have only one connection.
        if let Ok(mut second) = self.connect::<PgConnection>(url)
            && let Some(problem) = pooler_problem(conn, &mut second).map_err(|error| self.failed(error))?
        {
            return Err(Failure::Pooler { database: self.to_string(), problem });
        }
        Ok(())
    }

    #[cfg(feature = "sqlite")]
    fn connect_sqlite(&self, url: &Secret) -> Result<SqliteConnection, Failure> {
        let mut conn = self.connect::<SqliteConnection>(url)?;
        diesel::sql_query("PRAGMA busy_timeout = 5000")
            .execute(&mut conn)
            .map_err(|error| self.failed(error))?;
        Ok(conn)
    }

    #[cfg(any(feature = "postgres", feature = "sqlite"))]
    fn connect<C: Connection>(&self, url: &Secret) -> Result<C, Failure> {
        C::establish(url.reveal()).map_err(|source| Failure::Connect { database: self.to_string(), source })
    }
}

/// What was found, and the aggregate types of recent events. If the tables cannot be read, a finding says so.
fn examined(conn: &mut impl Examine) -> (Vec<Finding>, Vec<String>) {
    (conn.examine(), conn.recent_aggregate_types().unwrap_or_default())
}

impl fmt::Display for OutboxDatabase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            #[cfg(feature = "mysql")]
            Self::Mysql { address, .. } => write!(f, "MySQL at {address}"),
            #[cfg(feature = "postgres")]
            Self::Postgres { address, schemas, .. } => match schemas.as_slice() {
                [] => write!(f, "PostgreSQL at {address}"),
                [schema] if !schema.contains('*') => write!(f, "PostgreSQL at {address}, schema {schema}"),
                schemas => write!(f, "PostgreSQL at {address}, schemas {}", schemas.join(", ")),
            },
            #[cfg(feature = "sqlite")]
            Self::Sqlite { file, .. } => write!(f, "SQLite at {file}"),
        }
    }
}

#[cfg(test)]
mod tests;
