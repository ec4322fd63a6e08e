//! The write-ahead log, read. The decoder, the window, the positions and the bound of what is confirmed are the real ones. The server
//! sends what pgoutput sends, from the position that it is asked for. What the real source does between them is written here once more:
//! see `source/wal/reading.rs` and `settle.rs`.

use std::time::Duration;

use bytes::Bytes;
use diesel_outbox_core::{Claimed, DeadLetterPolicy, DeadLettered, Source, SourceError};

use super::database::key;
use super::hand::Hand;
use super::kind::Mistake;
use super::pgoutput;
use super::world::World;
use crate::source::row::StoredRow;
use crate::source::wal::confirm_bound::ConfirmBound;
use crate::source::wal::decode::Decoder;
use crate::source::wal::held_back::{Found, HeldBack, Turn};
use crate::source::wal::position::Position;
use crate::source::wal::window::Window;

pub(super) struct SimulatedWal {
    hand: Hand,
    reading: Option<Reading>,
}

struct Reading {
    session: u64,
    crashes: u64,
    window: Window,
    reader: SimulatedReader,
    bound: ConfirmBound,
    held_back: HeldBack,
}

/// What reads the WAL from a place on, message by message.
struct SimulatedReader {
    decoder: Decoder,
    start: u64,
    /// What the server has decoded and has not sent.
    coming: std::collections::VecDeque<Bytes>,
    /// Up to where it has decoded.
    decoded: u64,
}

impl SimulatedReader {
    fn from(start: u64) -> Self {
        let coming = [pgoutput::relation()].into();
        Self { decoder: Decoder::new(pgoutput::TABLE), start, coming, decoded: start }
    }

    /// The server decodes the next transaction.
    fn decode(&mut self, world: &World) {
        let next = world.database.wal.iter().find(|its| its.end > self.decoded && its.end > self.start);
        let Some(its) = next else { return };
        self.decoded = its.end;
        // Before PostgreSQL 15, the server sends transactions without rows too.
        if its.rows.is_empty() && its.end % 3 == 0 {
            return;
        }
        self.coming.push_back(pgoutput::begin(its.commit));
        self.coming
            .extend(its.rows.iter().map(|(row, seq)| pgoutput::insert(&world.database.rows[*row], *seq)));
        self.coming.push_back(pgoutput::commit(its.commit, its.end));
    }
}

impl Reading {
    fn begin(hand: &Hand) -> Result<Option<Self>, SourceError> {
        let worker = hand.worker;
        let session = hand.world().new_session();
        let begun = hand.statement(|world| {
            if world.active.is_some() {
                return None;
            }
            world.active = Some((worker, session));
            let position = world.slot.position().after_end(world.slot.confirmed);
            Some(Self {
                session,
                crashes: world.database.crashes,
                window: Window::after(position),
                reader: SimulatedReader::from(position.start),
                bound: ConfirmBound::at(position.start),
                held_back: HeldBack::by(if hand.kind.blocks() {
                    DeadLetterPolicy::Block
                } else {
                    DeadLetterPolicy::Continue
                }),
            })
        });
        begun.inspect_err(|_| hand.world().lose_lock(worker, session))
    }

    fn is_active(&self, world: &World, worker: usize) -> bool {
        world.active == Some((worker, self.session)) && world.database.crashes == self.crashes
    }

    fn receive(&mut self, hand: &Hand) -> Result<bool, SourceError> {
        if self.window.has_more() {
            return Ok(true);
        }
        let (window, reader) = (&self.window, &mut self.reader);
        let messages = hand.statement(|world| {
            // Another reader begins where everything has come, in the middle of a transaction too.
            if world.chance.one_in(25) {
                *reader = SimulatedReader::from(window.end());
            }
            if reader.coming.is_empty() || world.chance.one_in(2) {
                reader.decode(world);
            }
            let count = world.chance.below(8) as usize;
            let messages: Vec<Bytes> = reader.coming.drain(..count.min(reader.coming.len())).collect();
            // A keepalive reports how far it is, if nothing is under way.
            let is_idle = reader.coming.is_empty() && world.chance.one_in(3);
            (messages, is_idle.then_some(reader.decoded))
        });
        let (messages, idle_at) = messages?;
        for message in messages {
            if let Some(message) = self.reader.decoder.decode(message)? {
                self.window.receive(message);
            }
        }
        if let Some(end) = idle_at {
            self.window.receive(crate::source::wal::decode::Message::End(end));
        }
        self.confirm(hand, false)?;
        Ok(self.window.has_more())
    }

