//! PostgreSQL, polled. The lock on a shard's row is the claim: no lease, no clock, no token. A worker that dies loses its
//! connection, and with it the lock.

mod ahead;
mod claim;
mod fence;
mod place;
mod read;
mod session;
mod unsettled;
mod upkeep;
mod wake;

use std::time::Duration;

use diesel_outbox_core::{Claimed, Lag, Source, SourceError};

use self::ahead::Ahead;
use self::session::Sessions;
use crate::source::SourceOptions;

/// The outbox table of a PostgreSQL database as a source of records, for one worker.
///
/// Any number of these may work on one table, in any number of processes: each aggregate is worked on by one at a time.
/// Each has a connection and a thread that works on it: while the relay hands one chunk to the broker, the database settles
/// the last one and makes the next.
pub struct PostgresSource {
    ahead: Ahead,
}

impl PostgresSource {
    /// A source that connects to this database when it is first asked for something.
    pub fn new(database_url: impl Into<String>, options: SourceOptions) -> Self {
        Self { ahead: Ahead::new(database_url.into(), options) }
    }
}

impl Source for PostgresSource {
    fn claim(&mut self) -> Result<bool, SourceError> {
        self.ahead.ask(Sessions::claim)
    }

    fn read(&mut self, limit: usize, records: &mut Vec<Claimed>) -> Result<(), SourceError> {
        let mut chunk = self.ahead.ask(move |sessions| sessions.read(limit))?;
        if records.is_empty() {
            *records = chunk;
        } else {
            records.append(&mut chunk);
        }
        Ok(())
    }

    /// An error is told by what is called next.
    fn settle(&mut self, tickets: &[u64]) -> Result<(), SourceError> {
        if tickets.is_empty() {
            return Ok(());
        }
        let tickets = tickets.to_vec();
        self.ahead.tell(move |sessions| sessions.settle(tickets))
    }

    fn dead_letter(&mut self, ticket: u64, reason: &str) -> Result<bool, SourceError> {
        let reason = reason.to_owned();
        self.ahead.ask(move |sessions| sessions.dead_letter(ticket, reason))
    }

    fn release(&mut self) -> Result<(), SourceError> {
        self.ahead.ask(Sessions::release)
    }

    fn abandon(&mut self) {
        self.ahead.abandon();
    }

    fn wait(&mut self, limit: Duration) -> Result<bool, SourceError> {
        self.ahead.ask(move |sessions| sessions.wait(limit))
    }

    fn upkeep(&mut self) -> Result<Option<Lag>, SourceError> {
        self.ahead.ask(Sessions::upkeep)
    }
}
