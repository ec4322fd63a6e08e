use std::error::Error;
use std::time::Duration;

use uuid::Uuid;

use crate::Record;

/// The place that a relay reads records from. `diesel-outbox-relay` implements it for the outbox of each database.
///
/// A pass begins with one [`claim`](Self::claim). Then come any number of calls of [`read`](Self::read) (each possibly preceded by
/// [`read_ahead`](Self::read_ahead)), [`settle`](Self::settle) and [`dead_letter`](Self::dead_letter). The pass ends with one
/// [`release`](Self::release), or with [`abandon`](Self::abandon) if something failed. Between passes the relay
/// [waits](Self::wait).
pub trait Source: Send {
    /// Begins a pass and claims records that nobody else has claimed. Returns `false` if there are none at the moment.
    ///
    /// # Errors
    /// An error if the database is unreachable or refuses. The relay abandons the pass, waits and tries again, unless the error
    /// [is permanent](SourceError::is_permanent).
    fn claim(&mut self) -> Result<bool, SourceError>;

    /// Appends about `limit` of the next claimed records at most, in the order in which each aggregate's records must be published.
    /// Returns `true` if there may be more, and `false` if everything has been read for now. A later call in the same pass may
    /// append records that have arrived in the meantime.
    ///
    /// # Errors
    /// As for [`claim`](Self::claim).
    fn read(&mut self, limit: usize, records: &mut Vec<Claimed>) -> Result<bool, SourceError>;

    /// Announces the next [`read`](Self::read) after one that returned `true`, so that a source can start it early. The read may
    /// never follow, because something fails or the relay stops. Default: does nothing.
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

    /// Marks those of these records that are unsent as sent, whether or not the pass has read them. A relay that sends exactly once
    /// calls it right after the claim, when it takes over from another relay: these are the records that the broker has and that may
    /// still be unsent here. There may be none. Default: returns a permanent error, because the relay cannot send exactly once from this
    /// source.
    ///
    /// # Errors
    /// As for [`claim`](Self::claim).
    fn settle_committed(&mut self, ids: &[Uuid]) -> Result<(), SourceError> {
        let _ = ids;
        Err(SourceError::permanent("the relay cannot send exactly once from this source: turn that off"))
    }

    /// Returns whether the source keeps what is settled as a place in the order of its records, so that a record can become a dead
    /// letter only when everything before it is settled for good. A relay that sends exactly once then ends the pass before
    /// such a record, and begins the next one with it. Default: `false`.
    fn settles_in_order(&self) -> bool {
        false
    }

    /// Moves a record that can never be published to the dead letters, together with the reason.
    ///
    /// # Errors
    /// As for [`claim`](Self::claim).
    fn dead_letter(&mut self, ticket: u64, reason: &str) -> Result<DeadLettered, SourceError>;

    /// Ends the pass and keeps its effects.
    ///
    /// # Errors
    /// As for [`claim`](Self::claim). The records that the pass settled may then be claimed again.
    fn release(&mut self) -> Result<(), SourceError>;

    /// Returns how many of the passes that were released last a crash of the database could still undo, with all that came after them. A
    /// relay that sends exactly once asks before each pass. If the database is back after a crash, some call must return an error. Default: 0.
    fn undoable_passes(&self) -> usize {
        0
    }

    /// Ends the pass, discards its effects and gives up the claim. It cannot fail, because a lost connection has lost its claim
    /// too.
    fn abandon(&mut self);

    /// Returns whether a pass that has caught up should go on for a moment, as long as records keep coming. Return `true` if a new
    /// claim costs more than another read. Default: `false`.
    fn lingers(&self) -> bool {
        false
    }

    /// Returns whether the source has other outboxes that wait for a pass. If so, a pass that has gone on for a while takes on no more
    /// records. Default: `false`.
    fn is_awaited(&self) -> bool {
        false
    }

    /// Puts off the outbox at hand, because its pass has just failed, and returns for how long. `error` is the source's own error, or
    /// `None` if the publisher failed. The relay goes on with other outboxes at once. `None` means that there are none, or that no
    /// outbox is at hand, so that the relay waits. Default: `None`.
    fn put_off(&mut self, error: Option<&SourceError>) -> Option<Duration> {
        let _ = error;
        None
    }

    /// Waits until there may be records to claim, but no longer than `limit`. Returns `false` if there is no reason to look for
    /// any yet.
    ///
    /// # Errors
    /// As for [`claim`](Self::claim).
    fn wait(&mut self, limit: Duration) -> Result<bool, SourceError>;

    /// Returns the name of the outbox, such as `shop.public`, or `None` if it is not known yet. Metrics use it to distinguish
    /// several outboxes in one process. Default: `None`.
    fn outbox(&self) -> Option<&str> {
        None
    }