    /// Stores the position if that is due, and lets the server hear of what it may hear.
    fn confirm(&mut self, hand: &Hand, stores: bool) -> Result<(), SourceError> {
        let position = match hand.mistake {
            Some(Mistake::ConfirmsWhatIsNotSettled) => Position { start: self.window.end(), part: None },
            _ => self.window.position(),
        };
        let is_short = self.bound.is_short_of(position.start);
        let (worker, session) = (hand.worker, self.session);
        let bound = &mut self.bound;
        hand.statement(|world| {
            if world.active != Some((worker, session)) {
                return;
            }
            if stores || (is_short && world.chance.one_in(3)) {
                let ahead = bound.ahead_of(world.database.end_of_wal);
                world.database.end_of_wal += 10;
                world.slot.kept.push(position);
                bound.wrote(ahead, world.database.end_of_wal);
                world.check_position(position);
            }
            let confirmable = bound.confirmable(position.start);
            if world.chance.one_in(3) {
                world.slot.confirmed = world.slot.confirmed.max(confirmable);
                world.check_position(Position { start: world.slot.confirmed, part: None });
            }
            if world.chance.one_in(5) {
                world.slot.flushed = world.slot.confirmed;
            }
        })
    }
}

impl World {
    /// All that lies before a position that was stored or confirmed must have arrived, or be a dead letter.
    fn check_position(&mut self, position: Position) {
        for its in &self.database.wal {
            let part = position.part.filter(|part| part.commit == its.commit && its.end > position.start);
            let count = if its.end <= position.start {
                usize::MAX
            } else {
                part.map_or(0, |part| part.events as usize)
            };
            let before = its.rows.iter().take(count).map(|(row, _)| *row);
            let is_missing = |row: &usize| {
                !self.database.rows[*row].has_arrived && !self.database.comes_after(*row, its.end)
            };
            if let Some(row) = before.into_iter().find(is_missing) {
                let row = &self.database.rows[row];
                let wrong =
                    format!("the position says that the event {} is sent, and it has not arrived", row.seq);
                return self.fails(wrong);
            }
        }
    }
}

impl Reading {
    /// Settles rows, and stores the position if requeued ones are among them.
    fn settle(&mut self, hand: &Hand, tickets: impl IntoIterator<Item = u64>) -> Result<(), SourceError> {
        tickets.into_iter().for_each(|ticket| self.window.settle(ticket));
        let requeued = self.held_back.settled(self.window.first());
        if requeued.is_empty() || hand.mistake == Some(Mistake::KeepsWhatWasRequeued) {
            return Ok(());
        }
        let position = self.window.position();
        let bound = &mut self.bound;
        let own = Some((hand.worker, self.session));
        hand.statement(|world| {
            if world.active == own {
                let ahead = bound.ahead_of(world.database.end_of_wal);
                world.database.end_of_wal += 10;
                bound.wrote(ahead, world.database.end_of_wal);
                world.slot.kept.push(position);
                world.slot.kept_for_good = world.slot.kept.len();
                world.check_position(position);
                world.database.forget_requeued(&requeued);
            }
        })
    }

    /// Makes a dead letter of a row.
    fn give_up(&mut self, hand: &Hand, ticket: u64, is_held_back: bool) -> Result<(), SourceError> {
        let row = self.window.row(ticket)?;
        self.held_back.add(&row);
        hand.statement(|world| {
            let place = place(&row);
            if world.database.look(row.seq, place, 0).is_some_and(|found| found.comes_again) {
                return;
            }
            let is_new = world.database.rows.iter().any(|row| row.seq == place && row.dead_by.is_none());
            if is_held_back && is_new && !world.database.has_to_wait(place, row.seq) {
                world.fails(format!("the event {place} is held back, and all before it have arrived"));
            }
            let tx = world.database.begin(Some(hand.worker));
            world.database.dead_letter(tx, place.unsigned_abs());
            world.database.commit(tx);
            world.database.flush();
        })?;
        self.settle(hand, [ticket])?;
        self.confirm(hand, false)
    }

