//! A look at many outboxes in a few statements. It finds those that need a worker: idle ones need none.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use diesel::connection::SimpleConnection;
use diesel::pg::PgConnection;
use diesel::prelude::*;
use diesel::result::Error;
use diesel::sql_types::{BigInt, Bool, Oid};
use diesel_outbox_core::__private::{quoted_identifier, quoted_literal};

use super::outbox::Outbox;
use crate::source::bounds::{oldest_unsent, shards};
use crate::source::sequence::{Sequence, last_number};

/// How many outboxes a statement looks at. While it runs, it holds eight locks for each of them.
pub(super) const AT_ONCE: usize = 50;

/// What failed sooner than this has not waited in vain for a lock: the session's `lock_timeout` is as long.
const QUICK: Duration = Duration::from_millis(200);

/// Nobody hears notifications meanwhile. What takes longer is left to a worker.
const SHORT_STATEMENT_TIMEOUT: &str = "SET LOCAL statement_timeout = '2s'";

/// What a look from afar shows of an outbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Seen {
    /// Whether something is unsent.
    pub(super) is_unsent: bool,
    pub(super) sequence: Sequence,
    /// Whether a slot of the write-ahead log was set up.
    pub(super) has_slot: bool,
    pub(super) has_dead_letters: bool,
}

type SeenRow = (u32, bool, i64, i64, bool, bool);

/// Looks at these outboxes, [`AT_ONCE`] at most, and returns what it has seen by their tables' oids. Leaves out those that cannot be
/// looked at.
pub(super) fn survey(conn: &mut PgConnection, outboxes: &[&Outbox]) -> BTreeMap<u32, Seen> {
    let mut seen = BTreeMap::new();
    look_in_parts(conn, outboxes, &mut seen);
    seen
}

fn look_in_parts(conn: &mut PgConnection, outboxes: &[&Outbox], seen: &mut BTreeMap<u32, Seen>) {
    let began = Instant::now();
    match look(conn, outboxes) {
        Ok(these) => seen.extend(these),
        // One of them stands in the way of the others. If it is locked, to look for it would take too long.
        Err(_) if outboxes.len() > 1 && began.elapsed() < QUICK => {
            let (first, second) = outboxes.split_at(outboxes.len() / 2);
            look_in_parts(conn, first, seen);
            look_in_parts(conn, second, seen);
        }
        // If the session has failed, its next statement fails too.
        Err(error) => tracing::debug!(%error, "some of the outboxes cannot be looked at from afar"),
    }
}

/// Fails if one of them cannot be looked at.
fn look(conn: &mut PgConnection, outboxes: &[&Outbox]) -> QueryResult<Vec<(u32, Seen)>> {
    let looks: Vec<String> = outboxes.iter().map(|outbox| look_at(outbox.schema(), outbox.table())).collect();
    if looks.is_empty() {
        return Ok(Vec::new());
    }
    // Its text changes with the outboxes, so it is not kept prepared.
    let look = diesel::dsl::sql::<(Oid, Bool, BigInt, BigInt, Bool, Bool)>(&looks.join(" UNION ALL "));
    let rows = conn.transaction(|conn| {
        conn.batch_execute(SHORT_STATEMENT_TIMEOUT)?;
        look.load::<SeenRow>(conn)
    })?;
    Ok(rows
        .into_iter()
        .map(|(table, is_unsent, last, file, has_slot, has_dead_letters)| {
            (table, Seen { is_unsent, sequence: Sequence { last, file }, has_slot, has_dead_letters })
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
        concat!(
            "SELECT {table}::oid, EXISTS ({unsent}), ",
            last_number!(),
            ", coalesce(pg_relation_filenode({file}::regclass)::bigint, 0), EXISTS (SELECT FROM {schema}.outbox_slot), \
             EXISTS (SELECT FROM {schema}.outbox_dead_letter) FROM {schema}.outbox_seq_seq"
        ),
        table = table,
        unsent = unsent,
        file = file,
        schema = schema
    )
}

/// The last numbers of sequences, by the tables' oids.
#[derive(Default)]
pub(super) struct LastNumbers {
    pub(super) read: Vec<(u32, i64)>,
    /// Why others cannot be read, perhaps because they are locked.
    pub(super) failed: Vec<(u32, Error)>,
}

/// Returns the last numbers that the sequences of these outboxes have given.
pub(super) fn last_numbers(conn: &mut PgConnection, outboxes: &[&Outbox]) -> LastNumbers {
    let mut last_numbers = LastNumbers::default();
    for outboxes in outboxes.chunks(AT_ONCE) {
        if let Ok(these) = last_numbers_of(conn, outboxes) {
            last_numbers.read.extend(these);
            continue;
        }
        for outbox in outboxes {
            match last_numbers_of(conn, &[*outbox]) {
                Ok(one) => last_numbers.read.extend(one),
                Err(error) => last_numbers.failed.push((outbox.table(), error)),
            }
        }
    }
    last_numbers
}

fn last_numbers_of(conn: &mut PgConnection, outboxes: &[&Outbox]) -> QueryResult<Vec<(u32, i64)>> {
    let last_number = |outbox: &&Outbox| {
        format!(concat!("SELECT {}::oid, ", last_number!(), " FROM {}"), outbox.table(), outbox.sequence())
    };
    let last_numbers: Vec<String> = outboxes.iter().map(last_number).collect();
    diesel::dsl::sql::<(Oid, BigInt)>(&last_numbers.join(" UNION ALL ")).load(conn)
}

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
        assert_eq!(tables.len(), 5, "{sql}");
    }
}
