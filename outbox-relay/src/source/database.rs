//! A source's database: how it connects, and with which settings.

use std::sync::atomic::AtomicBool;
use std::sync::{Arc, OnceLock};

use diesel::connection::SimpleConnection;
use diesel::pg::{Pg, PgConnection};
use diesel::prelude::*;
use diesel::sql_types::{BigInt, Nullable, Text};
use diesel_outbox_core::SourceError;

use super::pooler::pooler_problem;
use super::row_security::SEE_ALL_OR_FAIL;
use super::search_path::enter_schema;
use super::{DatabaseUrl, database_error};
use crate::History;
use crate::source::SourceOptions;
use crate::statement::statement;
use diesel_outbox::{connection_problem, is_malformed_url};

#[derive(Debug, Clone)]
pub(crate) struct PostgresDatabase {
    pub(super) url: DatabaseUrl,
    pub(super) options: SourceOptions,
    /// The database and the schema, once they are known.
    pub(super) outbox: Arc<OnceLock<String>>,
    /// Which server it is, once that is known, if records are sent exactly once.
    pub(super) origin: Arc<OnceLock<String>>,
    /// Whether a connection prunes. Several outboxes of the database take turns.
    pub(super) is_pruned: Arc<AtomicBool>,
    /// Where to note the lag, if the relay has several outboxes. Otherwise its worker does so.
    pub(super) history: Option<History>,
}

impl PostgresDatabase {
    pub(crate) fn new(url: DatabaseUrl, options: SourceOptions) -> Self {
        Self {
            url,
            options,
            outbox: Arc::default(),
            origin: Arc::default(),
            is_pruned: Arc::default(),
            history: None,
        }
    }

    /// Lets the lag of its outboxes be noted there.
    pub(crate) fn noting(self, history: History) -> Self {
        Self { history: Some(history), ..self }
    }

    /// Returns the same database for the outbox in this schema, with the outbox's name.
    pub(super) fn of_schema(&self, schema: &str, outbox: &str) -> Self {
        let outbox = Arc::new(OnceLock::from(outbox.to_owned()));
        Self { options: self.options.clone().schema(schema), outbox, ..self.clone() }
    }

    /// Connects for the first time, or again after a failure. Returns an error if each transaction would get another session. It is
    /// found before anything is set, because other clients of the pooler would have the settings too.
    pub(super) fn connect_to_own_session(&self) -> Result<PgConnection, SourceError> {
        let mut conn = self.establish()?;
        // The role may have only one connection. The relay works with one.
        if let Ok(mut second) = self.establish_soon()
            && let Some(problem) = pooler_problem(&mut conn, &mut second)
                .map_err(|error| database_error("looking for a pooler", error))?
        {
            return Err(SourceError::misconfigured(problem));
        }
        self.prepared(conn)
    }

    /// Connects once more, beside a connection to a session of its own.
    pub(super) fn connect(&self) -> Result<PgConnection, SourceError> {
        self.prepared(self.establish()?)
    }

    fn establish(&self) -> Result<PgConnection, SourceError> {
        establish(&self.url.get()?)
    }

    /// The same, but gives up after 2 s: the relay does not wait for a connection that it can do without.
    fn establish_soon(&self) -> Result<PgConnection, SourceError> {
        let url = self.url.get()?;
        establish(&if url.contains("connect_timeout") {
            url
        } else {
            with_parameters(&url, &["connect_timeout=2"])
        })
    }

    fn prepared(&self, mut conn: PgConnection) -> Result<PgConnection, SourceError> {
        prepare(&mut conn, &self.options)
            .map_err(|error| database_error("preparing the connection", error))?;
        if self.outbox.get().is_none()
            && let Some(outbox) = Outbox::new()
                .get_result::<Option<String>>(&mut conn)
                .map_err(|error| database_error("looking for the outbox", error))?
        {
            let _ = self.outbox.set(self.options.name_of(&outbox));
        }
        if self.options.exactly_once && self.origin.get().is_none() {
            let system = System::new().get_result::<i64>(&mut conn);
            let system = system.map_err(|error| database_error("looking which server this is", error))?;
            let _ = self.origin.set(format!("PostgreSQL {}", system.cast_unsigned()));
        }
        Ok(conn)
    }
}

