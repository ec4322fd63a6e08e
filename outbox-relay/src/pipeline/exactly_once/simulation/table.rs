//! The source of a relay that sends exactly once: a table, or a WAL whose position is stored.

use std::collections::BTreeSet;
use std::time::Duration;

use diesel_outbox_core::{Claimed, DeadLettered, Record, Source, SourceError};
use uuid::Uuid;

use super::{AGGREGATES, Mistake, RECORDS, Shared, World};

/// A relay's source.
pub(super) struct Table {
    shared: Shared,
    /// How often the database had crashed when it connected.
    crashes: u64,
    /// The number of its claim.
    claim: u64,
    /// Given in this pass, and acknowledged or dead in it.
    given: BTreeSet<u64>,
    settled: Vec<u64>,
    dead: Vec<u64>,
    /// The position that it has stored or loaded, if it has.
    kept: Option<u64>,
    /// What another relay has committed, which comes next.
    last: BTreeSet<u64>,
    /// The passes that the database may lose, by their numbers.
    undoable: Vec<u64>,
}

impl Table {
    pub(super) fn new(shared: Shared) -> Self {
        Self {
            shared,
            crashes: 0,
            claim: 0,
            given: BTreeSet::new(),
            settled: Vec::new(),
            dead: Vec::new(),
            kept: None,
            last: BTreeSet::new(),
            undoable: Vec::new(),
        }
    }

    /// Loses its connection.
    pub(super) fn fail(&mut self) {
        self.kept = None;
    }

    fn failure() -> SourceError {
        SourceError::new("the database failed")
    }

    /// Does something in the database.
    fn statement<T>(&mut self, work: impl FnOnce(&mut Self, &mut World) -> T) -> Result<T, SourceError> {
        self.shared.freeze();
        let shared = self.shared.clone();
        let mut world = shared.world();
        world.go_on();
        let has_claim =
            if world.in_order { self.kept.is_some() } else { world.is_claimed && world.claims == self.claim };
        if !has_claim || self.crashes != world.crashes || world.fails(80) {
            self.kept = None;
            return Err(Self::failure());
        }
        Ok(work(self, &mut world))
    }

    /// Stores the position behind all that is settled from the one that was kept on.
    fn store(
        &mut self,
        world: &mut World,
        settled: &BTreeSet<u64>,
        dead: Option<u64>,
    ) -> Result<(), SourceError> {
        let kept = self.kept.ok_or_else(Self::failure)?;
        if world.kept.position != kept && world.mistake != Some(Mistake::StoresOverOthers) {
            self.kept = None;
            return Err(Self::failure());
        }
        let behind =
            (kept..).find(|ticket| !settled.contains(ticket) && dead != Some(*ticket)).unwrap_or(kept);
        assert!(settled.iter().all(|ticket| *ticket < behind), "a gap from {behind} on: {settled:?}");
        world.kept.position = behind;
        world.kept.dead.extend(dead);
        self.kept = Some(behind);
        Ok(())
    }
}

impl Source for Table {
    fn claim(&mut self) -> Result<bool, SourceError> {
        let shared = self.shared.clone();
        let mut world = shared.world();
        world.go_on();
        world.written = (world.written + world.chance.below(6)).min(RECORDS);
        if self.kept.is_some() && self.crashes != world.crashes {
            self.kept = None;
            return Err(Self::failure());
        }
        if world.is_claimed || !(0..world.written).any(|ticket| world.is_open(ticket)) {
            return Ok(false);
        }
        world.is_claimed = true;
        world.claims += 1;
        self.claim = world.claims;
        self.given.clear();
        if self.kept.is_none() {
            // It begins anew, and knows nothing of what was committed last.
            self.last.clear();
            self.kept = Some(world.kept.position);
            self.crashes = world.crashes;
        }
        drop(world);
        self.shared.freeze();
        Ok(true)
    }

