//! Where a source's connections go, and how they are set.

use diesel::connection::SimpleConnection;
use diesel::pg::PgConnection;
use diesel::prelude::*;
use diesel::sql_types::Text;
use diesel_outbox_core::SourceError;

use super::super::database_error;
use crate::problem::connection_problem;
use crate::source::SourceOptions;

#[derive(Clone)]
pub(super) struct Database {
    pub(super) url: String,
    pub(super) options: SourceOptions,
}

impl Database {
    pub(super) fn connect(&self) -> Result<PgConnection, SourceError> {
        let mut conn = PgConnection::establish(&self.url).map_err(|error| {
            SourceError::new(format!("cannot connect to the database: {}", connection_problem(&error)))
        })?;
        prepare(&mut conn, &self.options)
            .map_err(|error| database_error("preparing the connection", error))?;
        Ok(conn)
    }
}

fn prepare(conn: &mut PgConnection, options: &SourceOptions) -> QueryResult<()> {
    if let Some(schema) = &options.schema {
        diesel::dsl::sql::<Text>("SELECT set_config('search_path', quote_ident(")
            .bind::<Text, _>(schema)
            .sql("), false)")
            .get_result::<String>(conn)?;
    }
    // The timeout lets go of the shards of a process that was stopped. What was settled need not outlive a crash of the
    // server: it is sent again. The plans are known to be right, whatever the statistics say while the table fills and
    // empties.
    conn.batch_execute(
        "SET application_name = 'outbox relay'; SET default_transaction_isolation = 'read committed'; \
         SET idle_in_transaction_session_timeout = '30s'; SET synchronous_commit = off; \
         SET enable_seqscan = off; SET enable_bitmapscan = off; SET enable_hashjoin = off; \
         SET enable_mergejoin = off; SET enable_sort = off; SET random_page_cost = 1; SET jit = off",
    )
}
