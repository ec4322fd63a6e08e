//! The connection of one worker. If it is lost, a new one takes its place.

use std::collections::HashMap;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use diesel::connection::SimpleConnection;
use diesel::pg::{Pg, PgConnection};
use diesel::prelude::*;
use diesel::result::{DatabaseErrorKind, Error};
use diesel::sql_types::Bool;
use diesel_outbox_core::__private::set_search_path;
use diesel_outbox_core::{Claimed, DeadLettered, Lag, SourceError};
use uuid::Uuid;

use super::alone::Alone;
use super::claim::{BEGIN, BEGIN_BESIDE_OTHERS};
use super::outboxes::{Outbox, SHORT_LOCK_TIMEOUT};
use super::prefetch::Backlog;
use super::table::{NOTHING_CLAIMED, Table};
use crate::source::check;
use crate::source::database::PostgresDatabase;
use crate::source::database_error;
use crate::source::pooler::OwnProcess;
use crate::source::sequence::was_set_back;
use crate::source::undoable::Undoable;
use crate::statement::statement;

/// The session of one worker.
pub(super) struct Sessions {
    database: PostgresDatabase,
    /// The outbox at hand, if the worker has several.
    outbox: Option<Arc<Outbox>>,
    /// `None` if the connection was lost, and everything with it.
    session: Option<Session>,
}

/// A connection, and what is known and held through it.
struct Session {
    conn: PgConnection,
    process: OwnProcess,
    /// By their oids.
    tables: HashMap<u32, Table>,
    /// The table that the connection's `search_path` has, or 0 if that is not known.
    current: u32,
    /// If the worker has several outboxes, those that the tables belong to.
    outboxes: HashMap<u32, Known>,
    /// If the worker has several outboxes, a watch does this for all of them.
    alone: Option<Alone>,
    /// How many records the pass has settled, and which passes are not on the server's disk yet, if records are sent exactly once.
    settled: usize,
    undoable: Undoable,
    /// Set if outboxes have failed since a look or a pass last went well.
    failing: Option<Failing>,
}

/// An outbox whose tables a session has checked.
struct Known {
    /// One that the relay lets go of ends.
    outbox: Weak<Outbox>,
    generation: u64,
}

impl Known {
    fn of(outbox: &Arc<Outbox>) -> Self {
        Self { outbox: Arc::downgrade(outbox), generation: outbox.generation() }
    }

    /// Returns whether it is this one, and what the session knows of it is still right. If its schema has another name since, it is
    /// another outbox with the same table.
    fn is(&self, outbox: &Arc<Outbox>) -> bool {
        self.outbox.ptr_eq(&Arc::downgrade(outbox)) && self.generation == outbox.generation()
    }
}

/// Failures in a row.
struct Failing {
    since: Instant,
    /// The table of the outbox that failed first.
    first: u32,
    /// Whether others have failed since.
    has_others: bool,
}

/// If nothing has gone well in a session for this long, the next failure ends it, because perhaps another session does better.
const LONGEST_FAILING: Duration = Duration::from_secs(5);

/// The same if only one outbox fails, because perhaps only that has something to do.
const LONGEST_FAILING_ALONE: Duration = Duration::from_secs(60);

impl Sessions {
    pub(super) fn new(database: PostgresDatabase) -> Self {
        Self { database, outbox: None, session: None }
    }

    /// Works in the session. Begins one if there is none, and drops it if the database fails.
    fn with<T>(
        &mut self,
        doing: &str,
        work: impl FnOnce(&mut Session, &PostgresDatabase) -> QueryResult<T>,
    ) -> Result<T, SourceError> {
        // A session is taken out while it is in use, so after a panic none is left.
        let mut session = self.open()?;
        match work(&mut session, &self.database) {
            Ok(done) => {
                self.session = Some(session);
                Ok(done)
            }
            Err(error) => {
                if was_set_back(&error) {
                    session.distrust_sequence();
                }
                // A session that is read-only stays so when the server takes writes again.
                if !matches!(error, Error::DatabaseError(DatabaseErrorKind::ReadOnlyTransaction, _)) {
                    self.keep_for_others(session);
                }
                Err(database_error(doing, error))
            }
        }
    }

