//! The active relay's work on the slot: near the end of the log it is streamed, far behind it is read in batches.

use std::collections::VecDeque;
use std::thread;
use std::time::{Duration, Instant};

use diesel::pg::PgConnection;
use diesel::prelude::*;
use diesel_outbox_core::{Claimed, DeadLetterPolicy, DeadLettered, Lag, SourceError};

use super::batches::{Batches, FAR};
use super::dead_letters::{self, Blocked};
use super::options::WalOptions;
use super::place::{Lsn, Place};
use super::reader::{Handover, Received};
use super::role::Active;
use super::slot::Slot;
use super::standbys::Standbys;
use super::stream::Stream;
use super::told::Told;
use super::window::Window;
use super::{decode, division, has_passed, origin, publication, role, slot};
use crate::source::database::Database;
use crate::source::fence::Fence;
use crate::source::prune::{Pruning, is_due};
use crate::source::writers::Writers;
use crate::source::{BLOCKED, SentRows, SourceOptions, database_error};

pub(super) struct Streaming {
    /// With the lock of the active relay.
    conn: Box<Active>,
    database: Database,
    wal: WalOptions,
    /// The number of the table outbox.
    table: u32,
    log: Log,
    began: Instant,
    /// How many rows had come by then.
    began_after: u64,
    /// How long it is streamed at least before it is read in batches again.
    stream_time: Duration,
    window: Window,
    /// Whether aggregates with dead letters are held back, and those that are; they are looked up where nothing is given.
    blocks: bool,
    blocked: Option<Blocked>,
    /// What the table has, and since when.
    kept: Place,
    kept_at: Option<Instant>,
    told: Told,
    standbys: Standbys,
    looked_around: Option<Instant>,
    measured: Option<Instant>,
    pruning: Pruning,
    writers: Writers,
    fence: Fence,
    /// Up to where the log was confirmed when that was looked at last.
    looked_at: Lsn,
    looked: Option<Instant>,
    /// Numbers up to which every row has come or never will, as soon as all up to these places is sent.
    numbers: VecDeque<(i64, Lsn)>,
    slot: slot::Watch,
}

/// What reads the log.
enum Log {
    Stream(Stream),
    Batches(Batches),
}

impl Log {
    fn in_batches(
        database: &Database,
        wal: &WalOptions,
        start: Lsn,
        table: u32,
    ) -> Result<Self, SourceError> {
        tracing::info!(slot = wal.slot, "far behind: the write-ahead log is read in batches");
        Batches::begin(database, wal, start, table).map(Self::Batches)
    }

    fn handover(&self) -> &Handover {
        match self {
            Self::Stream(stream) => stream.handover(),
            Self::Batches(batches) => batches.handover(),
        }
    }
}

/// How long it is streamed at least before it is read in batches again.
const STREAM_TIME: Duration = Duration::from_secs(5);
const LONG_STREAM_TIME: Duration = Duration::from_secs(60);
/// A transaction with so many events is streamed to its end, as any change of reader begins at its beginning again.
const LARGE: u64 = 100_000;
/// How often it is looked for standbys, and what was sent is kept where nothing else keeps it.
const LOOK_INTERVAL: Duration = Duration::from_secs(10);
/// How often what was sent is kept while something is being sent, which lets the server know too.
const KEEP_INTERVAL: Duration = Duration::from_secs(1);
/// How often what is known to be sent is noted in the table.
const LOW_INTERVAL: Duration = Duration::from_secs(2);

/// Whether reading the log may begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Readiness {
    Ready,
    /// Some of what is polled is unsent.
    RowsWait,
    SlotIsRead,
}

impl Readiness {
    pub(super) fn look(conn: &mut PgConnection, slot: &str) -> Result<Self, SourceError> {
        let failed = |error| database_error("looking whether the write-ahead log can be read", error);
        let is_active = Slot::find(conn, slot).map_err(failed)?.is_some_and(|slot| slot.is_active);
        Ok(match is_active {
            true => Self::SlotIsRead,
            false if division::polled_rows_wait(conn).map_err(failed)? => Self::RowsWait,
            false => Self::Ready,
        })
    }
}

