//! What a session knows of one outbox, and the pass that it makes there.

use std::time::{Duration, Instant};

use diesel::pg::PgConnection;
use diesel::prelude::*;
use diesel_outbox_core::{Claimed, DeadLetterPolicy, DeadLettered, SourceError};
use uuid::Uuid;

use super::batch_size::BatchSize;
use super::claim::PollingPass;
use super::prefetch::Backlog;
use super::strangers::Workers;
use super::{dead_letters, settle};
use crate::source::advisory_lock::table_oid;
use crate::source::check::check_table;
use crate::source::fence::Fence;
use crate::source::sequence::Sequence;
use crate::source::{BLOCKED, SourceOptions, database_error};

/// A place in the table means nothing without the pass that read it.
pub(super) const NOTHING_CLAIMED: diesel::result::Error = diesel::result::Error::NotInTransaction;

/// How often a relay wakes the others for a backlog.
const HELP_INTERVAL: Duration = Duration::from_secs(1);

/// It is good for the session that it began in only: another server may not have what this one has seen.
pub(super) struct Table {
    oid: u32,
    fence: Fence,
    workers: Workers,
    batch_size: BatchSize,
    pass: Option<PollingPass>,
    /// Whether the last pass found more than a batch at once.
    was_large: bool,
    called_for_help: Option<Instant>,
}

impl Table {
    /// Checks the tables that the session's `search_path` has.
    pub(super) fn begin(conn: &mut PgConnection) -> Result<Self, SourceError> {
        let sequence = check_table(conn)?;
        let oid = table_oid(conn).map_err(|error| database_error("looking for the outbox table", error))?;
        Ok(Self {
            oid,
            fence: Fence::after(sequence),
            workers: Workers::new(),
            batch_size: BatchSize::new(),
            pass: None,
            was_large: false,
            called_for_help: None,
        })
    }

    pub(super) fn oid(&self) -> u32 {
        self.oid
    }

    pub(super) fn sequence(&self) -> Sequence {
        self.fence.sequence()
    }

    /// Learns how far the sequence was when another session looked.
    pub(super) fn see_sequence(&mut self, sequence: Sequence) {
        self.fence.see_sequence(sequence);
    }

    pub(super) fn was_large(&self) -> bool {
        self.was_large
    }

    /// Returns whether no other worker is at work.
    pub(super) fn is_alone(&self) -> bool {
        self.workers.count() <= 1
    }

    pub(super) fn claim(
        &mut self,
        conn: &mut PgConnection,
        begin: &str,
        options: &SourceOptions,
    ) -> QueryResult<bool> {
        self.advance(conn)?;
        let blocks = options.dead_letter_policy == DeadLetterPolicy::Block;
        let (workers, bounds) = (self.workers.count(), self.fence.bounds());
        let all_or_none = options.exactly_once;
        let workers = if all_or_none { 1 } else { workers };
        self.pass = PollingPass::begin(conn, begin, self.oid, workers, bounds, blocks, all_or_none)?;
        Ok(self.pass.is_some())
    }

    fn advance(&mut self, conn: &mut PgConnection) -> QueryResult<()> {
        match self.fence.advance(Instant::now(), conn)? {
            Some(workers) => self.workers.counted(conn, self.oid, workers),
            None => Ok(()),
        }
    }

    pub(super) fn read(
        &mut self,
        conn: &mut PgConnection,
        limit: usize,
    ) -> QueryResult<(Vec<Claimed>, bool)> {
        self.advance(conn)?;
        let pass = self.pass.as_mut().ok_or(NOTHING_CLAIMED)?;
        let batch =
            pass.read(conn, &mut self.batch_size, limit, self.workers.count(), self.fence.bounds())?;
        hold_back(conn, self.oid, batch.held_back)?;
        Ok((batch.records, !batch.exhausts))
    }

    /// Returns what can be read ahead. `schema` is that of the outbox, if the relay has several.
    pub(super) fn backlog(
        &mut self,
        conn: &mut PgConnection,
        schema: Option<String>,
        limit: usize,
    ) -> QueryResult<Option<Backlog>> {
        let pass = self.pass.as_mut().ok_or(NOTHING_CLAIMED)?;
        Ok(pass.backlog(conn, self.batch_size, limit)?.map(|backlog| Backlog { schema, ..backlog }))
    }

    pub(super) fn give(
        &mut self,
        conn: &mut PgConnection,
        given: &[(u64, i64)],
        exhausts: bool,
        held_back: Vec<u64>,
    ) -> QueryResult<()> {
        self.pass.as_mut().ok_or(NOTHING_CLAIMED)?.give(given, exhausts);
        hold_back(conn, self.oid, held_back)
    }

    pub(super) fn settle(
        &mut self,
        conn: &mut PgConnection,
        tickets: &[u64],
        options: &SourceOptions,
    ) -> QueryResult<()> {
        let pass = self.pass.as_mut().ok_or(NOTHING_CLAIMED)?;
        settle::settle(conn, self.oid, tickets, options.sent_rows)?;
        pass.settled(tickets);
        Ok(())
    }

    pub(super) fn settle_committed(
        &mut self,
        conn: &mut PgConnection,
        ids: Vec<Uuid>,
        options: &SourceOptions,
    ) -> QueryResult<()> {
        let pass = self.pass.as_mut().ok_or(NOTHING_CLAIMED)?;
        settle::settle_committed(conn, self.oid, ids, pass.sent_through(), options.sent_rows)
    }

    pub(super) fn dead_letter(
        &mut self,
        conn: &mut PgConnection,
        ticket: u64,
        reason: &str,
    ) -> QueryResult<DeadLettered> {
        let pass = self.pass.as_mut().ok_or(NOTHING_CLAIMED)?;
        let (aggregate_type, id) = dead_letters::keep(conn, self.oid, ticket, reason)?;
        pass.settled(&[ticket]);
        Ok(DeadLettered::new(id, aggregate_type).holding_back(pass.holds_back()))
    }

    /// Ends the pass. If this relay leads, it calls the others to a backlog.
    pub(super) fn release(&mut self, conn: &mut PgConnection, leads: bool) -> QueryResult<()> {
        let Some(pass) = self.pass.take() else { return Ok(()) };
        self.was_large = pass.was_large();
        let calls_for_help = self.was_large && leads && self.may_call_for_help();
        pass.end(conn, calls_for_help)
    }

    fn may_call_for_help(&mut self) -> bool {
        let due = self.called_for_help.is_none_or(|called| called.elapsed() >= HELP_INTERVAL);
        if due {
            self.called_for_help = Some(Instant::now());
        }
        due
    }

    /// Ends the pass without its effects, if there is one.
    pub(super) fn abandon(&mut self, conn: &mut PgConnection) -> QueryResult<()> {
        self.pass.take().map_or(Ok(()), |_| PollingPass::roll_back(conn))
    }
}

/// Makes dead letters of rows that are held back. They stay among those that were given, because another connection still sees
/// them.
fn hold_back(conn: &mut PgConnection, table: u32, tickets: Vec<u64>) -> QueryResult<()> {
    for ticket in tickets {
        dead_letters::keep(conn, table, ticket, BLOCKED)?;
    }
    Ok(())
}
