//! The connection of one worker. If it is lost, a new one takes its place.

use std::time::Duration;

use diesel::pg::PgConnection;
use diesel::prelude::*;
use diesel_outbox_core::{Claimed, DeadLetterPolicy, DeadLettered, Lag, SourceError};

use super::batch_size::BatchSize;
use super::claim::PollingPass;
use super::prefetch::Backlog;
use super::upkeep::Upkeep;
use super::wakeup::Wake;
use super::{dead_letters, settle};
use crate::source::check::check_table;
use crate::source::database::Database;
use crate::source::fence::Fence;
use crate::source::pooler::OwnProcess;
use crate::source::{BLOCKED, SourceOptions, database_error};

/// The session of one worker.
pub(super) struct Sessions {
    database: Database,
    /// `None` if the connection was lost, and everything with it.
    session: Option<Session>,
}

/// A place in the table means nothing without the pass that read it.
const NOTHING_CLAIMED: diesel::result::Error = diesel::result::Error::NotInTransaction;

/// A connection, and what is known and held through it.
struct Session {
    conn: PgConnection,
    process: OwnProcess,
    fence: Fence,
    wake: Wake,
    upkeep: Upkeep,
    batch_size: BatchSize,
    pass: Option<PollingPass>,
    /// Whether the last pass found more than a batch at once.
    was_large: bool,
}

impl Sessions {
    pub(super) fn new(database: Database) -> Self {
        Self { database, session: None }
    }

    /// Works in the session. Begins one if there is none, and drops it if the database fails.
    fn with<T>(
        &mut self,
        doing: &str,
        work: impl FnOnce(&mut Session, &Database) -> QueryResult<T>,
    ) -> Result<T, SourceError> {
        let mut session = match self.session.take() {
            Some(session) => session,
            None => Session::begin(&self.database)?,
        };
        let done = work(&mut session, &self.database).map_err(|error| database_error(doing, error))?;
        self.session = Some(session);
        Ok(done)
    }

    /// Claims shards. Returns whether it has any, and whether this is the only worker at work.
    pub(super) fn claim(&mut self) -> Result<(bool, bool), SourceError> {
        self.with("claiming", |session, database| {
            let has_claimed = session.claim(&database.options)?;
            Ok((has_claimed, session.wake.workers() <= 1))
        })
    }

    /// Returns the next records, and whether there are more.
    pub(super) fn read(&mut self, limit: usize) -> Result<(Vec<Claimed>, bool), SourceError> {
        self.with("reading", |session, _| session.read(limit))
    }

    /// Returns what can be read ahead.
    pub(super) fn backlog(&mut self, limit: usize) -> Result<Option<Backlog>, SourceError> {
        self.with("reading", |session, _| session.backlog(limit))
    }

    /// Notes that these rows were read ahead and given to the relay, except for those that are held back.
    pub(super) fn give(
        &mut self,
        given: Vec<(u64, i64)>,
        exhausts: bool,
        held_back: Vec<u64>,
    ) -> Result<(), SourceError> {
        self.with("reading", |session, _| session.give(&given, exhausts, held_back))
    }

    pub(super) fn settle(&mut self, tickets: Vec<u64>) -> Result<(), SourceError> {
        self.with("settling", |session, database| session.settle(tickets, &database.options))
    }

    pub(super) fn dead_letter(&mut self, ticket: u64, reason: String) -> Result<DeadLettered, SourceError> {
        self.with("moving a record to the dead letters", |session, _| session.dead_letter(ticket, &reason))
    }

    pub(super) fn release(&mut self) -> Result<(), SourceError> {
        self.with("releasing", |session, _| session.release())
    }

    pub(super) fn abandon(&mut self) {
        if let Some(session) = &mut self.session
            && session.pass.take().is_some()
            && PollingPass::roll_back(&mut session.conn).is_err()
        {
            self.session = None;
        }
    }

    pub(super) fn wait(&mut self, limit: Duration) -> Result<bool, SourceError> {
        self.with("waiting", |session, _| session.wake.wait(&mut session.conn, limit))
    }

