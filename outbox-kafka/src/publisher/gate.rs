//! One request at a time to a partition that has not acknowledged one yet.
//!
//! A broker accepts any first sequence number of a producer id that it does not know (`ProducerAppendInfo.checkSequence`).
//! If a fresh producer has several requests on their way to a partition, and the first is refused while the second is
//! taken, then librdkafka concludes from the gap that the first was stored too, and reports it as delivered: it is lost.
//! So a partition gets one record, and no other until that is acknowledged. From then on the broker knows the producer id,
//! and refuses what does not follow.
//!
//! It forgets the id when nothing has been written for `producer.id.expiration.ms` (a day), so a partition that got nothing
//! for a minute begins anew, as all do with each producer.
//!
//! librdkafka never takes another id while it lives: it asks for one at its start, and after errors that end this producer
//! (with `enable.gapless.guarantee` a refused batch is fatal). It may raise the epoch of its id, after it has waited for
//! all that is on its way, in these cases:
//!
//! - A request was refused because an earlier one is missing. Then sequence numbers begin at 0 again. A partition that is
//!   open here has acknowledged something under this id, so the broker has an older epoch of it, and takes nothing but 0 as
//!   the first number of a newer one. A partition that waits has a single request on its way, with either epoch.
//! - A broker says UNKNOWN_PRODUCER_ID. Only those before Kafka 2.5 do, in place of accepting: they take nothing but 0 from
//!   an id that they do not know, and need no gate.
//! - Messages timed out, which they never do here.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use diesel_outbox_core::{Acknowledgement, Outcome};
use rdkafka::types::RDKafkaErrorCode as Code;

use super::partitioner::{murmur2, partition};

/// How long a partition stays open to which nothing is handed.
const OPEN: Duration = Duration::from_secs(60);

/// What one producer has on its way to partitions of which it must not have more.
#[derive(Default)]
pub(super) struct Gate {
    topics: Vec<Topic>,
    numbers: BTreeMap<String, usize>,
    /// The topic of the last record, which is often that of the next.
    last: usize,
    /// The records whose outcome a partition waits for.
    firsts: Vec<First>,
}

struct Topic {
    name: String,
    /// As many as librdkafka knew last.
    partitions: Vec<Partition>,
    /// Whether a record is on its way of which librdkafka has not said where it goes, as it does not know the topic yet.
    is_sounded: bool,
}

#[derive(Clone, Copy)]
enum Partition {
    Closed,
    /// Its first record is on its way, handed over then.
    Waiting(Instant),
    /// Got its last record then.
    Open(Instant),
}

struct First {
    ticket: u64,
    topic: usize,
    /// Nothing where the topic was not known.
    partition: Option<usize>,
}

/// The record that this thread hands to librdkafka.
#[derive(Clone, Copy)]
struct Handed {
    partition: i32,
    /// How many partitions the topic is thought to have.
    expected: i32,
    /// How many it has, if librdkafka asked.
    found: Option<i32>,
}

thread_local! {
    static HANDED: Cell<Option<Handed>> = const { Cell::new(None) };
}

/// The partition of the record that this thread hands over. Where the topic has another number of partitions than thought
/// it is one that does not exist, which librdkafka refuses: the record is to ask again.
pub(super) fn partition_of_handed(partitions: i32) -> Option<i32> {
    let mut handed = HANDED.get()?;
    handed.found = Some(partitions);
    HANDED.set(Some(handed));
    Some(if handed.expected == partitions { handed.partition } else { i32::MAX })
}

impl Gate {
    /// Lets `send` hand the record to librdkafka, unless it must wait until another one is acknowledged: then it gives
    /// nothing.
    pub(super) fn pass<E>(
        &mut self,
        ticket: u64,
        topic: &str,
        key: &[u8],
        mut send: impl FnMut() -> Result<(), (Code, E)>,
    ) -> Option<Result<(), E>> {
        let hash = murmur2(key);
        let now = Instant::now();
        let number = self.number(topic);
        loop {
            let topic = &mut self.topics[number];
            if topic.is_sounded {
                return None;
            }
            let expected = topic.partitions.len() as i32;
            let place = partition(hash, expected);
            let mut is_first = true;
            match topic.partitions.get(place as usize) {
                Some(Partition::Waiting(_)) => return None,
                Some(Partition::Open(handed)) => is_first = now.duration_since(*handed) >= OPEN,
                Some(Partition::Closed) | None => (),
            }
            HANDED.set(Some(Handed { partition: place, expected, found: None }));
            let sent = send();
            let found = HANDED.take().and_then(|handed| handed.found);
            match (sent, found) {
                (Err((Code::UnknownPartition, _)), Some(found)) if found != expected => topic.resize(found),
                (Err((_, error)), _) => return Some(Err(error)),
                (Ok(()), Some(_)) => {
                    topic.partitions[place as usize] = if is_first {
                        self.firsts.push(First { ticket, topic: number, partition: Some(place as usize) });
                        Partition::Waiting(now)
                    } else {
                        Partition::Open(now)
                    };
                    return Some(Ok(()));
                }
                (Ok(()), None) => {
                    topic.is_sounded = true;
                    self.firsts.push(First { ticket, topic: number, partition: None });
                    return Some(Ok(()));
                }
            }
        }
    }

    fn number(&mut self, topic: &str) -> usize {
        if self.topics.get(self.last).is_none_or(|last| last.name != topic) {
            self.last = match self.numbers.get(topic) {
                Some(number) => *number,
                None => {
                    let name = topic.to_owned();
                    self.topics.push(Topic { name, partitions: Vec::new(), is_sounded: false });
                    self.numbers.insert(topic.to_owned(), self.topics.len() - 1);
                    self.topics.len() - 1
                }
            };
        }
        self.last
    }

