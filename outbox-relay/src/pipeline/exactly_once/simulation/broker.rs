//! The publisher of a relay that sends exactly once, with two ids that take turns.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use diesel_outbox_core::{Acknowledgement, Lane, Outcome, PublishError, Publisher, Record, Refusal};
use uuid::Uuid;

use super::{AGGREGATES, Mistake, Shared};

/// What was committed last: the transactions that count, by their numbers.
#[derive(Clone, Default)]
pub(super) struct Progress {
    first: u64,
    next: u64,
    parts: BTreeMap<u64, Vec<u64>>,
}

/// A transaction that is to be committed.
struct Commit {
    id: usize,
    epoch: u64,
    first: u64,
    number: u64,
    records: Vec<u64>,
}

/// A relay's publisher.
pub(super) struct Broker {
    shared: Shared,
    epochs: Option<[u64; 2]>,
    /// Which id the open transaction has.
    at: usize,
    pub(super) in_flight: Vec<u64>,
    open: Vec<u64>,
    /// The transaction before the open one, if its end is on its way.
    committing: Option<Commit>,
    next: u64,
    passes: VecDeque<u64>,
    refused: BTreeSet<u64>,
    /// The partitions that have acknowledged something.
    acknowledged: BTreeSet<u64>,
}

fn failed() -> PublishError {
    PublishError::new("the broker failed")
}

impl Broker {
    pub(super) fn new(shared: Shared) -> Self {
        Self {
            shared,
            epochs: None,
            at: 0,
            in_flight: Vec::new(),
            open: Vec::new(),
            committing: None,
            next: 0,
            passes: VecDeque::new(),
            refused: BTreeSet::new(),
            acknowledged: BTreeSet::new(),
        }
    }

    /// Ends the open transaction, and goes on with the other id.
    fn end_transaction(&mut self) -> Result<Commit, PublishError> {
        let epochs = self.epochs.ok_or_else(failed)?;
        let first = self.passes.front().copied().unwrap_or(self.next);
        let (id, number, records) = (self.at, self.next, std::mem::take(&mut self.open));
        self.next += u64::from(!records.is_empty());
        self.at = 1 - self.at;
        self.acknowledged.clear();
        Ok(Commit { id, epoch: epochs[id], first, number, records })
    }

    fn await_outcome(&mut self) -> Result<(), PublishError> {
        self.shared.freeze();
        self.committing.take().map_or(Ok(()), |commit| self.carry_out(commit))
    }

    /// The broker commits, or does not, and says so, or does not.
    fn carry_out(&self, commit: Commit) -> Result<(), PublishError> {
        let mut world = self.shared.world();
        let is_fenced =
            commit.epoch != world.epochs[commit.id] && world.mistake != Some(Mistake::FencesNobody);
        if is_fenced || world.fails(40) {
            return Err(failed());
        }
        if !commit.records.is_empty() {
            world.log.extend(&commit.records);
            let last = &mut world.last;
            (last.first, last.next) = (commit.first, commit.number + 1);
            last.parts.insert(commit.number, commit.records);
            last.parts = last.parts.split_off(&last.first);
        }
        if world.fails(40) { Err(failed()) } else { Ok(()) }
    }
}

/// Returns the partition of the record's aggregate.
fn partition(ticket: u64) -> u64 {
    ticket % AGGREGATES % 2
}

impl Publisher for Broker {
    fn publish(&mut self, ticket: u64, _: &str, _: &Record) -> Result<(), Refusal> {
        self.shared.freeze();
        let chance = self.shared.world().chance.clone();
        let rejected = || Err(Refusal::Rejected { reason: "refused".to_owned() });
        if self.refused.contains(&ticket) {
            return rejected();
        }
        // Until a partition's first acknowledgement, only one record is on its way there.
        if !self.acknowledged.contains(&partition(ticket))
            && let Some(first) = self.in_flight.iter().find(|other| partition(**other) == partition(ticket))
        {
            return Err(Refusal::Behind { ticket: *first });
        }
        if ticket.is_multiple_of(31) {
            self.refused.insert(ticket);
            return rejected();
        }
        if self.in_flight.len() >= 20 {
            return Err(Refusal::Full);
        }
        if chance.one_in(200) {
            return Err(Refusal::Retry { reason: "not now".to_owned() });
        }
        self.in_flight.push(ticket);
        Ok(())
    }

