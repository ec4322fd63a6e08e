//! Compares the rows that an outbox keeps with the records that Kafka has.
//!
//! The rows are read first, and the topics afterwards up to where they end by then. So each row that is marked as sent must be found. A record
//! without a row is looked up once more before it counts, because its row may have been written after the first look. Memory is bounded: with
//! many events, both sides are read several times, and each time a part of the aggregates is compared.

mod compare;

use std::collections::BTreeSet;
use std::time::{Duration, SystemTime};

use diesel_outbox_core::PublishError;
use diesel_outbox_core::wire::TopicNaming;
use diesel_outbox_kafka::{Kafka, PublishedRecord, PublishedRecords};
use uuid::Uuid;

use self::compare::Comparison;
use super::kept::{Kept, Window};
use crate::source::SentRows;

/// How many events are compared at once, about 100 bytes each.
const PART: u64 = 500_000;
/// How many rows are read at once.
const ROWS: i64 = 5_000;
/// How many records without a row are looked up at once, and how often in all.
const SUSPECTS: usize = 1_000;
const LOOKS: usize = 20;
/// How long Kafka may take to answer.
const PATIENCE: Duration = Duration::from_secs(30);

/// What to compare.
#[derive(Debug, Clone)]
#[must_use]
pub struct Verify {
    since: SystemTime,
    until: SystemTime,
    keep_sent: Option<Duration>,
    shares_topics: bool,
    examples: usize,
    part: u64,
}

impl Default for Verify {
    fn default() -> Self {
        Self::new()
    }
}

impl Verify {
    /// Compares all rows that the table has.
    pub fn new() -> Self {
        let keep_sent = match SentRows::default() {
            SentRows::Keep { retention } => Some(retention),
            SentRows::Delete => None,
        };
        Self {
            since: SystemTime::UNIX_EPOCH,
            until: SystemTime::now(),
            keep_sent,
            shares_topics: false,
            examples: 100,
            part: PART,
        }
    }

    /// Compares only what was emitted from then on. Default: what the relay keeps.
    pub fn since(mut self, since: SystemTime) -> Self {
        self.since = since;
        self
    }

    /// Compares only what was emitted before then. Default: now.
    pub fn until(mut self, until: SystemTime) -> Self {
        self.until = until;
        self
    }

    /// Says how long the relay keeps sent rows: what was emitted before that is not compared, because its rows may be gone. With `None`, it
    /// deletes rows as it sends them: then a record without a row is no finding, and only what the table has is compared. Default: 7 days, which is
    /// the relay's.
    pub fn keep_sent(mut self, retention: Option<Duration>) -> Self {
        self.keep_sent = retention;
        self
    }

    /// Says that others write to the topics too, such as other outboxes: then a record without a row is no finding. Default: false.
    pub fn shares_topics(mut self, shared: bool) -> Self {
        self.shares_topics = shared;
        self
    }

    /// Lists at most this many findings of each kind; all are counted. Default: 100.
    pub fn examples(mut self, examples: usize) -> Self {
        self.examples = examples;
        self
    }

    #[cfg(test)]
    fn part(mut self, part: u64) -> Self {
        self.part = part;
        self
    }