    fn read(&mut self, limit: usize, records: &mut Vec<Claimed>) -> Result<bool, SourceError> {
        self.statement(|table, world| {
            world.written = (world.written + world.chance.below(6)).min(RECORDS);
            let (mut more, mut came) = (false, BTreeSet::new());
            let first = if world.in_order { table.kept.unwrap_or_default() } else { 0 };
            for ticket in first..world.written {
                if !table.given.contains(&ticket) && (world.in_order || world.is_open(ticket)) {
                    more = records.len() == limit;
                    if more {
                        break;
                    }
                    if table.last.remove(&ticket) {
                        came.insert(ticket);
                        continue;
                    }
                    table.last.clear();
                    if !came.is_empty() {
                        table.store(world, &std::mem::take(&mut came), None)?;
                        world.undoable.clear();
                    }
                    table.given.insert(ticket);
                    let id = Uuid::from_u128(ticket.into());
                    let record = Record::new("order", (ticket % AGGREGATES).to_string(), "1").with_id(id);
                    records.push(Claimed::new(ticket, Ok(record)));
                }
            }
            if !came.is_empty() {
                table.store(world, &came, None)?;
                world.undoable.clear();
            }
            Ok(more)
        })?
    }

    fn settle(&mut self, tickets: &[u64]) -> Result<(), SourceError> {
        self.statement(|table, world| {
            table.settled.extend(tickets);
            if world.mistake == Some(Mistake::SettlesTooEarly) {
                world.kept.settled.extend(tickets);
            }
        })
    }

    fn settle_committed(&mut self, ids: &[Uuid]) -> Result<(), SourceError> {
        let ids = ids.iter().map(|id| id.as_u128() as u64);
        self.statement(|table, world| {
            world.takeovers += 1;
            if world.mistake == Some(Mistake::ForgetsTheLast) {
                return Ok(());
            }
            if !world.in_order {
                table.settled.extend(ids.filter(|ticket| world.is_open(*ticket)));
            } else if table.kept == Some(world.kept.position) {
                table.last = ids.collect();
            } else {
                table.kept = None;
                return Err(Self::failure());
            }
            Ok(())
        })?
    }

    fn settles_in_order(&self) -> bool {
        self.shared.world().in_order
    }

    fn dead_letter(&mut self, ticket: u64, _: &str) -> Result<DeadLettered, SourceError> {
        self.statement(|table, world| {
            if world.in_order {
                table.store(world, &BTreeSet::new(), Some(ticket))?;
                world.undoable.clear();
            } else {
                table.dead.push(ticket);
            }
            Ok(DeadLettered::default().holding_back(world.chance.one_in(3)))
        })?
    }

    fn release(&mut self) -> Result<(), SourceError> {
        let (settled, dead) = (std::mem::take(&mut self.settled), std::mem::take(&mut self.dead));
        let done = self.statement(|table, world| {
            let before = world.kept.clone();
            if world.in_order {
                table.store(world, &settled.into_iter().collect(), None)?;
            } else {
                world.kept.settled.extend(settled);
                world.kept.dead.extend(dead);
            }
            world.undoable.push(before);
            world.commits += 1;
            table.undoable.push(world.commits);
            let on_disk = world.commits - world.undoable.len() as u64;
            table.undoable.retain(|commit| *commit > on_disk);
            world.is_claimed &= world.claims != table.claim;
            Ok(())
        })?;
        // What became of it may be unknown.
        if self.shared.world().fails(60) {
            self.kept = None;
            return Err(Self::failure());
        }
        done
    }

    fn undoable_passes(&self) -> usize {
        let counts_on_the_disk = self.shared.world().mistake == Some(Mistake::CountsOnTheDisk);
        if counts_on_the_disk { 0 } else { self.undoable.len() }
    }

    fn abandon(&mut self) {
        self.settled.clear();
        self.dead.clear();
        self.undoable.clear();
        let mut world = self.shared.world();
        world.is_claimed &= world.claims != self.claim;
    }

    fn wait(&mut self, _: Duration) -> Result<bool, SourceError> {
        Ok(true)
    }

    fn outbox(&self) -> Option<&str> {
        Some("shop.public")
    }
}
