//! Row-level security, which can hide rows of a table from a role that may select from it. A relay that does not see all rows would take
//! what it does not see for sent.

use diesel::pg::{Pg, PgConnection};
use diesel::prelude::*;
use diesel::result::Error;
use diesel::sql_types::Text;

use crate::statement::statement;

/// Makes a statement fail that would not see all rows. A policy may come after a session has begun.
pub(super) const SEE_ALL_OR_FAIL: &str = "SET row_security = off";

#[derive(Debug, thiserror::Error)]
#[error(
    "row-level security applies to the role {role} on the table {table}, so the role may not see all rows, and nothing is done: let a \
     superuser run ALTER ROLE {role} BYPASSRLS, which applies to all tables that the role may read, or take the policies off the table \
     with ALTER TABLE {table} DISABLE ROW LEVEL SECURITY"
)]
pub(super) struct HiddenRows {
    role: String,
    table: String,
}

/// Returns the table whose rows may be hidden from the session's role.
pub(super) fn hidden_rows(conn: &mut PgConnection) -> QueryResult<Option<HiddenRows>> {
    let found = Hidden::new().get_result::<(String, String)>(conn).optional()?;
    Ok(found.map(|(role, table)| HiddenRows { role, table }))
}

/// Fails if the session's role may not see all rows.
pub(crate) fn sees_all_rows(conn: &mut PgConnection) -> QueryResult<()> {
    match hidden_rows(conn)? {
        Some(hidden) => Err(Error::QueryBuilderError(Box::new(hidden))),
        None => Ok(()),
    }
}

statement!(
    Pg,
    Hidden {} -> (Text, Text),
    "SELECT pg_catalog.quote_ident(current_user), c.relname::text FROM pg_class AS c WHERE c.oid = ANY (ARRAY['outbox'::regclass::oid, \
     'outbox_shard'::regclass::oid, 'outbox_slot'::regclass::oid, 'outbox_dead_letter'::regclass::oid, \
     'outbox_requeued'::regclass::oid]) \
     AND row_security_active(c.oid) ORDER BY c.relname LIMIT 1"
);