    /// Opens the partitions whose first record has become durable.
    pub(super) fn learn(&mut self, acknowledgements: &[Acknowledgement]) {
        if acknowledgements.iter().any(|acknowledgement| acknowledgement.outcome != Outcome::Durable) {
            // Whatever happened, the topic may be gone, or another one.
            self.topics.iter_mut().for_each(Topic::close);
        }
        if self.firsts.is_empty() {
            return;
        }
        for Acknowledgement { ticket, outcome } in acknowledgements {
            let Some(at) = self.firsts.iter().position(|first| first.ticket == *ticket) else { continue };
            let First { topic, partition, .. } = self.firsts.swap_remove(at);
            let topic = &mut self.topics[topic];
            match partition {
                Some(partition) => topic.heard(partition, *outcome == Outcome::Durable),
                None => topic.is_sounded = false,
            }
        }
    }
}

impl Topic {
    /// A topic with fewer partitions than before is another one of that name.
    fn resize(&mut self, partitions: i32) {
        let partitions = partitions.unsigned_abs() as usize;
        if partitions < self.partitions.len() {
            self.partitions.clear();
        }
        self.partitions.resize(partitions, Partition::Closed);
    }

    fn heard(&mut self, partition: usize, is_durable: bool) {
        if let Some(partition) = self.partitions.get_mut(partition)
            && let Partition::Waiting(handed) = *partition
        {
            *partition = if is_durable { Partition::Open(handed) } else { Partition::Closed };
        }
    }

    fn close(&mut self) {
        for partition in &mut self.partitions {
            if let Partition::Open(_) = partition {
                *partition = Partition::Closed;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// librdkafka with a topic of so many partitions; with none it does not know the topic.
    fn hand(gate: &mut Gate, ticket: u64, key: &str, partitions: i32) -> Option<Result<(), ()>> {
        gate.pass(ticket, "events", key.as_bytes(), || {
            let chosen = if partitions == 0 { Some(-1) } else { partition_of_handed(partitions) };
            if chosen.unwrap() < partitions { Ok(()) } else { Err((Code::UnknownPartition, ())) }
        })
    }

    fn learn(gate: &mut Gate, ticket: u64, outcome: Outcome) {
        gate.learn(&[Acknowledgement { ticket, outcome }]);
    }

    fn retry() -> Outcome {
        Outcome::Retry { reason: "refused".to_owned() }
    }

    #[test]
    fn a_partition_is_open_after_its_first_acknowledgement() {
        let mut gate = Gate::default();
        assert!(hand(&mut gate, 1, "a", 1).is_some());
        assert!(hand(&mut gate, 2, "a", 1).is_none());
        learn(&mut gate, 7, Outcome::Durable);
        assert!(hand(&mut gate, 2, "a", 1).is_none());
        learn(&mut gate, 1, Outcome::Durable);
        assert!(hand(&mut gate, 2, "a", 1).is_some());
        assert!(hand(&mut gate, 3, "a", 1).is_some());
    }

    #[test]
    fn a_partition_does_not_wait_for_another() {
        let mut gate = Gate::default();
        let keys: Vec<String> = (0..100).map(|key| key.to_string()).collect();
        let taken = keys.iter().enumerate().filter(|(n, key)| hand(&mut gate, *n as u64, key, 5).is_some());
        assert_eq!(taken.count(), 5);
    }

    #[test]
    fn a_partition_that_got_nothing_for_a_minute_begins_anew() {
        let mut gate = Gate::default();
        hand(&mut gate, 1, "a", 1);
        learn(&mut gate, 1, Outcome::Durable);
        gate.topics[0].partitions[0] = Partition::Open(Instant::now().checked_sub(OPEN).unwrap());
        assert!(hand(&mut gate, 2, "a", 1).is_some());
        assert!(hand(&mut gate, 3, "a", 1).is_none());
    }

    #[test]
    fn a_topic_that_is_not_known_yet_gets_one_record() {
        let mut gate = Gate::default();
        assert!(hand(&mut gate, 1, "a", 0).is_some());
        assert!(hand(&mut gate, 2, "b", 0).is_none());
        assert!(hand(&mut gate, 2, "b", 3).is_none());
        learn(&mut gate, 1, Outcome::Durable);
        assert!(hand(&mut gate, 2, "a", 3).is_some());
        assert!(hand(&mut gate, 3, "a", 3).is_none());
    }

    #[test]
    fn what_is_refused_closes_all() {
        let mut gate = Gate::default();
        hand(&mut gate, 1, "a", 1);
        learn(&mut gate, 1, Outcome::Durable);
        hand(&mut gate, 2, "a", 1);
        learn(&mut gate, 2, retry());
        assert!(hand(&mut gate, 3, "a", 1).is_some());
        assert!(hand(&mut gate, 4, "a", 1).is_none());
        learn(&mut gate, 3, retry());
        assert!(hand(&mut gate, 4, "a", 1).is_some());
    }

    #[test]
    fn partitions_may_come_and_go() {
        let mut gate = Gate::default();
        hand(&mut gate, 1, "a", 1);
        learn(&mut gate, 1, Outcome::Durable);
        for (ticket, partitions) in [(2, 1), (3, 6), (4, 2), (5, 9)] {
            assert_eq!(hand(&mut gate, ticket, "a", partitions), Some(Ok(())), "{partitions}");
            learn(&mut gate, ticket, Outcome::Durable);
        }
    }
}
