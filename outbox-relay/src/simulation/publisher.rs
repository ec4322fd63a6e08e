//! A publisher as ours is one: the real gate in front of a producer that does what librdkafka does.
//!
//! What librdkafka does: it sends the batches of a partition in order, up to five at a time, and sends one that has failed again with the
//! same sequence numbers. If a later one was stored, it concludes that earlier ones that are to be sent again have been stored too, and
//! acknowledges them. That is right if the broker knows the producer, and wrong if it does not yet: hence the gate. A batch that is
//! refused for good, and a sequence number that the broker does not expect of the first batch on its way, end the producer.

use std::collections::VecDeque;
use std::time::Duration;

use diesel_outbox_core::{Acknowledgement, Lane, Outcome, PublishError, Publisher, Record, Refusal};
use diesel_outbox_kafka::__simulated::{Gate, NotTaken, Wait, murmur2, partition, partition_of_handed};
use uuid::Uuid;

use super::broker::{Answer, ProducerId, Request, Sent};
use super::hand::Hand;
use super::kind::Mistake;
use super::transactions::Transactions;

const MOST_ON_THEIR_WAY: usize = 5;
const QUEUE: usize = 20;

pub(super) struct SimulatedPublisher {
    hand: Hand,
    producer: Option<Producer>,
    /// The producer with the other `transactional.id`, if the relay sends exactly once.
    other: Option<Producer>,
    /// Whether records are sent one by one, because a batch was refused.
    is_single: bool,
    delivered: usize,
    /// Set if the relay sends exactly once.
    transactions: Option<Transactions>,
}

struct Producer {
    id: ProducerId,
    gate: Gate,
    in_flight: usize,
    /// What has come before it knew the topic's partitions.
    unassigned: VecDeque<Sent>,
    /// Those that it knows, of a topic that may have got more.
    partitions: Vec<Toward>,
    acknowledgements: Vec<Acknowledgement>,
    /// As the publisher was when it made this producer.
    is_single: bool,
    fatal: bool,
}

/// What one partition is to get.
#[derive(Default)]
struct Toward {
    next: u64,
    queue: VecDeque<Sent>,
    again: Vec<Request>,
    on_their_way: Vec<Request>,
}

impl SimulatedPublisher {
    pub(super) fn new(hand: Hand) -> Self {
        Self { hand, producer: None, other: None, is_single: false, delivered: 0, transactions: None }
    }

    /// Sends batches again if enough records have gone one by one.
    fn may_batch_again(&mut self) {
        let is_idle = self.producer.as_ref().is_some_and(|producer| producer.in_flight == 0);
        if self.is_single && is_idle && self.delivered > 30 {
            self.is_single = false;
            self.abandon();
        }
    }
}

impl Publisher for SimulatedPublisher {
    fn publish(&mut self, ticket: u64, topic: &str, record: &Record) -> Result<(), Refusal> {
        assert_eq!(topic, "outbox.event.order");
        let mistake = self.hand.mistake;
        let Some(mut world) = self.hand.turn() else {
            return Err(Refusal::Retry { reason: "the relay has crashed".to_owned() });
        };
        let world = &mut *world;
        let sent = Sent { ticket, record: record.clone() };
        if world.database.is_refused_at_once(sent.ticket_seq()) {
            return Err(Refusal::Rejected { reason: "refused at once".to_owned() });
        }
        if let Some(transactions) = &self.transactions {
            if let Some(reason) = transactions.refusal(record.id()) {
                return Err(Refusal::Rejected { reason });
            }
            if !transactions.is_owner {
                return Err(Refusal::Retry { reason: "the relay has not taken the outbox over".to_owned() });
            }
        }
        let is_single = self.is_single;
        let producer = self.producer.get_or_insert_with(|| Producer::start(world, is_single));
        if producer.fatal {
            return Err(Refusal::Retry { reason: "the producer has failed for good".to_owned() });
        }
        if producer.in_flight >= QUEUE {
            return Err(Refusal::Full);
        }
        let key = record.aggregate_id().as_bytes();
        let Producer { gate, in_flight, unassigned, partitions, .. } = producer;
        let mut send = || {
            let count = partitions.len() as i32;
            if count == 0 {
                unassigned.push_back(sent.clone());
                return Ok(());
            }
            let place = partition_of_handed(count).unwrap_or_else(|| partition(murmur2(key), count));
            match partitions.get_mut(place.unsigned_abs() as usize) {
                Some(toward) => {
                    toward.queue.push_back(sent.clone());
                    Ok(())
                }
                None => Err(NotTaken { error: (), is_unknown_partition: true }),
            }
        };
        if mistake == Some(Mistake::HasNoGate) {
            send().map_err(|_| Refusal::Full)?;
        } else {
            let passed = gate.pass(world.now(), *in_flight, ticket, topic, key, send);
            let taken = passed.map_err(|wait| match wait {
                Wait::Behind(ticket) => Refusal::Behind { ticket },
                Wait::All => Refusal::Full,
            });
            taken?.map_err(|()| Refusal::Retry { reason: "not taken".to_owned() })?;
        }
        producer.in_flight += 1;
        if let Some(transactions) = &mut self.transactions {
            transactions.sent(ticket, record.id());
        }
        world.broker.in_flight[producer.id] = producer.in_flight;
        if mistake == Some(Mistake::SettlesBeforeTheAcknowledgement) {
            producer.acknowledgements.push(Acknowledgement::new(ticket, Outcome::Durable));
        }
        Ok(())
    }

