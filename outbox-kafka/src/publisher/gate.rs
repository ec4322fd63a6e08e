//! One request at a time to a partition that has not acknowledged one yet.
//!
//! A broker accepts any first sequence number of a producer id that it does not know (`ProducerAppendInfo.checkSequence`).
//! If a fresh producer has several requests on their way to a partition, and the first is refused while the second is
//! taken, then librdkafka concludes from the gap that the first was stored too, and reports it as delivered: it is lost.
//! So a partition gets one record, and no other until that is acknowledged. From then on the broker knows the producer id,
//! and refuses what does not follow.
//!
//! It forgets the id when nothing has been written for `producer.id.expiration.ms` (a day), and when the topic is deleted and
//! made again, so a partition that got nothing for a second begins anew, as all do with each new producer.
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

use super::murmur2::{murmur2, partition};

/// How long a partition stays open if nothing is handed to it.
const OPEN: Duration = Duration::from_secs(1);

/// What one producer has on its way to partitions that must not get more yet.
#[derive(Debug, Default)]
pub struct Gate {
    topics: Vec<Topic>,
    numbers: BTreeMap<String, usize>,
    /// The topic of the last record, which is often that of the next.
    last: usize,
    /// The records whose outcome a partition waits for.
    firsts: Vec<First>,
}

#[derive(Debug)]
struct Topic {
    name: String,
    /// As many as librdkafka knew last.
    partitions: Vec<Partition>,
    /// The ticket of a record that is on its way though librdkafka has not said where it goes, because it does not know the topic
    /// yet.
    sounded_by: Option<u64>,
    /// Whether it got another number of partitions while records were in flight to those that it had.
    is_resized: bool,
}

#[derive(Debug, Clone, Copy)]
enum Partition {
    Closed,
    /// Its first record is on its way, under this ticket.
    Waiting(u64),
    /// Got its last record then, or the acknowledgement of its first.
    Open(Instant),
}

#[derive(Debug)]
struct First {
    ticket: u64,
    topic: usize,
    /// Nothing if the topic was not known.
    partition: Option<usize>,
}

/// What a record waits for.
#[derive(Debug, PartialEq, Eq)]
pub enum Wait {
    /// The outcome of the record with this ticket.
    Behind(u64),
    /// Those of all that is in flight.
    All,
}

/// Why librdkafka has not taken a record.
#[derive(Debug)]
pub struct NotTaken<E> {
    /// Its error.
    pub error: E,
    /// Whether the topic has no such partition.
    pub is_unknown_partition: bool,
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

/// Returns the partition of the record that this thread hands over. If the topic has another number of partitions than thought,
/// the partition is one that does not exist, which librdkafka refuses: the record is to ask again.
pub fn partition_of_handed(partitions: i32) -> Option<i32> {
    let mut handed = HANDED.get()?;
    handed.found = Some(partitions);
    HANDED.set(Some(handed));
    Some(if handed.expected == partitions { handed.partition } else { i32::MAX })
}

impl Gate {
    /// Lets `send` hand the record to librdkafka, which has so many in flight, unless it must wait.
    ///
    /// # Errors
    /// What it must wait for.
    pub fn pass<E>(
        &mut self,
        now: Instant,
        in_flight: usize,
        ticket: u64,
        topic: &str,
        key: &[u8],
        mut send: impl FnMut() -> Result<(), NotTaken<E>>,
    ) -> Result<Result<(), E>, Wait> {
        let hash = murmur2(key);
        let number = self.number(topic);
        loop {
            let topic = &mut self.topics[number];
            // A record of the same key may be in flight to another partition.
            if topic.is_resized && in_flight > 0 {
                return Err(Wait::All);
            }
            topic.is_resized = false;
            let expected = topic.partitions.len() as i32;
            let place = partition(hash, expected);
            let its = topic.partitions.get_mut(place as usize);
            // Those that wait for their partition must not be overtaken if the topic is not known any more.
            if let Some(Partition::Waiting(first)) = its {
                return Err(Wait::Behind(*first));
            }
            if let Some(first) = topic.sounded_by {
                return Err(Wait::Behind(first));
            }
            HANDED.set(Some(Handed { partition: place, expected, found: None }));
            let sent = send();
            let found = HANDED.take().and_then(|handed| handed.found);
            match (sent, found, its) {
                (Err(NotTaken { is_unknown_partition: true, .. }), Some(found), _) if found != expected => {
                    topic.resize(found);
                }
                (Err(NotTaken { error, .. }), ..) => return Ok(Err(error)),
                (Ok(()), Some(_), Some(Partition::Open(handed))) if now.duration_since(*handed) < OPEN => {
                    *handed = now;
                    return Ok(Ok(()));
                }
                (Ok(()), found, its) => {
                    let partition = found.and(its).map(|its| {
                        *its = Partition::Waiting(ticket);
                        place as usize
                    });
                    if partition.is_none() {
                        topic.sounded_by = Some(ticket);
                    }
                    self.firsts.push(First { ticket, topic: number, partition });
                    return Ok(Ok(()));
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
                    self.topics.push(Topic {
                        name,
                        partitions: Vec::new(),
                        sounded_by: None,
                        is_resized: false,
                    });
                    self.numbers.insert(topic.to_owned(), self.topics.len() - 1);
                    self.topics.len() - 1
                }
            };
        }
        self.last
    }

