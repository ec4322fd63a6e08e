use std::error::Error;
use std::time::Duration;

use crate::Record;

/// Gives a relay its records. `diesel-outbox-relay` implements it for the outbox of each database.
///
/// A pass is one [`claim`](Self::claim), then any number of [`read`](Self::read) (each perhaps after a
/// [`read_ahead`](Self::read_ahead)), [`settle`](Self::settle) and [`dead_letter`](Self::dead_letter), then one
/// [`release`](Self::release), or [`abandon`](Self::abandon) if something failed. Between passes the relay
/// [waits](Self::wait).
pub trait Source: Send {
    /// Begins a pass and claims records that nobody else has claimed. Returns `false` if there are none now.
    ///
    /// # Errors
    /// The database is away or refuses. The relay abandons the pass, waits and tries again.
    fn claim(&mut self) -> Result<bool, SourceError>;

    /// Adds up to about `limit` of the next claimed records, in the order in which each aggregate's must be published.
    /// Returns `true` if there may be more, and `false` if all that there is now has been read. Read again later in the same pass, it
    /// may add what has come since.
    ///
    /// # Errors
    /// As for [`claim`](Self::claim).
    fn read(&mut self, limit: usize, records: &mut Vec<Claimed>) -> Result<bool, SourceError>;

    /// Announces the next [`read`](Self::read), after one that returned `true`: a source may begin with it now. It need not. The
    /// read does not follow if something fails or the relay stops.
    ///
    /// # Errors
    /// As for [`claim`](Self::claim).
    fn read_ahead(&mut self, limit: usize) -> Result<(), SourceError> {
        let _ = limit;
        Ok(())
    }

    /// Marks exactly these records as sent.
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
    /// As for [`claim`](Self::claim). What the pass had settled may then be claimed again.
    fn release(&mut self) -> Result<(), SourceError>;

    /// Ends the pass without keeping what it did, and holds nothing afterwards. It never fails: a lost connection has lost
    /// its claim too.
    fn abandon(&mut self);

    /// Returns whether a pass that has caught up should go on for a moment as long as records keep coming. Say yes if claiming
    /// anew costs more than reading again. Default: no.
    fn lingers(&self) -> bool {
        false
    }

    /// Waits until there may be records to claim, but no longer than `limit`. Returns `false` if there is no reason to look
    /// yet.
    ///
    /// # Errors
    /// As for [`claim`](Self::claim).
    fn wait(&mut self, limit: Duration) -> Result<bool, SourceError>;

    /// Returns the name of the outbox, by which metrics tell several in one process apart, such as `shop.public`. `None` if it is
    /// not known yet. Default: `None`.
    fn outbox(&self) -> Option<&str> {
        None
    }

    /// Does what is due now and then, such as pruning what retention no longer covers. Returns the lag if this source is
    /// the one to report it, and it is time to.
    ///
    /// # Errors
    /// As for [`claim`](Self::claim).
    fn upkeep(&mut self) -> Result<Option<Lag>, SourceError> {
        Ok(None)
    }
}

/// A record that a [`Source`] has claimed.
#[derive(Debug)]
#[non_exhaustive]
pub struct Claimed {
    /// The number under which the source knows the record, to settle it.
    pub ticket: u64,
    /// The record, or why the stored row is none. Such a row becomes a dead letter.
    pub record: Result<Record, String>,
}

impl Claimed {
    /// A record, or a row that is none, under this ticket.
    pub fn new(ticket: u64, record: Result<Record, String>) -> Self {
        Self { ticket, record }
    }
}

/// A record that has become a dead letter.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct DeadLettered {
    /// The event's id.
    pub id: String,
    /// The kind of thing that it happened to.
    pub aggregate_type: String,
    /// Whether the later records of its aggregate are held back. The next pass does so; this one publishes nothing more.
    pub holds_back: bool,
}

impl DeadLettered {
    /// A dead letter with this event id and aggregate type that holds nothing back.
    pub fn new(id: impl Into<String>, aggregate_type: impl Into<String>) -> Self {
        Self { id: id.into(), aggregate_type: aggregate_type.into(), holds_back: false }
    }

    /// Sets whether the later records of its aggregate are held back.
    #[must_use]
    pub fn holding_back(mut self, holds_back: bool) -> Self {
        self.holds_back = holds_back;
        self
    }
}

/// How far the relay is behind.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Lag {
    /// How many records wait to be sent. If the WAL is read, only what the relay has received of it counts.
    pub unsent: u64,
    /// The age of the oldest of them; zero if there is none.
    pub oldest: Duration,
    /// How long the oldest transaction that may have emitted has been open or prepared; zero if there is none. It counts from
    /// when the relay first saw it if the relay's role may not see other roles' transactions (PostgreSQL shows them to members of
    /// `pg_read_all_stats`).
    pub oldest_writer: Duration,
    /// How far the relay is behind the end of the WAL, if events are read from there.
    pub wal: Option<WalLag>,
}

/// How far the confirmed part of the WAL is behind its end.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct WalLag {
    /// The distance in bytes, of all tables' changes.
    pub bytes: u64,
    /// How long ago the WAL ended at the place that is confirmed now, to about the interval at which the lag is measured;
    /// `None` if nobody watched it then.
    pub time: Option<Duration>,
    /// How many bytes of WAL the server keeps for the slot.
    pub retained_bytes: u64,
    /// The slot's state as PostgreSQL names it: `reserved`, `extended`, `unreserved` or `lost`.
    pub status: String,
}

/// What happens to the later records of an aggregate after one of its records became a dead letter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum DeadLetterPolicy {
    /// They are sent (the default).
    #[default]
    Continue,
    /// They join the dead letters, in order, until the aggregate is requeued. Records that were in flight when the first
    /// one was rejected may still arrive.
    Block,
}

/// Why a source cannot go on: the database is away, or refuses.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct SourceError {
    message: String,
    remedy: Remedy,
    #[source]
    source: Option<Box<dyn Error + Send + Sync>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Remedy {
    Time,
    Operator,
    None,
}

impl SourceError {
    /// An error that may pass. The relay logs a warning and tries again.
    pub fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), remedy: Remedy::Time, source: None }
    }

    /// An error that lasts until somebody does something, such as running the migrations. The relay logs an error and tries
    /// again. If it is stopped before that, it returns this error.
    pub fn misconfigured(message: impl Into<String>) -> Self {
        Self { remedy: Remedy::Operator, ..Self::new(message) }
    }

    /// An error that trying again cannot mend. The relay stops with it.
    pub fn permanent(message: impl Into<String>) -> Self {
        Self { remedy: Remedy::None, ..Self::new(message) }
    }

    /// Adds the error that caused this one.
    #[must_use]
    pub fn with_source(self, source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self { source: Some(source.into()), ..self }
    }

    /// Returns whether it lasts until somebody does something.
    pub fn is_misconfigured(&self) -> bool {
        self.remedy == Remedy::Operator
    }

    /// Returns whether trying again cannot mend it.
    pub fn is_permanent(&self) -> bool {
        self.remedy == Remedy::None
    }
}
