//! The active relay's work on the slot: it receives what is read, gives it to the pipeline and settles it.

use std::thread;
use std::time::{Duration, Instant};

use diesel::pg::PgConnection;
use diesel_outbox_core::{Claimed, DeadLettered, Lag, SourceError};
use uuid::Uuid;

use super::committed::Committed;
use super::dead_letters;
use super::held_back::{HeldBack, Turn};
use super::lag::LagWatch;
use super::lower_bound::LowerBound;
use super::options::WalOptions;
use super::position::Position;
use super::reader::Reader;
use super::settle::Settling;
use super::slot::{self, ReplicationSlot};
use super::standby_relay::{self, ActiveRelay};
use super::synchronous_standbys::SynchronousStandbys;
use super::window::Window;
use super::{decode, origin, polled, publication};
use crate::source::database::PostgresDatabase;
use crate::source::interval::is_due;
use crate::source::promote::Promotion;
use crate::source::prune::{Limits, PostgresPruning};
use crate::source::row::StoredRow;
use crate::source::undoable::Undoable;
use crate::source::{BLOCKED, database_error};

/// The active relay's work on the slot.
pub(super) struct Reading {
    /// Holds the lock of the active relay.
    conn: Box<ActiveRelay>,
    database: PostgresDatabase,
    wal: WalOptions,
    reader: Reader,
    window: Window,
    standbys: SynchronousStandbys,
    held_back: HeldBack,
    settling: Settling,
    /// Set if records are sent exactly once.
    committed: Option<Committed>,
    undoable: Undoable,
    lower_bound: LowerBound,
    pruning: PostgresPruning,
    promotion: Promotion,
    lag: LagWatch,
    done: LastDone,
}

/// When the relay last did what it does now and then.
#[derive(Default)]
struct LastDone {
    looked_for_standbys: Option<Instant>,
    raised_lower_bound: Option<Instant>,
    measured_lag: Option<Instant>,
}

/// How often the relay looks for standbys, and stores its position if nothing else has stored it.
const LOOK_INTERVAL: Duration = Duration::from_secs(10);
/// How often the relay stores its position while it sends, so that the server can hear of it too.
const KEEP_INTERVAL: Duration = Duration::from_secs(1);
/// How often the relay notes in the table what is known to be sent.
const LOWER_BOUND_INTERVAL: Duration = Duration::from_secs(2);
/// How many bytes fill a batch, which may exceed this by one row.
const BATCH_BYTES: usize = 8 << 20;

/// Whether the relay may begin to read the WAL.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Readiness {
    Ready,
    /// Some polled rows are unsent.
    RowsWait,
    /// Somebody else reads the slot.
    SlotIsRead,
}

impl Readiness {
    pub(super) fn look(conn: &mut ActiveRelay, slot: &str) -> Result<Self, SourceError> {
        let failed = |error| database_error("looking whether the write-ahead log can be read", error);
        let is_active = ReplicationSlot::find(conn, slot).map_err(failed)?.is_some_and(|slot| slot.is_active);
        Ok(match is_active {
            true => Self::SlotIsRead,
            false if polled::rows_wait(conn).map_err(failed)? => Self::RowsWait,
            false => Self::Ready,
        })
    }
}

impl Reading {
    pub(super) fn begin(
        mut conn: Box<ActiveRelay>,
        database: &PostgresDatabase,
        wal: &WalOptions,
    ) -> Result<Self, SourceError> {
        let failed = |error| database_error("beginning to read the write-ahead log", error);
        polled::all_are_sent(&mut conn).map_err(failed)?;
        origin::check(&mut conn, wal)?;
        let standbys = SynchronousStandbys::begin(&mut conn, wal)?;
        let kept = Position::load(&mut conn, &wal.slot).map_err(failed)?.unwrap_or_default();
        let slot = ReplicationSlot::find(&mut conn, &wal.slot).map_err(failed)?;
        // The server may have heard of more than the table has.
        let position = kept.after_end(slot.map_or(0, |slot| slot.confirmed));
        let end = slot::end_of_wal(&mut conn).map_err(failed)?;
        let exactly_once = database.options.exactly_once;
        let settling = Settling::begin(&mut conn, &wal.slot, kept, position.start, end, exactly_once);
        let settling = settling.map_err(failed)?;
        let table = decode::table(&mut conn).map_err(failed)?;
        let lower_bound = LowerBound::begin(&mut conn).map_err(failed)?;
        let reader = Reader::begin(database, wal, table, position.start, end)?;
        Ok(Self {
            conn,
            database: database.clone(),
            wal: wal.clone(),
            reader,
            window: Window::after(position),
            standbys,
            held_back: HeldBack::by(database.options.dead_letter_policy),
            settling,
            committed: exactly_once.then(Committed::default),
            undoable: Undoable::default(),
            lower_bound,
            pruning: PostgresPruning::default(),
            promotion: Promotion::default(),
            lag: LagWatch::default(),
            done: LastDone::default(),
        })
    }

