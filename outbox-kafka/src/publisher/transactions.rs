//! The Kafka transactions of a relay that sends exactly once. Why that is right is in the relay's `pipeline/exactly_once.rs`.
//!
//! A relay has some producers, each with a `transactional.id` of its own, which take turns: while Kafka ends the transaction of one, the
//! next one's fills. If Kafka gets to know of a transaction before it has ended the same producer's last one, librdkafka waits for 20 ms.
//!
//! A relay takes over by new producers with the same ids: Kafka then aborts what others have left open, and refuses all that
//! those still send. There is no other way out of a failure: the producers are abandoned, and the next ones take over, from
//! the same relay too. So nothing here retries, and no transaction is aborted by a call.
//!
//! Whoever has the first id and then gets the others is the owner once it has committed a mark with the first one. Take the owner before
//! it, which had committed its own mark before somebody got the first id again. It had all ids before that mark, so each is the new
//! owner's since, and it commits nothing more.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use diesel_outbox_core::{Acknowledgement, Lane, Outcome, PublishError};
use rdkafka::error::KafkaResult;
use rdkafka::producer::{BaseRecord, Producer as _};
use uuid::Uuid;

use super::deliveries::NO_TICKET;
use super::gate::Gate;
use super::producer::{Base, Producer};
use super::progress::{Found, MARK, MOST_PARTS, PARTITION, Part, Progress};

/// The longest name of a topic.
const LONGEST_NAME: usize = 249;
/// How often to look whether all that was handed over has been acknowledged.
const PAUSE: Duration = Duration::from_micros(100);

/// What a publisher knows of its outbox's transactions.
pub(super) struct Transactions {
    /// The first `transactional.id`, and the name of the topic for progress.
    pub(super) name: String,
    /// Whether these producers have taken over.
    pub(super) is_owner: bool,
    /// The producers that do not send at the moment, the next one first.
    others: VecDeque<(Producer, Gate)>,
    /// The transaction before the open one, if its outcome is not known yet.
    committing: Option<Receiver<KafkaResult<()>>>,
    /// Whether a transaction is open.
    is_open: bool,
    /// The number of the next part of the progress, and with which one each pass began that the database may have lost.
    next: u64,
    passes: VecDeque<u64>,
    /// The outbox's origin, or nothing if it is not known.
    origin: String,
    /// What the open transaction has, by the tickets.
    sent: Vec<(u64, Uuid)>,
    /// What Kafka has refused since the last commit, and why.
    refused: HashMap<Uuid, String>,
}

impl Transactions {
    pub(super) fn new(name: String) -> Self {
        Self {
            name,
            is_owner: false,
            others: VecDeque::new(),
            committing: None,
            is_open: false,
            next: 0,
            passes: VecDeque::new(),
            origin: String::new(),
            sent: Vec::new(),
            refused: HashMap::new(),
        }
    }

    /// Returns the `transactional.id`s after the first one.
    pub(super) fn other_ids(&self) -> impl Iterator<Item = String> {
        // No name has this character.
        [format!("{}#2", self.name)].into_iter()
    }

