//! A publisher as ours is one: the real gate in front of a producer that does what librdkafka does.
//!
//! What librdkafka does: it sends the batches of a partition in order, up to five at a time, and sends one that has failed again with the
//! same sequence numbers. If a later one was stored, it concludes that earlier ones that are to be sent again have been stored too, and
//! acknowledges them. That is right if the broker knows the producer, and wrong if it does not yet: hence the gate. A batch that is
//! refused for good, and a sequence number that the broker does not expect of the first batch on its way, end the producer.

use std::collections::VecDeque;
use std::time::Duration;

use diesel_outbox_core::{Acknowledgement, Outcome, PublishError, Publisher, Record, Refusal};
use diesel_outbox_kafka::__simulated::{Gate, NotTaken, Wait, murmur2, partition, partition_of_handed};

use super::broker::{Answer, PARTITIONS, ProducerId, Request, Sent};
use super::database::Row;
use super::hand::Hand;
use super::kind::Mistake;

const MOST_ON_THEIR_WAY: usize = 5;
const QUEUE: usize = 20;

pub(super) struct SimulatedPublisher {
    hand: Hand,
    producer: Option<Producer>,
    /// Whether records are sent one by one, because a batch was refused.
    is_single: bool,
    delivered: usize,
}

struct Producer {
    id: ProducerId,
    gate: Gate,
    in_flight: usize,
    /// Whether it knows the topic's partitions.
    knows_topic: bool,
    /// What has come before it knew them.
    unassigned: VecDeque<Sent>,
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
        Self { hand, producer: None, is_single: false, delivered: 0 }
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
        if Row::is_refused_at_once(sent.ticket_seq()) {
            return Err(Refusal::Rejected { reason: "refused at once".to_owned() });
        }
        let is_single = self.is_single;
        let producer = self.producer.get_or_insert_with(|| Producer {
            id: world.broker.new_producer(),
            gate: Gate::default(),
            in_flight: 0,
            knows_topic: false,
            unassigned: VecDeque::new(),
            partitions: (0..PARTITIONS).map(|_| Toward::default()).collect(),
            acknowledgements: Vec::new(),
            is_single,
            fatal: false,
        });
        if producer.fatal {
            return Err(Refusal::Retry { reason: "the producer has failed for good".to_owned() });
        }
        if producer.in_flight >= QUEUE {
            return Err(Refusal::Full);
        }
        let key = record.aggregate_id().as_bytes();
        let Producer { gate, in_flight, knows_topic, unassigned, partitions, .. } = producer;
        let mut send = || {
            if !*knows_topic {
                unassigned.push_back(sent.clone());
                return Ok(());
            }
            let place =
                partition_of_handed(PARTITIONS).unwrap_or_else(|| partition(murmur2(key), PARTITIONS));
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
        producer.in_flight = producer.in_flight.saturating_sub(new);
        world.broker.in_flight[producer.id] = producer.in_flight;
        self.delivered += new;
        if fatal && new == 0 {
            return Err(PublishError::new("the producer has failed for good"));
        }
        if self.is_single && producer.in_flight == 0 && self.delivered > 30 {
            self.is_single = false;
            let chance = world.chance.clone();
            world.broker.abandon(producer.id, &chance);
            self.producer = None;
            self.delivered = 0;
        }
        Ok(())
    }

    fn abandon(&mut self) {
        if let Some(producer) = self.producer.take() {
            let mut world = self.hand.world();
            let chance = world.chance.clone();
            world.broker.abandon(producer.id, &chance);
        }
        self.delivered = 0;
    }

    fn ready(&mut self, _: Duration) -> Result<(), PublishError> {
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
    /// Sends what may be sent, and hears the answers.
    fn work(&mut self, world: &mut super::world::World, is_single: &mut bool, mistake: Option<Mistake>) {
        if !self.knows_topic && world.chance.one_in(3) {
            self.knows_topic = true;
            for sent in std::mem::take(&mut self.unassigned) {
                let place = partition(murmur2(sent.record.aggregate_id().as_bytes()), PARTITIONS);
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