    fn acknowledgements(
        &mut self,
        wait: Duration,
        acknowledgements: &mut Vec<Acknowledgement>,
    ) -> Result<(), PublishError> {
        let known = acknowledgements.len();
        let mut waited = 0;
        let fatal = loop {
            let Some(mut world) = self.hand.turn() else {
                return Err(PublishError::new("the relay has crashed"));
            };
            let Some(producer) = &mut self.producer else { return Ok(()) };
            producer.work(&mut world, &mut self.is_single, self.hand.mistake);
            acknowledgements.append(&mut producer.acknowledgements);
            if acknowledgements.len() > known || producer.fatal || waited >= wait.as_millis() {
                break producer.fatal;
            }
            let pause = 1 + world.chance.below(10);
            waited += u128::from(pause);
            world.clock += pause;
        };
        let Some(mut world) = self.hand.turn() else {
            return Err(PublishError::new("the relay has crashed"));
        };
        let Some(producer) = &mut self.producer else { return Ok(()) };
        let new = acknowledgements.len() - known;
        producer.gate.learn(world.now(), &acknowledgements[known..]);
        if let Some(transactions) = &mut self.transactions {
            transactions.learn(&mut acknowledgements[known..]);
        }
        producer.in_flight = producer.in_flight.saturating_sub(new);
        world.broker.in_flight[producer.id] = producer.in_flight;
        self.delivered += new;
        if fatal && new == 0 {
            return Err(PublishError::new("the producer has failed for good"));
        }
        drop(world);
        if !fatal && self.transactions.is_none() {
            self.may_batch_again();
        }
        Ok(())
    }

    fn abandon(&mut self) {
        for producer in self.producer.take().into_iter().chain(self.other.take()) {
            let mut world = self.hand.world();
            let chance = world.chance.clone();
            world.broker.abandon(producer.id, &chance);
        }
        if let Some(transactions) = &mut self.transactions {
            transactions.abandon();
        }
        self.delivered = 0;
    }

    fn ready(&mut self, _: Duration) -> Result<(), PublishError> {
        Ok(())
    }

    fn begin(&mut self, lane: &Lane<'_>, _: Duration) -> Result<Option<Vec<Uuid>>, PublishError> {
        let transactions = self.transactions.get_or_insert_default();
        if transactions.is_owner {
            transactions.begin_pass(lane.undoable_passes);
            return Ok(None);
        }
        let start = || Producer::start(&mut self.hand.world(), self.is_single);
        let first = self.producer.get_or_insert_with(start).id;
        let second = self.other.get_or_insert_with(start).id;
        transactions.take_over(&self.hand, [first, second]).map(Some)
    }

    fn commit_ahead(&mut self, wait: Duration) -> Result<(), PublishError> {
        if let (Some(transactions), Some(producer)) = (&mut self.transactions, &self.producer) {
            transactions.commit_ahead(&self.hand, producer.id, wait)?;
            std::mem::swap(&mut self.producer, &mut self.other);
        }
        Ok(())
    }