    fn open(&mut self) -> Result<Session, SourceError> {
        match self.session.take() {
            Some(session) => Ok(session),
            None => Session::begin(&self.database, self.outbox.is_some()),
        }
    }

    /// Keeps the session for the other outboxes if it still works. What it knew of this one is forgotten.
    fn keep_for_others(&mut self, mut session: Session) {
        if let Some(outbox) = &self.outbox
            && !session.fails_for_long(outbox.table())
            && session.forget()
        {
            self.session = Some(session);
        }
    }

    /// Connects, and works on this one of several outboxes from now on.
    pub(super) fn enter(&mut self, outbox: Arc<Outbox>) -> Result<(), SourceError> {
        self.outbox = Some(outbox);
        self.session = Some(self.open()?);
        Ok(())
    }

    /// Turns to the outbox that was entered, if the session has not done so yet.
    fn turn(&mut self) -> Result<(), SourceError> {
        let Some(outbox) = self.outbox.clone() else { return Ok(()) };
        let mut session = self.open()?;
        let turned = session.turn_to(&outbox);
        match turned {
            Ok(()) => self.session = Some(session),
            Err(_) => self.keep_for_others(session),
        }
        turned
    }

    /// Claims shards. Returns whether it has any, and whether this is the only worker at work.
    pub(super) fn claim(&mut self) -> Result<(bool, bool), SourceError> {
        self.turn()?;
        let claimed = self.with("claiming", Session::claim)?;
        self.note_sequence();
        Ok(claimed)
    }

    /// Notes for the sessions of other workers how far the outbox's sequence was at the last look.
    fn note_sequence(&self) {
        if let (Some(outbox), Some(session)) = (&self.outbox, &self.session)
            && let Some(table) = session.tables.get(&session.current)
        {
            outbox.see(table.sequence());
        }
    }

    /// Returns the next records, and whether there are more.
    pub(super) fn read(&mut self, limit: usize) -> Result<(Vec<Claimed>, bool), SourceError> {
        self.with("reading", |session, _| {
            let (conn, table) = session.table()?;
            table.read(conn, limit)
        })
    }

    /// Returns what can be read ahead.
    pub(super) fn backlog(&mut self, limit: usize) -> Result<Option<Backlog>, SourceError> {
        let schema = self.outbox.as_ref().map(|outbox| outbox.schema().to_owned());
        self.with("reading", |session, _| {
            let (conn, table) = session.table()?;
            table.backlog(conn, schema, limit)
        })
    }

    /// Notes that these rows were read ahead and given to the relay, except for those that are held back.
    pub(super) fn give(
        &mut self,
        given: Vec<(u64, i64)>,
        exhausts: bool,
        held_back: Vec<u64>,
    ) -> Result<(), SourceError> {
        self.with("reading", |session, _| {
            let (conn, table) = session.table()?;
            table.give(conn, &given, exhausts, held_back)
        })
    }

    pub(super) fn settle(&mut self, tickets: Vec<u64>) -> Result<(), SourceError> {
        self.with("settling", |session, database| {
            let (conn, table) = session.table()?;
            table.settle(conn, &tickets, &database.options)?;
            session.settled += tickets.len();
            Ok(())
        })
    }

    pub(super) fn settle_committed(&mut self, ids: Vec<Uuid>) -> Result<(), SourceError> {
        self.with("settling what Kafka has committed", |session, database| {
            session.settled += ids.len();
            let (conn, table) = session.table()?;
            table.settle_committed(conn, ids, &database.options)
        })
    }

    pub(super) fn dead_letter(&mut self, ticket: u64, reason: String) -> Result<DeadLettered, SourceError> {
        self.with("moving a record to the dead letters", |session, _| {
            let (conn, table) = session.table()?;
            table.dead_letter(conn, ticket, &reason)
        })
    }

