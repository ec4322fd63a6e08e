//! SQLite, polled. How far a pass has read is known by the real cursor. One relay has the lock, and each statement is a transaction.

use std::time::Duration;

use diesel_outbox_core::{Claimed, DeadLettered, Source, SourceError};

use super::hand::Hand;
use super::kind::Mistake;
use super::postgres;
use super::world::World;
use crate::source::polling::sqlite::Cursor;

pub(super) struct SimulatedSqlite {
    hand: Hand,
    /// Its number, by which it holds the lock.
    session: u64,
    cursor: Cursor,
}

impl SimulatedSqlite {
    pub(super) fn new(hand: Hand) -> Self {
        let session = hand.world().new_session();
        Self { hand, session, cursor: Cursor::default() }
    }

    /// Carries out a statement that writes. It is a transaction of its own.
    fn write(&mut self, work: impl FnOnce(&Hand, &mut World, usize)) -> Result<(), SourceError> {
        let hand = self.hand.clone();
        hand.statement(|world| {
            let tx = world.database.begin(Some(hand.worker));
            work(&hand, world, tx);
            world.commit_pass(tx)
        })?
    }
}

impl Source for SimulatedSqlite {
    fn claim(&mut self) -> Result<bool, SourceError> {
        let (worker, session) = (self.hand.worker, self.session);
        let own = (worker, session);
        if !self.hand.statement(|world| *world.active.get_or_insert(own) == own)? {
            return Ok(false);
        }
        self.cursor = Cursor::default();
        self.hand.statement(|world| !world.database.is_drained())
    }

    fn read(&mut self, limit: usize, records: &mut Vec<Claimed>) -> Result<bool, SourceError> {
        let cursor = self.cursor;
        let blocks = self.hand.kind.blocks() && self.hand.mistake != Some(Mistake::HoldsNothingBack);
        let read = self.hand.statement(|world| {
            let (database, snapshot) = (&world.database, world.database.snapshot());
            let unsent = || database.rows.iter().filter(|row| database.waits(row, snapshot, None));
            let before = unsent().filter(|row| row.seq <= cursor.last()).count();
            if !cursor.may_go_on(before as i64) {
                return (Vec::new(), false);
            }
            let mut rows: Vec<i64> = unsent().map(|row| row.seq).filter(|seq| *seq > cursor.last()).collect();
            rows.sort_unstable();
            rows.truncate(limit);
            let stored = |seq: &i64| {
                let row = database.rows.iter().find(|row| row.seq == *seq)?;
                Some((row.stored(seq.unsigned_abs()), blocks && database.is_held_back(row, snapshot, None)))
            };
            let more = rows.len() == limit;
            (rows.iter().filter_map(stored).collect::<Vec<_>>(), more)
        });
        let (rows, more) = read?;
        rows.iter().for_each(|(row, _)| self.cursor.read(row.seq));
        for (row, is_held_back) in rows {
            if is_held_back {
                self.dead_letter(row.ticket, "")?;
            } else {
                records.push(row.claimed());
            }
        }
        Ok(more)
    }

    fn settle(&mut self, tickets: &[u64]) -> Result<(), SourceError> {
        self.write(|hand, world, tx| {
            let all: Vec<i16> = (0..diesel_outbox_core::SHARDS).collect();
            postgres::settle(hand, world, tx, tickets, &all);
        })?;
        self.cursor.settled(tickets.len() as i64);
        Ok(())
    }

    fn dead_letter(&mut self, ticket: u64, _: &str) -> Result<DeadLettered, SourceError> {
        self.write(|_, world, tx| world.database.dead_letter(tx, ticket))?;
        self.cursor.settled(1);
        Ok(DeadLettered::default().holding_back(self.hand.kind.blocks()))
    }

    fn release(&mut self) -> Result<(), SourceError> {
        Ok(())
    }

    fn abandon(&mut self) {}

    fn wait(&mut self, _: Duration) -> Result<bool, SourceError> {
        Ok(true)
    }
}
