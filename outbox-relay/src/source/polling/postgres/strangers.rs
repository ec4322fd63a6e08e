//! Sessions that hold advisory locks of an outbox and may not work on it. Any role that can connect can take these locks.

use std::time::{Duration, Instant};

use diesel::pg::{Pg, PgConnection};
use diesel::prelude::*;
use diesel::sql_types::{Array, Integer, Oid};

use crate::statement::statement;
use diesel_outbox_core::advisory_locks;

/// How often a worker asks who counts as a worker and is none.
const INTERVAL: Duration = Duration::from_secs(1);

/// Returns the processes of those who hold this lock of a table and whose role may not do what a relay does.
pub(super) fn strangers(conn: &mut PgConnection, key: i32, table: u32) -> QueryResult<Vec<i32>> {
    Ok(strangers_of(conn, key, vec![table])?.into_iter().map(|(_, pid)| pid).collect())
}

/// Returns the same for several tables, each process beside the table's oid.
pub(super) fn strangers_of(
    conn: &mut PgConnection,
    key: i32,
    tables: Vec<u32>,
) -> QueryResult<Vec<(u32, i32)>> {
    Strangers::new(key, tables).load(conn)
}

/// How many workers are at work on an outbox, so that each leaves the others their part of the shards.
pub(super) struct Workers {
    count: usize,
    /// How many of those who count as workers are none, and when that was last asked.
    strangers: usize,
    asked: Option<Instant>,
}

impl Workers {
    pub(super) fn new() -> Self {
        Self { count: 1, strangers: 0, asked: None }
    }

    pub(super) fn count(&self) -> usize {
        self.count
    }

    /// Learns how many have taken the lock by which workers count each other.
    pub(super) fn counted(&mut self, conn: &mut PgConnection, table: u32, count: usize) -> QueryResult<()> {
        if count > 1 && self.asked.is_none_or(|asked| asked.elapsed() >= INTERVAL) {
            self.asked = Some(Instant::now());
            self.strangers = strangers(conn, advisory_locks::WORKING, table)?.len();
        }
        // This worker counts even before it holds the lock by which it is counted.
        self.count = count.saturating_sub(self.strangers).max(1);
        Ok(())
    }
}

statement!(
    Pg,
    Strangers { key: i32 => Integer, tables: Vec<u32> => Array<Oid> } -> (Oid, Integer),
    "SELECT l.objid, l.pid FROM pg_locks AS l JOIN pg_stat_activity AS a ON a.pid = l.pid WHERE l.locktype = 'advisory' AND l.granted \
     AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database()) AND l.classid = ?::oid \
     AND l.objid = ANY (?) AND l.objsubid = 2 AND NOT coalesce(has_table_privilege(a.usesysid, (SELECT s.oid FROM pg_class AS o \
     JOIN pg_class AS s ON s.relnamespace = o.relnamespace AND s.relname = 'outbox_shard' WHERE o.oid = l.objid), 'UPDATE'), false)"
);
