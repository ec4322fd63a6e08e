//! The state of an outbox at a moment, for somebody who looks at it.

#[cfg(feature = "mysql")]
mod mysql;
#[cfg(feature = "postgres")]
mod postgres;
#[cfg(feature = "sqlite")]
mod sqlite;

use std::time::{Duration, Instant, SystemTime};

use diesel::QueryResult;
use diesel_outbox_core::Lag;

use super::{DeadLetter, Operate, Schedule, Unsent};

/// What an observer asks, on the same connections as [`Operate`]. It changes nothing and locks nothing that a relay or an emitter needs.
pub trait Observe: Operate {
    /// Returns the sessions of relays, and which shards each has claimed at this moment.
    ///
    /// # Errors
    /// Returns the database's error.
    fn relays(&mut self) -> QueryResult<Relays>;

    /// Returns the last number that a row of the outbox was given. From two of them follows how many events were emitted between.
    ///
    /// # Errors
    /// Returns the database's error.
    fn last_number(&mut self) -> QueryResult<i64>;

    /// Returns the replication slot from which the outbox is read, if it is.
    ///
    /// # Errors
    /// Returns the database's error.
    fn slot(&mut self) -> QueryResult<Option<Slot>> {
        Ok(None)
    }

    /// Returns the dead letter with this number and this id, or `None` if there is no such one.
    ///
    /// # Errors
    /// Returns the database's error.
    fn dead_letter(&mut self, seq: i64, id: &str) -> QueryResult<Option<DeadLetter>>;

    /// Returns what the event of a dead letter holds: the beginning of its payload, and its headers. `None` if there is no such dead letter.
    ///
    /// # Errors
    /// Returns the database's error.
    fn content(&mut self, seq: i64, id: &str) -> QueryResult<Option<Content>>;

    /// Lets each later statement of this session end after 10 s, and wait for a lock for 2 s, so that a database that is stuck holds nobody
    /// up for long. Such a statement fails and changes nothing. On MySQL, the 10 s hold for a SELECT alone; SQLite limits only the wait.
    ///
    /// Do not call it through a pooler that shares sessions: others would get these limits too.
    ///
    /// # Errors
    /// Returns the database's error.
    fn limit_waits(&mut self) -> QueryResult<()>;

    /// Returns the state of the outbox. It counts what waits, twice: see [`lag`](Operate::lag) for how long that takes.
    ///
    /// # Errors
    /// Returns the database's error.
    fn status(&mut self) -> QueryResult<Status> {
        let (at, measured) = (SystemTime::now(), Instant::now());
        // The number first: what was sent meanwhile counts in the next status, and a rate is not negative.
        let last_number = self.last_number()?;
        let (mut lag, unsent) = (self.lag()?, self.unsent()?);
        // The two were asked one after the other, and must not contradict each other.
        lag.unsent = unsent.iter().map(|unsent| unsent.count).sum();
        lag.oldest = unsent.iter().map(|unsent| unsent.oldest).max().unwrap_or_default();
        Ok(Status {
            at,
            measured,
            last_number,
            lag,
            unsent,
            // Tables that no newer migration has changed have no schedule.
            schedule: self.schedule().ok(),
            relays: self.relays()?,
            slot: self.slot()?,
        })
    }
}

/// The state of an outbox at a moment.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Status {
    /// When it was looked at, by the clock of this process.
    pub at: SystemTime,
    measured: Instant,
    /// How far the relay is behind, and how many dead letters there are.
    pub lag: Lag,
    /// What waits, by aggregate type and shard.
    pub unsent: Vec<Unsent>,
    /// The scheduled events, if the table for them is there.
    pub schedule: Option<Schedule>,
    /// The relays' sessions, and what they have claimed.
    pub relays: Relays,
    /// The replication slot, if the outbox is read from one.
    pub slot: Option<Slot>,
    /// The last number that a row was given.
    pub last_number: i64,
}

impl Status {
    /// Returns how many events a second were emitted and sent since an earlier status of the same outbox. `None` if both were taken at the
    /// same time, or if numbers were given anew since.
    #[must_use]
    pub fn rates_since(&self, earlier: &Self) -> Option<Rates> {
        let seconds = self.measured.checked_duration_since(earlier.measured)?.as_secs_f64();
        let emitted = self.last_number.checked_sub(earlier.last_number).filter(|emitted| *emitted >= 0)?;
        if seconds <= 0.0 {
            return None;
        }
        let waiting = |status: &Self| status.lag.unsent as f64 + status.lag.dead_letters as f64;
        let emitted = emitted as f64;
        // If the WAL is read, nobody counts what waits there.
        let sent = (self.lag.wal.is_none())
            .then(|| (emitted - (waiting(self) - waiting(earlier))).max(0.0) / seconds);
        Some(Rates { emitted: emitted / seconds, sent })
    }

