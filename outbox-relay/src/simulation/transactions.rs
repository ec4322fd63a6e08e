//! Transactions of Kafka, as the publishers of an outbox have them that send exactly once: they share a `transactional.id`, and whoever
//! takes over is the only one that can commit.
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

/// What the broker knows of the `transactional.id`.
#[derive(Default)]
pub(super) struct Coordinator {
    /// The producer that took over last. If that fences nobody, by mistake, those before it too.
    owners: BTreeSet<ProducerId>,
    /// What the open transactions have.
    open: Vec<(ProducerId, Sent)>,
    /// The ids of the records that were committed last.
    last: Vec<Uuid>,
    /// The transactions that are to be committed, with the ids of their records.
    ends: VecDeque<(ProducerId, Vec<Uuid>)>,
    /// Who has been answered, and whether the transaction was committed.
    answers: Vec<(ProducerId, bool)>,
}

impl Coordinator {
    fn take_over(&mut self, producer: ProducerId, fences: bool) {
        if fences {
            self.owners.clear();
        }
        self.owners.insert(producer);
        self.open.retain(|(producer, _)| self.owners.contains(producer));
    }

    pub(super) fn is_fenced(&self, producer: ProducerId) -> bool {
        !self.owners.contains(&producer)
    }

    pub(super) fn receive(&mut self, producer: ProducerId, records: &[Sent]) {
        self.open.extend(records.iter().map(|sent| (producer, sent.clone())));
    }

    /// Works off the end of a transaction, if one has come, and returns the records that become visible.
    pub(super) fn step(&mut self, chance: &Chance, fails: bool) -> Vec<Sent> {
        if !chance.one_in(4) {
            return Vec::new();
        }
        let Some((producer, ids)) = self.ends.pop_front() else { return Vec::new() };
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
        self.last = ids;
        own.into_iter().map(|(_, sent)| sent).collect()
    }
}

/// What a publisher knows of its transactions.
#[derive(Default)]
pub(super) struct Transactions {
    pub(super) is_owner: bool,
    /// What the open transaction has.
    sent: Vec<(u64, Uuid)>,
    /// What the broker has refused.
    refused: BTreeMap<Uuid, String>,
}

impl Transactions {
    pub(super) fn abandon(&mut self) {
        self.is_owner = false;
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

    /// Takes over, marks that, and reads what was committed before the mark.
    pub(super) fn take_over(&mut self, hand: &Hand, producer: ProducerId) -> Result<Vec<Uuid>, PublishError> {
        let failed = |_| PublishError::new("the broker is away by chance");
        let fences = hand.mistake != Some(Mistake::FencesNobody);
        hand.statement(|world| world.broker.coordinator.take_over(producer, fences)).map_err(failed)?;
        let marked = hand.statement(|world| {
            let coordinator = &world.broker.coordinator;
            (!coordinator.is_fenced(producer)).then(|| coordinator.last.clone())
        });
        let marked = marked.map_err(failed)?;
        let mut ids = marked.ok_or_else(|| PublishError::new("another publisher has taken over"))?;
        hand.statement(|_| ()).map_err(failed)?;
        if hand.mistake == Some(Mistake::ForgetsWhatWasCommitted) {
            ids.clear();
        }
        self.is_owner = true;
        Ok(ids)
    }

    /// Commits what was sent. An error means that nobody knows the outcome.
    pub(super) fn commit(
        &mut self,
        hand: &Hand,
        producer: ProducerId,
        wait: Duration,
    ) -> Result<(), PublishError> {
        let ids: Vec<Uuid> = self.sent.drain(..).map(|(_, id)| id).collect();
        if !ids.is_empty() {
            let crashed = || PublishError::new("the relay has crashed");
            hand.turn().ok_or_else(crashed)?.broker.coordinator.ends.push_back((producer, ids));
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
                Some(true) => {}
                None if trusts => {}
                Some(false) => return Err(PublishError::new("another publisher has taken over")),
                None => return Err(PublishError::new("the broker did not answer")),
            }
        }
        self.refused.clear();
        Ok(())
    }
}