    fn commit(&mut self, wait: Duration) -> Result<(), PublishError> {
        if let (Some(transactions), Some(producer)) = (&mut self.transactions, &self.producer) {
            transactions.commit(&self.hand, producer.id, wait)?;
            std::mem::swap(&mut self.producer, &mut self.other);
            self.may_batch_again();
        }
        Ok(())
    }
}

impl Drop for SimulatedPublisher {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.abandon();
        }
    }
}

impl Producer {
    fn start(world: &mut super::world::World, is_single: bool) -> Self {
        Self {
            id: world.broker.new_producer(),
            gate: Gate::default(),
            in_flight: 0,
            unassigned: VecDeque::new(),
            partitions: Vec::new(),
            acknowledgements: Vec::new(),
            is_single,
            fatal: false,
        }
    }

    /// Sends what may be sent, and hears the answers.
    fn work(&mut self, world: &mut super::world::World, is_single: &mut bool, mistake: Option<Mistake>) {
        if world.chance.one_in(3) {
            self.partitions.resize_with(world.broker.partitions(), Toward::default);
            for sent in std::mem::take(&mut self.unassigned) {
                let hash = murmur2(sent.record.aggregate_id().as_bytes());
                let place = partition(hash, self.partitions.len() as i32);
                self.partitions[place as usize].queue.push_back(sent);
            }
        }
        for (request, answer) in world.broker.answers(self.id) {
            self.hear(request, answer, is_single, mistake);
        }
        if self.fatal {
            return;
        }
        for (partition, toward) in self.partitions.iter_mut().enumerate() {
            while toward.on_their_way.len() < MOST_ON_THEIR_WAY {
                let request = if toward.again.is_empty() {
                    let most = if self.is_single { 1 } else { 1 + world.chance.below(4) as usize };
                    let records: Vec<Sent> = toward.queue.drain(..most.min(toward.queue.len())).collect();
                    if records.is_empty() {
                        break;
                    }
                    let first = toward.next;
                    toward.next += records.len() as u64;
                    Request { producer: self.id, partition, first, records }
                } else {
                    toward.again.sort_by_key(|request| request.first);
                    toward.again.remove(0)
                };
                toward.on_their_way.push(request.clone());
                world.broker.receive(request);
            }
        }
    }

    fn hear(&mut self, request: Request, answer: Answer, is_single: &mut bool, mistake: Option<Mistake>) {
        let toward = &mut self.partitions[request.partition];
        let Some(at) = toward.on_their_way.iter().position(|other| other.first == request.first) else {
            return;
        };
        toward.on_their_way.remove(at);
        let is_first =
            !toward.on_their_way.iter().chain(&toward.again).any(|other| other.first < request.first);
        let mut outcomes = Vec::new();
        match answer {
            Answer::Stored => {
                let (earlier, later) = std::mem::take(&mut toward.again)
                    .into_iter()
                    .partition(|other| other.first < request.first);
                toward.again = later;
                let earlier: Vec<Request> = earlier;
                let stored = earlier.iter().chain([&request]).flat_map(|request| &request.records);
                outcomes.extend(stored.map(|sent| (sent.ticket, Outcome::Durable)));
            }
            Answer::Fenced => self.fatal = true,
            Answer::OutOfOrder if is_first => self.fatal = true,
            Answer::NotNow | Answer::OutOfOrder | Answer::Unknown => toward.again.push(request),
            Answer::TooLarge => {
                let outcome = if self.is_single {
                    Outcome::Rejected { reason: "too large".to_owned() }
                } else {
                    Outcome::Retry { reason: "a batch was refused".to_owned() }
                };
                outcomes.extend(request.records.iter().map(|sent| (sent.ticket, outcome.clone())));
                *is_single = true;
                self.fatal = true;
            }
        }
        if mistake != Some(Mistake::SettlesBeforeTheAcknowledgement) {
            let outcomes =
                outcomes.into_iter().map(|(ticket, outcome)| Acknowledgement::new(ticket, outcome));
            self.acknowledgements.extend(outcomes);
        }
    }
}