    pub(super) fn upkeep(&mut self) -> Result<Option<Lag>, SourceError> {
        let problem = self.with("looking for a pooler", |session, database| {
            session.process.look(&mut session.conn, database.options.poll_interval)
        })?;
        if let Some(problem) = problem {
            self.session = None;
            return Err(problem);
        }
        self.with("looking after the table", Session::upkeep)
    }
}

impl Session {
    fn begin(database: &Database) -> Result<Self, SourceError> {
        let mut conn = database.connect_to_own_session()?;
        let process =
            OwnProcess::of(&mut conn).map_err(|error| database_error("looking for a pooler", error))?;
        let sequence = check_table(&mut conn)?;
        let wake = Wake::start(&mut conn, database.options.poll_interval)
            .map_err(|error| database_error("preparing to listen", error))?;
        Ok(Self {
            conn,
            process,
            fence: Fence::after(sequence),
            wake,
            upkeep: Upkeep::default(),
            batch_size: BatchSize::new(),
            pass: None,
            was_large: false,
        })
    }

    fn claim(&mut self, options: &SourceOptions) -> QueryResult<bool> {
        if let Some(workers) = self.fence.advance(&mut self.conn)? {
            self.wake.counted(&mut self.conn, workers)?;
        }
        let block = options.dead_letter_policy == DeadLetterPolicy::Block;
        self.pass = PollingPass::begin(&mut self.conn, self.wake.workers(), self.fence.bounds(), block)?;
        if self.pass.is_some() {
            self.wake.awake(&mut self.conn)?;
        }
        Ok(self.pass.is_some())
    }

    fn read(&mut self, limit: usize) -> QueryResult<(Vec<Claimed>, bool)> {
        if let Some(workers) = self.fence.advance(&mut self.conn)? {
            self.wake.counted(&mut self.conn, workers)?;
        }
        let (workers, bounds) = (self.wake.workers(), self.fence.bounds());
        let pass = self.pass.as_mut().ok_or(NOTHING_CLAIMED)?;
        let batch = pass.read(&mut self.conn, &mut self.batch_size, limit, workers, bounds)?;
        self.hold_back(batch.held_back)?;
        Ok((batch.records, !batch.exhausts))
    }

    fn backlog(&mut self, limit: usize) -> QueryResult<Option<Backlog>> {
        let pass = self.pass.as_mut().ok_or(NOTHING_CLAIMED)?;
        pass.backlog(&mut self.conn, self.batch_size, limit)
    }

    fn give(&mut self, given: &[(u64, i64)], exhausts: bool, held_back: Vec<u64>) -> QueryResult<()> {
        self.pass.as_mut().ok_or(NOTHING_CLAIMED)?.give(given, exhausts);
        self.hold_back(held_back)
    }

    /// Makes dead letters of rows that are held back. They stay among those that were given, because another connection still sees
    /// them.
    fn hold_back(&mut self, tickets: Vec<u64>) -> QueryResult<()> {
        for ticket in tickets {
            dead_letters::keep(&mut self.conn, ticket, BLOCKED)?;
        }
        Ok(())
    }

    fn settle(&mut self, tickets: Vec<u64>, options: &SourceOptions) -> QueryResult<()> {
        let pass = self.pass.as_mut().ok_or(NOTHING_CLAIMED)?;
        settle::settle(&mut self.conn, &tickets, options.sent_rows)?;
        pass.settled(&tickets);
        Ok(())
    }

    fn dead_letter(&mut self, ticket: u64, reason: &str) -> QueryResult<DeadLettered> {
        let pass = self.pass.as_mut().ok_or(NOTHING_CLAIMED)?;
        let (aggregate_type, id) = dead_letters::keep(&mut self.conn, ticket, reason)?;
        pass.settled(&[ticket]);
        Ok(DeadLettered::new(id, aggregate_type).holding_back(pass.holds_back()))
    }

    fn release(&mut self) -> QueryResult<()> {
        let Some(pass) = self.pass.take() else { return Ok(()) };
        self.was_large = pass.was_large();
        pass.end(&mut self.conn, self.was_large && self.wake.may_call_for_help())
    }

    fn upkeep(&mut self, database: &Database) -> QueryResult<Option<Lag>> {
        self.wake.try_to_lead(&mut self.conn)?;
        if !self.wake.leads() {
            return Ok(None);
        }
        self.upkeep.run(&mut self.conn, database, self.was_large)
    }
}
