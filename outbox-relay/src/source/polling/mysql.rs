//! MySQL and MariaDB, polled. The lock on a shard's row is the claim: no lease, no clock, no token. A worker that dies loses its
//! connection, and with it the lock.

mod bounds;
mod check;
mod claim;
mod connection;
mod dead_letters;
mod read;
mod settle;
mod upkeep;
mod wakeup;

pub(crate) use self::bounds::{Bound, COLUMNS, listed, load as load_bounds};
pub(crate) use self::connection::row_of;
pub(crate) use self::upkeep::lag;

use std::collections::HashSet;
use std::fmt;
use std::time::{Duration, Instant};

use diesel_outbox_core::{Claimed, DeadLetterPolicy, DeadLettered, Lag, Source, SourceError};
use mysql::Conn;

use self::bounds::{Fence, Witness};
use self::claim::{Looked, PollingPass, Wanted};
use self::connection::Database;
use self::upkeep::Upkeep;
use self::wakeup::Wake;
use super::batch_size::{self, BatchSize};
use crate::source::{BLOCKED, DatabaseUrl, SentRows, SourceOptions, database_error};

/// The outbox table of a MySQL or MariaDB database as a source of records, for one worker.
///
/// Any number of these may work on one table, in any number of processes: each aggregate is worked on by one at a time. Each has two
/// connections.
pub struct MysqlSource {
    database: Database,
    /// Nothing if a connection was lost, and all that hung on it.
    session: Option<Session>,
}

/// How often shards whose bound has no witness are looked at as a whole, and which part of the time that takes at most.
const LOOK_AT_ALL: Duration = Duration::from_secs(1);
const LOOK_AT_ALL_SHARE: u32 = 50;
/// They are looked at as a whole at once, if something is found behind the bound and it takes no longer than this.
const SHORT_LOOK: Duration = Duration::from_millis(5);

/// A place in the table says nothing without the pass that read it.
const NOTHING_CLAIMED: &str = "nothing is claimed: the connection was lost";

struct Session {
    conn: Conn,
    /// Sees what has not been committed. Nothing before the first pass ends, and if the server has closed it.
    uncommitted: Option<Conn>,
    /// The bounds of all shards as they were at the last look.
    bounds: bounds::Claimed,
    fence: Fence,
    /// The highest number that was read, and the row that has it, unless it became a dead letter.
    last: i64,
    witness: Option<Witness>,
    /// When the shards without a witness were looked at from their first row on, and how long that took.
    looked_at_all: Option<(Instant, Duration)>,
    wake: Wake,
    upkeep: Upkeep,
    batch_size: BatchSize,
    pass: Option<PollingPass>,
    was_large: bool,
}

impl fmt::Debug for MysqlSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MysqlSource").field("database", &self.database).finish_non_exhaustive()
    }
}

impl MysqlSource {
    /// A source that connects to this database when it is first asked for something.
    pub fn new(database_url: impl Into<DatabaseUrl>, options: SourceOptions) -> Self {
        Self { database: Database::new(database_url.into(), options), session: None }
    }

    /// Works in the session, which is begun if there is none, and is over if the database fails.
    fn with<T>(
        &mut self,
        doing: &str,
        work: impl FnOnce(&mut Session, &Database) -> mysql::Result<T>,
    ) -> Result<T, SourceError> {
        let mut session = match self.session.take() {
            Some(session) => session,
            None => Session::begin(&self.database)?,
        };
        let done = work(&mut session, &self.database).map_err(|error| database_error(doing, error))?;
        self.session = Some(session);
        Ok(done)
    }
}

impl Session {
    fn begin(database: &Database) -> Result<Self, SourceError> {
        let mut conn = database.connect()?;
        check::check(&mut conn)?;
        let bounds = load_bounds(&mut conn, &format!("SELECT {COLUMNS} FROM outbox_shard ORDER BY shard"))
            .map_err(|error| database_error("looking for the shards", error))?;
        let wake = Wake::start(&mut conn, database.options.poll_interval)
            .map_err(|error| database_error("preparing to look for records", error))?;
        Ok(Self {
            conn,
            uncommitted: None,
            bounds,
            fence: Fence::default(),
            last: 0,
            witness: None,
            looked_at_all: None,
            wake,
            upkeep: Upkeep::default(),
            batch_size: BatchSize::new(),
            pass: None,
            was_large: false,
        })
    }

