//! Transactions of Kafka, as the publishers of an outbox have them that send exactly once: they share two `transactional.id`s, which they use
//! in turn, and whoever takes over is the only one that can commit. One transaction fills while the one before it is committed.
//!
//! The end of a transaction is a request like others: it may be lost, or come late, when its producer has been given up or another one has
//! taken over, and its answer may be lost. All partitions hear at once that a producer is fenced. In a real cluster before KIP-890, one
//! that has not heard of it may take a late record: that risk is not simulated.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use diesel_outbox_core::{Acknowledgement, Outcome, PublishError};
use uuid::Uuid;

use super::broker::{ProducerId, Sent};
use super::hand::Hand;
use super::kind::Mistake;
use crate::pipeline::simulation::Chance;

/// How many `transactional.id`s there are.
pub(super) const IDS: usize = 2;

/// What the broker knows of the `transactional.id`s.
#[derive(Default)]
pub(super) struct Coordinator {
    /// The producers that took over last, one for each id. If that fences nobody, by mistake, those before them too.
    owners: [BTreeSet<ProducerId>; IDS],
    /// What the open transactions have.
    open: Vec<(ProducerId, Sent)>,
    /// What was committed last.
    last: Progress,
    /// The transactions that are to be committed, with their part of the progress.
    ends: Vec<(ProducerId, Part)>,
    /// Who has been answered, and whether the transaction was committed.
    answers: Vec<(ProducerId, bool)>,
}

/// The ids of a transaction, its number, and that of the first one that counts still.
struct Part {
    number: u64,
    first: u64,
    ids: Vec<Uuid>,
}

/// The parts that count.
#[derive(Clone, Default)]
struct Progress {
    first: u64,
    next: u64,
    parts: BTreeMap<u64, Vec<Uuid>>,
}

impl Progress {
    fn add(&mut self, part: Part) {
        // One without records writes nothing.
        if !part.ids.is_empty() {
            (self.first, self.next) = (part.first, part.number + 1);
            self.parts.insert(part.number, part.ids);
            self.parts = self.parts.split_off(&self.first);
        }
    }
}

impl Coordinator {
    fn take_over(&mut self, id: usize, producer: ProducerId, fences: bool) {
        if fences {
            self.owners[id].clear();
        }
        self.owners[id].insert(producer);
        let open = std::mem::take(&mut self.open);
        self.open = open.into_iter().filter(|(producer, _)| !self.is_fenced(*producer)).collect();
    }

    pub(super) fn is_fenced(&self, producer: ProducerId) -> bool {
        !self.owners.iter().any(|owners| owners.contains(&producer))
    }

    pub(super) fn receive(&mut self, producer: ProducerId, records: &[Sent]) {
        self.open.extend(records.iter().map(|sent| (producer, sent.clone())));
    }

    /// Works off the end of a transaction, if one has come, and returns the records that become visible.
    pub(super) fn step(&mut self, chance: &Chance, fails: bool) -> Vec<Sent> {
        if !chance.one_in(4) {
            return Vec::new();
        }
        if self.ends.is_empty() {
            return Vec::new();
        }
        let (producer, part) = self.ends.remove(chance.below(self.ends.len() as u64) as usize);
        if fails && chance.one_in(12) {
            // The request was lost.
            return Vec::new();
        }
        let is_committed = !self.is_fenced(producer);
        let (own, others) = std::mem::take(&mut self.open).into_iter().partition(|(its, _)| *its == producer);
        self.open = others;
        let own: Vec<(ProducerId, Sent)> = own;
        if !(fails && chance.one_in(12)) {
            self.answers.push((producer, is_committed));
        }
        if !is_committed {
            return Vec::new();
        }
        self.last.add(part);
        own.into_iter().map(|(_, sent)| sent).collect()
    }
}

/// What a publisher knows of its transactions.
#[derive(Default)]
pub(super) struct Transactions {
    pub(super) is_owner: bool,
    /// Who commits the transaction before the open one, if the outcome is not known yet.
    committing: Option<ProducerId>,
    /// The number of the next part, and with which one each pass began that the database may have lost.
    next: u64,
    passes: VecDeque<u64>,
    /// What the open transaction has.
    sent: Vec<(u64, Uuid)>,
    /// What the broker has refused.
    refused: BTreeMap<Uuid, String>,
}

impl Transactions {
    pub(super) fn abandon(&mut self) {
        self.is_owner = false;
        self.committing = None;
        self.passes.clear();
        self.sent.clear();
    }

    pub(super) fn refusal(&self, id: Uuid) -> Option<String> {
        self.refused.get(&id).cloned()
    }

