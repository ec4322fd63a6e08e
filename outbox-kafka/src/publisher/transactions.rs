//! The Kafka transactions of a relay that sends exactly once. Why that is right is in the relay's `pipeline/exactly_once.rs`.
//!
//! A relay takes over by a new producer with the outbox's `transactional.id`: Kafka then aborts what another one has left open, and
//! refuses all that one still sends. There is no other way out of a failure: the producer is abandoned, and the next one takes over, from
//! itself too. So nothing here retries, and no transaction is aborted by a call.

use std::collections::HashMap;
use std::thread;
use std::time::{Duration, Instant};

use diesel_outbox_core::{Acknowledgement, Outcome, PublishError};
use rdkafka::error::KafkaResult;
use rdkafka::producer::{BaseRecord, Producer as _};
use uuid::Uuid;

use super::deliveries::NO_TICKET;
use super::producer::Producer;
use super::progress::{Batch, MARK, PARTITION, Progress};

/// The longest name of a topic.
const LONGEST_NAME: usize = 249;
/// How often to look whether all that was handed over has been acknowledged.
const PAUSE: Duration = Duration::from_micros(100);

/// What a publisher knows of its outbox's transactions.
pub(super) struct Transactions {
    /// The `transactional.id`, and the name of the topic for progress.
    pub(super) name: String,
    /// Whether this producer has taken over.
    pub(super) is_owner: bool,
    /// Whether a transaction is open.
    is_open: bool,
    /// How many batches have been committed.
    number: u64,
    /// What the open transaction has, by the tickets.
    sent: Vec<(u64, Uuid)>,
    /// What Kafka has refused since the last commit, and why.
    refused: HashMap<Uuid, String>,
}

impl Transactions {
    pub(super) fn new(name: String) -> Self {
        Self { name, is_owner: false, is_open: false, number: 0, sent: Vec::new(), refused: HashMap::new() }
    }

    /// Forgets the producer, and with it the open transaction.
    pub(super) fn abandon(&mut self) {
        (self.is_owner, self.is_open) = (false, false);
        self.sent.clear();
    }

    /// Returns why Kafka will not take the record.
    pub(super) fn refusal(&self, id: Uuid) -> Option<String> {
        self.refused.get(&id).cloned()
    }

    pub(super) fn refuse(&mut self, id: Uuid, reason: &str) {
        self.refused.entry(id).or_insert_with(|| reason.to_owned());
    }

    /// Opens a transaction if none is open.
    pub(super) fn open(&mut self, producer: &Producer) -> Result<(), PublishError> {
        if !self.is_owner {
            return Err(PublishError::new("the relay has not taken the outbox over"));
        }
        if !self.is_open {
            self.begin(producer, Uuid::now_v7()).map_err(|error| self.failed("beginning", error))?;
            self.is_open = true;
        }
        Ok(())
    }

    /// Begins a transaction with a mark. It makes librdkafka announce the topic's partition along with those of the first records, which
    /// saves the commit a request.
    fn begin(&self, producer: &Producer, mark: Uuid) -> KafkaResult<()> {
        producer.base().begin_transaction()?;
        send(producer, &self.name, MARK, mark.as_bytes())
    }

    pub(super) fn sent(&mut self, ticket: u64, id: Uuid) {
        self.sent.push((ticket, id));
    }

    /// Notes which records were refused. The transaction is lost with them, so they count as to be sent again. The next pass learns of the
    /// refusal before it sends them.
    pub(super) fn learn(&mut self, acknowledgements: &mut [Acknowledgement]) {
        for acknowledgement in acknowledgements {
            let Outcome::Rejected { reason } = &acknowledgement.outcome else { continue };
            let reason = reason.clone();
            let of_it = |(ticket, _): &&(u64, Uuid)| *ticket == acknowledgement.ticket;
            if let Some((_, id)) = self.sent.iter().rev().find(of_it) {
                self.refused.insert(*id, reason.clone());
            }
            acknowledgement.outcome = Outcome::Retry { reason };
        }
    }

    /// Makes this producer the only one that can commit, and returns the ids of the last batch.
    pub(super) fn take_over(
        &mut self,
        producer: &Producer,
        config: rdkafka::ClientConfig,
        until: Instant,
    ) -> Result<Vec<Uuid>, PublishError> {
        let progress = Progress::open(config, &self.name, until)?;
        // Each time: somebody may have deleted it, and then brokers make one with their own settings.
        progress.check()?;
        let base = producer.base();
        base.init_transactions(left(until)).map_err(|error| self.failed("taking over", error))?;
        let mark = Uuid::now_v7();
        let marked = self.begin(producer, mark).and_then(|()| commit(producer, until));
        marked.map_err(|error| self.failed("marking", error))?;
        let Batch { number, ids } = progress.last_before(mark)?;
        (self.number, self.is_owner) = (number, true);
        Ok(ids)
    }

