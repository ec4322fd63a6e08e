//! The write-ahead log (WAL) as a source of records: the inserts of the outbox table from a logical replication slot, in the order
//! of their commits.
//!
//! [`setup`] makes the slot and the cutover: the rows that are in the table by then are polled, and later ones come from the WAL.
//! [`drop`] takes the cutover back, so that all rows are polled again. Neither loses an event or sends one twice, even on a live system.
//!
//! The database needs `wal_level = logical`, and the relay a role with `REPLICATION`.

mod changes;
mod chunks;
mod confirm_bound;
mod cutover;
mod dead_letters;
mod decode;
mod error;
mod handover;
mod lag;
mod lower_bound;
mod options;
mod origin;
mod polled;
mod position;
mod publication;
mod reader;
mod reading;
mod settle;
mod slot;
mod standby_relay;
mod stream;
mod synchronous_standbys;
mod window;

use std::fmt;
use std::thread;
use std::time::{Duration, Instant};

use diesel_outbox_core::{Claimed, DeadLettered, Lag, Source, SourceError};

pub use self::cutover::{drop, setup};
pub use self::error::WalError;
pub use self::options::WalOptions;
use self::reading::{Readiness, Reading};
use self::standby_relay::{ActiveRelay, Role, StandbyRelay};
use self::synchronous_standbys::Found;
use super::check::check_table;
use super::database::Database;
use super::{DatabaseUrl, PostgresSource, SourceOptions};

/// The outbox's part of the WAL as a source of records.
///
/// Any number of these may be there for one slot, in any number of processes: one is active, and another takes over when it
/// is gone. Rows that waited when the slot was made are polled first.
///
/// If the server has synchronous standbys, a transaction's records are held back until those have it, so that a failover does not
/// undo a transaction whose events were sent. To see how far they are the role needs `pg_read_all_stats`; without it, and without
/// `synchronized_standby_slots` (PostgreSQL 17 and later), a failover can do so. `synchronous_standby_names` must not include the
/// relay itself, by `*` or by its name: that is an error that trying again cannot mend.
pub struct WalSource {
    database: Database,
    wal: WalOptions,
    state: State,
}

impl fmt::Debug for WalSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WalSource")
            .field("database", &self.database)
            .field("wal", &self.wal)
            .finish_non_exhaustive()
    }
}

enum State {
    /// Nothing is known, as after a failure.
    Away,
    /// Another relay is active.
    StandingBy(Box<StandbyRelay>),
    /// What was there before the slot is polled.
    Polling {
        polled: Box<PostgresSource>,
        conn: Box<ActiveRelay>,
        /// Since when it is known that somebody else reads the slot.
        waits: Option<Instant>,
    },
    Reading(Box<Reading>),
}

impl WalSource {
    /// A source that connects to this database when it is first asked for something.
    pub fn new(database_url: impl Into<DatabaseUrl>, options: SourceOptions, wal: WalOptions) -> Self {
        let database = Database::new(database_url.into(), options);
        Self { database, wal, state: State::Away }
    }

    /// Begins to work, or to stand by.
    fn begin(&mut self) -> Result<(), SourceError> {
        let mut conn = self.database.connect()?;
        check_table(&mut conn)?;
        self.state = self.state_after(StandbyRelay::new(conn, self.database.clone()).take_over()?)?;
        Ok(())
    }

    fn state_after(&self, role: Role) -> Result<State, SourceError> {
        match role {
            Role::Active(active) => self.lead(active),
            Role::Standby(standby) => Ok(State::StandingBy(standby)),
        }
    }

    fn lead(&self, mut conn: Box<ActiveRelay>) -> Result<State, SourceError> {
        slot::check(&mut conn, &self.wal)?;
        origin::check(&mut conn, &self.wal)?;
        publication::check(&mut conn, &self.wal)?;
        Found::look(&mut conn, &self.wal)?;
        slot::warn_of_no_limit(&mut conn, &self.wal)?;
        let polled = Box::new(PostgresSource::new(self.database.url.clone(), self.database.options.clone()));
        tracing::info!(slot = self.wal.slot, "this relay is the active one");
        Ok(State::Polling { polled, conn, waits: None })
    }

    /// Goes over from what is polled to the WAL, if nothing of that is left and nobody else reads the slot.
    fn begin_to_read(&mut self) -> Result<bool, SourceError> {
        let name = self.wal.slot.clone();
        let may_begin = self.with(|state| match state {
            State::Polling { conn, waits, .. } => {
                let readiness = Readiness::look(conn, &name)?;
                if readiness == Readiness::SlotIsRead && waits.is_none() {
                    *waits = Some(Instant::now());
                    tracing::info!(
                        slot = name,
                        "somebody else reads the slot: this relay waits until they stop"
                    );
                }
                Ok(readiness == Readiness::Ready)
            }
            _ => Ok(false),
        })?;
        if !may_begin {
            return Ok(false);
        }
        let State::Polling { conn, .. } = std::mem::replace(&mut self.state, State::Away) else {
            return Err(nothing_claimed());
        };
        self.state = State::Reading(Box::new(Reading::begin(conn, &self.database, &self.wal)?));
        tracing::info!(slot = self.wal.slot, "this relay reads the write-ahead log");
        Ok(true)
    }

