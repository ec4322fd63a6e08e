//! MySQL and MariaDB, polled. The lock on a shard's row is the claim: no lease, no clock, no token. A worker that dies loses its
//! connection, and with it the lock.

pub(crate) mod bounds;
mod check;
pub(crate) mod claim;
mod connection;
mod dead_letters;
mod prefetch;
mod read;
mod settle;
mod upkeep;
mod wakeup;
mod writers;

pub(crate) use self::bounds::{Bound, COLUMNS, listed, load as load_bounds};
pub(crate) use self::check::{check_server, check_tables};
pub use self::connection::lacks_tls;
pub(crate) use self::connection::{Statements, row_of};
pub(crate) use self::settle::{delete as delete_rows, rows as rows_of};
pub(crate) use self::upkeep::{UnsentShare, lag, unsent_of_shards};
pub(crate) use self::wakeup::{is_polled, prune_lock, relays};
pub(crate) use self::writers::open_transactions;

use std::collections::HashSet;
use std::fmt;
use std::time::{Duration, Instant};

use diesel_outbox_core::{Claimed, DeadLetterPolicy, DeadLettered, Lag, Source, SourceError};
use mysql::Conn;
use uuid::Uuid;

use self::bounds::{Fence, Witness};
use self::claim::{Known, Looked, PollingPass, Wanted};
use self::connection::MysqlDatabase;
use self::prefetch::{Backlog, ReadAhead};
use self::read::Batch;
use self::upkeep::Upkeep;
use self::wakeup::Wake;
use self::writers::Writers;
use super::batch_size::{self, BatchSize};
use crate::source::{BLOCKED, DatabaseUrl, SentRows, SourceOptions, database_error};

/// The outbox table of a MySQL or MariaDB database as a source of records, for one worker.
///
/// You can have any number of these on one table, in any number of processes: only one at a time works on an aggregate. Each has two
/// connections, and a third one while it works off a backlog, so that one settles while the other reads.
pub struct MysqlSource {
    database: MysqlDatabase,
    /// `None` if the connection was lost, and everything with it.
    session: Option<Session>,
    ahead: ReadAhead,
}

/// How often the worker looks at all rows of the shards whose bound has no witness, and which part of the time that may take.
const LOOK_AT_ALL: Duration = Duration::from_secs(1);
const LOOK_AT_ALL_SHARE: u32 = 50;
/// It does so at once if it finds something behind the bound, and the last time took no longer than this.
const SHORT_LOOK: Duration = Duration::from_millis(25);
/// After a read that took as long as this, a worker looks whether another one waits until nobody reads.
const LONG_READ: Duration = Duration::from_millis(100);

/// A place in the table means nothing without the pass that read it.
const NOTHING_CLAIMED: &str = "nothing is claimed: the connection was lost";

struct Session {
    conn: Conn,
    /// Sees what has not been committed. `None` before it is needed, and if the server has closed it.
    uncommitted: Option<Conn>,
    /// The bounds of all shards as they were at the last look.
    bounds: bounds::Claimed,
    fence: Fence,
    /// The highest number that was read, and the row that has it, unless it became a dead letter.
    last: i64,
    witness: Option<Witness>,
    /// The shards whose bound had no witness at the last look.
    without_witness: HashSet<i16>,
    /// When the shards without a witness were looked at from their first row on, and how long that took.
    looked_at_all: Option<(Instant, Duration)>,
    wake: Wake,
    /// What waited when the relay looked last while it stood by.
    waiting: Wanted,
    upkeep: Upkeep,
    writers: Writers,
    batch_size: BatchSize,
    pass: Option<PollingPass>,
    was_large: bool,
    last_read_took: Duration,
}

impl fmt::Debug for MysqlSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MysqlSource").field("database", &self.database).finish_non_exhaustive()
    }
}

impl MysqlSource {
    /// Returns a source that connects to this database when it is first asked for something.
    pub fn new(database_url: impl Into<DatabaseUrl>, options: SourceOptions) -> Self {
        let database = MysqlDatabase::new(database_url.into(), options);
        Self { database, session: None, ahead: ReadAhead::default() }
    }