    /// Opens the partitions whose first record has become durable.
    pub fn learn(&mut self, now: Instant, acknowledgements: &[Acknowledgement]) {
        if acknowledgements.iter().any(|acknowledgement| acknowledgement.outcome != Outcome::Durable) {
            // Whatever happened, the topic may be gone, or another one.
            self.topics.iter_mut().for_each(Topic::close);
        }
        if self.firsts.is_empty() {
            return;
        }
        for Acknowledgement { ticket, outcome, .. } in acknowledgements {
            let Some(at) = self.firsts.iter().position(|first| first.ticket == *ticket) else { continue };
            let First { topic, partition, .. } = self.firsts.swap_remove(at);
            let topic = &mut self.topics[topic];
            match partition {
                Some(partition) => {
                    // It is another one if the topic has another number of them since.
                    if let Some(its @ Partition::Waiting(_)) = topic.partitions.get_mut(partition) {
                        let is_durable = *outcome == Outcome::Durable;
                        *its = if is_durable { Partition::Open(now) } else { Partition::Closed };
                    }
                }
                None => topic.sounded_by = None,
            }
        }
    }
}

impl Topic {
    fn resize(&mut self, partitions: i32) {
        // Of a topic without any nothing is in flight but what sounded it.
        self.is_resized = !self.partitions.is_empty();
        self.partitions = vec![Partition::Closed; partitions.unsigned_abs() as usize];
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

    const TAKEN: Result<Result<(), ()>, Wait> = Ok(Ok(()));

    fn behind(ticket: u64) -> Result<Result<(), ()>, Wait> {
        Err(Wait::Behind(ticket))
    }

    /// librdkafka with a topic of so many partitions; with none it does not know the topic.
    fn hand(gate: &mut Gate, ticket: u64, key: &str, partitions: i32) -> Result<Result<(), ()>, Wait> {
        let in_flight = gate.firsts.len();
        gate.pass(Instant::now(), in_flight, ticket, "events", key.as_bytes(), || {
            let chosen = if partitions == 0 { Some(-1) } else { partition_of_handed(partitions) };
            if chosen.unwrap() < partitions {
                Ok(())
            } else {
                Err(NotTaken { error: (), is_unknown_partition: true })
            }
        })
    }

    fn learn(gate: &mut Gate, ticket: u64, outcome: Outcome) {
        gate.learn(Instant::now(), &[Acknowledgement::new(ticket, outcome)]);
    }

    fn retry() -> Outcome {
        Outcome::Retry { reason: "refused".to_owned() }
    }

    #[test]
    fn a_partition_is_open_after_its_first_acknowledgement() {
        let mut gate = Gate::default();
        assert_eq!(hand(&mut gate, 1, "a", 1), TAKEN);
        assert_eq!(hand(&mut gate, 2, "a", 1), behind(1));
        learn(&mut gate, 7, Outcome::Durable);
        assert_eq!(hand(&mut gate, 2, "a", 1), behind(1));
        learn(&mut gate, 1, Outcome::Durable);
        assert_eq!(hand(&mut gate, 2, "a", 1), TAKEN);
        assert_eq!(hand(&mut gate, 3, "a", 1), TAKEN);
    }

    #[test]
    fn a_partition_does_not_wait_for_another() {
        let mut gate = Gate::default();
        let keys: Vec<String> = (0..100).map(|key| key.to_string()).collect();
        let taken = keys.iter().enumerate().filter(|(n, key)| hand(&mut gate, *n as u64, key, 5) == TAKEN);
        assert_eq!(taken.count(), 5);
    }

    #[test]
    fn a_partition_that_got_nothing_for_a_second_begins_anew() {
        let mut gate = Gate::default();
        assert_eq!(hand(&mut gate, 1, "a", 1), TAKEN);
        learn(&mut gate, 1, Outcome::Durable);
        gate.topics[0].partitions[0] = Partition::Open(Instant::now().checked_sub(OPEN).unwrap());
        assert_eq!(hand(&mut gate, 2, "a", 1), TAKEN);
        assert_eq!(hand(&mut gate, 3, "a", 1), behind(2));
    }

    #[test]
    fn a_topic_that_is_not_known_yet_gets_one_record() {
        let mut gate = Gate::default();
        assert_eq!(hand(&mut gate, 1, "a", 0), TAKEN);
        assert_eq!(hand(&mut gate, 2, "b", 0), behind(1));
        assert_eq!(hand(&mut gate, 2, "b", 3), behind(1));
        learn(&mut gate, 1, Outcome::Durable);
        assert_eq!(hand(&mut gate, 2, "a", 3), TAKEN);
        assert_eq!(hand(&mut gate, 3, "a", 3), behind(2));
    }

    #[test]
    fn what_is_refused_closes_all() {
        let mut gate = Gate::default();
        assert_eq!(hand(&mut gate, 1, "a", 1), TAKEN);
        learn(&mut gate, 1, Outcome::Durable);
        assert_eq!(hand(&mut gate, 2, "a", 1), TAKEN);
        learn(&mut gate, 2, retry());
        assert_eq!(hand(&mut gate, 3, "a", 1), TAKEN);
        assert_eq!(hand(&mut gate, 4, "a", 1), behind(3));
        learn(&mut gate, 3, retry());
        assert_eq!(hand(&mut gate, 4, "a", 1), TAKEN);
    }

    #[test]
    fn partitions_may_come_and_go() {
        let mut gate = Gate::default();
        assert_eq!(hand(&mut gate, 1, "a", 1), TAKEN);
        learn(&mut gate, 1, Outcome::Durable);
        for (ticket, partitions) in [(2, 1), (3, 6), (4, 2), (5, 9)] {
            assert_eq!(hand(&mut gate, ticket, "a", partitions), TAKEN, "{partitions}");
            learn(&mut gate, ticket, Outcome::Durable);
        }
    }

    #[test]
    fn nothing_is_handed_over_before_all_is_known_when_the_partitions_become_others() {
        let other =
            |key: &u32| partition(murmur2(key.to_string().as_bytes()), 3) != partition(murmur2(b"a"), 3);
        let other = (0..).find(other).unwrap().to_string();
        for partitions in [1, 9] {
            let mut gate = Gate::default();
            assert_eq!(hand(&mut gate, 1, "a", 3), TAKEN);
            assert_eq!(hand(&mut gate, 2, "a", 3), behind(1));
            // The record of another partition learns of the new number.
            assert_eq!(hand(&mut gate, 3, &other, partitions), Err(Wait::All));
            assert_eq!(hand(&mut gate, 4, "a", partitions), Err(Wait::All));
            learn(&mut gate, 1, Outcome::Durable);
            assert_eq!(hand(&mut gate, 2, "a", partitions), TAKEN);
            assert_eq!(hand(&mut gate, 4, "a", partitions), behind(2));
        }
    }
}