impl Streaming {
    pub(super) fn begin(
        mut conn: Box<Active>,
        database: &Database,
        wal: &WalOptions,
    ) -> Result<Self, SourceError> {
        let failed = |error| database_error("beginning to read the write-ahead log", error);
        division::polled_rows_are_sent(&mut conn).map_err(failed)?;
        origin::check(&mut conn, wal)?;
        let standbys = Standbys::begin(&mut conn, wal)?;
        let place = Place::load(&mut conn, &wal.slot).map_err(failed)?.unwrap_or_default();
        let confirmed = Slot::find(&mut conn, &wal.slot).map_err(failed)?.map_or(0, |slot| slot.confirmed);
        let blocks = database.options.dead_letter_policy == DeadLetterPolicy::Block;
        let start = place.start.max(confirmed);
        let end = slot::end_of_log(&mut conn).map_err(failed)?;
        let bound = Told::within(start).bound_ahead(end);
        origin::note(&mut conn, &wal.slot, bound).map_err(failed)?;
        let table = decode::table(&mut conn).map_err(failed)?;
        let log = if end.saturating_sub(start) > FAR {
            Log::in_batches(database, wal, start, table)?
        } else {
            Log::Stream(Stream::begin(&database.url.get()?, wal.clone(), start, table)?)
        };
        Ok(Self {
            conn,
            database: database.clone(),
            wal: wal.clone(),
            table,
            log,
            began: Instant::now(),
            began_after: 0,
            stream_time: STREAM_TIME,
            window: Window::after(start, place.part),
            blocks,
            blocked: None,
            kept: place,
            kept_at: None,
            told: Told::within(bound),
            standbys,
            looked_around: None,
            measured: None,
            pruning: Pruning::default(),
            writers: Writers::default(),
            fence: Fence::default(),
            looked_at: 0,
            looked: None,
            numbers: VecDeque::new(),
            slot: slot::Watch::default(),
        })
    }

    /// Whether there is something to read, or comes within this time.
    pub(super) fn has_more(&mut self, limit: Duration) -> Result<bool, SourceError> {
        if self.window.is_full() && !self.window.has_more() {
            // What reads the log waits meanwhile, and it goes on when the oldest row is settled.
            thread::sleep(limit);
            return Ok(false);
        }
        if !self.window.has_more() {
            match self.log.handover().receive(limit) {
                Ok(Received::Batch(batch)) => {
                    batch.into_iter().for_each(|message| self.window.receive(message));
                    self.confirm()?;
                }
                Ok(Received::Nothing) => {}
                Ok(Received::End) => self.stream()?,
                Err(error) if matches!(self.log, Log::Batches(_)) => {
                    tracing::warn!(slot = self.wal.slot, %error, "the write-ahead log cannot be read in batches now");
                    self.stream()?;
                }
                Err(error) => return Err(error),
            }
        }
        if !self.window.has_more() {
            return Ok(false);
        }
        let tickets = (self.window.next(), self.window.received());
        self.standbys.let_go(&mut self.conn, tickets, limit)
    }

    /// The server may forget what was sent, as far as it may be told.
    fn confirm(&mut self) -> Result<(), SourceError> {
        let confirmed = self.window.confirmed();
        if self.told.is_short_of(confirmed) && has_passed(self.kept_at, self.wal.confirm_interval) {
            self.keep(self.place())?;
        }
        let told = self.told.may_be(confirmed);
        self.log.handover().confirm(told);
        Ok(())
    }

    /// What was sent is kept while a pass goes on, which may take long where a broker is slow; and the server ends a session that
    /// has asked nothing for long.
    fn keep_on(&mut self) -> Result<(), SourceError> {
        let interval = match self.log {
            Log::Stream(_) => KEEP_INTERVAL,
            // A slot that is not streamed is moved up now and then only.
            Log::Batches(_) => self.wal.confirm_interval,
        };
        if !is_due(&mut self.kept_at, interval) {
            return Ok(());
        }
        // The lock has a connection of its own, which keeping the place does not use.
        role::stay(&mut self.conn)?;
        self.keep_place()
    }

    /// Goes on near the end of the log.
    fn stream(&mut self) -> Result<(), SourceError> {
        if matches!(self.log, Log::Stream(_)) {
            return Err(SourceError::new("the thread that reads the write-ahead log has ended"));
        }
        // Else batches could not be read, or not be taken.
        let is_near = self.behind()? <= FAR;
        self.stream_time = if is_near { STREAM_TIME } else { LONG_STREAM_TIME };
        tracing::info!(slot = self.wal.slot, "the write-ahead log is streamed from here on");
        let stream =
            Stream::begin(&self.database.url.get()?, self.wal.clone(), self.window.end(), self.table)?;
        self.go_on(Log::Stream(stream));
        Ok(())
    }