    pub(super) fn sent(&mut self, ticket: u64, id: Uuid) {
        self.sent.push((ticket, id));
    }

    /// What is refused loses the transaction. The next one makes a dead letter of it.
    pub(super) fn learn(&mut self, acknowledgements: &mut [Acknowledgement]) {
        for acknowledgement in acknowledgements {
            let Outcome::Rejected { reason } = acknowledgement.outcome.clone() else { continue };
            let its = self.sent.iter().rev().find(|(ticket, _)| *ticket == acknowledgement.ticket);
            if let Some((_, id)) = its {
                self.refused.insert(*id, reason.clone());
            }
            acknowledgement.outcome = Outcome::Retry { reason };
        }
    }

    /// Begins another pass. The database may lose what the last `undoable` ones have settled.
    pub(super) fn begin_pass(&mut self, undoable: usize) {
        let safe = self.passes.len().saturating_sub(undoable);
        self.passes.drain(..safe);
        self.passes.push_back(self.next);
    }

    /// Takes over, marks that, and reads what was committed before the mark.
    pub(super) fn take_over(
        &mut self,
        hand: &Hand,
        producers: [ProducerId; IDS],
    ) -> Result<Vec<Uuid>, PublishError> {
        let failed = |_| PublishError::new("the broker is away by chance");
        let fences = hand.mistake != Some(Mistake::FencesNobody);
        for (id, producer) in producers.into_iter().enumerate() {
            let fences = fences && (id == 0 || hand.mistake != Some(Mistake::FencesOneOfTwo));
            let taken = hand.statement(|world| world.broker.coordinator.take_over(id, producer, fences));
            taken.map_err(failed)?;
        }
        let marked = hand.statement(|world| {
            let coordinator = &world.broker.coordinator;
            (!coordinator.is_fenced(producers[0])).then(|| coordinator.last.clone())
        });
        let marked = marked.map_err(failed)?;
        let last = marked.ok_or_else(|| PublishError::new("another publisher has taken over"))?;
        hand.statement(|_| ()).map_err(failed)?;
        (self.next, self.passes) = (last.next, [last.first].into());
        let mut ids: Vec<Uuid> = last.parts.into_values().flatten().collect();
        if hand.mistake == Some(Mistake::ForgetsWhatWasCommitted) {
            ids.clear();
        }
        self.is_owner = true;
        Ok(ids)
    }

    /// Begins to commit what was sent. All before it is committed then.
    pub(super) fn commit_ahead(
        &mut self,
        hand: &Hand,
        producer: ProducerId,
        wait: Duration,
    ) -> Result<(), PublishError> {
        if hand.mistake != Some(Mistake::CommitsBesideTheLast) {
            self.await_outcome(hand, wait)?;
        }
        let ids: Vec<Uuid> = self.sent.drain(..).map(|(_, id)| id).collect();
        let first = self.passes.front().copied().unwrap_or(self.next);
        let part = Part { number: self.next, first, ids };
        self.next += u64::from(!part.ids.is_empty());
        let mut world = hand.turn().ok_or_else(crashed)?;
        world.broker.coordinator.ends.push((producer, part));
        self.committing = Some(producer);
        Ok(())
    }

    /// Commits what was sent. An error means that nobody knows the outcome.
    pub(super) fn commit(
        &mut self,
        hand: &Hand,
        producer: ProducerId,
        wait: Duration,
    ) -> Result<(), PublishError> {
        if !self.sent.is_empty() || !self.refused.is_empty() {
            self.commit_ahead(hand, producer, wait)?;
        }
        self.await_outcome(hand, wait)?;
        self.refused.clear();
        Ok(())
    }

    fn await_outcome(&mut self, hand: &Hand, wait: Duration) -> Result<(), PublishError> {
        let Some(producer) = self.committing.take() else { return Ok(()) };
        let mut waited = 0;
        let is_committed = loop {
            let mut world = hand.turn().ok_or_else(crashed)?;
            let answers = &mut world.broker.coordinator.answers;
            if let Some(at) = answers.iter().position(|(its, _)| *its == producer) {
                break Some(answers.swap_remove(at).1);
            }
            if waited >= wait.as_millis() {
                break None;
            }
            let pause = 1 + world.chance.below(10);
            waited += u128::from(pause);
            world.clock += pause;
        };
        let trusts = hand.mistake == Some(Mistake::TakesSilenceForACommit);
        match is_committed {
            Some(true) => Ok(()),
            None if trusts => Ok(()),
            Some(false) => Err(PublishError::new("another publisher has taken over")),
            None => Err(PublishError::new("the broker did not answer")),
        }
    }
}

fn crashed() -> PublishError {
    PublishError::new("the relay has crashed")
}