    /// Commits the open transaction, if one is open, with the ids of its records. An error means that nobody knows the outcome.
    ///
    /// If records were refused, it commits even if there is nothing else: they become dead letters only if no other
    /// relay has taken over, because that one may have sent them.
    pub(super) fn commit(&mut self, producer: &Producer, wait: Duration) -> Result<(), PublishError> {
        if !self.is_open && self.refused.is_empty() {
            return Ok(());
        }
        self.open(producer)?;
        let until = Instant::now() + wait;
        let ids: Vec<Uuid> = self.sent.drain(..).map(|(_, id)| id).collect();
        self.number += u64::from(!ids.is_empty());
        let batch = Batch { number: self.number, ids };
        let committed = batch
            .records()
            .try_for_each(|(key, value)| send(producer, &self.name, &key, &value))
            .and_then(|()| commit(producer, until));
        committed.map_err(|error| self.failed("committing", error))?;
        self.is_open = false;
        self.refused.clear();
        Ok(())
    }

    fn failed(&self, doing: &str, error: rdkafka::error::KafkaError) -> PublishError {
        PublishError::new(format!("Kafka failed while {doing} a transaction of `{}`: {error}", self.name))
            .with_source(error)
    }
}

fn send(producer: &Producer, topic: &str, key: &str, value: &[u8]) -> KafkaResult<()> {
    let record = BaseRecord::with_opaque_to(topic, NO_TICKET).partition(PARTITION).key(key).payload(value);
    producer.base().send(record).map_err(|(error, _)| error)
}

fn commit(producer: &Producer, until: Instant) -> KafkaResult<()> {
    // `commit_transaction` waits for that too, but it may sleep for 100 ms while the producer's thread learns of it.
    while producer.base().in_flight_count() > 0 && Instant::now() < until {
        thread::sleep(PAUSE);
    }
    producer.base().commit_transaction(left(until))
}

fn left(until: Instant) -> Duration {
    until.saturating_duration_since(Instant::now()).max(Duration::from_millis(1))
}

/// Returns the name of an outbox's transactions and topic. Kafka allows some characters only. If others are replaced or the name is cut
/// off, a hash of the whole name keeps it apart.
pub(super) fn name(prefix: &str, outbox: &str) -> String {
    let name = format!("{prefix}.{outbox}");
    if name.chars().all(is_legal) && name.len() <= LONGEST_NAME {
        return name;
    }
    let hash = name.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    let legal = name.chars().map(|c| if is_legal(c) { c } else { '_' });
    format!("{}-{hash:016x}", legal.take(LONGEST_NAME - 17).collect::<String>())
}

fn is_legal(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-')
}

/// Returns what is wrong with a prefix of such names.
pub(super) fn problem_of_prefix(prefix: &str) -> Option<&'static str> {
    if prefix.is_empty() || prefix.len() > 100 || !prefix.chars().all(is_legal) {
        return Some(
            "it must be 1 to 100 of the characters a-z, A-Z, 0-9, `.`, `_` and `-`, as names of topics are",
        );
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_says_which_outbox_it_is_of_and_no_two_are_the_same() {
        assert_eq!(name("outbox.progress", "shop.public"), "outbox.progress.shop.public");
        let names =
            ["db-1/shop.public", "db-1_shop.public", "db-1 shop.public", "d\u{e9}.public", "d_.public"];
        let mut names: Vec<String> = names.iter().map(|outbox| name("p", outbox)).collect();
        names.push(name("p", &"a".repeat(300)));
        names.push(name("p", &"a".repeat(301)));
        assert!(
            names.iter().all(|name| name.len() <= LONGEST_NAME && name.chars().all(is_legal)),
            "{names:?}"
        );
        names.sort();
        names.dedup();
        assert_eq!(names.len(), 7);
    }

    #[test]
    fn a_prefix_must_be_legal_in_the_name_of_a_topic() {
        for wrong in ["", "a b", "a/b", "\u{e9}", &"a".repeat(101)] {
            assert!(problem_of_prefix(wrong).is_some(), "{wrong}");
        }
        assert!(problem_of_prefix("outbox.progress").is_none());
    }
}