    fn claim(&mut self, database: &Database) -> mysql::Result<bool> {
        if !self.wake.look(&mut self.conn)? {
            return Ok(false);
        }
        let (wanted, distrusted) = self.look()?;
        if wanted.is_empty() {
            return Ok(false);
        }
        self.wake.count(&mut self.conn)?;
        let block = database.options.dead_letter_policy == DeadLetterPolicy::Block;
        self.pass = PollingPass::begin(&mut self.conn, &wanted, &distrusted, self.wake.workers(), block)?;
        if self.pass.is_some() {
            self.wake.found();
        }
        Ok(self.pass.is_some())
    }

    /// The wanted shards, and those whose bound is not to be trusted.
    ///
    /// A table that was truncated counts from 1 again, and the bounds say nothing of its rows. It has lost the bounds' witnesses too. A
    /// relay that deletes what it has sent has none, so it looks at all rows now and then.
    fn look(&mut self) -> mysql::Result<(Wanted, HashSet<i16>)> {
        let Looked { wanted, bounds, without_witness, is_restarted } =
            claim::look(&mut self.conn, &self.bounds)?;
        let is_lower =
            bounds.iter().zip(&self.bounds).any(|((_, new), (_, old))| new.sent_through < old.sent_through);
        if is_restarted || is_lower {
            // What is known is of the table that was, also if it was another relay that noticed.
            (self.fence, self.last, self.witness) = (Fence::default(), 0, None);
        }
        let is_wanted = wanted.iter().any(|(shard, _)| without_witness.contains(shard));
        let is_due = self.looked_at_all.is_none_or(|(at, took)| {
            at.elapsed() >= LOOK_AT_ALL.max(took * LOOK_AT_ALL_SHARE) || (is_wanted && took < SHORT_LOOK)
        });
        if without_witness.is_empty() || !(is_due || is_restarted) {
            self.bounds = bounds;
            return Ok((wanted, HashSet::new()));
        }
        let began = Instant::now();
        for (shard, bound) in &mut self.bounds {
            if without_witness.contains(shard) {
                *bound = Bound::default();
            }
        }
        let Looked { wanted, bounds, .. } = claim::look(&mut self.conn, &self.bounds)?;
        self.bounds = bounds;
        self.looked_at_all = Some((Instant::now(), began.elapsed()));
        Ok((wanted, without_witness))
    }

    fn read(&mut self, limit: usize) -> mysql::Result<(Vec<Claimed>, bool)> {
        let pass = self.pass.as_mut().ok_or_else(nothing_claimed)?;
        let batch = read::read(
            &mut self.conn,
            &pass.claimed,
            &pass.unsettled,
            &mut self.batch_size,
            limit,
            pass.blocked.as_ref(),
        )?;
        pass.unsettled.extend(&batch.given);
        pass.was_large |= !batch.exhausts;
        if let Some(last) = batch.last {
            self.wake.found();
            if self.last < last.0 {
                self.last = last.0;
                self.witness = Some(last);
            }
        }
        for seq in batch.held_back {
            dead_letters::keep(&mut self.conn, seq, BLOCKED)?;
            pass.unsettled.remove(&seq);
            self.witness.take_if(|(witness, _)| *witness == seq);
        }
        Ok((batch.records, !batch.exhausts))
    }

    fn dead_letter(&mut self, ticket: u64, reason: &str) -> mysql::Result<DeadLettered> {
        let pass = self.pass.as_mut().ok_or_else(nothing_claimed)?;
        let (aggregate_type, id) =
            dead_letters::keep(&mut self.conn, ticket as i64, reason)?.unwrap_or_default();
        pass.settled(&[ticket]);
        self.witness.take_if(|(witness, _)| *witness == ticket as i64);
        Ok(DeadLettered::new(id, aggregate_type).holding_back(pass.blocked.is_some()))
    }