    /// Forgets the producers, and with them the open transactions. Returns those that do not send at the moment.
    pub(super) fn abandon(&mut self) -> VecDeque<(Producer, Gate)> {
        (self.is_owner, self.is_open) = (false, false);
        self.committing = None;
        self.sent.clear();
        self.passes.clear();
        std::mem::take(&mut self.others)
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

    /// Makes these producers the only ones that can commit, and returns the ids of the last batch. The others are those with the other
    /// ids, in their order.
    pub(super) fn take_over(
        &mut self,
        producer: &Producer,
        others: Vec<Producer>,
        lane: &Lane<'_>,
        config: rdkafka::ClientConfig,
        until: Instant,
    ) -> Result<Vec<Uuid>, PublishError> {
        let progress = Progress::open(config, &self.name, until)?;
        // Each time: somebody may have deleted it, and then brokers make one with their own settings.
        progress.check()?;
        // First, because the outbox to which the topic belongs is not to be disturbed.
        self.check_origin(lane, &progress.last_before(None)?)?;
        for producer in [producer].into_iter().chain(&others) {
            let taken = producer.base().init_transactions(left(until));
            taken.map_err(|error| self.failed("taking over", error))?;
        }
        let mark = Uuid::now_v7();
        let marked = self.begin(producer, mark).and_then(|()| commit(producer.base(), until));
        marked.map_err(|error| self.failed("marking", error))?;
        let found = progress.last_before(Some(mark))?;
        progress.leave();
        self.check_origin(lane, &found)?;
        let Found { first, next, ids, origin } = found;
        // A relay that does not know it leaves it as it is.
        self.origin = lane.origin.map_or(origin, str::to_owned);
        self.others = others.into_iter().map(|producer| (producer, Gate::default())).collect();
        // What was found is settled in this pass, and found again until that is on the disk.
        (self.next, self.passes, self.is_owner) = (next, [first].into(), true);
        Ok(ids)
    }

    /// Returns an error if the progress is that of an outbox elsewhere.
    fn check_origin(&self, lane: &Lane<'_>, found: &Found) -> Result<(), PublishError> {
        let (Some(origin), other, name) = (lane.origin, &found.origin, &self.name) else { return Ok(()) };
        if other.is_empty() || other == origin {
            return Ok(());
        }
        Err(PublishError::new(format!(
            "the topic `{name}` has the progress of `{other}`, and this outbox of the same name is one of `{origin}`, so nothing is sent: if \
             both are in use, set another prefix for this one (`exactly_once_prefix`). If this one is the other, moved here, let no relay \
             work on the other any more, then delete the topic. What a relay that was killed there had sent last is then sent again"
        )))
    }

    /// Begins another pass. The database may lose what the last `undoable` ones have settled.
    pub(super) fn begin_pass(&mut self, undoable: usize) {
        let safe = self.passes.len().saturating_sub(undoable);
        self.passes.drain(..safe);
        self.passes.push_back(self.next);
    }

    /// Begins to commit the open transaction, if it has records, and lets the next producer go on. All before it is committed then.
    pub(super) fn commit_ahead(
        &mut self,
        producer: &mut Producer,
        gate: &mut Gate,
        wait: Duration,
    ) -> Result<(), PublishError> {
        if self.sent.is_empty() {
            return Ok(());
        }
        self.await_outcome(Instant::now() + wait)?;
        let until = Instant::now() + wait;
        self.write_progress(producer)?;
        let (base, (told, outcome)) = (producer.base().clone(), sync_channel(1));
        let work = move || _ = told.send(commit(&base, until));
        if let Err(error) = thread::Builder::new().name("outbox-commit".to_owned()).spawn(work) {
            let message = "the thread that commits a transaction could not be started";
            return Err(PublishError::new(format!("{message}: {error}")).with_source(error));
        }
        self.committing = Some(outcome);
        self.go_on(producer, gate);
        Ok(())
    }

    /// Commits the open transaction, if one is open, with the ids of its records. An error means that nobody knows the outcome.
    ///
    /// If records were refused, it commits even if there is nothing else: they become dead letters only if no other
    /// relay has taken over, because that one may have sent them.
    pub(super) fn commit(
        &mut self,
        producer: &mut Producer,
        gate: &mut Gate,
        wait: Duration,
    ) -> Result<(), PublishError> {
        self.await_outcome(Instant::now() + wait)?;
        let until = Instant::now() + wait;
        if !self.is_open && self.refused.is_empty() {
            return Ok(());
        }
        self.open(producer)?;
        self.write_progress(producer)?;
        commit(producer.base(), until).map_err(|error| self.failed("committing", error))?;
        self.refused.clear();
        self.go_on(producer, gate);
        Ok(())
    }

    /// Waits until the transaction before the open one is known to be committed.
    fn await_outcome(&mut self, until: Instant) -> Result<(), PublishError> {
        let Some(outcome) = self.committing.take() else { return Ok(()) };
        match outcome.recv_timeout(left(until)) {
            Ok(committed) => committed.map_err(|error| self.failed("committing", error)),
            Err(_) => Err(PublishError::new(format!(
                "Kafka did not commit a transaction of `{}` in time",
                self.name
            ))),
        }
    }

    /// Writes which records the transaction has.
    fn write_progress(&mut self, producer: &Producer) -> Result<(), PublishError> {
        let ids: Vec<Uuid> = self.sent.drain(..).map(|(_, id)| id).collect();
        let first = self.passes.front().copied().unwrap_or(self.next);
        let parts = Part::of(&self.origin, first, self.next, &ids);
        self.next += parts.len() as u64;
        if self.next - first > MOST_PARTS {
            return Err(PublishError::new(
                "the database has kept nothing of what was settled for so many passes that the progress topic cannot have their ids",
            ));
        }
        let sent = parts.iter().try_for_each(|part| send(producer, &self.name, &part.key(), &part.value()));
        sent.map_err(|error| self.failed("committing", error))
    }

    /// Lets the next producer go on.
    fn go_on(&mut self, producer: &mut Producer, gate: &mut Gate) {
        self.is_open = false;
        if let Some((next, its_gate)) = self.others.pop_front() {
            let last = (std::mem::replace(producer, next), std::mem::replace(gate, its_gate));
            self.others.push_back(last);
        }
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

fn commit(base: &Arc<Base>, until: Instant) -> KafkaResult<()> {
    // `commit_transaction` waits for that too, but it may sleep for 100 ms while the producer's thread learns of it.
    while base.in_flight_count() > 0 && Instant::now() < until {
        thread::sleep(PAUSE);
    }
    base.commit_transaction(left(until))
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
