//! A broker as Kafka is one: partitions that know the producers that have written to them, and the connections on which requests come.
//!
//! A request goes to a partition by the connection of its producer, in order. If the connection is cut, the broker may still work off
//! what has come by it, and nobody hears of that.

use std::collections::{BTreeMap, VecDeque};

use diesel_outbox_core::Record;

use super::database::{SimulatedDatabase, key};
use super::transactions::Coordinator;
use crate::pipeline::simulation::Chance;

/// How many partitions the topic has at the beginning, and at most.
const PARTITIONS: usize = 3;
const MOST_PARTITIONS: usize = 6;
/// After so many milliseconds without a request, a partition forgets a producer: after many times as many as a gate keeps a partition open,
/// or as a request is on its way.
pub(super) const FORGETS_AFTER: u64 = 20_000;
/// How many batches of a producer a partition remembers.
const REMEMBERED: usize = 5;

pub(super) type ProducerId = usize;

#[derive(Clone)]
pub(super) struct Sent {
    pub(super) ticket: u64,
    pub(super) record: Record,
}

/// A batch on its way.
#[derive(Clone)]
pub(super) struct Request {
    pub(super) producer: ProducerId,
    pub(super) partition: usize,
    /// The sequence number of its first record.
    pub(super) first: u64,
    pub(super) records: Vec<Sent>,
}

