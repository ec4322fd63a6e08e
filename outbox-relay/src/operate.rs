//! What an operator asks of the tables: how far behind the relay is, which records became dead letters and why, and to send those again or
//! drop them.

mod cause;
mod choose;
mod doctor;
pub mod explain;
pub mod kept;
#[cfg(feature = "mysql")]
mod mysql;
mod observe;
#[cfg(feature = "postgres")]
mod postgres;
pub mod prune;
pub mod replay;
#[cfg(feature = "sqlite")]
mod sqlite;
#[cfg(feature = "kafka")]
pub mod verify;

use std::time::{Duration, SystemTime};

pub use self::cause::Cause;
pub use self::choose::DeadLetterFilter;
#[cfg(feature = "kafka")]
pub use self::doctor::examine_kafka;
#[cfg(feature = "postgres")]
pub use self::doctor::examine_wal;
pub use self::doctor::{Examine, Finding, Verdict};
pub use self::observe::{Claim, Content, Observe, Rates, RelaySession, Relays, Slot, Status};

#[cfg(feature = "postgres-wal")]
pub(crate) use self::postgres::count_dead_letters;
#[cfg(feature = "postgres")]
pub use self::postgres::schemas;

use diesel::QueryResult;
use diesel_outbox_core::__private::from_unix_ms;
pub use diesel_outbox_core::Lag;
use uuid::Uuid;

use crate::source::promote::{Promote, overdue};

#[cfg(feature = "mysql")]
pub(crate) use self::mysql::failed as mysql_failed;
#[cfg(feature = "mysql")]
#[doc(hidden)]
pub use self::mysql::is_polled;

/// An operator's questions, on a plain `PgConnection`, a plain `SqliteConnection`, or a `Conn` of the crate `mysql`, which the relay re-exports.
///
/// ```no_run
/// # #[cfg(feature = "postgres")]
/// # fn f(conn: &mut diesel::PgConnection) -> diesel::QueryResult<()> {
/// use diesel_outbox_relay::operate::{Operate, Requeue};
///
/// let lag = conn.lag()?;
/// println!("{} events wait, the oldest for {:?}", lag.unsent, lag.oldest);
/// for dead in conn.dead_letters(100)? {
///     println!("{} of {} {}: {}", dead.event_type, dead.aggregate_type, dead.aggregate_id, dead.reason);
/// }
/// conn.requeue(&Requeue::All)?;
/// # Ok(())
/// # }
/// ```
pub trait Operate {
    /// Returns how many records wait to be sent, and the age of the oldest.
    ///
    /// It counts them, which takes about a second for every few million. On PostgreSQL the role needs SELECT on `outbox`,
    /// `outbox_shard`, `outbox_slot`, `outbox_dead_letter` and `outbox_seq_seq`.
    ///
    /// # Errors
    /// Returns the database's error.
    fn lag(&mut self) -> QueryResult<Lag>;

    /// Returns how many records wait to be sent, and the age of the oldest, of each aggregate type in each shard that has some. It reads the
    /// same rows as [`lag`](Self::lag).
    ///
    /// # Errors
    /// Returns the database's error.
    fn unsent(&mut self) -> QueryResult<Vec<Unsent>>;

    /// Returns the oldest dead letters, up to `limit`.
    ///
    /// # Errors
    /// Returns the database's error.
    fn dead_letters(&mut self, limit: i64) -> QueryResult<Vec<DeadLetter>>;

    /// Puts dead letters back into the outbox and returns how many there were. It waits for the passes that are going on.
    ///
    /// Each comes to its old place in the order. If the write-ahead log is read, they come to the end of the order instead. The same is
    /// true later, when the table is polled again, of dead letters that a relay had read from the write-ahead log. With the policy `block`, the
    /// later records of their aggregate that come before them there become dead letters, too, so that the order is kept: requeue those again.
    ///
    /// # Errors
    /// Returns the database's error. Nothing is changed then.
    fn requeue(&mut self, which: &Requeue) -> QueryResult<usize>;

    /// Deletes dead letters for good, and returns how many there were. Their events are lost. A relay that reads the write-ahead log may send
    /// one all the same, if it or the server crashed after it became a dead letter, and before the relay had stored its position. With the policy
    /// `block`, an aggregate without dead letters is not held back any more.
    ///
    /// # Errors
    /// Returns the database's error. Nothing is changed then.
    fn drop_dead_letters(&mut self, which: &Requeue) -> QueryResult<usize>;

    /// Returns how many events are scheduled, and whether one is overdue.
    ///
    /// # Errors
    /// Returns the database's error, also if the table `outbox_scheduled` is missing.
    fn schedule(&mut self) -> QueryResult<Schedule>;