fn establish(url: &str) -> Result<PgConnection, SourceError> {
    PgConnection::establish(&with_keepalives(url)).map_err(|error| {
        let message = format!("cannot connect to the database: {}", connection_problem(&error));
        if is_malformed_url(&error) { SourceError::misconfigured(message) } else { SourceError::new(message) }
    })
}

/// Adds keepalives to a URL that has none. Without them, a client waits for hours for a server that vanished.
pub(super) fn with_keepalives(url: &str) -> String {
    if url.contains("keepalives") {
        return url.to_owned();
    }
    with_parameters(url, &["keepalives_idle=30", "keepalives_interval=10", "keepalives_count=3"])
}

pub(super) fn with_parameters(url: &str, parameters: &[&str]) -> String {
    let has_parameters = url.rsplit('@').next().is_some_and(|address| address.contains('?'));
    let (first, next) = match (url.contains("://"), has_parameters) {
        (true, false) => ('?', '&'),
        (true, true) => ('&', '&'),
        // `host=.. dbname=..`
        (false, _) => (' ', ' '),
    };
    format!("{url}{first}{}", parameters.join(&next.to_string()))
}

statement!(
    Pg,
    /// The database and the schema of the tables, if those are there.
    Outbox {} -> Nullable<Text>,
    "SELECT (SELECT current_database()::text || '.' || relnamespace::regnamespace::text FROM pg_class WHERE oid = to_regclass('outbox')::oid)"
);

statement!(
    Pg,
    /// What `initdb` gave the server. Its replicas and what is restored from its base backups have the same.
    System {} -> BigInt,
    "SELECT system_identifier FROM pg_control_system()"
);

fn prepare(conn: &mut PgConnection, options: &SourceOptions) -> QueryResult<()> {
    enter_schema(conn, options.schema.as_deref())?;
    conn.batch_execute(SEE_ALL_OR_FAIL)?;
    // If a process is frozen, the first timeout releases its shards, or the last one if it was frozen while it read. If a machine
    // is lost, the keepalives do. Settling need not outlive a crash of the server, because what was settled is sent again: unless it must
    // not be. The plans are known to be right, whatever the statistics say while the table fills and empties. PostgreSQL has `idle_session_timeout` since
    // version 14.
    conn.batch_execute(&format!(
        "SET synchronous_commit = {}",
        if options.exactly_once { "on" } else { "off" }
    ))?;
    conn.batch_execute(
        "SET application_name = 'outbox relay'; SET default_transaction_isolation = 'read committed'; \
         SET idle_in_transaction_session_timeout = '30s'; SET statement_timeout = 0; \
         SELECT set_config(name, '0', false) FROM pg_settings WHERE name = 'idle_session_timeout'; \
         SET tcp_keepalives_idle = 30; SET tcp_keepalives_interval = 10; SET tcp_keepalives_count = 3; \
         SET tcp_user_timeout = '30s'; \
         SET enable_seqscan = off; SET enable_bitmapscan = off; SET enable_hashjoin = off; \
         SET enable_mergejoin = off; SET enable_sort = off; SET random_page_cost = 1; SET jit = off",
    )
}

#[cfg(test)]
mod tests {
    use super::{establish, with_keepalives};

    #[test]
    fn a_malformed_url_waits_for_somebody_to_fix_it() {
        for url in ["postgres://u:p@h:port/d", "postgres://h/d?sslmod=require", "host"] {
            assert!(establish(url).err().unwrap().is_misconfigured(), "{url}");
        }
        assert!(!establish("postgres://127.0.0.1:1/d").err().unwrap().is_misconfigured());
    }

    #[test]
    fn a_url_gets_keepalives_if_it_has_none() {
        let ends = "keepalives_idle=30&keepalives_interval=10&keepalives_count=3";
        assert_eq!(with_keepalives("postgres://u:p?@h/d"), format!("postgres://u:p?@h/d?{ends}"));
        assert_eq!(
            with_keepalives("postgres://h/d?sslmode=require"),
            format!("postgres://h/d?sslmode=require&{ends}")
        );
        assert_eq!(with_keepalives("host=h dbname=d"), format!("host=h dbname=d {}", ends.replace('&', " ")));
        let own = "postgres://h/d?keepalives=0";
        assert_eq!(with_keepalives(own), own);
    }
}
