//! Sends rows again that the outbox keeps.
//!
//! The pipeline of the relay does the work, on a source that claims nothing and marks nothing: so a replay is in order for each aggregate, and
//! a failure of Kafka repeats what was in flight. It knows nothing of relays that work beside it: what they send meanwhile may come between.

use std::cell::Cell;
use std::collections::BTreeSet;
use std::num::NonZeroU32;
use std::time::{Duration, Instant, SystemTime};

use diesel::QueryResult;
use diesel_outbox_core::wire::{REPLAYED_HEADER, TopicNaming};
use diesel_outbox_core::{Broker, Claimed, DeadLettered, PublishError, Source, SourceError};
use uuid::Uuid;

use super::kept::{Kept, KeptRecord, Selection, Window};
use crate::backoff::Backoff;
use crate::max_rate::MaxRate;
use crate::metrics::Metrics;
use crate::pipeline::{Limits, PassError, Pipeline};
use crate::source::database_error;

/// How many rows are read at once.
const ROWS: i64 = 500;
/// How often a failure may follow another one without any record sent.
const ATTEMPTS: u32 = 5;
const SLICE: Duration = Duration::from_millis(10);

/// Which rows to send again, and how fast.
///
/// A record has its own id, so a consumer whose inbox remembers it does not handle it again, and the header [`REPLAYED_HEADER`].
#[derive(Debug, Clone)]
#[must_use]
pub struct Replay {
    selection: Selection,
    after: i64,
    rate: Option<NonZeroU32>,
}

impl Replay {
    /// Sends rows again that were emitted from `since` until before `until`.
    pub fn new(since: SystemTime, until: SystemTime) -> Self {
        let window = Window { since, until };
        let selection =
            Selection { window, id: None, event_type: None, aggregate_type: None, aggregate_id: None };
        Self { selection, after: i64::MIN, rate: None }
    }

    /// Sends only the event with this id. Default: all.
    pub fn id(mut self, id: Uuid) -> Self {
        self.selection.id = Some(id);
        self
    }

    /// Sends only events of this type. Default: all.
    pub fn event_type(mut self, event_type: impl Into<String>) -> Self {
        self.selection.event_type = Some(event_type.into());
        self
    }

    /// Sends only events of aggregates of this type. Default: all.
    pub fn aggregate_type(mut self, aggregate_type: impl Into<String>) -> Self {
        self.selection.aggregate_type = Some(aggregate_type.into());
        self
    }

    /// Sends only events of aggregates with this id. Default: all.
    pub fn aggregate_id(mut self, aggregate_id: impl Into<String>) -> Self {
        self.selection.aggregate_id = Some(aggregate_id.into());
        self
    }

    /// Begins behind this `seq`, to go on with a replay that was interrupted: [`Replayed::through`]. Default: the first.
    pub fn after(mut self, seq: i64) -> Self {
        self.after = seq;
        self
    }

    /// Sends at most so many records a second. Default: as fast as Kafka takes them.
    pub fn rate(mut self, records: NonZeroU32) -> Self {
        self.rate = Some(records);
        self
    }

    /// Returns how many rows it would send.
    ///
    /// # Errors
    /// Returns the database's error.
    pub fn count(&self, kept: &mut dyn Kept) -> QueryResult<u64> {
        kept.count_sent(&self.selection)
    }

    /// Sends the rows. It calls `progress` now and then, and ends early if that returns `false`: what is in flight is waited for.
    ///
    /// If Kafka or the database fails, it tries again, up to five times in a row without any progress. A record that was in flight then may come
    /// twice.
    ///
    /// # Errors
    /// Returns [`ReplayError`] if it cannot go on. It says how far the replay came.
    pub fn run(
        &self,
        kept: &mut (dyn Kept + Send),
        broker: &dyn Broker,
        topics: &TopicNaming,
        progress: &mut dyn FnMut(&Replayed) -> bool,
    ) -> Result<Replayed, ReplayError> {
        let mut publisher = broker
            .publisher()
            .map_err(|error| ReplayError::new(PassError::Publisher(error), Replayed::default()))?;
        let mut source = Replaying::new(self, kept);
        let published = Cell::new(0);
        let metrics = Metrics::new();
        let (mut backoff, mut failures) = (Backoff::new(), 0);
        let goes_on = Cell::new(true);
        while !source.is_done() && goes_on.get() {
            let before = published.get();
            let pipeline = Pipeline {
                topic_naming: topics,
                limits: Limits { batch_size: ROWS as usize, ..Limits::default() },
                now: &Instant::now,
                published: &published,
                max_rate: &MaxRate::default(),
                metrics: &metrics,
                stopping: &|| !goes_on.get(),
            };
            let passed = pipeline.pass(&mut source, &mut *publisher);
            goes_on.set(progress(&source.replayed));
            let Err(failure) = passed else {
                failures = 0;
                backoff.begin_anew();
                continue;
            };
            failures = if published.get() > before { 1 } else { failures + 1 };
            if failures >= ATTEMPTS {
                return Err(ReplayError::new(failure, source.replayed));
            }
            std::thread::sleep(backoff.next());
        }
        Ok(source.replayed)
    }
}