    fn settle(&mut self, tickets: &[u64], database: &Database) -> mysql::Result<()> {
        let pass = self.pass.as_mut().ok_or_else(nothing_claimed)?;
        settle::settle(&mut self.conn, tickets, database.options.sent_rows)?;
        pass.settled(tickets);
        Ok(())
    }

    fn release(&mut self, database: &Database) -> mysql::Result<()> {
        let Some(pass) = self.pass.take() else { return Ok(()) };
        self.was_large = pass.was_large;
        let moved = self.moved_bounds(&pass, database);
        pass.end(&mut self.conn, moved)?;
        self.wake.call_for_help(&mut self.conn, self.was_large)
    }

    /// To where the pass's bounds can move. They stay where they are if the other connection fails: the next look is longer then, and
    /// nothing else.
    fn moved_bounds(&mut self, pass: &PollingPass, database: &Database) -> Option<bounds::Claimed> {
        let mut conn = match self.uncommitted.take() {
            Some(conn) => conn,
            None => database.connect_to_uncommitted().ok()?,
        };
        let witness = self.witness.as_ref().filter(|_| database.options.sent_rows != SentRows::Delete);
        let moved = self
            .fence
            .advance(&mut conn, self.last)
            .and_then(|()| bounds::moved(&pass.claimed, &self.fence, witness, &mut self.conn, &mut conn));
        match moved {
            Ok(moved) => {
                self.uncommitted = Some(conn);
                moved
            }
            Err(error) => {
                tracing::debug!(%error, "the bounds stay where they are; this is tried again");
                None
            }
        }
    }

    fn upkeep(&mut self, database: &Database) -> mysql::Result<Option<Lag>> {
        if !self.wake.leads() {
            return Ok(None);
        }
        self.upkeep.run(&mut self.conn, &database.options, &self.bounds, self.was_large)
    }
}

fn nothing_claimed() -> mysql::Error {
    mysql::Error::IoError(std::io::Error::new(std::io::ErrorKind::NotConnected, NOTHING_CLAIMED))
}

impl Source for MysqlSource {
    fn claim(&mut self) -> Result<bool, SourceError> {
        self.with("claiming", Session::claim)
    }

    fn read(&mut self, limit: usize, records: &mut Vec<Claimed>) -> Result<bool, SourceError> {
        let (batch, more) = self.with("reading", |session, _| session.read(limit))?;
        records.extend(batch);
        Ok(more)
    }

    fn settle(&mut self, tickets: &[u64]) -> Result<(), SourceError> {
        if tickets.is_empty() {
            return Ok(());
        }
        self.with("settling", |session, database| session.settle(tickets, database))
    }

    fn dead_letter(&mut self, ticket: u64, reason: &str) -> Result<DeadLettered, SourceError> {
        self.with("moving a record to the dead letters", |session, _| session.dead_letter(ticket, reason))
    }

    fn release(&mut self) -> Result<(), SourceError> {
        self.with("releasing", Session::release)
    }

    /// The session ends too, and with it the lead: another relay may reach a broker that this one does not.
    fn abandon(&mut self) {
        self.session = None;
    }

    /// With a share of the shards only, the events of the others would wait meanwhile.
    fn lingers(&self) -> bool {
        self.session.as_ref().is_some_and(|session| session.wake.workers() <= 1)
    }

    fn wait(&mut self, limit: Duration) -> Result<bool, SourceError> {
        self.with("waiting", |session, _| Ok(session.wake.wait(limit)))
    }

    fn outbox(&self) -> Option<&str> {
        self.database.outbox.get().map(String::as_str)
    }

    fn upkeep(&mut self) -> Result<Option<Lag>, SourceError> {
        self.with("looking after the table", Session::upkeep)
    }
}
