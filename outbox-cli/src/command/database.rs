//! Which database the outbox is in. Nothing here shows its credentials.

#[cfg(feature = "postgres")]
mod address;
#[cfg(feature = "sqlite")]
mod file;
#[cfg(feature = "postgres")]
pub(crate) mod server;
mod wal;

use std::fmt;

use diesel::prelude::*;
use diesel_outbox::Migrations;
use diesel_outbox_relay::Relay;
use diesel_outbox_relay::operate::Operate;

use super::config::Config;
use super::failure::Failure;
use super::value::ConfigError;

/// The database that holds the outbox. It has no `Debug`, as the URL may hold a password.
pub(crate) enum Database {
    #[cfg(feature = "postgres")]
    Postgres { url: String, address: String, schema: Option<String> },
    #[cfg(feature = "sqlite")]
    Sqlite { url: String, file: file::DatabaseFile },
}

impl Database {
    /// The one that the settings name.
    pub(crate) fn chosen(config: &Config) -> Result<Self, ConfigError> {
        let value = config
            .get("database_url")
            .ok_or(ConfigError::Missing { what: "no database is named", key: "database_url" })?;
        let wrong = |problem: String| value.origin.wrong(problem);
        let url = value.text().to_owned();
        let scheme = url.split_once("://").map(|(scheme, _)| scheme);
        match scheme {
            Some("postgres" | "postgresql") => Self::postgres(url, config).map_err(wrong),
            None | Some("sqlite" | "file") => {
                if let Some(schema) = config.get("schema") {
                    return Err(schema.origin.wrong("SQLite has no schemas: leave it out"));
                }
                Self::sqlite(url).map_err(wrong)
            }
            Some(_) => Err(wrong("it is neither a postgres:// nor an sqlite:// URL, nor a path".into())),
        }
    }

    #[cfg(feature = "postgres")]
    fn postgres(url: String, config: &Config) -> Result<Self, String> {
        let address = address::without_credentials(&url)?;
        Ok(Self::Postgres { url, address, schema: config.text("schema").map(str::to_owned) })
    }

    #[cfg(not(feature = "postgres"))]
    fn postgres(_url: String, _config: &Config) -> Result<Self, String> {
        Err("this binary knows no PostgreSQL: build it with the feature `postgres`".into())
    }

    #[cfg(feature = "sqlite")]
    fn sqlite(url: String) -> Result<Self, String> {
        let file = file::DatabaseFile::named_by(&url)?;
        Ok(Self::Sqlite { url, file })
    }

    #[cfg(not(feature = "sqlite"))]
    fn sqlite(_url: String) -> Result<Self, String> {
        Err("this binary knows no SQLite: build it with the feature `sqlite`".into())
    }

    /// A relay for it.
    pub(crate) fn relay(&self, config: &Config) -> Result<Relay, Failure> {
        let from_wal = wal::is_source(config)?;
        match self {
            #[cfg(feature = "postgres")]
            Self::Postgres { url, schema, .. } => {
                let relay = if from_wal {
                    Relay::postgres_wal(url.as_str(), wal::options(config)?)
                } else {
                    Relay::postgres(url.as_str())
                };
                Ok(match schema {
                    Some(schema) => relay.schema(schema.as_str()),
                    None => relay,
                })
            }
            #[cfg(feature = "sqlite")]
            Self::Sqlite { url, file } => {
                if from_wal {
                    return Err(wal::not_here(config));
                }
                file.require()?;
                Ok(Relay::sqlite(url.as_str()))
            }
        }
    }

    /// Runs the migrations that have not been run, and tells which those were.
    pub(crate) fn migrate(&self) -> Result<Vec<String>, Failure> {
        let failed = |source| Failure::Migrate { database: self.to_string(), source };
        match self {
            #[cfg(feature = "postgres")]
            Self::Postgres { url, schema, .. } => {
                let migrations = match schema {
                    Some(schema) => Migrations::new().schema(schema.as_str()),
                    None => Migrations::new(),
                };
                migrations.run(&mut self.connect::<PgConnection>(url)?).map_err(failed)
            }
            #[cfg(feature = "sqlite")]
            Self::Sqlite { url, .. } => Migrations::new().run(&mut self.connect_sqlite(url)?).map_err(failed),
        }
    }

    /// A connection on which the tables can be asked.
    pub(crate) fn observed(&self) -> Result<Box<dyn Operate>, Failure> {
        match self {
            #[cfg(feature = "postgres")]
            Self::Postgres { url, schema, .. } => {
                Ok(Box::new(self.connect_postgres(url, schema.as_deref())?))
            }
            #[cfg(feature = "sqlite")]
            Self::Sqlite { url, file } => {
                file.require()?;
                Ok(Box::new(self.connect_sqlite(url)?))
            }
        }
    }

