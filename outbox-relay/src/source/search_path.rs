//! Where a session looks for names.
//!
//! Whoever may make functions or operators in a schema of the `search_path`, such as `public` before PostgreSQL 15, could have the
//! relay run them: a function whose parameters fit better than those of the server's own comes first, wherever it is in the
//! path. So a session of the relay looks for names in `pg_catalog`, in the schema of the tables, and in no other. In the schema of the
//! tables it finds the tables only: each function and operator that a statement names without its schema has exactly the types of its
//! operands in `pg_catalog`, and those come first. What takes operands of any type is named with its schema.

use diesel::connection::SimpleConnection;
use diesel::dsl::sql;
use diesel::pg::PgConnection;
use diesel::prelude::*;
use diesel::sql_types::Text;
use diesel_outbox_core::__private::set_search_path;

/// The schema that has the tables according to the `search_path`. It is asked for before anything is known of that path, so everything in
/// it has its schema.
const SCHEMA: &str = "SELECT n.nspname::pg_catalog.text FROM pg_catalog.pg_class AS c JOIN pg_catalog.pg_namespace AS n \
                      ON n.oid OPERATOR(pg_catalog.=) c.relnamespace \
                      WHERE c.oid OPERATOR(pg_catalog.=) pg_catalog.to_regclass('outbox')::pg_catalog.oid";

/// Lets the session find the tables in this schema, or else in the schema in which it finds them now, and all other names in
/// `pg_catalog` alone. The session keeps this, so it must not be one that others share.
///
/// # Errors
/// The error of the connection.
#[doc(hidden)]
pub fn enter_schema(conn: &mut PgConnection, schema: Option<&str>) -> QueryResult<()> {
    let found = match schema {
        Some(schema) => Some(schema.to_owned()),
        None => sql::<Text>(SCHEMA).get_result::<String>(conn).optional()?,
    };
    match found {
        Some(schema) => conn.batch_execute(&set_search_path(&schema)),
        // Whoever looks for the tables finds none.
        None => conn.batch_execute("SET search_path TO pg_catalog, pg_temp"),
    }
}