    /// Works in the session. Begins one if there is none, and drops it if the database fails.
    fn with<T>(
        &mut self,
        doing: &str,
        work: impl FnOnce(&mut Session, &MysqlDatabase) -> mysql::Result<T>,
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
    fn begin(database: &MysqlDatabase) -> Result<Self, SourceError> {
        let mut conn = database.connect()?;
        check::check(&mut conn)?;
        let bounds = load_bounds(&mut conn, &format!("SELECT {COLUMNS} FROM outbox_shard ORDER BY shard"))
            .map_err(|error| database_error("looking for the shards", error))?;
        let wake = Wake::start(&mut conn, &database.options)
            .map_err(|error| database_error("preparing to look for records", error))?;
        Ok(Self {
            conn,
            uncommitted: None,
            bounds,
            fence: Fence::default(),
            last: 0,
            witness: None,
            without_witness: HashSet::new(),
            looked_at_all: None,
            wake,
            waiting: Wanted::new(),
            upkeep: Upkeep::default(),
            writers: Writers::default(),
            batch_size: BatchSize::new(),
            pass: None,
            was_large: false,
            last_read_took: Duration::ZERO,
        })
    }

    fn claim(&mut self, database: &MysqlDatabase) -> mysql::Result<bool> {
        if !self.wake.look(&mut self.conn)? {
            if !self.wake.looks_after_leader() || !self.is_neglected()? {
                return Ok(false);
            }
            self.wake.help(&mut self.conn)?;
        }
        let known = self.bounds.clone();
        let (wanted, distrusted) = self.look()?;
        if wanted.is_empty() {
            return Ok(false);
        }
        let known = Known { bounds: &known, distrusted: &distrusted };
        self.wake.count(&mut self.conn)?;
        let blocks = database.options.dead_letter_policy == DeadLetterPolicy::Block;
        let workers = (!database.options.exactly_once).then(|| self.wake.workers());
        self.pass = PollingPass::begin(&mut self.conn, &wanted, &known, workers, blocks)?;
        if self.pass.is_some() {
            self.wake.found();
        }
        Ok(self.pass.is_some())
    }

    /// Returns whether to work instead of standing by: what waited at the last look still waits. Perhaps the leader hangs, or somebody
    /// who is no relay holds its lock.
    fn is_neglected(&mut self) -> mysql::Result<bool> {
        let (wanted, _) = self.look()?;
        let is_neglected = wanted.iter().any(|oldest| self.waiting.contains(oldest));
        self.waiting = wanted;
        Ok(is_neglected)
    }

    /// Returns the wanted shards, and those whose bound cannot be trusted.
    ///
    /// A table that was truncated counts from 1 again, so the bounds say nothing about its rows. The bounds' witnesses are gone too. If the
    /// relay deletes what it has sent, there are no witnesses, so it looks at all rows now and then.
    fn look(&mut self) -> mysql::Result<(Wanted, HashSet<i16>)> {
        let is_due = self
            .looked_at_all
            .is_none_or(|(at, took)| at.elapsed() >= LOOK_AT_ALL.max(took * LOOK_AT_ALL_SHARE));
        // The shards that are looked at from their first row on. While nothing comes, these are known from the last look: one look is enough.
        let mut distrusted = HashSet::new();
        if is_due {
            distrusted.clone_from(&self.without_witness);
        }
        loop {
            let began = Instant::now();
            let mut known = self.bounds.clone();
            for (_, bound) in known.iter_mut().filter(|(shard, _)| distrusted.contains(shard)) {
                *bound = Bound::default();
            }
            let Looked { wanted, bounds, without_witness, is_restarted } =
                claim::look(&mut self.conn, &known)?;
            let is_lower = bounds
                .iter()
                .zip(&self.bounds)
                .any(|((_, new), (_, old))| new.sent_through < old.sent_through);
            if is_restarted || is_lower {
                // What the worker knows is about the old table, even if another relay noticed first.
                (self.fence, self.last, self.witness) = (Fence::default(), 0, None);
            }
            if !distrusted.is_empty() {
                self.looked_at_all = Some((Instant::now(), began.elapsed()));
            }
            let is_wanted = wanted.iter().any(|(shard, _)| without_witness.contains(shard));
            let was_short = self.looked_at_all.is_none_or(|(_, took)| took < SHORT_LOOK);
            let is_trusted =
                without_witness.is_empty() || !(is_due || is_restarted || (is_wanted && was_short));
            // A bound that another relay has moved since may have a witness: the next look looks for it.
            let stays = |shard: &i16| self.bounds.iter().any(|old| old.0 == *shard && bounds.contains(old));
            self.without_witness =
                distrusted.iter().copied().filter(stays).chain(without_witness.iter().copied()).collect();
            self.bounds = bounds;
            if is_trusted {
                return Ok((wanted, distrusted));
            }
            distrusted.extend(without_witness);
        }
    }

    fn read(&mut self, limit: usize) -> mysql::Result<(Vec<Claimed>, bool)> {
        let pass = self.pass.as_mut().ok_or_else(nothing_claimed)?;
        if self.last_read_took >= LONG_READ {
            self.wake.wait_to_read(&mut self.conn)?;
        }
        let began = Instant::now();
        let batch = read::read(
            &mut self.conn,
            &pass.claimed,
            &pass.unsettled,
            i64::MIN,
            &mut self.batch_size,
            limit,
            pass.blocks,
        )?;
        self.last_read_took = began.elapsed();
        self.give(batch)
    }

    /// Returns what was claimed and not read, if that is more than a batch. Another connection does not see what this pass has settled, and
    /// would read it again, so there is no backlog once something was settled.
    fn backlog(&mut self, limit: usize) -> mysql::Result<Option<Backlog>> {
        let pass = self.pass.as_mut().ok_or_else(nothing_claimed)?;
        if pass.exhausted || pass.has_settled {
            return Ok(None);
        }
        Ok(Some(Backlog {
            claimed: pass.claimed.clone(),
            given: pass.unsettled.clone(),
            blocks: pass.blocks,
            batch_size: self.batch_size,
            limit,
        }))
    }

    /// Fails if the connection was lost, and the claim with it. Then another relay may have sent what this one has read ahead, and later
    /// records too.
    fn still_holds_its_claim(&mut self) -> mysql::Result<()> {
        self.conn.execute("DO 0").map(drop)
    }

    /// Notes that the relay is given these rows, and makes dead letters of those that are held back. Returns the records, and whether there
    /// are more after them.
    fn give(&mut self, batch: Batch) -> mysql::Result<(Vec<Claimed>, bool)> {
        let pass = self.pass.as_mut().ok_or_else(nothing_claimed)?;
        pass.unsettled.extend(&batch.given);
        pass.exhausted = batch.exhausts;
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
            pass.settled(&[seq as u64]);
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
        Ok(DeadLettered::new(id, aggregate_type).holding_back(pass.blocks))
    }

    fn settle(&mut self, tickets: &[u64], database: &MysqlDatabase) -> mysql::Result<()> {
        let pass = self.pass.as_mut().ok_or_else(nothing_claimed)?;
        settle::settle(&mut self.conn, tickets, database.options.sent_rows)?;
        pass.settled(tickets);
        Ok(())
    }

    fn settle_committed(&mut self, ids: &[Uuid], database: &MysqlDatabase) -> mysql::Result<()> {
        let pass = self.pass.as_ref().ok_or_else(nothing_claimed)?;
        settle::settle_committed(&mut self.conn, &pass.claimed, ids, database.options.sent_rows)
    }

    fn release(&mut self, database: &MysqlDatabase) -> mysql::Result<()> {
        let Some(pass) = self.pass.take() else { return Ok(()) };
        self.was_large = pass.was_large;
        let moved = self.moved_bounds(&pass, database);
        // The next look looks for the witnesses of these. If they are not written, the session ends.
        for (shard, bound) in moved.iter().flat_map(|moved| bounds::changed(&pass.claimed, moved)) {
            if let Some((_, known)) = self.bounds.iter_mut().find(|(known, _)| known == shard) {
                known.clone_from(bound);
            }
        }
        pass.end(&mut self.conn, moved)?;
        self.wake.call_for_help(&mut self.conn, self.was_large)
    }

    /// Returns the bounds to which those of the pass can move. If the other connection fails, they stay where they are, and the next look
    /// is only longer.
    fn moved_bounds(&mut self, pass: &PollingPass, database: &MysqlDatabase) -> Option<bounds::Claimed> {
        let mut conn = match self.uncommitted.take() {
            Some(conn) => conn,
            None => database.connect_to_uncommitted().ok()?,
        };
        let witness = self.witness.as_ref().filter(|_| database.options.sent_rows != SentRows::Delete);
        let moved = self
            .fence
            .advance(&mut conn, &self.wake, self.last)
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

    fn upkeep(&mut self, database: &MysqlDatabase) -> mysql::Result<Option<Lag>> {
        if !self.wake.leads() {
            self.upkeep.help(&mut self.conn);
            return Ok(None);
        }
        let lag = self.upkeep.run(&mut self.conn, &database.options, &self.bounds, self.was_large)?;
        if self.upkeep.has_promoted() {
            self.wake.found();
        }
        Ok(lag.map(|mut lag| {
            lag.oldest_writer = self.oldest_writer(database);
            lag
        }))
    }

    /// How long ago the oldest transaction that is still open has emitted; zero if the other connection fails.
    fn oldest_writer(&mut self, database: &MysqlDatabase) -> Duration {
        let Some(mut uncommitted) =
            self.uncommitted.take().or_else(|| database.connect_to_uncommitted().ok())
        else {
            return Duration::ZERO;
        };
        match self.writers.look(&mut self.conn, &mut uncommitted, &self.bounds) {
            Ok(age) => {
                self.uncommitted = Some(uncommitted);
                age
            }
            Err(error) => {
                tracing::debug!(%error, "transactions that stay open were not looked for; this is tried again");
                Duration::ZERO
            }
        }
    }
}

fn nothing_claimed() -> mysql::Error {
    mysql::Error::IoError(std::io::Error::new(std::io::ErrorKind::NotConnected, NOTHING_CLAIMED))
}

impl Source for MysqlSource {
    fn claim(&mut self) -> Result<bool, SourceError> {
        self.ahead.end_pass();
        self.with("claiming", Session::claim)
    }

    fn read(&mut self, limit: usize, records: &mut Vec<Claimed>) -> Result<bool, SourceError> {
        let batch = self.ahead.next(|batch| batch.exhausts);
        let (batch, more) = self.with("reading", |session, _| match batch {
            Some(batch) => {
                session.still_holds_its_claim()?;
                session.give(batch)
            }
            None => session.read(limit),
        })?;
        records.extend(batch);
        Ok(more)
    }

    fn read_ahead(&mut self, limit: usize) -> Result<(), SourceError> {
        if self.ahead.may_begin() {
            let Some(backlog) = self.with("reading", |session, _| session.backlog(limit))? else {
                return Ok(());
            };
            let database = &self.database;
            self.ahead.begin(backlog, || prefetch::begin(database.clone()));
        }
        self.ahead.ask();
        Ok(())
    }

    fn settle(&mut self, tickets: &[u64]) -> Result<(), SourceError> {
        if tickets.is_empty() {
            return Ok(());
        }
        self.with("settling", |session, database| session.settle(tickets, database))
    }

    fn settle_committed(&mut self, ids: &[Uuid]) -> Result<(), SourceError> {
        if ids.is_empty() {
            return Ok(());
        }
        self.with("settling what Kafka has committed", |session, database| {
            session.settle_committed(ids, database)
        })
    }

    fn dead_letter(&mut self, ticket: u64, reason: &str) -> Result<DeadLettered, SourceError> {
        self.with("moving a record to the dead letters", |session, _| session.dead_letter(ticket, reason))
    }

    fn release(&mut self) -> Result<(), SourceError> {
        self.ahead.end_pass();
        self.with("releasing", Session::release)
    }

    /// Ends the session, and gives up the lead with it: another relay may reach a broker that this one does not.
    fn abandon(&mut self) {
        (self.session, self.ahead) = (None, ReadAhead::default());
    }

    /// If it has only some of the shards, events of the others would wait meanwhile.
    fn lingers(&self) -> bool {
        self.session.as_ref().is_some_and(|session| session.wake.workers() <= 1)
    }

    fn wait(&mut self, limit: Duration) -> Result<bool, SourceError> {
        self.ahead.rest();
        self.with("waiting", |session, _| Ok(session.wake.wait(limit)))
    }

    fn outbox(&self) -> Option<&str> {
        self.database.outbox.get().map(String::as_str)
    }

    fn upkeep(&mut self) -> Result<Option<Lag>, SourceError> {
        self.with("looking after the table", Session::upkeep)
    }
}