    /// Moves all scheduled events that are due into the outbox, and returns how many there were. A relay does so by itself. Call this if
    /// Debezium reads the outbox and no relay of this crate runs. Several processes may call it at the same time: one works, and the others
    /// return 0.
    ///
    /// # Errors
    /// Returns the database's error. The events that were moved before it stay moved.
    fn promote(&mut self) -> QueryResult<usize>;
}

/// The records of one aggregate type in one shard that wait to be sent.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Unsent {
    /// The aggregate type, by which topics are named.
    pub aggregate_type: String,
    /// The shard, 0 to 15.
    pub shard: i16,
    /// How many there are.
    pub count: u64,
    /// The age of the oldest.
    pub oldest: Duration,
}

type UnsentRow = (String, i16, i64, f64);

fn unsent((aggregate_type, shard, count, oldest): UnsentRow) -> Unsent {
    let oldest = Duration::try_from_secs_f64(oldest).unwrap_or_default();
    Unsent { aggregate_type, shard, count: count.unsigned_abs(), oldest }
}

/// The scheduled events as a whole.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Schedule {
    /// How many events are scheduled.
    pub scheduled: u64,
    /// How long the event has been due that was due first, or zero if none is due.
    pub overdue: Duration,
    /// How soon the next event is due; zero if one is due. `None` if none is scheduled.
    pub next: Option<Duration>,
}

fn schedule_of<C: Promote>(conn: &mut C) -> Result<Schedule, C::Error> {
    let (scheduled, next_due) = (conn.count_scheduled()?, conn.next_due()?);
    let next = next_due.map(|seconds| Duration::try_from_secs_f64(seconds).unwrap_or_default());
    Ok(Schedule { scheduled, overdue: overdue(next_due), next })
}

/// A record that the broker will never take, with the reason.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct DeadLetter {
    /// Its place in the order.
    pub seq: i64,
    /// The event's id, as the table has it. It is text, because SQLite's column can hold text that is not a UUID, and such a record is a
    /// dead letter. For [`Requeue::Id`], parse it.
    pub id: String,
    /// The aggregate's type.
    pub aggregate_type: String,
    /// The aggregate's id.
    pub aggregate_id: String,
    /// The event's type.
    pub event_type: String,
    /// When it was emitted.
    pub created_at: SystemTime,
    /// Why it became a dead letter, and what to do about it.
    pub reason: String,
    /// When it became a dead letter.
    pub failed_at: SystemTime,
}

/// Which dead letters to put back, or to drop.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Requeue {
    /// All of them.
    All,
    /// The one event with this id.
    ///
    /// On SQLite, this finds an id that is written as `emit` writes it: in small letters with hyphens. Choose a dead letter whose id is
    /// other text by its aggregate, or correct the id in `outbox_dead_letter` first.
    Id(Uuid),
    /// All of one aggregate.
    Aggregate {
        /// The aggregate's type.
        aggregate_type: String,
        /// The aggregate's id.
        aggregate_id: String,
    },
    /// Those with these numbers and ids, as [`DeadLetter`] has them. Collect them from an iterator of dead letters.
    These(Vec<(i64, String)>),
}

impl Requeue {
    /// Returns the choice as three optional conditions: id, aggregate type, aggregate id.
    fn conditions(&self) -> (Option<Uuid>, Option<String>, Option<String>) {
        match self {
            Self::All | Self::These(_) => (None, None, None),
            Self::Id(id) => (Some(*id), None, None),
            Self::Aggregate { aggregate_type, aggregate_id } => {
                (None, Some(aggregate_type.clone()), Some(aggregate_id.clone()))
            }
        }
    }

    /// Returns the numbers and ids, if it lists them.
    fn listed(&self) -> Option<(Vec<i64>, Vec<String>)> {
        match self {
            Self::These(these) => Some(these.iter().cloned().unzip()),
            _ => None,
        }
    }
}

/// The text's bytes in hexadecimal digits, as the databases write them.
#[cfg(any(feature = "mysql", feature = "sqlite"))]
fn hex(text: &str) -> String {
    text.bytes().map(|byte| format!("{byte:02X}")).collect()
}

type DeadLetterRow = (i64, String, String, String, String, i64, String, i64);

fn dead_letter(row: DeadLetterRow) -> DeadLetter {
    let (seq, id, aggregate_type, aggregate_id, event_type, created_at, reason, failed_at) = row;
    let (created_at, failed_at) = (from_unix_ms(created_at), from_unix_ms(failed_at));
    DeadLetter { seq, id, aggregate_type, aggregate_id, event_type, created_at, reason, failed_at }
}
