//! A look at many outboxes in a few statements. It finds those that need a worker: idle ones need none.

use std::collections::HashSet;

use diesel::connection::SimpleConnection;
use diesel::pg::{Pg, PgConnection};
use diesel::prelude::*;
use diesel::sql_types::{Array, BigInt, Bool, Oid, Text};
use diesel_outbox_core::__private::{quoted_identifier, quoted_literal};

use super::outbox::Outbox;
use crate::source::bounds::{oldest_unsent, shards};
use crate::source::polling::postgres::wakeup::LAST_NUMBER;
use crate::source::sequence::Sequence;
use crate::statement::statement;

/// How many outboxes a statement looks at. While it runs, it holds six locks for each of them.
pub(super) const AT_ONCE: usize = 50;

/// Nobody hears notifications meanwhile. What takes longer is left to a worker.
const SHORT_STATEMENT_TIMEOUT: &str = "SET LOCAL statement_timeout = '2s'";

/// What is to be seen of an outbox from afar.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Seen {
    /// Whether something is unsent.
    pub(super) is_unsent: bool,
    pub(super) sequence: Sequence,
    /// Whether a slot of the write-ahead log was set up.
    pub(super) has_slot: bool,
}

type SeenRow = (u32, bool, i64, i64, bool);

/// Looks at these outboxes, and returns what it has seen by their tables' oids. Fails if one of them cannot be looked at.
pub(super) fn look<'a>(
    conn: &mut PgConnection,
    outboxes: impl Iterator<Item = &'a Outbox>,
) -> QueryResult<Vec<(u32, Seen)>> {
    let looks: Vec<String> =
        outboxes.map(|outbox| look_at(outbox.schema(), outbox.table())).collect();
    if looks.is_empty() {
        return Ok(Vec::new());
    }
    // Its text changes with the outboxes, so it is not kept prepared.
    let look = diesel::dsl::sql::<(Oid, Bool, BigInt, BigInt, Bool)>(&looks.join(" UNION ALL "));
    let rows = conn.transaction(|conn| {
        conn.batch_execute(SHORT_STATEMENT_TIMEOUT)?;
        look.load::<SeenRow>(conn)
    })?;
    Ok(rows
        .into_iter()
        .map(|(table, is_unsent, last, file, has_slot)| {
            (table, Seen { is_unsent, sequence: Sequence { last, file }, has_slot })
        })
        .collect())
}

fn look_at(schema: &str, table: u32) -> String {
    let schema = quoted_identifier(schema);
    let in_schema = |sql: &str| {
        sql.replace(" FROM outbox_shard", &format!(" FROM {schema}.outbox_shard"))
            .replace(" FROM outbox AS", &format!(" FROM {schema}.outbox AS"))
    };
    let unsent = in_schema(concat!("SELECT FROM ", shards!(), " AS s ", oldest_unsent!()));
    let file = quoted_literal(&format!("{schema}.outbox_seq_seq"));
    format!(
        "SELECT {table}::oid, EXISTS ({unsent}), CASE WHEN q.is_called THEN q.last_value ELSE q.last_value - 1 END, \
         coalesce(pg_relation_filenode({file})::bigint, 0), EXISTS (SELECT FROM {schema}.outbox_slot) \
         FROM {schema}.outbox_seq_seq AS q"
    )
}

/// Returns the open transactions that may have inserted into one of these tables, each beside the table's oid.
pub(super) fn writers(conn: &mut PgConnection, tables: Vec<u32>) -> QueryResult<HashSet<(u32, String)>> {
    Ok(Writers::new(tables).load::<(u32, String)>(conn)?.into_iter().collect())
}

/// Returns the last numbers that the sequences of these outboxes have given, by their tables' oids. Fails if one cannot be read.
pub(super) fn last_numbers<'a>(
    conn: &mut PgConnection,
    outboxes: impl Iterator<Item = &'a Outbox>,
) -> QueryResult<Vec<(u32, i64)>> {
    let last_number = |outbox: &Outbox| {
        format!("SELECT {}::oid, {LAST_NUMBER} FROM {}", outbox.table(), outbox.sequence())
    };
    let last_numbers: Vec<String> = outboxes.map(last_number).collect();
    if last_numbers.is_empty() {
        return Ok(Vec::new());
    }
    diesel::dsl::sql::<(Oid, BigInt)>(&last_numbers.join(" UNION ALL ")).load(conn)
}

statement!(
    Pg,
    Writers { tables: Vec<u32> => Array<Oid> } -> (Oid, Text),
    "SELECT relation, virtualtransaction FROM pg_locks WHERE locktype = 'relation' \
     AND database = (SELECT oid FROM pg_database WHERE datname = current_database()) AND relation = ANY (?) \
     AND mode = 'RowExclusiveLock' AND pid IS DISTINCT FROM pg_backend_pid()"
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_table_that_is_looked_at_is_that_of_the_schema() {
        let sql = look_at("a\"b", 7);
        let from: Vec<&str> =
            sql.split(" FROM ").skip(1).map(|rest| rest.split(' ').next().unwrap()).collect();
        let tables: Vec<_> = from.iter().filter(|name| name.contains("outbox")).collect();
        assert!(tables.iter().all(|name| name.starts_with("\"a\"\"b\".")), "{sql}");
        assert_eq!(tables.len(), 4, "{sql}");
    }
}