    fn go_on(&mut self, log: Log) {
        log.handover().confirm(self.told.may_be(self.window.confirmed()));
        (self.log, self.began, self.began_after) = (log, Instant::now(), self.window.received());
    }

    /// Reads in batches where the relay is far behind with the stream. A stream of which nothing has come yet is still at what
    /// any other reader would have to begin with, too.
    fn catch_up(&mut self) -> Result<(), SourceError> {
        let may_switch = matches!(self.log, Log::Stream(_))
            && self.began.elapsed() >= self.stream_time
            && self.window.received() > self.began_after
            && self.window.receiving() < LARGE;
        if may_switch && self.behind()? > FAR {
            self.go_on(Log::in_batches(&self.database, &self.wal, self.window.end(), self.table)?);
        }
        Ok(())
    }

    /// How many bytes of the log have not come.
    fn behind(&mut self) -> Result<u64, SourceError> {
        let end = slot::end_of_log(&mut self.conn)
            .map_err(|error| database_error("looking up the end of the write-ahead log", error))?;
        Ok(end.saturating_sub(self.window.end()))
    }

    pub(super) fn read(&mut self, limit: usize, records: &mut Vec<Claimed>) -> Result<bool, SourceError> {
        if self.blocks && self.blocked.is_none() {
            let blocked = Blocked::load(&mut self.conn);
            self.blocked = Some(blocked.map_err(|error| database_error("looking up dead letters", error))?);
        }
        let (enough, mut bytes) = (records.len() + limit, 0);
        while records.len() < enough && bytes < CHUNK_BYTES && self.has_more(Duration::ZERO)? {
            let Some(row) = self.window.give_before(self.standbys.released())? else { continue };
            bytes += row.bytes();
            let ticket = row.ticket;
            if self.blocked.as_mut().is_some_and(|blocked| blocked.holds_back(&row)) {
                self.give_up(ticket, BLOCKED)?;
            } else {
                records.push(row.claimed());
            }
        }
        self.keep_on()?;
        self.has_more(Duration::ZERO)
    }

    pub(super) fn settle(&mut self, tickets: &[u64]) -> Result<(), SourceError> {
        tickets.iter().for_each(|ticket| self.window.settle(*ticket));
        self.confirm()?;
        self.keep_on()
    }

    pub(super) fn dead_letter(&mut self, ticket: u64, reason: &str) -> Result<DeadLettered, SourceError> {
        let (id, aggregate_type) = self.give_up(ticket, reason)?;
        Ok(DeadLettered::new(id, aggregate_type).holding_back(self.blocks))
    }

    /// Makes a dead letter of it: its id and aggregate type.
    fn give_up(&mut self, ticket: u64, reason: &str) -> Result<(String, String), SourceError> {
        let row = self.window.row(ticket)?;
        let told = (row.id.as_ref().map(ToString::to_string).unwrap_or_default(), row.aggregate_type.clone());
        if let Some(blocked) = &mut self.blocked {
            blocked.add(&row);
        }
        // Commits might wait for this relay by now.
        self.standbys.look_again(&mut self.conn, &self.wal, self.window.next())?;
        dead_letters::keep(&mut self.conn, row, reason, self.standbys.are_seen())
            .map_err(|error| database_error("moving a record to the dead letters", error))?;
        self.standbys.wait(&mut self.conn, &self.wal)?;
        self.settle(&[ticket])?;
        Ok((told.0, String::from_utf8_lossy(&told.1).into_owned()))
    }

    /// What was read and not settled is read again.
    pub(super) fn give_again(&mut self) {
        if self.window.give_again() {
            self.blocked = None;
        }
    }

    /// Keeps how much of a large transaction has been sent, of which the server cannot be told.
    pub(super) fn keep_part(&mut self) -> Result<(), SourceError> {
        if self.window.part().is_some() { self.keep_place() } else { Ok(()) }
    }

    fn keep_place(&mut self) -> Result<(), SourceError> {
        let place = self.place();
        if place == self.kept { Ok(()) } else { self.keep(place) }
    }