    /// Releases what is claimed. Returns how many of the last passes a crash of the server could undo.
    pub(super) fn release(&mut self) -> Result<usize, SourceError> {
        let leads = self.outbox.as_ref().is_some_and(|outbox| outbox.is_led());
        self.note_sequence();
        self.with("releasing", |session, database| {
            let leads = session.alone.as_ref().map_or(leads, Alone::calls_for_help);
            let (conn, table) = session.table()?;
            table.release(conn, leads)?;
            session.failing = None;
            if database.options.exactly_once {
                session.undoable.committed(&mut session.conn, std::mem::take(&mut session.settled))?;
            }
            Ok(session.undoable.count())
        })
    }

    pub(super) fn abandon(&mut self) {
        if let Some(session) = &mut self.session
            && let Ok((conn, table)) = session.table()
            && table.abandon(conn).is_err()
        {
            self.session = None;
        }
    }

    /// Waits for something to do in the only outbox.
    pub(super) fn wait(&mut self, limit: Duration) -> Result<bool, SourceError> {
        self.with("waiting", |session, _| match &mut session.alone {
            Some(alone) => alone.wait(&mut session.conn, limit),
            None => Ok(true),
        })
    }

    /// Looks after the table, if this relay leads.
    pub(super) fn upkeep(&mut self) -> Result<Option<Lag>, SourceError> {
        let problem = self.with("looking for a pooler", |session, database| {
            session.process.look(&mut session.conn, database.options.poll_interval)
        })?;
        if let Some(problem) = problem {
            self.session = None;
            return Err(problem);
        }
        self.turn()?;
        let outbox = self.outbox.clone();
        self.with("looking after the table", |session, database| {
            let was_large = session.tables.get(&session.current).is_some_and(Table::was_large);
            match (&mut session.alone, outbox) {
                (Some(alone), _) => alone.upkeep(&mut session.conn, database, was_large),
                (None, Some(outbox)) => outbox.upkeep(&mut session.conn, was_large),
                (None, None) => Ok(None),
            }
        })
    }
}

impl Session {
    fn begin(database: &PostgresDatabase, has_others: bool) -> Result<Self, SourceError> {
        let mut conn = database.connect_to_own_session()?;
        let process =
            OwnProcess::of(&mut conn).map_err(|error| database_error("looking for a pooler", error))?;
        let mut session = Self {
            conn,
            process,
            tables: HashMap::new(),
            current: 0,
            outboxes: HashMap::new(),
            alone: None,
            settled: 0,
            undoable: Undoable::default(),
            failing: None,
        };
        if has_others {
            session.prepare_for_several()?
        } else {
            session.begin_alone(database)?
        }
        Ok(session)
    }

    fn prepare_for_several(&mut self) -> Result<(), SourceError> {
        let is_read_only = self
            .conn
            .batch_execute(SHORT_LOCK_TIMEOUT)
            .and_then(|()| IsReadOnly::new().get_result::<bool>(&mut self.conn))
            .map_err(|error| database_error("preparing the connection", error))?;
        // Otherwise each outbox would fail for itself, or, if this is a standby that is behind, seem to have nothing unsent.
        if is_read_only { Err(SourceError::new(READ_ONLY)) } else { Ok(()) }
    }

    fn begin_alone(&mut self, database: &PostgresDatabase) -> Result<(), SourceError> {
        let table = Table::begin(&mut self.conn)?;
        self.current = table.oid();
        self.tables.insert(self.current, table);
        let alone = Alone::start(&mut self.conn, self.current, &database.options)
            .map_err(|error| database_error("preparing to listen", error))?;
        self.alone = Some(alone);
        Ok(())
    }

