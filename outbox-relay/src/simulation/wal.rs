//! The write-ahead log, read. The decoder, the window, the positions and the bound of what is confirmed are the real ones. The server
//! sends what pgoutput sends, from the position that it is asked for. What the real source does between them is written here once more:
//! see `source/wal/reading.rs` and `settle.rs`.

use std::time::Duration;

use bytes::Bytes;
use diesel_outbox_core::{Claimed, DeadLettered, Source, SourceError};

use super::hand::Hand;
use super::kind::Mistake;
use super::pgoutput;
use super::world::World;
use crate::source::wal::confirm_bound::ConfirmBound;
use crate::source::wal::decode::Decoder;
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
        self.coming.extend(its.rows.iter().map(|row| pgoutput::insert(&world.database.rows[*row])));
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
            let missing = its.rows.iter().take(count).map(|row| &self.database.rows[*row]);
            if let Some(row) = missing.into_iter().find(|row| !row.has_arrived && row.dead_by.is_none()) {
                let wrong =
                    format!("the position says that the event {} is sent, and it has not arrived", row.seq);
                return self.fails(wrong);
            }
        }
    }
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
                if let Some(row) = reading.window.give()? {
                    records.push(row.claimed());
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
                (first..=last).for_each(|ticket| reading.window.settle(ticket));
            } else {
                tickets.iter().for_each(|ticket| reading.window.settle(*ticket));
            }
            let stores = hand.world().chance.one_in(4);
            reading.confirm(hand, stores)
        })
    }

    fn dead_letter(&mut self, ticket: u64, _: &str) -> Result<DeadLettered, SourceError> {
        self.with(|hand, reading| {
            let seq = reading.window.row(ticket)?.seq;
            hand.statement(|world| {
                let tx = world.database.begin(Some(hand.worker));
                world.database.dead_letter(tx, seq.unsigned_abs());
                world.database.commit(tx);
                world.database.flush();
            })?;
            reading.window.settle(ticket);
            reading.confirm(hand, false)?;
            Ok(DeadLettered::default())
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