    /// Works in the present state, of which nothing is left if something fails. What is polled has connections of its own, and the
    /// one of the lock is not to be silent for long meanwhile.
    fn with<T>(&mut self, work: impl FnOnce(&mut State) -> Result<T, SourceError>) -> Result<T, SourceError> {
        let stayed = match &mut self.state {
            State::Polling { conn, .. } => standby_relay::stay(conn),
            _ => Ok(()),
        };
        let done = stayed.and_then(|()| work(&mut self.state));
        if done.is_err() {
            self.state = State::Away;
        }
        done
    }
}

/// The server notices within a moment that the relay before this one has ended, and nobody reads the slot any more. Whoever reads it for
/// longer is looked at less often.
const LAST_ONE_ENDS: Duration = Duration::from_secs(2);
const LAST_ONE_PAUSE: Duration = Duration::from_millis(10);

fn nothing_claimed() -> SourceError {
    SourceError::new("nothing is claimed")
}

impl Source for WalSource {
    fn claim(&mut self) -> Result<bool, SourceError> {
        if matches!(self.state, State::Away) {
            self.begin()?;
        }
        if matches!(self.state, State::Polling { .. }) {
            let polled = self.with(|state| match state {
                State::Polling { polled, .. } => polled.claim(),
                _ => Ok(false),
            })?;
            if polled || !self.begin_to_read()? {
                return Ok(polled);
            }
        }
        self.with(|state| match state {
            State::Reading(reading) => reading.has_more(Duration::ZERO),
            _ => Ok(false),
        })
    }

    fn read(&mut self, limit: usize, records: &mut Vec<Claimed>) -> Result<bool, SourceError> {
        self.with(|state| match state {
            State::Polling { polled, .. } => polled.read(limit, records),
            State::Reading(reading) => reading.read(limit, records),
            _ => Err(nothing_claimed()),
        })
    }

    fn read_ahead(&mut self, limit: usize) -> Result<(), SourceError> {
        self.with(|state| match state {
            State::Polling { polled, .. } => polled.read_ahead(limit),
            _ => Ok(()),
        })
    }

    fn settle(&mut self, tickets: &[u64]) -> Result<(), SourceError> {
        self.with(|state| match state {
            State::Polling { polled, .. } => polled.settle(tickets),
            State::Reading(reading) => reading.settle(tickets),
            _ if tickets.is_empty() => Ok(()),
            _ => Err(nothing_claimed()),
        })
    }

    fn dead_letter(&mut self, ticket: u64, reason: &str) -> Result<DeadLettered, SourceError> {
        self.with(|state| match state {
            State::Polling { polled, .. } => polled.dead_letter(ticket, reason),
            State::Reading(reading) => reading.dead_letter(ticket, reason),
            _ => Err(nothing_claimed()),
        })
    }

    fn release(&mut self) -> Result<(), SourceError> {
        self.with(|state| match state {
            State::Polling { polled, .. } => polled.release(),
            State::Reading(reading) => {
                // What was read and not sent, because the broker failed or the relay is to stop.
                reading.give_again();
                reading.keep_part()
            }
            _ => Ok(()),
        })
    }

    fn abandon(&mut self) {
        match &mut self.state {
            State::Polling { polled, .. } => polled.abandon(),
            State::Reading(reading) => reading.give_again(),
            _ => {}
        }
    }

    fn wait(&mut self, limit: Duration) -> Result<bool, SourceError> {
        match std::mem::replace(&mut self.state, State::Away) {
            State::Away => Ok(true),
            State::StandingBy(standby) => {
                let role = standby.wait(limit)?;
                let leads = matches!(role, Role::Active(_));
                self.state = self.state_after(role)?;
                Ok(leads)
            }
            mut state @ State::Polling { .. } => {
                match &mut state {
                    State::Polling { waits: Some(since), .. } if since.elapsed() < LAST_ONE_ENDS => {
                        thread::sleep(limit.min(LAST_ONE_PAUSE));
                    }
                    State::Polling { polled, .. } => _ = polled.wait(limit)?,
                    _ => {}
                }
                self.state = state;
                Ok(true)
            }
            State::Reading(mut reading) => {
                let came = reading.has_more(limit)?;
                self.state = State::Reading(reading);
                Ok(came)
            }
        }
    }

    fn outbox(&self) -> Option<&str> {
        self.database.outbox.get().map(String::as_str)
    }

    fn upkeep(&mut self) -> Result<Option<Lag>, SourceError> {
        let done = match &mut self.state {
            State::Away | State::StandingBy(_) => Ok(None),
            State::Polling { polled, conn, .. } => standby_relay::stay(conn).and_then(|()| polled.upkeep()),
            State::Reading(reading) => reading.upkeep(),
        };
        if done.is_err() {
            self.state = State::Away;
        }
        done
    }
}

impl Drop for WalSource {
    /// What was settled is confirmed, so that it is not sent again.
    fn drop(&mut self) {
        if let State::Reading(reading) = &mut self.state {
            reading.end();
        }
    }
}
