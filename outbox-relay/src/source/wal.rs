//! The write-ahead log (WAL) as a source of records: the inserts into the outbox, read from a logical replication slot in the order
//! of their commits.
//!
//! [`setup`] makes the slot and the cutover: the rows that are in the table by then are polled, and later ones are read from the
//! WAL. [`drop`] takes the cutover back, so that all rows are polled again. Neither loses an event or sends one twice, even on a
//! live system.
//!
//! The database needs `wal_level = logical`, and the relay needs a role with `REPLICATION`.

mod changes;
mod chunks;
mod committed;
pub(crate) mod confirm_bound;
mod cutover;
mod dead_letters;
pub(crate) mod decode;
mod error;
#[cfg(fuzzing)]
pub(crate) mod fuzzing;
mod handover;
pub(crate) mod held_back;
mod lag;
mod lower_bound;
mod options;
mod origin;
mod polled;
pub(crate) mod position;
mod publication;
mod reader;
mod reading;
mod settle;
mod slot;
mod standby_relay;
mod stream;
mod synchronous_standbys;
pub(crate) mod window;

use std::fmt;
use std::thread;
use std::time::{Duration, Instant};

use diesel_outbox_core::{Claimed, DeadLettered, Lag, Source, SourceError};
use uuid::Uuid;

pub use self::cutover::{drop, setup};
pub use self::error::WalError;
pub use self::options::WalOptions;
use self::reading::{Readiness, Reading};
use self::standby_relay::{ActiveRelay, Role, StandbyRelay};
use self::synchronous_standbys::Found;
use super::check::check_table;
use super::database::PostgresDatabase;
use super::{DatabaseUrl, PostgresSource, SourceOptions};

/// The outbox's part of the WAL as a source of records.
///
/// You can have any number of these for one slot, in any number of processes. One is active; if it ends, another takes over. The
/// active one first polls the rows from before the cutover.
///
/// If the server has synchronous standbys, the source holds records back until the standbys have their transaction. Otherwise a
/// failover could undo a transaction whose events were sent. To see how far the standbys are, the role needs `pg_read_all_stats`.
/// Without that, and without `synchronized_standby_slots` (PostgreSQL 17 and later), a failover can do so.
/// `synchronous_standby_names` must not include the relay itself, by `*` or by its name: the source reports that as an error that
/// trying again cannot correct.
pub struct WalSource {
    database: PostgresDatabase,
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
    /// Nothing is known, for example after a failure.
    Away,
    /// Another relay is active.
    StandingBy(Box<StandbyRelay>),
    /// The rows from before the cutover are polled.
    Polling {
        polled: Box<PostgresSource>,
        conn: Box<ActiveRelay>,
        /// When it was first seen that another process reads the slot.
        waits: Option<Instant>,
    },
    Reading(Box<Reading>),
}

impl WalSource {
    /// Returns a source that connects to this database when it is first asked for something.
    pub fn new(database_url: impl Into<DatabaseUrl>, options: SourceOptions, wal: WalOptions) -> Self {
        let database = PostgresDatabase::new(database_url.into(), options);
        Self { database, wal, state: State::Away }
    }

    /// Connects, and begins to work or to stand by.
    fn begin(&mut self) -> Result<(), SourceError> {
        let mut conn = self.database.connect_to_own_session()?;
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

    /// Goes over from polling to reading the WAL if no polled row is left and nobody else reads the slot. Returns whether it did.
    fn begin_to_read(&mut self) -> Result<bool, SourceError> {
        let name = self.wal.slot.clone();
        let may_begin = self.with(|state| match state {
            State::Polling { conn, waits, .. } => {
                let readiness = Readiness::look(conn, &name)?;
                if readiness == Readiness::SlotIsRead && waits.is_none() {
                    *waits = Some(Instant::now());
                    tracing::info!(
                        slot = name,
                        "another process is reading the slot; this relay waits until it stops"
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

    /// Works in the present state, and drops that if something fails. While rows are polled, which uses other connections, it also
    /// uses the connection of the lock now and then, so that the server does not end it.
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

/// If the relay before this one has ended, the server notices within a moment, and nobody reads the slot any more. If somebody
/// reads it for longer, this relay looks less often.
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

    fn settle_committed(&mut self, ids: &[Uuid]) -> Result<(), SourceError> {
        self.with(|state| match state {
            State::Polling { polled, .. } => polled.settle_committed(ids),
            State::Reading(reading) => reading.settle_committed(ids),
            _ => Err(nothing_claimed()),
        })
    }

    fn settles_in_order(&self) -> bool {
        matches!(self.state, State::Reading(_))
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
                reading.commit_pass()?;
                // The broker failed or the relay is stopping, so some of what was read was not sent.
                reading.give_again();
                reading.keep_part()
            }
            _ => Ok(()),
        })
    }

    fn undoable_passes(&self) -> usize {
        match &self.state {
            State::Polling { polled, .. } => polled.undoable_passes(),
            State::Reading(reading) => reading.undoable_passes(),
            _ => 0,
        }
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

    fn origin(&self) -> Option<&str> {
        self.database.origin.get().map(String::as_str)
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
    /// Confirms what was settled, so that it is not sent again.
    fn drop(&mut self) {
        if let State::Reading(reading) = &mut self.state {
            reading.end();
        }
    }
}