    /// Compares the rows with what Kafka has. It calls `progress` now and then.
    ///
    /// Topics are named as the relay names them. To read them it takes the settings of `kafka` that say how to connect; its role needs to
    /// read and describe the topics. It changes nothing.
    ///
    /// # Errors
    /// Returns [`VerifyError`] if the database or Kafka fails.
    pub fn run(
        &self,
        kept: &mut dyn Kept,
        kafka: &Kafka,
        topics: &TopicNaming,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Discrepancies, VerifyError> {
        let open = |topics: &BTreeSet<String>, since| kafka.records_since(topics, since, PATIENCE);
        self.compared(kept, &open, topics, progress)
    }

    fn compared<R: Records>(
        &self,
        kept: &mut dyn Kept,
        open: Open<'_, R>,
        topics: &TopicNaming,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Discrepancies, VerifyError> {
        let window = Window { since: self.since.max(self.kept_since()), until: self.until };
        let events = kept.count(&window)?;
        let mut findings = Discrepancies::new(window);
        let parts = events.div_ceil(self.part).max(1);
        for part in 0..parts {
            let of = |aggregate_id: &[u8]| compare::hash(&[aggregate_id]) % parts == part;
            let mut comparison = Comparison::default();
            let mut names = BTreeSet::new();
            let mut after = i64::MIN;
            let mut report = |step, done, all| progress(Progress { part: part + 1, parts, step, done, all });
            let mut done = 0;
            loop {
                let rows = kept.rows(&window, after, ROWS)?;
                let Some(last) = rows.last() else { break };
                after = last.seq;
                done += rows.len() as u64;
                for row in rows {
                    // A row for a topic that cannot be is a dead letter, or will be one.
                    let Ok(topic) = topics.topic(&row.aggregate_type) else { continue };
                    if of(row.aggregate_id.as_bytes()) {
                        findings.events += 1;
                        comparison.add_row(&row, &topic);
                    }
                    names.insert(topic);
                }
                report(Step::Rows, done, events);
            }
            let mut records = open(&names, window.since)?;
            let (mut done, expected) = (0, records.expected());
            let mut suspects = Suspects::default();
            while let Some(record) = records.next_record()? {
                done += 1;
                if done % 10_000 == 0 {
                    report(Step::Records, done, expected);
                }
                if !of(record.key.as_deref().unwrap_or_default()) {
                    continue;
                }
                findings.records += 1;
                match comparison.add_record(&record) {
                    compare::Seen::First => {}
                    compare::Seen::Again if record.is_replayed => {}
                    compare::Seen::Again => {
                        findings.add(Kind::Duplicated, self.examples, || of_record(&record))
                    }
                    compare::Seen::OutOfOrder => {
                        findings.add(Kind::OutOfOrder, self.examples, || of_record(&record))
                    }
                    compare::Seen::Unknown if self.has_foreign_records() || !is_in(&record, &window) => {}
                    compare::Seen::Unknown => suspects.found.push(record),
                }
                if suspects.found.len() >= SUSPECTS {
                    self.convict(&mut suspects, kept, &mut findings)?;
                }
            }
            report(Step::Records, expected, expected);
            self.convict(&mut suspects, kept, &mut findings)?;
            self.lost(&comparison, &records, kept, &mut findings)?;
            findings.topics.extend(names);
        }
        Ok(findings)
    }

    /// Returns since when the table has all rows, as far as the retention says.
    fn kept_since(&self) -> SystemTime {
        let kept = self.keep_sent.and_then(|retention| SystemTime::now().checked_sub(retention));
        kept.unwrap_or(SystemTime::UNIX_EPOCH)
    }

    fn has_foreign_records(&self) -> bool {
        self.shares_topics || self.keep_sent.is_none()
    }

    /// A record without a row is a phantom, unless its row came after the first look, or has been pruned since.
    fn convict(
        &self,
        suspects: &mut Suspects,
        kept: &mut dyn Kept,
        findings: &mut Discrepancies,
    ) -> Result<(), VerifyError> {
        let found = std::mem::take(&mut suspects.found);
        if found.is_empty() {
            return Ok(());
        }
        let known: BTreeSet<Uuid> = if suspects.looks >= LOOKS {
            BTreeSet::new()
        } else {
            suspects.looks += 1;
            let ids: Vec<Uuid> = found.iter().filter_map(|record| record.id).collect();
            kept.find(&ids)?.into_iter().filter_map(|row| row.id).collect()
        };
        let kept_since = self.kept_since();
        for record in found {
            let is_pruned = record.timestamp.is_some_and(|timestamp| timestamp < kept_since);
            if !is_pruned && record.id.is_none_or(|id| !known.contains(&id)) {
                findings.add(Kind::Phantom, self.examples, || of_record(&record));
            }
        }
        Ok(())
    }

    fn lost(
        &self,
        comparison: &Comparison,
        records: &impl Records,
        kept: &mut dyn Kept,
        findings: &mut Discrepancies,
    ) -> Result<(), VerifyError> {
        let mut examples = Vec::new();
        for compare::Unseen { id, topic, key, created_at } in comparison.unseen() {
            if records.kept_since(topic, key).is_some_and(|since| created_at < since) {
                findings.beyond_retention += 1;
            } else {
                findings.lost += 1;
                if examples.len() < self.examples.saturating_sub(findings.listed(Kind::Lost)) {
                    examples.push(id);
                }
            }
        }
        for chunk in examples.chunks(SUSPECTS) {
            for row in kept.find(chunk)? {
                findings.examples.push(Discrepancy {
                    kind: Kind::Lost,
                    id: row.id,
                    aggregate: Some((row.aggregate_type, row.aggregate_id)),
                    seq: Some(row.seq),
                    place: None,
                });
            }
        }
        Ok(())
    }
}

/// Records without a row that were not looked up yet, and how often others were.
#[derive(Default)]
struct Suspects {
    found: Vec<PublishedRecord>,
    looks: usize,
}

fn is_in(record: &PublishedRecord, window: &Window) -> bool {
    record.timestamp.is_none_or(|timestamp| timestamp >= window.since && timestamp < window.until)
}

fn of_record(record: &PublishedRecord) -> Discrepancy {
    Discrepancy {
        kind: Kind::Phantom,
        id: record.id,
        aggregate: None,
        seq: None,
        place: Some((record.topic.clone(), record.partition, record.offset)),
    }
}

/// Begins to read topics from a time on.
type Open<'a, R> = &'a dyn Fn(&BTreeSet<String>, SystemTime) -> Result<R, PublishError>;

/// What the comparison reads records from.
trait Records {
    fn expected(&self) -> u64;
    fn kept_since(&self, topic: &str, key: u32) -> Option<SystemTime>;
    fn next_record(&mut self) -> Result<Option<PublishedRecord>, PublishError>;
}

impl Records for PublishedRecords {
    fn expected(&self) -> u64 {
        PublishedRecords::expected(self)
    }

    fn kept_since(&self, topic: &str, key: u32) -> Option<SystemTime> {
        PublishedRecords::kept_since(self, topic, key)
    }

    fn next_record(&mut self) -> Result<Option<PublishedRecord>, PublishError> {
        PublishedRecords::next_record(self)
    }
}

/// How far a comparison has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Progress {
    /// Which part of the events it compares, from 1 on.
    pub part: u64,
    /// How many parts there are.
    pub parts: u64,
    /// What it reads.
    pub step: Step,
    /// How many of these it has read.
    pub done: u64,
    /// How many there are, about.
    pub all: u64,
}

/// What a comparison reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Step {
    /// The rows of the table.
    Rows,
    /// The records of the topics.
    Records,
}