    fn place(&self) -> Place {
        Place { start: self.window.confirmed(), part: self.window.part() }
    }

    fn keep(&mut self, place: Place) -> Result<(), SourceError> {
        let mut keep = || {
            let bound = self.told.bound_ahead(slot::end_of_log(&mut self.conn)?);
            place.keep(&mut self.conn, &self.wal.slot, bound)?;
            self.told.wrote(bound, slot::end_of_log(&mut self.conn)?);
            QueryResult::Ok(())
        };
        keep().map_err(|error| database_error("keeping up to where the log was sent", error))?;
        (self.kept, self.kept_at) = (place, Some(Instant::now()));
        Ok(())
    }

    pub(super) fn upkeep(&mut self, options: &SourceOptions) -> Result<Option<Lag>, SourceError> {
        role::stay(&mut self.conn)?;
        if is_due(&mut self.looked_around, LOOK_INTERVAL) {
            self.standbys.look_again(&mut self.conn, &self.wal, self.window.next())?;
            self.keep_place()?;
        }
        let failed = |error| database_error("looking after the table and the slot", error);
        if is_due(&mut self.looked, LOW_INTERVAL) {
            self.catch_up()?;
            self.move_low()?;
        }
        let retention = match options.sent_rows {
            SentRows::Keep { retention } => retention,
            SentRows::Delete => Duration::ZERO,
        };
        self.pruning.run(&mut self.conn, &self.database, retention).map_err(failed)?;
        if !is_due(&mut self.measured, options.lag_interval) {
            return Ok(None);
        }
        slot::check(&mut self.conn, &self.wal)?;
        publication::check(&mut self.conn, &self.wal)?;
        self.lag().map(Some).map_err(failed)
    }

    fn lag(&mut self) -> QueryResult<Lag> {
        let (unsent, oldest) = self.window.unsettled();
        let oldest = oldest.and_then(|insert| insert.row(0).ok()).map(|row| slot::age(row.created_at_ms));
        let mut lag = Lag::default();
        lag.unsent = unsent as u64;
        lag.oldest = oldest.unwrap_or_default();
        lag.wal = Some(self.slot.look(&mut self.conn, &self.wal, self.window.confirmed())?);
        lag.oldest_writer = self.writers.look(&mut self.conn)?;
        Ok(lag)
    }

    /// Rows up to the shards' lower bound are known to be sent. Every row with a number up to the fence's has come, or never
    /// will, in what the log has by now; unless the publication kept it back.
    fn move_low(&mut self) -> Result<(), SourceError> {
        let failed = |error| database_error("noting what is known to be sent", error);
        let Some(sent_through) = self.known_to_be_sent().map_err(failed)? else { return Ok(()) };
        publication::check(&mut self.conn, &self.wal)?;
        division::sent_up_to(&mut self.conn, sent_through).map_err(failed)
    }

    fn known_to_be_sent(&mut self) -> QueryResult<Option<i64>> {
        let confirmed = self.window.confirmed();
        if confirmed == self.looked_at && self.numbers.is_empty() {
            return Ok(None);
        }
        self.looked_at = confirmed;
        self.fence.advance(&mut self.conn)?;
        if self.numbers.back().is_none_or(|(seq, _)| *seq < self.fence.bounds().safe) {
            self.numbers.push_back((self.fence.bounds().safe, slot::end_of_log(&mut self.conn)?));
        }
        let mut sent_through = None;
        while self.numbers.front().is_some_and(|(_, end)| *end <= confirmed) {
            sent_through = self.numbers.pop_front().map(|(seq, _)| seq);
        }
        Ok(sent_through)
    }

    /// Keeps all that is known to be sent.
    pub(super) fn end(&mut self) {
        let told = self.told.may_be(self.window.confirmed());
        self.log.handover().confirm(told);
        // What the server is told now is the last: a slot that is further is another one.
        let kept = self.place().keep(&mut self.conn, &self.wal.slot, told);
        if let Err(error) = kept {
            tracing::warn!(%error, "some events may be sent again");
        }
        if matches!(self.log, Log::Batches(_))
            && let Err(error) = slot::move_up(&mut self.conn, &self.wal.slot, told)
        {
            tracing::debug!(slot = self.wal.slot, %error, "the slot was not moved up");
        }
    }
}

const CHUNK_BYTES: usize = 8 << 20;
