//! The write-ahead log as a source of records: the inserts of the outbox table from a logical replication slot, in the order
//! of their commits.
//!
//! [`setup`] makes the slot and divides the table: rows up to then are polled, later ones come from the log. [`drop`]
//! takes it back, so that all rows are polled again. Neither loses an event or sends one twice, on a live system too.
//!
//! The database needs `wal_level = logical`, and the relay a role with `REPLICATION`.

mod batches;
mod dead_letters;
mod decode;
mod division;
mod options;
mod origin;
mod place;
mod publication;
mod reader;
mod role;
mod slot;
mod standbys;
mod stream;
mod streaming;
mod told;
mod unread;
mod window;

use std::thread;
use std::time::{Duration, Instant};

use diesel_outbox_core::{Claimed, DeadLettered, Lag, Source, SourceError};

pub use self::division::{WalError, drop, setup};
pub use self::options::WalOptions;
use self::role::{Active, Standby, Turn};
use self::standbys::Found;
use self::streaming::{Readiness, Streaming};
use super::check::check_table;
use super::database::Database;
use super::{DatabaseUrl, PostgresSource, SourceOptions};

/// The outbox's part of the write-ahead log as a source of records.
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

enum State {
    /// Nothing is known, as after a failure.
    Away,
    /// Another relay is active.
    StandingBy(Box<Standby>),
    /// What was there before the slot is polled.
    Polling {
        polled: Box<PostgresSource>,
        conn: Box<Active>,
        /// Since when it is known that somebody else reads the slot.
        waits: Option<Instant>,
    },
    Streaming(Box<Streaming>),
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
        self.state = self.state_after(Standby::new(conn, self.database.clone()).take_over()?)?;
        Ok(())
    }

    fn state_after(&self, turn: Turn) -> Result<State, SourceError> {
        match turn {
            Turn::Active(active) => self.lead(active),
            Turn::StandsBy(standby) => Ok(State::StandingBy(standby)),
        }
    }

    fn lead(&self, mut conn: Box<Active>) -> Result<State, SourceError> {
        slot::check(&mut conn, &self.wal)?;
        origin::check(&mut conn, &self.wal)?;
        publication::check(&mut conn, &self.wal)?;
        Found::look(&mut conn, &self.wal)?;
        slot::warn_of_no_limit(&mut conn, &self.wal)?;
        let polled = Box::new(PostgresSource::new(self.database.url.clone(), self.database.options.clone()));
        tracing::info!(slot = self.wal.slot, "this relay is the active one");
        Ok(State::Polling { polled, conn, waits: None })
    }

    /// Goes over from what is polled to the log, if nothing of that is left and nobody else reads the slot.
    fn stream(&mut self) -> Result<bool, SourceError> {
        let name = self.wal.slot.clone();
        let may_begin = self.with(|state| match state {
            State::Polling { conn, waits, .. } => {
                let readiness = Readiness::look(conn, &name)?;
                if readiness == Readiness::SlotIsRead && waits.is_none() {
                    *waits = Some(Instant::now());
                    tracing::info!(
                        slot = name,
                        "somebody else reads the slot: this relay waits until that ends"
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
        self.state = State::Streaming(Box::new(Streaming::begin(conn, &self.database, &self.wal)?));
        tracing::info!(slot = self.wal.slot, "this relay reads the write-ahead log");
        Ok(true)
    }

    /// Works in the present state, of which nothing is left where something fails. What is polled has connections of its own, and the
    /// one of the lock is not to be silent for long meanwhile.
    fn with<T>(&mut self, work: impl FnOnce(&mut State) -> Result<T, SourceError>) -> Result<T, SourceError> {
        let stayed = match &mut self.state {
            State::Polling { conn, .. } => role::stay(conn),
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
    SourceError::new("nothing of the write-ahead log is claimed")
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
            if polled || !self.stream()? {
                return Ok(polled);
            }
        }
        self.with(|state| match state {
            State::Streaming(streaming) => streaming.has_more(Duration::ZERO),
            _ => Ok(false),
        })
    }

    fn read(&mut self, limit: usize, records: &mut Vec<Claimed>) -> Result<bool, SourceError> {
        self.with(|state| match state {
            State::Polling { polled, .. } => polled.read(limit, records),
            State::Streaming(streaming) => streaming.read(limit, records),
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
            State::Streaming(streaming) => streaming.settle(tickets),
            _ if tickets.is_empty() => Ok(()),
            _ => Err(nothing_claimed()),
        })
    }

    fn dead_letter(&mut self, ticket: u64, reason: &str) -> Result<DeadLettered, SourceError> {
        self.with(|state| match state {
            State::Polling { polled, .. } => polled.dead_letter(ticket, reason),
            State::Streaming(streaming) => streaming.dead_letter(ticket, reason),
            _ => Err(nothing_claimed()),
        })
    }

    fn release(&mut self) -> Result<(), SourceError> {
        self.with(|state| match state {
            State::Polling { polled, .. } => polled.release(),
            State::Streaming(streaming) => {
                // What was read and not sent, as the broker failed or the relay is to stop.
                streaming.give_again();
                streaming.keep_part()
            }
            _ => Ok(()),
        })
    }

    fn abandon(&mut self) {
        match &mut self.state {
            State::Polling { polled, .. } => polled.abandon(),
            State::Streaming(streaming) => streaming.give_again(),
            _ => {}
        }
    }

    fn wait(&mut self, limit: Duration) -> Result<bool, SourceError> {
        match std::mem::replace(&mut self.state, State::Away) {
            State::Away => Ok(true),
            State::StandingBy(standby) => {
                let turn = standby.wait(limit)?;
                let leads = matches!(turn, Turn::Active(_));
                self.state = self.state_after(turn)?;
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
            State::Streaming(mut streaming) => {
                let came = streaming.has_more(limit)?;
                self.state = State::Streaming(streaming);
                Ok(came)
            }
        }
    }

    fn outbox(&self) -> Option<&str> {
        self.database.outbox.get().map(String::as_str)
    }

    fn upkeep(&mut self) -> Result<Option<Lag>, SourceError> {
        let options = &self.database.options;
        let done = match &mut self.state {
            State::Away | State::StandingBy(_) => Ok(None),
            State::Polling { polled, conn, .. } => role::stay(conn).and_then(|()| polled.upkeep()),
            State::Streaming(streaming) => streaming.upkeep(options),
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
        if let State::Streaming(streaming) = &mut self.state {
            streaming.end();
        }
    }
}

/// Whether so much time has passed since then.
fn has_passed(since: Option<Instant>, time: Duration) -> bool {
    since.is_none_or(|since| since.elapsed() >= time)
}