    /// Returns what becomes of a row that comes next.
    fn turn(&mut self, hand: &Hand, row: &StoredRow) -> Result<Turn, SourceError> {
        if hand.mistake == Some(Mistake::HoldsNothingBack) {
            return Ok(Turn::Sent);
        }
        self.held_back.look_up(|| {
            let aggregates = hand.statement(|world| world.database.with_dead_letters())?;
            Ok(aggregates.into_iter().map(|aggregate| ("order".to_owned(), key(aggregate))).collect())
        })?;
        self.held_back.turn(row, |last| {
            let found = hand.statement(|world| world.database.look(row.seq, place(row), last))?;
            let found = found.ok_or_else(|| SourceError::new("the WAL has a row that was never inserted"))?;
            Ok(match hand.mistake {
                Some(Mistake::ForgetsWhatWasRequeued) => Found { first_to_come: None, ..found },
                _ => found,
            })
        })
    }
}

/// The number that the event was emitted with, which it keeps when it is requeued.
fn place(row: &StoredRow) -> i64 {
    let bytes = row.payload.as_deref().and_then(|payload| payload.try_into().ok());
    bytes.map_or(-1, i64::from_be_bytes)
}

impl SimulatedWal {
    pub(super) fn new(hand: Hand) -> Self {
        Self { hand, reading: None }
    }

    fn with<T>(
        &mut self,
        work: impl FnOnce(&Hand, &mut Reading) -> Result<T, SourceError>,
    ) -> Result<T, SourceError> {
        let nothing = || SourceError::new("nothing is claimed");
        let mut reading = self.reading.take().ok_or_else(nothing)?;
        let is_active = reading.is_active(&self.hand.world(), self.hand.worker);
        let done = if is_active { work(&self.hand, &mut reading) } else { Err(nothing()) };
        if done.is_ok() {
            self.reading = Some(reading);
        } else {
            self.hand.world().lose_lock(self.hand.worker, reading.session);
        }
        done
    }
}

impl World {
    fn lose_lock(&mut self, worker: usize, session: u64) {
        self.active.take_if(|active| *active == (worker, session));
    }
}

impl Source for SimulatedWal {
    fn claim(&mut self) -> Result<bool, SourceError> {
        if self.reading.is_none() {
            self.reading = Reading::begin(&self.hand)?;
        }
        if self.reading.is_none() {
            return Ok(false);
        }
        self.with(|hand, reading| reading.receive(hand))
    }

    fn read(&mut self, limit: usize, records: &mut Vec<Claimed>) -> Result<bool, SourceError> {
        self.with(|hand, reading| {
            let enough = records.len() + limit;
            while records.len() < enough && reading.receive(hand)? {
                let Some(row) = reading.window.give()? else { continue };
                match reading.turn(hand, &row)? {
                    Turn::Sent => records.push(row.claimed()),
                    Turn::ComesAgain => reading.settle(hand, [row.ticket])?,
                    Turn::HeldBack => reading.give_up(hand, row.ticket, true)?,
                }
            }
            reading.receive(hand)
        })
    }

    fn settle(&mut self, tickets: &[u64]) -> Result<(), SourceError> {
        self.with(|hand, reading| {
            if hand.mistake == Some(Mistake::SettlesByRange) {
                let first = tickets.iter().min().copied().unwrap_or_default();
                let last = tickets.iter().max().copied().unwrap_or_default();
                reading.settle(hand, first..=last)?;
            } else {
                reading.settle(hand, tickets.iter().copied())?;
            }
            let stores = hand.world().chance.one_in(4);
            reading.confirm(hand, stores)
        })
    }

    fn dead_letter(&mut self, ticket: u64, _: &str) -> Result<DeadLettered, SourceError> {
        self.with(|hand, reading| {
            reading.give_up(hand, ticket, false)?;
            Ok(DeadLettered::default().holding_back(hand.kind.blocks()))
        })
    }

    fn release(&mut self) -> Result<(), SourceError> {
        self.with(|hand, reading| {
            reading.window.give_again();
            let has_part = reading.window.position().part.is_some();
            reading.confirm(hand, has_part)
        })
    }

    fn abandon(&mut self) {
        if let Some(reading) = &mut self.reading {
            reading.window.give_again();
        }
    }

    fn wait(&mut self, _: Duration) -> Result<bool, SourceError> {
        Ok(true)
    }
}
