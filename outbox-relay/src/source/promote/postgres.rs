use std::collections::HashSet;

use diesel::connection::SimpleConnection;
use diesel::pg::{Pg, PgConnection};
use diesel::prelude::*;
use diesel::result::Error;
use diesel::sql_types::{Array, BigInt, Bool, Double, Nullable, Oid, SmallInt};
use diesel_outbox_core::__private::quoted_identifier;

use super::Promote;
use crate::source::wake;
use crate::statement::statement;

/// The relay does not wait for somebody else's lock on the tables. If the server forgot in a crash that an event was moved, somebody could
/// cancel the event although it was sent.
const SETTINGS: &str = "SET LOCAL lock_timeout = '200ms'; SET LOCAL synchronous_commit = on";

impl Promote for PgConnection {
    type Error = Error;

    fn has_schedule(&mut self) -> QueryResult<bool> {
        HasSchedule::new().get_result(self)
    }

    fn next_due(&mut self) -> QueryResult<Option<f64>> {
        NextDue::new().get_result(self)
    }

    fn promote(&mut self, limit: i64) -> QueryResult<Option<usize>> {
        self.transaction(|conn| {
            conn.batch_execute(SETTINGS)?;
            if TakeTurn::new().get_result::<i16>(conn).optional()?.is_none() {
                return Ok(None);
            }
            let moved: i64 = Move::new(limit).get_result(conn)?;
            if moved > 0 {
                wake(conn)?;
            }
            Ok(usize::try_from(moved).ok())
        })
    }

    fn count_scheduled(&mut self) -> QueryResult<u64> {
        Count::new().get_result::<i64>(self).map(i64::unsigned_abs)
    }
}

statement!(
    Pg,
    HasSchedule {} -> Bool,
    "SELECT to_regclass('outbox_scheduled') IS NOT NULL AND to_regclass('outbox_promotion') IS NOT NULL"
);

statement!(
    Pg,
    NextDue {} -> Nullable<Double>,
    "SELECT extract(epoch FROM (SELECT due_at FROM outbox_scheduled ORDER BY due_at, seq LIMIT 1) - clock_timestamp())::double precision"
);

statement!(Pg, TakeTurn {} -> SmallInt, "SELECT turn FROM outbox_promotion FOR UPDATE SKIP LOCKED");

statement!(
    Pg,
    /// Moves what is due. Its `created_at` becomes that of a row that is emitted now: see docs/scheduled.md.
    Move { limit: i64 => BigInt } -> BigInt,
    "WITH due AS (SELECT id FROM outbox_scheduled WHERE due_at <= statement_timestamp() ORDER BY due_at, seq LIMIT ? \
     FOR UPDATE SKIP LOCKED), \
     moved AS (DELETE FROM outbox_scheduled AS s USING due WHERE s.id = due.id RETURNING s.*), \
     emitted AS (INSERT INTO outbox (id, aggregatetype, aggregateid, type, payload, headers, shard) \
     SELECT id, aggregatetype, aggregateid, type, payload, headers, shard FROM moved ORDER BY due_at, seq RETURNING seq) \
     SELECT count(*) FROM emitted"
);

statement!(Pg, Count {} -> BigInt, "SELECT count(*) FROM outbox_scheduled");

/// Which of several outboxes have the tables, and which of those have something due.
#[derive(Default)]
pub(crate) struct DueSchemas {
    /// The tables' oids.
    with_schedule: HashSet<u32>,
}

impl DueSchemas {
    /// Looks which of these outboxes have the tables.
    pub(crate) fn find(&mut self, conn: &mut PgConnection, tables: Vec<u32>) -> QueryResult<()> {
        self.with_schedule = WithSchedule::new(tables).load::<u32>(conn)?.into_iter().collect();
        Ok(())
    }

    /// Returns which of these outboxes have something due. They are given with the names of their schemas. Leaves out those that cannot be
    /// looked at: a worker finds out why.
    pub(crate) fn due(&self, conn: &mut PgConnection, outboxes: &[(u32, &str)], at_once: usize) -> Vec<u32> {
        let known: Vec<_> =
            outboxes.iter().copied().filter(|(table, _)| self.with_schedule.contains(table)).collect();
        let mut due = Vec::new();
        for some in known.chunks(at_once) {
            match look(conn, some) {
                Ok(these) => due.extend(these),
                Err(_) => due.extend(some.iter().flat_map(|one| look(conn, &[*one]).unwrap_or_default())),
            }
        }
        due
    }
}

fn look(conn: &mut PgConnection, outboxes: &[(u32, &str)]) -> QueryResult<Vec<u32>> {
    let look_at = |(table, schema): &(u32, &str)| {
        let schema = quoted_identifier(schema);
        format!(
            "SELECT {table}::oid WHERE EXISTS (SELECT FROM {schema}.outbox_scheduled WHERE due_at <= statement_timestamp())"
        )
    };
    let looks: Vec<String> = outboxes.iter().map(look_at).collect();
    // Its text changes with the outboxes, so it is not kept prepared.
    diesel::dsl::sql::<Oid>(&looks.join(" UNION ALL ")).load(conn)
}

statement!(
    Pg,
    WithSchedule { tables: Vec<u32> => Array<Oid> } -> Oid,
    "SELECT o.oid FROM pg_class AS o WHERE o.oid = ANY (?) AND EXISTS (SELECT FROM pg_class AS s \
     WHERE s.relnamespace = o.relnamespace AND s.relname = 'outbox_scheduled')"
);