    /// Sets the `search_path` to this outbox, and checks its tables if this is the first time in this session.
    ///
    /// PostgreSQL parses and plans a prepared statement anew if the `search_path` has changed since its last execution, so the
    /// statements that the connection keeps are those of every outbox.
    fn turn_to(&mut self, outbox: &Arc<Outbox>) -> Result<(), SourceError> {
        let oid = outbox.table();
        let was_set_back = outbox.take_set_back();
        let is_known = !was_set_back && self.outboxes.get(&oid).is_some_and(|known| known.is(outbox));
        if self.current != oid || !is_known {
            self.conn
                .batch_execute(&set_search_path(outbox.schema()))
                .map_err(|error| database_error("turning to the outbox", error))?;
            self.current = oid;
        }
        if !is_known {
            self.outboxes.remove(&oid);
            self.outboxes.retain(|_, known| known.outbox.strong_count() > 0);
            self.tables.retain(|table, _| self.outboxes.contains_key(table));
            if was_set_back {
                self.distrust_sequence();
            }
            let table = Table::begin(&mut self.conn)?;
            if table.oid() != oid {
                return Err(SourceError::new(RENAMED));
            }
            outbox.checked(table.sequence());
            self.tables.insert(oid, table);
            self.outboxes.insert(oid, Known::of(outbox));
        }
        if let (Some(seen), Some(table)) = (outbox.seen(), self.tables.get_mut(&oid)) {
            table.see_sequence(seen);
        }
        Ok(())
    }

    /// Notes that the outbox with this table has failed. Returns whether all that was tried has failed for long.
    fn fails_for_long(&mut self, table: u32) -> bool {
        let new = Failing { since: Instant::now(), first: table, has_others: false };
        let failing = self.failing.get_or_insert(new);
        failing.has_others |= failing.first != table;
        failing.since.elapsed() >= if failing.has_others { LONGEST_FAILING } else { LONGEST_FAILING_ALONE }
    }

    /// Lets whoever checks the table next look for events that a sequence hides which was set back. By then it may have caught up.
    fn distrust_sequence(&mut self) {
        if let Err(error) = self.conn.batch_execute("ROLLBACK").and_then(|()| check::forget(&mut self.conn)) {
            tracing::warn!(%error, "cannot note that the sequence of outbox.seq was set back");
        }
    }

    /// Forgets the outbox at hand. Returns whether the connection can be used for others.
    fn forget(&mut self) -> bool {
        self.tables.remove(&self.current);
        self.outboxes.remove(&self.current);
        self.current = 0;
        // If no transaction is open, this does nothing.
        self.conn.batch_execute("ROLLBACK").is_ok()
    }

    /// The outbox at hand.
    fn table(&mut self) -> QueryResult<(&mut PgConnection, &mut Table)> {
        let table = self.tables.get_mut(&self.current).ok_or(NOTHING_CLAIMED)?;
        Ok((&mut self.conn, table))
    }

    fn claim(&mut self, database: &PostgresDatabase) -> QueryResult<(bool, bool)> {
        if self.alone.as_ref().is_some_and(Alone::stands_by) {
            return Ok((false, false));
        }
        let begin = if self.alone.is_some() { BEGIN } else { BEGIN_BESIDE_OTHERS };
        let (conn, table) = self.table()?;
        let has_claimed = table.claim(conn, begin, &database.options)?;
        let is_alone = table.is_alone();
        if !has_claimed {
            self.failing = None;
            if let Some(alone) = &mut self.alone {
                alone.found_nothing();
            }
        } else if let Some(alone) = &mut self.alone {
            alone.awake(&mut self.conn)?;
        }
        Ok((has_claimed, is_alone))
    }
}

const READ_ONLY: &str = "the database takes no writes: the server is a standby, or default_transaction_read_only is on. Let the URL name a \
                         server that takes them (target_session_attrs=read-write chooses one of several)";

const RENAMED: &str = "the schema has another name since, or another table is its outbox: the relay looks which outboxes there are";

statement!(Pg, IsReadOnly {} -> Bool, "SELECT current_setting('transaction_read_only')::bool");
