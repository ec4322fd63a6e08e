use std::error::Error;
use std::time::Duration;

use crate::Record;

/// Where a relay gets its records from. Implemented for the polled outbox table by `diesel-outbox`.
///
/// The life of a pass: [`claim`](Self::claim), then any number of [`read`](Self::read), each with [`read_ahead`](Self::read_ahead) or without,
/// [`settle`](Self::settle) and
/// [`dead_letter`](Self::dead_letter), then [`release`](Self::release), or [`abandon`](Self::abandon) where something
/// went wrong. Between passes the relay [waits](Self::wait).
pub trait Source: Send {
    /// Begins a pass and claims records that nobody else has claimed. `false`: there are none now.
    ///
    /// # Errors
    /// The database is away or refuses; the relay abandons the pass, waits and tries again.
    fn claim(&mut self) -> Result<bool, SourceError>;

    /// Adds up to about `limit` of the next claimed records, in the order in which each aggregate's must be
    /// published. `true`: there may be more; `false`: all that there is now has been read. Read again later in the same
    /// pass, it may add what has come since.
    ///
    /// # Errors
    /// As for [`claim`](Self::claim).
    fn read(&mut self, limit: usize, records: &mut Vec<Claimed>) -> Result<bool, SourceError>;

    /// Told after a read where there may be more, which is to be [read](Self::read) unless something fails or the relay
    /// stops: a source may begin with that now. It need not.
    ///
    /// # Errors
    /// As for [`claim`](Self::claim).
    fn read_ahead(&mut self, limit: usize) -> Result<(), SourceError> {
        let _ = limit;
        Ok(())
    }

    /// Marks exactly these as sent.
    ///
    /// # Errors
    /// As for [`claim`](Self::claim).
    fn settle(&mut self, tickets: &[u64]) -> Result<(), SourceError>;

    /// Moves a record that can never be published to the dead letters, with the reason.
    ///
    /// # Errors
    /// As for [`claim`](Self::claim).
    fn dead_letter(&mut self, ticket: u64, reason: &str) -> Result<DeadLettered, SourceError>;

    /// Ends the pass and keeps what it did.
    ///
    /// # Errors
    /// As for [`claim`](Self::claim); what the pass had settled may be claimed again.
    fn release(&mut self) -> Result<(), SourceError>;

    /// Ends the pass without keeping what it did, holding nothing afterwards. Never fails: a lost connection has
    /// lost its claim too.
    fn abandon(&mut self);

    /// Whether a pass that has caught up goes on for a moment, as long as records keep coming: because claiming anew costs more
    /// than reading again. Default: no.
    fn lingers(&self) -> bool {
        false
    }

    /// Waits until there may be records to claim, but no longer than `limit`: `false` where there is no reason to look
    /// yet.
    ///
    /// # Errors
    /// As for [`claim`](Self::claim).
    fn wait(&mut self, limit: Duration) -> Result<bool, SourceError>;

    /// Work that is due now and then: pruning what retention no longer covers. Told how much is unsent where this
    /// source is the one to report it.
    ///
    /// # Errors
    /// As for [`claim`](Self::claim).
    fn upkeep(&mut self) -> Result<Option<Lag>, SourceError> {
        Ok(None)
    }
}

/// A record that a [`Source`] has claimed.
#[derive(Debug)]
pub struct Claimed {
    /// What the source knows it by, to settle it.
    pub ticket: u64,
    /// The record, or why the stored row is none; such a row becomes a dead letter.
    pub record: Result<Record, String>,
}

/// A record that has become a dead letter.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct DeadLettered {
    /// The event's id.
    pub id: String,
    /// The kind of thing that it happened to.
    pub aggregate_type: String,
    /// Whether the later records of its aggregate are to be held back. The next pass does so: publish nothing more in this
    /// one.
    pub holds_back: bool,
}

/// How far the relay is behind.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Lag {
    /// How many records wait to be sent. Of the write-ahead log only what the relay has received is counted.
    pub unsent: u64,
    /// The age of the oldest of them; zero where there is none.
    pub oldest: Duration,
    /// How long the oldest transaction that may have emitted has been open, or has been prepared; zero if there is none. It is counted from
    /// when the relay first saw it if the relay's role may not know of other roles' (PostgreSQL tells members of `pg_read_all_stats`).
    pub oldest_writer: Duration,
    /// How far what is sent of the write-ahead log is behind, where a part of the events is read from there.
    pub log: Option<LogLag>,
}

/// How far the confirmed part of the write-ahead log is behind its end.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LogLag {
    /// So many bytes, of all tables' changes.
    pub bytes: u64,
    /// How long ago the log ended where it is confirmed now, to about the interval at which the lag is measured; nothing where
    /// it was not watched.
    pub time: Option<Duration>,
    /// How many bytes of the log the server keeps for the slot.
    pub retained_bytes: u64,
    /// The slot's state as PostgreSQL names it: `reserved`, `extended`, `unreserved` or `lost`.
    pub status: String,
}

/// What happens to the later records of an aggregate one of whose records became a dead letter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum DeadLetterPolicy {
    /// They are sent (the default).
    #[default]
    GoOn,
    /// They join the dead letters, in order, until the aggregate is requeued. Records that were already in flight
    /// when the first one was rejected may still arrive.
    Block,
}

/// A source that cannot go on: the database is away, or refuses.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct SourceError {
    message: String,
    is_lasting: bool,
    #[source]
    source: Option<Box<dyn Error + Send + Sync>>,
}

impl SourceError {
    /// An error that says this.
    pub fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), is_lasting: false, source: None }
    }

    /// An error that trying again cannot mend: the relay stops with it.
    pub fn lasting(message: impl Into<String>) -> Self {
        Self { is_lasting: true, ..Self::new(message) }
    }

    /// Whether trying again cannot mend it.
    pub fn is_lasting(&self) -> bool {
        self.is_lasting
    }

    /// An error that says this and was caused by that.
    pub fn because(message: impl Into<String>, source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self { source: Some(source.into()), ..Self::new(message) }
    }
}