/// What a comparison found.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Discrepancies {
    /// The time whose events were compared.
    pub window: Window,
    /// The topics that the events go to.
    pub topics: BTreeSet<String>,
    /// How many rows were compared.
    pub events: u64,
    /// How many records were.
    pub records: u64,
    /// How many events are marked as sent and are not on Kafka.
    pub lost: u64,
    /// How many records have no row.
    pub phantom: u64,
    /// How many records are there once more, not counting replayed ones. That is allowed after a crash: consumers recognise them by their id.
    pub duplicated: u64,
    /// How many records came first after a later one of their aggregate. The order is that of `seq`, which an aggregate's writers keep if
    /// they lock it before they emit.
    pub out_of_order: u64,
    /// How many events may have been on Kafka until it deleted them, as the topic's `retention.ms` says for example.
    pub beyond_retention: u64,
    /// Each finding, up to a number of each kind.
    pub examples: Vec<Discrepancy>,
}

impl Discrepancies {
    fn new(window: Window) -> Self {
        Self {
            window,
            topics: BTreeSet::new(),
            events: 0,
            records: 0,
            lost: 0,
            phantom: 0,
            duplicated: 0,
            out_of_order: 0,
            beyond_retention: 0,
            examples: Vec::new(),
        }
    }

    /// Returns whether all events are on Kafka, in order, and nothing else. Some may be there more than once.
    #[must_use]
    pub fn is_sound(&self) -> bool {
        self.lost == 0 && self.phantom == 0 && self.out_of_order == 0
    }

    fn listed(&self, kind: Kind) -> usize {
        self.examples.iter().filter(|finding| finding.kind == kind).count()
    }

    fn add(&mut self, kind: Kind, limit: usize, finding: impl FnOnce() -> Discrepancy) {
        let count = match kind {
            Kind::Lost => &mut self.lost,
            Kind::Phantom => &mut self.phantom,
            Kind::Duplicated => &mut self.duplicated,
            Kind::OutOfOrder => &mut self.out_of_order,
        };
        *count += 1;
        if *count <= limit as u64 {
            self.examples.push(Discrepancy { kind, ..finding() });
        }
    }
}

/// An event or a record that is not as it should be.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Discrepancy {
    /// What is wrong with it.
    pub kind: Kind,
    /// The event's id. A record may have none.
    pub id: Option<Uuid>,
    /// Type and id of the aggregate, if the event has a row.
    pub aggregate: Option<(String, String)>,
    /// The row's place in the order, if it was lost.
    pub seq: Option<i64>,
    /// Topic, partition and offset of the record, if there is one.
    pub place: Option<(String, i32, i64)>,
}

/// What is wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Kind {
    /// The event is marked as sent, and Kafka does not have it.
    Lost,
    /// Kafka has a record, and there is no such event.
    Phantom,
    /// The record is there once more.
    Duplicated,
    /// A later event of the aggregate came before it.
    OutOfOrder,
}

/// Why nothing was compared.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum VerifyError {
    /// The database failed.
    #[error(transparent)]
    Database(#[from] diesel::result::Error),
    /// Kafka failed, or did not answer in time.
    #[error(transparent)]
    Kafka(#[from] PublishError),
}

#[cfg(test)]
mod tests;