    /// Returns how many events wait in a shard, and the age of the oldest.
    #[must_use]
    pub fn waits_in(&self, shard: i16) -> (u64, Duration) {
        let here = self.unsent.iter().filter(|unsent| unsent.shard == shard);
        here.fold((0, Duration::ZERO), |(count, oldest), unsent| {
            (count + unsent.count, oldest.max(unsent.oldest))
        })
    }
}

/// Events a second.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct Rates {
    /// How many were emitted. Numbers that a transaction took and gave up count too.
    pub emitted: f64,
    /// How many were sent, or `None` if the WAL is read.
    pub sent: Option<f64>,
}

/// The sessions of relays.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Relays {
    /// The sessions, or `None` if the database does not show them. A relay has one for each worker, and some more. On PostgreSQL, relays of
    /// other schemas of the database are among them.
    pub sessions: Option<Vec<RelaySession>>,
    /// Which session has claimed which shard, or `None` if the database does not show it. A claim lasts for a pass: while nothing is to be
    /// sent, nobody has claimed anything.
    pub claims: Option<Vec<Claim>>,
    /// What the database does not show, in a sentence for a person.
    pub hidden: Option<&'static str>,
}

/// A session of a relay.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct RelaySession {
    /// The server's number for it.
    pub id: i64,
    /// From where it comes, if the server shows that. `None` also for a connection through a Unix socket.
    pub client: Option<String>,
    /// How long it has been open, if the server shows that.
    pub age: Option<Duration>,
    /// Whether it leads: it looks for work and wakes the others. If the WAL is read, whether it reads it.
    pub leads: bool,
    /// Whether it counts as a worker that is awake.
    pub works: bool,
}

/// A shard that a session has claimed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Claim {
    /// The shard, 0 to 15.
    pub shard: i16,
    /// The session's [`id`](RelaySession::id).
    pub session: i64,
}

/// A replication slot from which an outbox is read.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Slot {
    /// Its name.
    pub name: String,
    /// Whether somebody reads it now.
    pub is_active: bool,
    /// How many more bytes of WAL may be written before the server gives the slot up, or `None` if there is no limit
    /// (`max_slot_wal_keep_size`) or the slot is lost.
    pub safe_bytes: Option<u64>,
}

/// What the event of a dead letter holds.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Content {
    /// The first [`MOST`](Self::MOST) bytes of the payload, or `None` for a tombstone.
    pub payload: Option<Vec<u8>>,
    /// How many bytes the whole payload has.
    pub payload_bytes: u64,
    /// The first characters of the column `headers`, as many at most.
    pub headers: Option<String>,
}

impl Content {
    /// How many bytes of a payload are read at most.
    pub const MOST: usize = 4096;
}

type ContentRow = (Option<Vec<u8>>, Option<i64>, Option<String>);

fn content((payload, payload_bytes, headers): ContentRow) -> Content {
    Content { payload, payload_bytes: payload_bytes.unwrap_or_default().unsigned_abs(), headers }
}

#[cfg(test)]
mod tests {
    use diesel_outbox_core::WalLag;

    use super::*;

    fn status(last_number: i64, unsent: u64, dead_letters: u64, after: Instant) -> Status {
        let mut lag = Lag::default();
        (lag.unsent, lag.dead_letters) = (unsent, dead_letters);
        Status {
            at: SystemTime::now(),
            measured: after,
            lag,
            unsent: Vec::new(),
            schedule: None,
            relays: Relays::default(),
            slot: None,
            last_number,
        }
    }

    #[test]
    fn rates_follow_from_the_numbers_that_were_given_and_from_what_waits() {
        let began = Instant::now();
        let before = status(100, 50, 0, began);
        let after = |last_number, unsent, dead| {
            status(last_number, unsent, dead, began + Duration::from_secs(2)).rates_since(&before)
        };
        assert_eq!(after(120, 20, 0), Some(Rates { emitted: 10.0, sent: Some(25.0) }));
        // What became a dead letter was not sent, and what was requeued was not emitted.
        assert_eq!(after(120, 40, 30), Some(Rates { emitted: 10.0, sent: Some(0.0) }));
        assert_eq!(after(100, 70, 0), Some(Rates { emitted: 0.0, sent: Some(0.0) }));
        // The sequence was set back.
        assert_eq!(after(1, 0, 0), None);
        assert_eq!(before.rates_since(&before), None);
        let mut wal = status(120, 0, 0, began + Duration::from_secs(2));
        wal.lag.wal = Some(WalLag::default());
        assert_eq!(wal.rates_since(&before), Some(Rates { emitted: 10.0, sent: None }));
    }
}