    /// Has PostgreSQL's write-ahead log read from now on.
    pub(crate) fn set_up_wal(&self, config: &Config) -> Result<(), Failure> {
        match self {
            #[cfg(feature = "postgres")]
            Self::Postgres { url, schema, .. } => self.change_wal(config, url, schema.as_deref(), wal::setup),
            #[cfg(feature = "sqlite")]
            Self::Sqlite { .. } => Err(wal::not_here(config)),
        }
    }

    /// Has the whole table polled again.
    pub(crate) fn drop_wal(&self, config: &Config) -> Result<(), Failure> {
        match self {
            #[cfg(feature = "postgres")]
            Self::Postgres { url, schema, .. } => self.change_wal(config, url, schema.as_deref(), wal::drop),
            #[cfg(feature = "sqlite")]
            Self::Sqlite { .. } => Err(wal::not_here(config)),
        }
    }

    #[cfg(feature = "postgres")]
    fn change_wal(
        &self,
        config: &Config,
        url: &str,
        schema: Option<&str>,
        change: wal::Change,
    ) -> Result<(), Failure> {
        let mut conn = self.connect_postgres(url, schema)?;
        let mut lock = self.connect_postgres(url, schema)?;
        change(&mut conn, &mut lock, &wal::options(config)?)
            .map_err(|source| Failure::Wal { database: self.to_string(), source })
    }

    /// Where the server is and who enters there.
    #[cfg(feature = "postgres")]
    pub(crate) fn server(&self, config: &Config) -> Result<server::Server, Failure> {
        match self {
            Self::Postgres { url, .. } => Ok(server::Server::named_by(url).map_err(|problem| {
                let given = config.get("database_url").map(|value| value.origin.wrong(problem));
                given.unwrap_or(ConfigError::Missing { what: "no database is named", key: "database_url" })
            })?),
            #[cfg(feature = "sqlite")]
            Self::Sqlite { .. } => Err(wal::not_here(config)),
        }
    }

    /// A connection to the server, with the schema of the tables in its search_path.
    #[cfg(feature = "postgres")]
    pub(crate) fn postgres_connection(&self, config: &Config) -> Result<PgConnection, Failure> {
        match self {
            Self::Postgres { url, schema, .. } => self.connect_postgres(url, schema.as_deref()),
            #[cfg(feature = "sqlite")]
            Self::Sqlite { .. } => Err(wal::not_here(config)),
        }
    }

    /// The failure of a question to the tables.
    pub(crate) fn failed(&self, source: diesel::result::Error) -> Failure {
        Failure::Query { database: self.to_string(), source }
    }

    #[cfg(feature = "postgres")]
    fn connect_postgres(&self, url: &str, schema: Option<&str>) -> Result<PgConnection, Failure> {
        let mut conn = self.connect::<PgConnection>(url)?;
        if let Some(schema) = schema {
            use_schema(&mut conn, schema).map_err(|error| self.failed(error))?;
        }
        Ok(conn)
    }

    #[cfg(feature = "sqlite")]
    fn connect_sqlite(&self, url: &str) -> Result<SqliteConnection, Failure> {
        let mut conn = self.connect::<SqliteConnection>(url)?;
        diesel::sql_query("PRAGMA busy_timeout = 5000")
            .execute(&mut conn)
            .map_err(|error| self.failed(error))?;
        Ok(conn)
    }

    fn connect<C: Connection>(&self, url: &str) -> Result<C, Failure> {
        C::establish(url).map_err(|source| Failure::Connect { database: self.to_string(), source })
    }
}

#[cfg(feature = "postgres")]
fn use_schema(conn: &mut PgConnection, schema: &str) -> QueryResult<usize> {
    use diesel::sql_types::Text;

    diesel::dsl::sql::<Text>("SELECT set_config('search_path', quote_ident(")
        .bind::<Text, _>(schema)
        .sql("), false)")
        .execute(conn)
}

impl fmt::Display for Database {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            #[cfg(feature = "postgres")]
            Self::Postgres { address, schema, .. } => {
                write!(f, "PostgreSQL at {address}")?;
                schema.as_ref().map_or(Ok(()), |schema| write!(f, ", schema {schema}"))
            }
            #[cfg(feature = "sqlite")]
            Self::Sqlite { file, .. } => write!(f, "SQLite at {file}"),
        }
    }
}

#[cfg(test)]
mod tests;