    fn acknowledgements(
        &mut self,
        _: Duration,
        acknowledgements: &mut Vec<Acknowledgement>,
    ) -> Result<(), PublishError> {
        self.shared.freeze();
        let mut world = self.shared.world();
        if world.fails(100) {
            return Err(failed());
        }
        let count = world.chance.below(self.in_flight.len() as u64 + 1) as usize;
        for ticket in self.in_flight.drain(..count) {
            let outcome = if ticket.is_multiple_of(37) {
                self.refused.insert(ticket);
                Outcome::Retry { reason: "refused".to_owned() }
            } else {
                self.open.push(ticket);
                self.acknowledged.insert(partition(ticket));
                Outcome::Durable
            };
            acknowledgements.push(Acknowledgement::new(ticket, outcome));
        }
        Ok(())
    }

    fn abandon(&mut self) {
        // What was on its way may be committed all the same.
        if let Some(commit) = self.committing.take() {
            let comes_late = self.shared.world().chance.one_in(2);
            if comes_late {
                let _ = self.carry_out(commit);
            }
        }
        self.in_flight.clear();
        self.open.clear();
        self.acknowledged.clear();
        self.passes.clear();
        self.epochs = None;
    }

    fn ready(&mut self, _: Duration) -> Result<(), PublishError> {
        Ok(())
    }

    fn begin(&mut self, lane: &Lane<'_>, _: Duration) -> Result<Option<Vec<Uuid>>, PublishError> {
        if self.epochs.is_some() {
            let safe = self.passes.len().saturating_sub(lane.undoable_passes);
            self.passes.drain(..safe);
            self.passes.push_back(self.next);
            return Ok(None);
        }
        let looks_early = self.shared.world().mistake == Some(Mistake::LooksTooEarly);
        let early = self.shared.world().last.clone();
        if looks_early {
            // Otherwise this would seldom matter.
            self.shared.turn();
        }
        let mut epochs = [0; 2];
        for (id, epoch) in epochs.iter_mut().enumerate() {
            self.shared.freeze();
            let mut world = self.shared.world();
            world.epochs[id] += 1;
            *epoch = world.epochs[id];
        }
        self.shared.freeze();
        let world = self.shared.world();
        // A mark is committed with the first id.
        if world.epochs[0] != epochs[0] && world.mistake != Some(Mistake::FencesNobody) {
            return Err(failed());
        }
        let last = if looks_early { early } else { world.last.clone() };
        (self.epochs, self.at) = (Some(epochs), 0);
        (self.next, self.passes) = (last.next, [last.first].into());
        let ids = last.parts.into_values().flatten().map(|ticket| Uuid::from_u128(ticket.into()));
        Ok(Some(ids.collect()))
    }

    fn commit_ahead(&mut self, _: Duration) -> Result<(), PublishError> {
        if self.open.is_empty() {
            return Ok(());
        }
        self.await_outcome()?;
        let commit = self.end_transaction()?;
        if self.shared.world().chance.one_in(2) {
            self.carry_out(commit)?;
        } else {
            self.committing = Some(commit);
        }
        Ok(())
    }

    fn commit(&mut self, _: Duration) -> Result<(), PublishError> {
        self.shared.freeze();
        self.await_outcome()?;
        if !self.open.is_empty() || !self.refused.is_empty() {
            let commit = self.end_transaction()?;
            self.carry_out(commit)?;
            self.refused.clear();
        }
        self.shared.freeze();
        Ok(())
    }
}