    /// Returns whether there is something to read, or comes within this time.
    pub(super) fn has_more(&mut self, limit: Duration) -> Result<bool, SourceError> {
        if self.window.is_full() && !self.window.has_more() {
            // The reader waits meanwhile, and goes on when the oldest row is settled.
            thread::sleep(limit);
            return Ok(false);
        }
        if !self.window.has_more() {
            match self.reader.receive(limit)? {
                Some(messages) if messages.is_empty() => {}
                Some(messages) => {
                    messages.into_iter().for_each(|message| self.window.receive(message));
                    self.confirm()?;
                }
                None => {
                    let confirmed = self.settling.confirmable(self.window.position());
                    self.reader.go_on(&mut self.conn, &self.window, confirmed)?;
                }
            }
        }
        if !self.window.has_more() {
            return Ok(false);
        }
        let tickets = (self.window.next(), self.window.next_ticket());
        self.standbys.let_go(&mut self.conn, tickets, limit)
    }

    pub(super) fn read(&mut self, limit: usize, records: &mut Vec<Claimed>) -> Result<bool, SourceError> {
        let Self { conn, held_back, .. } = self;
        held_back.look_up(|| dead_letters::aggregates(conn))?;
        // What is held back counts too: each takes a transaction, and meanwhile nothing is settled.
        let (mut taken, mut bytes) = (0, 0);
        while taken < limit && bytes < BATCH_BYTES && self.has_more(Duration::ZERO)? {
            let Some(row) = self.window.give_before(self.standbys.released())? else { continue };
            let (ticket, conn) = (row.ticket, &mut self.conn);
            let turn = self.held_back.turn(&row, |last| dead_letters::look(conn, &row, last))?;
            if self.was_committed(&row)? {
                continue;
            }
            taken += 1;
            bytes += row.bytes();
            if turn == Turn::Sent {
                records.push(row.claimed());
                continue;
            }
            if self.committed.is_some() && !self.window.is_first(ticket) {
                // It comes first in the next pass.
                self.window.give_again_from(ticket);
                return Ok(false);
            }
            match turn {
                Turn::ComesAgain => {
                    self.settle_rows([ticket])?;
                    if self.committed.is_some() {
                        // What the next transaction has must be what comes next for whoever takes over.
                        let position = self.window.position();
                        self.undoable.durably(&mut self.conn, |conn| self.settling.keep(conn, position))?;
                    }
                }
                _ => _ = self.give_up(ticket, BLOCKED)?,
            }
        }
        self.keep_on()?;
        self.has_more(Duration::ZERO)
    }

    /// If records are sent exactly once, they are settled at the end of the pass, because Kafka has not committed them yet.
    pub(super) fn settle(&mut self, tickets: &[u64]) -> Result<(), SourceError> {
        if let Some(committed) = &mut self.committed {
            committed.of_pass(tickets);
            return self.keep_on();
        }
        self.settle_rows(tickets.iter().copied())?;
        self.confirm()?;
        self.keep_on()
    }

    /// Lets the window forget these rows, and the database that they were requeued.
    fn settle_rows(&mut self, tickets: impl IntoIterator<Item = u64>) -> Result<(), SourceError> {
        tickets.into_iter().for_each(|ticket| self.window.settle(ticket));
        let requeued = self.held_back.settled(self.window.first());
        if requeued.is_empty() {
            return Ok(());
        }
        standby_relay::is_active(&mut self.conn)?;
        let position = self.window.position();
        self.settling
            .write_with(&mut self.conn, position, |conn| dead_letters::forget_requeued(conn, requeued))
    }