impl Request {
    fn end(&self) -> u64 {
        self.first + self.records.len() as u64
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Answer {
    Stored,
    /// Not now: there is no leader, or there are too few replicas.
    NotNow,
    OutOfOrder,
    /// One of the records is too large.
    TooLarge,
    /// Another producer has taken over.
    Fenced,
    /// The connection was cut, so nobody knows.
    Unknown,
}

#[derive(Default)]
struct Partition {
    known: BTreeMap<ProducerId, Known>,
    /// It has no leader until then.
    no_leader_until: u64,
}

struct Known {
    next: u64,
    batches: VecDeque<(u64, u64)>,
    at: u64,
}

struct Connection {
    partition: usize,
    producer: ProducerId,
    is_cut: bool,
    requests: VecDeque<Request>,
}

pub(super) struct Broker {
    /// Whether all records come in transactions.
    has_transactions: bool,
    pub(super) coordinator: Coordinator,
    partitions: Vec<Partition>,
    connections: Vec<Connection>,
    answers: Vec<VecDeque<(Request, Answer)>>,
    /// How many records each producer has that it does not know the outcome of.
    pub(super) in_flight: Vec<usize>,
    /// The number of records that were stored a second time.
    pub(super) repeated: u64,
    pub(super) stored: u64,
    /// The newest event of each aggregate.
    newest: BTreeMap<usize, i64>,
}

impl Broker {
    pub(super) fn new(has_transactions: bool) -> Self {
        Self {
            has_transactions,
            coordinator: Coordinator::default(),
            partitions: (0..PARTITIONS).map(|_| Partition::default()).collect(),
            connections: Vec::new(),
            answers: Vec::new(),
            in_flight: Vec::new(),
            repeated: 0,
            stored: 0,
            newest: BTreeMap::new(),
        }
    }

    pub(super) fn partitions(&self) -> usize {
        self.partitions.len()
    }

    pub(super) fn new_producer(&mut self) -> ProducerId {
        self.answers.push(VecDeque::new());
        self.in_flight.push(0);
        self.answers.len() - 1
    }

    pub(super) fn receive(&mut self, request: Request) {
        let (producer, partition) = (request.producer, request.partition);
        let its = |other: &&mut Connection| {
            other.producer == producer && other.partition == partition && !other.is_cut
        };
        match self.connections.iter_mut().find(its) {
            Some(connection) => connection.requests.push_back(request),
            None => self.connections.push(Connection {
                partition,
                producer,
                is_cut: false,
                requests: [request].into(),
            }),
        }
    }

    /// Whether nothing is on its way, or is to be sent.
    pub(super) fn is_idle(&self) -> bool {
        self.in_flight.iter().all(|count| *count == 0)
            && self.connections.iter().all(|connection| connection.requests.is_empty())
    }

    pub(super) fn answers(&mut self, producer: ProducerId) -> VecDeque<(Request, Answer)> {
        std::mem::take(&mut self.answers[producer])
    }

    /// The producer is gone. Some of what it has sent may still be worked off.
    pub(super) fn abandon(&mut self, producer: ProducerId, chance: &Chance) {
        for connection in self.connections.iter_mut().filter(|connection| connection.producer == producer) {
            cut(connection, chance);
        }
        self.answers[producer].clear();
        self.in_flight[producer] = 0;
    }

    /// Does a step: works off a request, or fails in some way.
    pub(super) fn step(
        &mut self,
        database: &mut SimulatedDatabase,
        chance: &Chance,
        now: u64,
        fails: bool,
    ) -> Result<(), String> {
        if self.has_transactions {
            for sent in self.coordinator.step(chance, fails) {
                self.store(&sent, database)?;
            }
        }
        if fails && self.partitions.len() < MOST_PARTITIONS && chance.one_in(1_000) {
            self.partitions.push(Partition::default());
        }
        let partition = chance.below(self.partitions.len() as u64) as usize;
        if fails && chance.one_in(60) {
            // The next leader knows what this one knew. Whoever is connected must find it.
            self.partitions[partition].no_leader_until = now + chance.below(300);
            if chance.one_in(2) {
                self.cut_those_to(partition, chance);
            }
        }
        self.connections.retain(|connection| !connection.is_cut || !connection.requests.is_empty());
        if self.connections.is_empty() {
            return Ok(());
        }
        let at = chance.below(self.connections.len() as u64) as usize;
        let Some(request) = self.connections[at].requests.pop_front() else { return Ok(()) };
        let refuses =
            self.partitions[request.partition].no_leader_until > now || (fails && chance.one_in(12));
        let answer = if refuses { Answer::NotNow } else { self.take(&request, database, now)? };
        if !self.connections[at].is_cut {
            if fails && chance.one_in(25) {
                self.answers[request.producer].push_back((request, Answer::Unknown));
                let connection = &mut self.connections[at];
                let unanswered: Vec<Request> = connection.requests.iter().cloned().collect();
                cut(connection, chance);
                let answers = unanswered.into_iter().map(|request| (request, Answer::Unknown));
                let producer = connection.producer;
                self.answers[producer].extend(answers);
            } else {
                self.answers[request.producer].push_back((request, answer));
            }
        }
        Ok(())
    }

    fn cut_those_to(&mut self, partition: usize, chance: &Chance) {
        for connection in &mut self.connections {
            if connection.partition == partition && !connection.is_cut {
                let unanswered: Vec<Request> = connection.requests.iter().cloned().collect();
                cut(connection, chance);
                let answers = unanswered.into_iter().map(|request| (request, Answer::Unknown));
                self.answers[connection.producer].extend(answers);
            }
        }
    }

    /// Stores what a request brings, by the rules of `ProducerAppendInfo`.
    fn take(
        &mut self,
        request: &Request,
        database: &mut SimulatedDatabase,
        now: u64,
    ) -> Result<Answer, String> {
        if request.records.iter().any(|sent| database.is_refused(sent.ticket_seq())) {
            return Ok(Answer::TooLarge);
        }
        if self.has_transactions && self.coordinator.is_fenced(request.producer) {
            return Ok(Answer::Fenced);
        }
        let partition = &mut self.partitions[request.partition];
        let forgotten: Vec<ProducerId> = partition
            .known
            .iter()
            .filter(|(_, known)| now >= known.at + FORGETS_AFTER)
            .map(|(id, _)| *id)
            .collect();
        for id in forgotten {
            partition.known.remove(&id);
            // Nothing stays in a connection for as long as that.
            for connection in self.connections.iter_mut().filter(|connection| connection.producer == id) {
                if connection.is_cut {
                    connection.requests.clear();
                }
            }
        }
        // A producer that is not known may begin with any number.
        let known = partition.known.entry(request.producer).or_insert_with(|| Known {
            next: request.first,
            batches: VecDeque::new(),
            at: now,
        });
        if known.batches.contains(&(request.first, request.end())) {
            return Ok(Answer::Stored);
        }
        if request.first != known.next {
            return Ok(Answer::OutOfOrder);
        }
        known.next = request.end();
        known.at = now;
        known.batches.push_back((request.first, request.end()));
        if known.batches.len() > REMEMBERED {
            known.batches.pop_front();
        }
        if self.has_transactions {
            self.coordinator.receive(request.producer, &request.records);
            return Ok(Answer::Stored);
        }
        for sent in &request.records {
            self.store(sent, database)?;
        }
        Ok(Answer::Stored)
    }

    /// Stores a record, and finds out whether it may be there.
    fn store(&mut self, sent: &Sent, database: &mut SimulatedDatabase) -> Result<(), String> {
        let seq = sent.ticket_seq();
        let is_committed = database.rows.iter().any(|row| row.seq == seq && database.is_committed(row));
        let Some(row) = database.row_mut(seq).filter(|_| is_committed) else {
            return Err(format!("the event {seq} arrived, though it was never committed"));
        };
        let as_stored = (row.id(), key(row.aggregate), row.payload());
        let record = &sent.record;
        let as_arrived = (record.id(), record.aggregate_id(), record.payload().unwrap_or_default());
        if as_arrived != (as_stored.0, &as_stored.1[..], &as_stored.2[..]) {
            return Err(format!("the event {seq} arrived as another one: {as_arrived:?}"));
        }
        self.stored += 1;
        if std::mem::replace(&mut row.has_arrived, true) {
            self.repeated += 1;
            if self.has_transactions {
                return Err(format!("the event {seq} arrived twice"));
            }
            return Ok(());
        }
        let newest = self.newest.insert(row.aggregate, seq);
        match newest.filter(|newest| *newest > seq) {
            Some(newest) => {
                Err(format!("the event {seq} first arrived after {newest} of the same aggregate"))
            }
            None => Ok(()),
        }
    }
}

/// Cuts a connection. Some of what has come by it will still be worked off.
fn cut(connection: &mut Connection, chance: &Chance) {
    connection.is_cut = true;
    let kept = chance.below(connection.requests.len() as u64 + 1) as usize;
    connection.requests.truncate(kept);
}

impl Sent {
    /// The number of its row, whatever its ticket is.
    pub(super) fn ticket_seq(&self) -> i64 {
        let bytes = self.record.payload().and_then(|payload| payload.try_into().ok());
        bytes.map_or(-1, i64::from_be_bytes)
    }
}