    /// Returns what tells the outbox from others of the same name, such as the identifier of its database's server, in words for a person
    /// to read. It must stay the same after a failover and after a backup was restored. `None` means that it is not known. Default: `None`.
    fn origin(&self) -> Option<&str> {
        None
    }

    /// Does periodic work that is due, such as pruning rows that are older than the retention. Returns the lag if this source
    /// should report it now. Default: does nothing and returns `None`.
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
    /// The number by which the source identifies the record when it is settled.
    pub ticket: u64,
    /// The record, or the reason why the stored row is not one. Such a row becomes a dead letter.
    pub record: Result<Record, String>,
}

impl Claimed {
    /// Returns a record, or the reason why a row is not one, under this ticket.
    pub fn new(ticket: u64, record: Result<Record, String>) -> Self {
        Self { ticket, record }
    }
}

/// A record that has become a dead letter.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct DeadLettered {
    /// The event's id, as the source has it: text, because a record can become a dead letter for an id that is not a UUID.
    pub id: String,
    /// The event's aggregate type.
    pub aggregate_type: String,
    /// Whether the later records of its aggregate are held back. The next pass holds them back; this one publishes nothing more.
    pub holds_back: bool,
}

impl DeadLettered {
    /// Returns a dead letter with this event id and aggregate type that holds nothing back.
    pub fn new(id: impl Into<String>, aggregate_type: impl Into<String>) -> Self {
        Self { id: id.into(), aggregate_type: aggregate_type.into(), holds_back: false }
    }

    /// Sets whether the later records of its aggregate are held back. Default: `false`.
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
    /// The number of records that wait to be sent. If the WAL is read, only records that the relay has received count.
    pub unsent: u64,
    /// The age of the oldest unsent record, or zero if there is none.
    pub oldest: Duration,
    /// How long the oldest transaction that may have emitted has been open or prepared, or zero if there is none. If the relay's
    /// role may not see the transactions of other roles, the time counts from when the relay first noticed the transaction.
    /// (PostgreSQL shows other roles' transactions to members of `pg_read_all_stats`.) On MySQL and MariaDB the time counts from the
    /// transaction's first event that is unsent.
    pub oldest_writer: Duration,
    /// The number of dead letters that nobody has requeued.
    pub dead_letters: u64,
    /// The number of aggregates of which records are held back behind a dead letter, under [`DeadLetterPolicy::Block`].
    pub blocked_aggregates: u64,
    /// The number of events that are scheduled for later.
    pub scheduled: u64,
    /// How long the scheduled event has been due that was due first, or zero if none is due. A relay moves such events into the outbox within
    /// two seconds.
    pub overdue: Duration,
    /// How far the relay is behind the end of the WAL, if events are read from there.
    pub wal: Option<WalLag>,
}

/// How far the confirmed part of the WAL is behind its end.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct WalLag {
    /// The distance in bytes. It includes the changes of all tables.
    pub bytes: u64,
    /// How long ago the WAL ended at the position that is confirmed now, or `None` if no relay was measuring then. It is about as
    /// precise as the interval at which the lag is measured.
    pub time: Option<Duration>,
    /// The number of bytes of WAL that the server keeps for the slot.
    pub retained_bytes: u64,
    /// The slot's `wal_status` in PostgreSQL: `reserved`, `extended`, `unreserved` or `lost`.
    pub status: String,
}

/// The treatment of an aggregate's later records after one of its records became a dead letter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum DeadLetterPolicy {
    /// Later records are sent. This is the default.
    #[default]
    Continue,
    /// Later records become dead letters too, in order, until the aggregate is requeued. Records that were in flight when the first
    /// one was rejected may still arrive.
    Block,
}

/// The reason why a source cannot go on: the database is unreachable or refuses. It also says what can help: time, an operator, or
/// nothing.
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
    /// Returns an error that may pass by itself. The relay logs a warning and tries again.
    pub fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), remedy: Remedy::Time, source: None }
    }

    /// Returns an error that lasts until an operator does something, such as running the migrations. The relay logs an error and
    /// tries again. If it is stopped before the problem is solved, it returns this error.
    pub fn misconfigured(message: impl Into<String>) -> Self {
        Self { remedy: Remedy::Operator, ..Self::new(message) }
    }

    /// Returns an error that trying again cannot solve. The relay stops with it.
    pub fn permanent(message: impl Into<String>) -> Self {
        Self { remedy: Remedy::None, ..Self::new(message) }
    }

    /// Adds the error that caused this one.
    #[must_use]
    pub fn with_source(self, source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self { source: Some(source.into()), ..self }
    }

    /// Returns whether the error lasts until an operator does something.
    pub fn is_misconfigured(&self) -> bool {
        self.remedy == Remedy::Operator
    }

    /// Returns whether trying again cannot solve the error.
    pub fn is_permanent(&self) -> bool {
        self.remedy == Remedy::None
    }
}