    /// Settles what Kafka has committed. It comes first from now on.
    pub(super) fn settle_committed(&mut self, ids: &[Uuid]) -> Result<(), SourceError> {
        self.undoable.durably(&mut self.conn, |conn| self.settling.take_over(conn))?;
        self.give_again();
        match &mut self.committed {
            Some(committed) => committed.by_the_last(ids),
            None => return Err(SourceError::permanent("the relay does not send exactly once")),
        }
        Ok(())
    }

    /// Returns whether Kafka has committed the row already. If so, settles it.
    fn was_committed(&mut self, row: &StoredRow) -> Result<bool, SourceError> {
        let Some(committed) = &mut self.committed else { return Ok(false) };
        let was_committed = committed.has(row);
        let is_to_be_stored = committed.is_to_be_stored();
        if was_committed {
            self.settle_rows([row.ticket])?;
        }
        if is_to_be_stored {
            // What the next transaction has comes after these, so a crash of the server must not undo it.
            let position = self.window.position();
            self.undoable.durably(&mut self.conn, |conn| self.settling.keep(conn, position))?;
        }
        Ok(was_committed)
    }

    /// Settles what the pass has sent, because Kafka has committed it. Does nothing if records are sent at least once.
    pub(super) fn commit_pass(&mut self) -> Result<(), SourceError> {
        let Some(committed) = &mut self.committed else { return Ok(()) };
        let tickets = committed.end_pass();
        let count = tickets.len();
        if count > 0 {
            self.settle_rows(tickets)?;
            self.settling.keep(&mut self.conn, self.window.position())?;
            self.confirm()?;
        }
        let noted = self.undoable.committed(&mut self.conn, count);
        noted.map_err(|error| database_error("looking whether the position is on the disk", error))
    }

    /// Returns how many of the last passes a crash of the server could undo.
    pub(super) fn undoable_passes(&self) -> usize {
        self.undoable.count()
    }

    /// Lets the server forget what was sent, as far as the relay may confirm it.
    fn confirm(&mut self) -> Result<(), SourceError> {
        let interval = self.wal.confirm_interval;
        let confirmed = self.settling.confirm(&mut self.conn, self.window.position(), interval)?;
        self.reader.confirm(confirmed);
        Ok(())
    }

    /// Stores what was sent while a pass goes on, which may take long if a broker is slow. The server ends a session that has asked
    /// nothing for long.
    fn keep_on(&mut self) -> Result<(), SourceError> {
        let interval = if self.reader.reads_chunks() { self.wal.confirm_interval } else { KEEP_INTERVAL };
        if !self.settling.is_due(interval) {
            return Ok(());
        }
        // The lock has its own connection, which storing the position does not use.
        standby_relay::stay(&mut self.conn)?;
        self.settling.keep(&mut self.conn, self.window.position())
    }

    pub(super) fn dead_letter(&mut self, ticket: u64, reason: &str) -> Result<DeadLettered, SourceError> {
        let (id, aggregate_type) = self.give_up(ticket, reason)?;
        Ok(DeadLettered::new(id, aggregate_type).holding_back(self.held_back.blocks()))
    }

