//! PostgreSQL, polled. The lock on a shard's row is the claim: there is no lease, no clock and no token. A worker that dies loses
//! its connection, and with it the lock.

mod alone;
mod claim;
mod connection;
mod dead_letters;
mod outboxes;
mod prefetch;
pub(crate) mod progress;
pub(crate) mod read;
mod settle;
mod strangers;
mod table;
mod thread;
pub(crate) mod tuple_id;
mod unsettled;
mod upkeep;
mod wakeup;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use diesel_outbox_core::{Claimed, DeadLettered, Lag, Source, SourceError};
use uuid::Uuid;

use self::connection::Sessions;
use self::outboxes::Outbox;
pub(crate) use self::outboxes::{Queue, Schemas, SharedSource, Watch};
use self::prefetch::ReadAhead;
use self::read::ReadBatch;
use self::thread::OnThread;
use super::batch_size;
use crate::source::DatabaseUrl;
use crate::source::SourceOptions;
use crate::source::database::PostgresDatabase;

/// The outbox table of a PostgreSQL database as a source of records, for one worker.
///
/// You can have any number of these on one table, in any number of processes: only one at a time works on an aggregate. Each has a
/// connection, and a second one while it works off a backlog, so that one settles while the other reads.
pub struct PostgresSource {
    database: PostgresDatabase,
    sessions: OnThread,
    ahead: ReadAhead,
    /// Whether no other worker was at work when this pass began.
    is_alone: bool,
    /// How many of the last passes a crash of the server could undo.
    undoable: usize,
}

/// This many records are settled at once without another thread.
const FEW: usize = 20;

impl fmt::Debug for PostgresSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PostgresSource").field("database", &self.database).finish_non_exhaustive()
    }
}

impl PostgresSource {
    /// Returns a source that connects to this database when it is first asked for something.
    pub fn new(database_url: impl Into<DatabaseUrl>, options: SourceOptions) -> Self {
        Self::of(PostgresDatabase::new(database_url.into(), options))
    }

    pub(super) fn of(database: PostgresDatabase) -> Self {
        let sessions = OnThread::new(database.clone());
        Self { database, sessions, ahead: ReadAhead::default(), is_alone: false, undoable: 0 }
    }

    /// Connects, and works on this one of several outboxes from now on.
    fn enter(&mut self, outbox: Arc<Outbox>) -> Result<(), SourceError> {
        self.sessions.ask(move |sessions| sessions.enter(outbox))
    }

    /// Gives up what it needs only while there is a backlog.
    fn rest(&mut self) {
        self.ahead.rest();
    }

    /// Returns the next batch that was read ahead, and whether there are more. Returns `None` if nothing is read ahead.
    fn next_batch(&mut self) -> Result<Option<(Vec<Claimed>, bool)>, SourceError> {
        let Some(batch) = self.ahead.next(|batch| batch.exhausts) else { return Ok(None) };
        let ReadBatch { records, held_back, given, exhausts } = batch;
        self.sessions.tell(move |sessions| sessions.give(given, exhausts, held_back))?;
        Ok(Some((records, !exhausts)))
    }
}

impl Source for PostgresSource {
    fn claim(&mut self) -> Result<bool, SourceError> {
        self.ahead.end_pass();
        let (has_claimed, is_alone) = self.sessions.ask(Sessions::claim)?;
        self.is_alone = is_alone;
        Ok(has_claimed)
    }

    fn read(&mut self, limit: usize, records: &mut Vec<Claimed>) -> Result<bool, SourceError> {
        let (batch, more) = match self.next_batch()? {
            Some(batch) => batch,
            None => self.sessions.ask(move |sessions| sessions.read(limit))?,
        };
        records.extend(batch);
        Ok(more)
    }

    fn read_ahead(&mut self, limit: usize) -> Result<(), SourceError> {
        if self.ahead.may_begin() {
            let Some(backlog) = self.sessions.ask(move |sessions| sessions.backlog(limit))? else {
                return Ok(());
            };
            let database = &self.database;
            self.ahead.begin(backlog, || prefetch::begin(database.clone()));
        }
        self.ahead.ask();
        Ok(())
    }

    /// If there are many tickets, the next call returns the error.
    fn settle(&mut self, tickets: &[u64]) -> Result<(), SourceError> {
        if tickets.is_empty() {
            return Ok(());
        }
        let tickets = tickets.to_vec();
        if tickets.len() <= FEW {
            return self.sessions.ask(move |sessions| sessions.settle(tickets));
        }
        self.sessions.tell(move |sessions| sessions.settle(tickets))
    }

    fn settle_committed(&mut self, ids: &[Uuid]) -> Result<(), SourceError> {
        if ids.is_empty() {
            return Ok(());
        }
        let ids = ids.to_vec();
        self.sessions.ask(move |sessions| sessions.settle_committed(ids))
    }

    fn dead_letter(&mut self, ticket: u64, reason: &str) -> Result<DeadLettered, SourceError> {
        let reason = reason.to_owned();
        self.sessions.ask(move |sessions| sessions.dead_letter(ticket, reason))
    }

    fn release(&mut self) -> Result<(), SourceError> {
        self.ahead.end_pass();
        self.undoable = self.sessions.ask(Sessions::release)?;
        Ok(())
    }

    fn abandon(&mut self) {
        // A database that was away took both connections with it.
        self.ahead = ReadAhead::default();
        self.sessions.abandon();
    }

    fn undoable_passes(&self) -> usize {
        self.undoable
    }

    /// If it has only some of the shards, events of the others would wait meanwhile.
    fn lingers(&self) -> bool {
        self.is_alone
    }

    fn wait(&mut self, limit: Duration) -> Result<bool, SourceError> {
        self.rest();
        self.sessions.ask(move |sessions| sessions.wait(limit))
    }

    fn outbox(&self) -> Option<&str> {
        self.database.outbox.get().map(String::as_str)
    }

    fn origin(&self) -> Option<&str> {
        self.database.origin.get().map(String::as_str)
    }

    fn upkeep(&mut self) -> Result<Option<Lag>, SourceError> {
        self.sessions.ask(Sessions::upkeep)
    }
}