/// What a replay has sent.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Replayed {
    /// How many records Kafka has acknowledged.
    pub sent: u64,
    /// How many records Kafka will never take, or cannot be read.
    pub refused: u64,
    /// Why the last of these was refused.
    pub reason: Option<String>,
    /// All rows up to this `seq` are done. Give it to [`Replay::after`] to go on.
    pub through: Option<i64>,
}

/// Why a replay ended early.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
#[non_exhaustive]
pub struct ReplayError {
    message: String,
    /// What it had sent.
    pub replayed: Replayed,
    #[source]
    source: Option<PublishError>,
}

impl ReplayError {
    fn new(failure: PassError, replayed: Replayed) -> Self {
        let (message, source) = match failure {
            PassError::Source(error) => (format!("the database failed: {error}"), None),
            PassError::Publisher(error) => (format!("Kafka failed: {error}"), Some(error)),
        };
        Self { message, replayed, source }
    }
}

/// The rows as a source. A ticket is a row's place in what was read.
struct Replaying<'a> {
    replay: &'a Replay,
    kept: &'a mut (dyn Kept + Send),
    mark: String,
    /// What was read and is not settled, in the order of `seq`.
    unsettled: BTreeSet<i64>,
    /// What is done although something before it is not: it does not come again.
    done: BTreeSet<i64>,
    read_through: i64,
    has_more: bool,
    began: Instant,
    given: u64,
    replayed: Replayed,
}

impl<'a> Replaying<'a> {
    fn new(replay: &'a Replay, kept: &'a mut (dyn Kept + Send)) -> Self {
        let mark = diesel_outbox_core::__private::unix_ms(SystemTime::now()).to_string();
        Self {
            replay,
            kept,
            mark,
            unsettled: BTreeSet::new(),
            done: BTreeSet::new(),
            read_through: replay.after,
            has_more: true,
            began: Instant::now(),
            given: 0,
            replayed: Replayed::default(),
        }
    }

    fn is_done(&self) -> bool {
        !self.has_more && self.unsettled.is_empty()
    }

    /// Returns how many records may be given now: what was not used counts for a second. It waits for a moment if that is none.
    fn allowed(&mut self, limit: i64) -> i64 {
        let Some(rate) = self.replay.rate else { return limit };
        let due = (self.began.elapsed().as_secs_f64() * f64::from(rate.get())) as u64;
        self.given = self.given.max(due.saturating_sub(rate.get().into()));
        let allowed = due.saturating_sub(self.given);
        if allowed == 0 {
            std::thread::sleep(SLICE);
        }
        limit.min(i64::try_from(allowed).unwrap_or(i64::MAX))
    }

    fn done(&mut self, seq: i64) {
        self.unsettled.remove(&seq);
        self.done.insert(seq);
        let through = self.unsettled.first().map_or(self.read_through, |first| first - 1);
        self.done = self.done.split_off(&(through + 1));
        self.replayed.through = Some(through);
    }
}

impl Source for Replaying<'_> {
    /// What the last pass has left in flight comes again.
    fn claim(&mut self) -> Result<bool, SourceError> {
        self.abandon();
        Ok(true)
    }

    fn read(&mut self, limit: usize, records: &mut Vec<Claimed>) -> Result<bool, SourceError> {
        let limit = self.allowed(ROWS.min(i64::try_from(limit).unwrap_or(ROWS)));
        if limit == 0 || !self.has_more {
            return Ok(self.has_more);
        }
        let rows = self
            .kept
            .sent(&self.replay.selection, self.read_through, limit)
            .map_err(|error| database_error("reading what to replay", error))?;
        self.has_more = !rows.is_empty();
        for KeptRecord { seq, record } in rows {
            self.read_through = seq;
            if self.done.contains(&seq) {
                continue;
            }
            self.given += 1;
            self.unsettled.insert(seq);
            records.push(Claimed::new(
                seq as u64,
                record.map(|record| record.header(REPLAYED_HEADER, &self.mark)),
            ));
        }
        Ok(self.has_more)
    }

    fn settle(&mut self, tickets: &[u64]) -> Result<(), SourceError> {
        self.replayed.sent += tickets.len() as u64;
        tickets.iter().for_each(|ticket| self.done(*ticket as i64));
        Ok(())
    }

    fn dead_letter(&mut self, ticket: u64, reason: &str) -> Result<DeadLettered, SourceError> {
        self.replayed.refused += 1;
        self.replayed.reason = Some(reason.to_owned());
        self.done(ticket as i64);
        Ok(DeadLettered::default())
    }

    fn release(&mut self) -> Result<(), SourceError> {
        Ok(())
    }

    fn abandon(&mut self) {
        if let Some(first) = self.unsettled.first() {
            self.read_through = first - 1;
            self.has_more = true;
        }
        self.unsettled.clear();
    }

    fn wait(&mut self, _: Duration) -> Result<bool, SourceError> {
        Ok(true)
    }
}

#[cfg(test)]
mod tests;