    /// Makes a dead letter of the row, and returns its id and aggregate type.
    fn give_up(&mut self, ticket: u64, reason: &str) -> Result<(String, String), SourceError> {
        let row = self.window.row(ticket)?;
        let id = row.id.as_ref().map(ToString::to_string).unwrap_or_default();
        let aggregate_type = String::from_utf8_lossy(&row.aggregate_type).into_owned();
        self.held_back.add(&row);
        // The relay that has taken over from one that was frozen must not miss a dead letter.
        standby_relay::is_active(&mut self.conn)?;
        // By now, commits might wait for this relay.
        self.standbys.look_again(&mut self.conn, &self.wal, self.window.next())?;
        let are_seen = self.standbys.are_seen();
        if self.committed.is_some() {
            // The row is a dead letter if and only if the position is behind it.
            if !self.window.is_first(ticket) {
                return Err(SourceError::new(
                    "a record became a dead letter before those that come before it were settled",
                ));
            }
            self.window.settle(ticket);
            let (position, requeued) = (self.window.position(), self.held_back.settled(self.window.first()));
            let keep = |conn: &mut PgConnection| {
                // `keep` comes last, because it says for what the commit waits.
                if !requeued.is_empty() {
                    dead_letters::forget_requeued(conn, requeued)?;
                }
                dead_letters::keep(conn, row, reason, are_seen)
            };
            self.undoable.durably(&mut self.conn, |conn| self.settling.write_with(conn, position, keep))?;
            self.standbys.wait(&mut self.conn, &self.wal)?;
            self.confirm()?;
        } else {
            dead_letters::keep(&mut self.conn, row, reason, are_seen)
                .map_err(|error| database_error("moving a record to the dead letters", error))?;
            self.standbys.wait(&mut self.conn, &self.wal)?;
            self.settle(&[ticket])?;
        }
        Ok((id, aggregate_type))
    }

    /// Lets what was read and not settled be read again.
    pub(super) fn give_again(&mut self) {
        if let Some(committed) = &mut self.committed {
            // Whatever is acknowledged by now was not committed.
            committed.end_pass();
        }
        self.window.give_again();
    }

    /// Stores how much of a large transaction was sent, which the server cannot know.
    pub(super) fn keep_part(&mut self) -> Result<(), SourceError> {
        let position = self.window.position();
        if position.part.is_some() { self.settling.keep(&mut self.conn, position) } else { Ok(()) }
    }

    pub(super) fn upkeep(&mut self) -> Result<Option<Lag>, SourceError> {
        standby_relay::stay(&mut self.conn)?;
        if is_due(&mut self.done.looked_for_standbys, LOOK_INTERVAL) {
            self.standbys.look_again(&mut self.conn, &self.wal, self.window.next())?;
            self.settling.keep(&mut self.conn, self.window.position())?;
        }
        if is_due(&mut self.done.raised_lower_bound, LOWER_BOUND_INTERVAL) {
            let confirmed = self.settling.confirmable(self.window.position());
            self.reader.catch_up(&mut self.conn, &self.window, confirmed)?;
            self.raise_lower_bound()?;
        }
        self.promotion.run(&mut **self.conn, true);
        let failed = |error| database_error("looking after the table and the slot", error);
        let options = &self.database.options;
        self.pruning.run(&mut self.conn, &self.database, Limits::of_wal(options)).map_err(failed)?;
        if !is_due(&mut self.done.measured_lag, options.lag_interval) {
            return Ok(None);
        }
        slot::check(&mut self.conn, &self.wal)?;
        publication::check(&mut self.conn, &self.wal)?;
        let mut lag = self.lag.look(&mut self.conn, &self.wal, &self.window).map_err(failed)?;
        self.promotion.measure(&mut **self.conn, &mut lag).map_err(failed)?;
        Ok(Some(lag))
    }

    fn raise_lower_bound(&mut self) -> Result<(), SourceError> {
        let failed = |error| database_error("noting what is known to be sent", error);
        let risen = self.lower_bound.rise(&mut self.conn, self.window.confirmed()).map_err(failed)?;
        let Some(sent_through) = risen else { return Ok(()) };
        // Nothing up to there is read again, because notes of requeued rows may go then.
        self.settling.keep(&mut self.conn, self.window.position())?;
        publication::check(&mut self.conn, &self.wal)?;
        polled::sent_through(&mut self.conn, sent_through).map_err(failed)
    }

    /// Stores and confirms all that is known to be sent.
    pub(super) fn end(&mut self) {
        let position = self.window.position();
        let confirmed = self.settling.confirmable(position);
        self.reader.confirm(confirmed);
        self.settling.end(&mut self.conn, position);
        if self.reader.reads_chunks()
            && let Err(error) = slot::move_up(&mut self.conn, &self.wal.slot, confirmed)
        {
            tracing::debug!(slot = self.wal.slot, %error, "the slot was not moved up");
        }
    }
}
