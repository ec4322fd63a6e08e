//! Commits that do not wait for the disk, though records are sent exactly once.
//!
//! A crash of the server may undo such a commit, with all later ones, but none before it. Until it is known to be on the disk, the
//! broker keeps the ids of what it settled, so a relay that goes on after the crash can settle that again.

use std::collections::VecDeque;

use diesel::connection::SimpleConnection;
use diesel::pg::{Pg, PgConnection};
use diesel::prelude::*;
use diesel::sql_types::{BigInt, Bool};

use crate::statement::statement;

/// How many passes, and records in them, may be undoable. After that, a commit waits.
const MOST_PASSES: usize = 200;
const MOST_RECORDS: usize = 200_000;

/// The passes that a crash of the server could still undo, the first one first.
#[derive(Default)]
pub(super) struct Undoable {
    /// Where the WAL ended after the pass, and how many records it had.
    passes: VecDeque<(i64, usize)>,
    /// Whether commits do not wait.
    is_lazy: bool,
}

impl Undoable {
    /// Returns how many there are.
    pub(super) fn count(&self) -> usize {
        self.passes.len()
    }

    /// Notes that a pass was committed that has settled so many records, and decides whether the next commit waits. It does if the server
    /// has synchronous standbys, because only a commit that waits knows that these have it, too.
    pub(super) fn committed(&mut self, conn: &mut PgConnection, records: usize) -> QueryResult<()> {
        let (end, on_disk, has_standbys) = Ends::new().get_result::<(i64, i64, bool)>(conn)?;
        if self.is_lazy {
            self.passes.push_back((end, records));
            while !has_standbys && self.passes.front().is_some_and(|(end, _)| *end <= on_disk) {
                self.passes.pop_front();
            }
        } else {
            self.passes.clear();
        }
        let records: usize = self.passes.iter().map(|(_, records)| records).sum();
        let may_be_lazy = !has_standbys && self.count() < MOST_PASSES && records < MOST_RECORDS;
        if may_be_lazy != self.is_lazy {
            self.is_lazy = may_be_lazy;
            conn.batch_execute(if may_be_lazy { LAZY } else { WAITING })?;
        }
        Ok(())
    }

    /// Does something whose commits wait.
    #[cfg(feature = "postgres-wal")]
    pub(super) fn durably<T>(
        &self,
        conn: &mut PgConnection,
        work: impl FnOnce(&mut PgConnection) -> Result<T, diesel_outbox_core::SourceError>,
    ) -> Result<T, diesel_outbox_core::SourceError> {
        if !self.is_lazy {
            return work(conn);
        }
        let failed = |error| super::database_error("setting how commits wait", error);
        conn.batch_execute(WAITING).map_err(failed)?;
        let done = work(conn)?;
        conn.batch_execute(LAZY).map_err(failed)?;
        Ok(done)
    }
}

const LAZY: &str = "SET synchronous_commit = off";
const WAITING: &str = "SET synchronous_commit = on";

statement!(
    Pg,
    /// Where the WAL ends, up to where it is on the disk, and whether the server has synchronous standbys.
    Ends {} -> (BigInt, BigInt, Bool),
    "SELECT (pg_current_wal_insert_lsn() - '0/0')::bigint, (pg_current_wal_flush_lsn() - '0/0')::bigint, \
     current_setting('synchronous_standby_names') <> ''"
);
