//! A source's database: how it connects, and with which settings.

use std::sync::atomic::AtomicBool;
use std::sync::{Arc, OnceLock};

use diesel::connection::SimpleConnection;
use diesel::pg::{Pg, PgConnection};
use diesel::prelude::*;
use diesel::sql_types::{Nullable, Text};
use diesel_outbox_core::__private::set_search_path;
use diesel_outbox_core::SourceError;

use super::{DatabaseUrl, database_error};
use crate::source::SourceOptions;
use crate::statement::statement;
use diesel_outbox::connection_problem;

#[derive(Debug, Clone)]
pub(crate) struct Database {
    pub(super) url: DatabaseUrl,
    pub(super) options: SourceOptions,
    /// The database and the schema, once they are known.
    pub(super) outbox: Arc<OnceLock<String>>,
    /// Whether a connection prunes. Several outboxes of the database take turns.
    pub(super) is_pruned: Arc<AtomicBool>,
}

impl Database {
    pub(crate) fn new(url: DatabaseUrl, options: SourceOptions) -> Self {
        Self { url, options, outbox: Arc::default(), is_pruned: Arc::default() }
    }

    /// Returns the same database for the outbox in this schema, with the outbox's name.
    pub(super) fn of_schema(&self, schema: &str, outbox: &str) -> Self {
        let (url, options) = (self.url.clone(), self.options.clone().schema(schema));
        let outbox = Arc::new(OnceLock::from(outbox.to_owned()));
        Self { url, options, outbox, is_pruned: self.is_pruned.clone() }
    }

    pub(super) fn connect(&self) -> Result<PgConnection, SourceError> {
        let mut conn = PgConnection::establish(&with_keepalives(&self.url.get()?)).map_err(|error| {
            SourceError::new(format!("cannot connect to the database: {}", connection_problem(&error)))
        })?;
        prepare(&mut conn, &self.options)
            .map_err(|error| database_error("preparing the connection", error))?;
        if self.outbox.get().is_none()
            && let Some(outbox) = Outbox::new()
                .get_result(&mut conn)
                .map_err(|error| database_error("looking for the outbox", error))?
        {
            let _ = self.outbox.set(outbox);
        }
        Ok(conn)
    }
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
    "SELECT (SELECT current_database() || '.' || relnamespace::regnamespace::text FROM pg_class WHERE oid = to_regclass('outbox'))"
);

fn prepare(conn: &mut PgConnection, options: &SourceOptions) -> QueryResult<()> {
    if let Some(schema) = &options.schema {
        conn.batch_execute(&set_search_path(schema))?;
    }
    // If a process is frozen, the first timeout releases its shards, or the last one if it was frozen while it read. If a machine
    // is lost, the keepalives do. Settling need not outlive a crash of the server: what was settled is sent again. The plans are
    // known to be right, whatever the statistics say while the table fills and empties.
    conn.batch_execute(
        "SET application_name = 'outbox relay'; SET default_transaction_isolation = 'read committed'; \
         SET idle_in_transaction_session_timeout = '30s'; SET statement_timeout = 0; \
         SET tcp_keepalives_idle = 30; SET tcp_keepalives_interval = 10; SET tcp_keepalives_count = 3; \
         SET tcp_user_timeout = '30s'; SET synchronous_commit = off; \
         SET enable_seqscan = off; SET enable_bitmapscan = off; SET enable_hashjoin = off; \
         SET enable_mergejoin = off; SET enable_sort = off; SET random_page_cost = 1; SET jit = off",
    )
}

#[cfg(test)]
mod tests {
    use super::with_keepalives;

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
