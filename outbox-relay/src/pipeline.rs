//! One pass: claim, read, publish, settle, release, each overlapping the next. It does no I/O itself and reads only the clock that
//! it is given, so that a simulation can drive it.

#[cfg(test)]
mod awaited;
mod exactly_once;
mod held_back;
#[cfg(test)]
mod many_topics;
mod names;
#[cfg(test)]
pub(crate) mod rehearsal;
#[cfg(test)]
pub(crate) mod simulation;
mod spans;
mod waiting;

use std::cell::Cell;
use std::collections::VecDeque;
use std::time::{Duration, Instant};

use diesel_outbox_core::wire::TopicNaming;
use diesel_outbox_core::{
    Acknowledgement, Claimed, DeadLettered, Outcome, PublishError, Publisher, Record, Refusal, Source,
    SourceError,
};

use self::names::TopicNames;
use self::spans::Spans;
use self::waiting::Waiting;
use crate::crash::crash_point;
use crate::max_rate::MaxRate;
use crate::metrics::{Latencies, Metrics};

/// How much a pass takes on: the settings of the same names on [`Relay`](crate::Relay).
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    pub(crate) batch_size: usize,
    pub(crate) max_in_flight: usize,
    pub(crate) max_in_flight_bytes: usize,
    pub(crate) max_pass_duration: Duration,
    pub(crate) stall_timeout: Duration,
    pub(crate) exactly_once: bool,
    /// How many records a transaction of the broker has, if they are sent exactly once. The pass goes on with the next one.
    pub(crate) transaction: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            batch_size: 2_000,
            max_in_flight: 8_000,
            max_in_flight_bytes: 64 << 20,
            max_pass_duration: Duration::from_millis(500),
            stall_timeout: Duration::from_secs(5),
            exactly_once: false,
            transaction: 100_000,
        }
    }
}

impl Limits {
    /// Returns limits for a pass that takes so many records at once, if that is less than a batch.
    pub(crate) fn at_most(self, records: usize) -> Self {
        if records >= self.batch_size {
            return self;
        }
        let max_pass_duration = self.max_pass_duration.min(SHORT_PASS);
        Self { batch_size: records, max_in_flight: records, max_pass_duration, ..self }
    }
}

/// What a pass did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Passed {
    /// There was nothing to claim.
    Idle,
    /// Something was claimed, and released.
    Worked,
}

/// Which side failed, and how.
#[derive(Debug)]
pub(crate) enum PassError {
    Source(SourceError),
    Publisher(PublishError),
}

impl From<SourceError> for PassError {
    fn from(error: SourceError) -> Self {
        Self::Source(error)
    }
}

pub(crate) struct Pipeline<'a> {
    pub(crate) topic_naming: &'a TopicNaming,
    pub(crate) limits: Limits,
    pub(crate) max_rate: &'a MaxRate,
    pub(crate) now: &'a dyn Fn() -> Instant,
    /// The pass adds how many records it has published, whether it fails or not.
    pub(crate) published: &'a Cell<usize>,
    pub(crate) metrics: &'a Metrics,
    /// Asked between batches. If it returns `true`, the pass ends as soon as the broker has acknowledged what is in flight.
    pub(crate) stopping: &'a dyn Fn() -> bool,
}

/// About how many bytes a source reads at once at most, unless a single record is larger. So it is the least that a relay may hold.
pub(crate) const BATCH_BYTES: usize = 16 << 20;
/// How long to wait for acknowledgements if there is nothing else to do.
const WAIT: Duration = Duration::from_millis(50);
/// How often the pass looks for new records while the broker has some.
const READ_ON_PAUSE: Duration = Duration::from_millis(1);
/// How old a pass that has caught up may become while it lingers, and how long nothing may have come.
const LINGER: Duration = Duration::from_millis(50);
const LINGER_QUIET: Duration = Duration::from_millis(10);
/// How long a pass takes on records if other outboxes wait.
const SHORT_PASS: Duration = Duration::from_millis(50);
/// For how many topics `max_in_flight` is meant, and how many times as many records may be in flight at most if there are more topics.
const MANY_TOPICS: usize = 250;
const MOST_TIMES: usize = 4;
/// How many records are settled at once if they come one by one.
const SHORT_BATCH: usize = 100;
/// How long an acknowledged record may wait to be settled if the broker is slow.
const LONGEST_UNSETTLED: Duration = Duration::from_secs(1);
/// How long a pass that is about to fail still listens to the broker.
const LAST_WORDS: Duration = Duration::from_secs(1);

impl Pipeline<'_> {
    /// Runs one pass. After a failure, nothing is claimed or in flight any more, and what the broker acknowledged before it failed
    /// is settled.
    pub(crate) fn pass(
        &self,
        source: &mut dyn Source,
        publisher: &mut dyn Publisher,
    ) -> Result<Passed, PassError> {
        let began = (self.now)();
        let claimed = source.claim();
        self.metrics.name(source.outbox());
        if !claimed.inspect_err(|_| source.abandon())? {
            return Ok(Passed::Idle);
        }
        if self.limits.exactly_once && !self.own(source, publisher)? {
            return Ok(Passed::Worked);
        }
        // The pass begins only now: however long the claim took, what it claimed is worked on.
        let mut pass = Pass::begin((self.now)());
        let failure = self.drain(&mut pass, source, publisher).err();
        if self.limits.exactly_once {
            return self.end_exactly_once(pass, failure, source, publisher, began);
        }
        if failure.is_some() {
            publisher.abandon();
        }
        let ended = match failure {
            Some(PassError::Source(error)) => Err(error),
            // The broker has failed, but what is durable is settled, so that it is not sent twice.
            failure => pass.settle(source, began).and_then(|()| source.release()).map(|()| failure),
        };
        match ended {
            Ok(failure) => {
                self.report(&mut pass, began);
                failure.map_or(Ok(Passed::Worked), Err)
            }
            Err(error) => {
                source.abandon();
                Err(error.into())
            }
        }
    }

    /// Counts what the pass has published and settled.
    fn report(&self, pass: &mut Pass, began: Instant) {
        self.metrics.published(pass.published, &mut pass.latencies);
        self.published.set(self.published.get() + pass.published);
        self.metrics.passed(pass.published, (self.now)().duration_since(began));
    }

    /// Reads, publishes and settles until there is nothing more to read and nothing is in flight.
    ///
    /// - `pass.reading`: the pass takes on more. It turns false when the time is up, the relay should stop, an aggregate is held
    ///   back or the publisher fails, and never turns true again. So each pass ends: the broker acknowledges what the pass has
    ///   taken on, or it stalls.
    /// - `pass.reads_ahead`: the source already reads another batch for us. Until we have taken that batch, `reading` stays true
    ///   though the time is up, because the source has done the work and the next pass would do it again. It is only set in time,
    ///   so there is one such batch at most.
    /// - `pass.caught_up`: when the last read found that there is no more for now. Until a read finds more, the pass spaces its
    ///   reads out and settles few records at once. Without it, the pass reads as soon as there is room.
    /// - `pass.failing`: the publisher failed. The pass hands nothing more over. It fails when nothing is in flight, or after a
    ///   moment in which acknowledgements may still come.
    /// - `full`: the publisher took no more, or records wait for others of their partition and nothing is in flight. There is no
    ///   use in reading until the broker acknowledges something.
    /// - `had_nothing`: nothing was in flight before the pass handed records over. It lets waiting records go, because nothing else
    ///   will, and the broker's time to show progress begins now.
    /// - `lingers`: everything was read a moment ago and more may come at once, so it is not worth ending the pass.
    fn drain(
        &self,
        pass: &mut Pass,
        source: &mut dyn Source,
        publisher: &mut dyn Publisher,
    ) -> Result<(), PassError> {
        let mut acknowledgements = Vec::new();
        let mut batch = Vec::new();
        loop {
            if (self.stopping)() {
                self.stop(pass);
            }
            let now = (self.now)();
            let longest = self.limits.max_pass_duration;
            let longest = if source.is_awaited() { longest.min(SHORT_PASS) } else { longest };
            let in_time = now.duration_since(pass.began) < longest;
            pass.reading &= in_time || pass.reads_ahead;
            if self.may_read(pass) && pass.next_read(now).is_zero() && self.take_tokens(pass, now) {
                let more = source.read(pass.tokens, &mut batch)?;
                self.max_rate.put_back(now, pass.tokens.saturating_sub(batch.len()));
                if !batch.is_empty() {
                    crash_point("after_reading");
                    pass.spans.next_batch();
                }
                pass.caught_up = (!more).then(self.now);
                pass.unsent = std::mem::take(&mut batch).into();
                self.limit_transactions(pass);
                if !pass.unsent.is_empty() {
                    pass.found = now;
                }
                // The batch that is read ahead comes on top of this, and would come on top of the rate.
                let may_read_ahead = !self.max_rate.is_limited();
                pass.reads_ahead =
                    may_read_ahead && more && in_time && pass.reading && self.has_bytes_for(pass, 1);
                if pass.reads_ahead {
                    source.read_ahead(self.limits.batch_size)?;
                }
                // The pass did not listen to the broker meanwhile.
                pass.progress += (self.now)().duration_since(now);
            }
            let had_nothing = pass.in_flight == 0;
            if had_nothing {
                // There is nothing to wait for.
                pass.waiting.release_all(&mut pass.unsent);
            }
            let full = self.hand_over(pass, source, publisher)?;
            if had_nothing && pass.in_flight > 0 {
                pass.progress = (self.now)();
                crash_point("after_sending");
            }
            let has_more = !pass.unsent.is_empty() || pass.waiting.count() > 0;
            let lingers = now.duration_since(pass.began) < LINGER
                && now.duration_since(pass.found) < LINGER_QUIET
                && !self.limits.exactly_once
                && source.lingers();
            if pass.in_flight == 0 && !has_more {
                if !(pass.reading && (pass.caught_up.is_none() || lingers)) {
                    return pass.failing.take().map_or(Ok(()), |failing| Err(failing.failure()));
                }
                if self.has_full_transaction(pass) {
                    self.commit_ahead(pass, publisher)?;
                }
            }
            let wait = if full || !self.may_read(pass) { WAIT } else { pass.next_read(now) };
            publisher.acknowledgements(wait, &mut acknowledgements).map_err(PassError::Publisher)?;
            let now = (self.now)();
            if !acknowledgements.is_empty() || (pass.in_flight == 0 && !full) {
                pass.progress = now;
            } else if now.duration_since(pass.progress) >= self.limits.stall_timeout {
                return Err(PassError::Publisher(PublishError::new(format!(
                    "the broker acknowledged nothing for {:?}",
                    self.limits.stall_timeout
                ))));
            }
            for acknowledgement in acknowledgements.drain(..) {
                self.acknowledge(pass, acknowledgement, source, now)?;
            }
            if !pass.acknowledged.is_empty() {
                crash_point("after_acknowledgement");
            }
            // What the broker acknowledges until then need not be sent again.
            let is_over = |failing: &mut Failing| now.duration_since(failing.since) >= LAST_WORDS;
            if let Some(failing) = pass.failing.take_if(is_over) {
                return Err(failing.failure());
            }
            let enough = if pass.caught_up.is_some() {
                SHORT_BATCH.min(self.limits.batch_size)
            } else {
                self.limits.batch_size
            };
            if pass.acknowledged.len() >= enough || now.duration_since(pass.settled) >= LONGEST_UNSETTLED {
                pass.settle(source, now)?;
            }
        }
    }

    /// Takes tokens of the relay's rate for the next read. If there are none, the pass takes on no more, so that it ends as soon as all is
    /// settled, and holds no lock while the relay waits for some.
    fn take_tokens(&self, pass: &mut Pass, now: Instant) -> bool {
        // A read of a few records costs the database as much as one of many.
        let is_worth_it = self.max_rate.wait(now).is_zero();
        pass.tokens = if is_worth_it { self.max_rate.take(now, self.limits.batch_size) } else { 0 };
        pass.reading = pass.tokens > 0;
        pass.reading
    }

    fn may_read(&self, pass: &Pass) -> bool {
        let taken = pass.in_flight + pass.waiting.count();
        let has_room = taken + self.limits.batch_size <= self.most_in_flight(pass);
        let may_take = pass.reading && pass.unsent.is_empty() && !self.has_full_transaction(pass);
        may_take && has_room && (taken == 0 || self.has_bytes_for(pass, 0))
    }

    /// Returns how many records may be in flight: more if they are of many topics, each of which gets requests of its own.
    fn most_in_flight(&self, pass: &Pass) -> usize {
        let Limits { max_in_flight, batch_size, .. } = self.limits;
        let times = (pass.names.count() / MANY_TOPICS).clamp(1, MOST_TIMES);
        // A pass that takes only a batch is a small one.
        if max_in_flight <= batch_size { batch_size } else { max_in_flight.saturating_mul(times) }
    }

    /// Returns whether there are bytes left for another batch and for this many more. A batch that is being read counts with the
    /// most that it may have.
    fn has_bytes_for(&self, pass: &Pass, more: usize) -> bool {
        let unsent: usize = pass.unsent.iter().map(size).sum();
        pass.bytes + pass.waiting.bytes() + unsent + (1 + more) * BATCH_BYTES
            <= self.limits.max_in_flight_bytes
    }

    /// Hands over what was read, in order, for as long as the publisher takes it. Returns `true` if it takes no more for now.
    fn hand_over(
        &self,
        pass: &mut Pass,
        source: &mut dyn Source,
        publisher: &mut dyn Publisher,
    ) -> Result<bool, SourceError> {
        while let Some(claimed) = pass.unsent.pop_front() {
            let ticket = claimed.ticket;
            let taken = match &claimed.record {
                Ok(record) => match pass.names.topic(self.topic_naming, record.aggregate_type()) {
                    Ok(topic) => {
                        let taken = publisher.publish(ticket, topic, record);
                        pass.spans.handed_over(ticket, topic, record, &taken);
                        taken
                    }
                    Err(error) => Err(Refusal::Rejected { reason: error.to_string() }),
                },
                Err(reason) => Err(Refusal::Rejected { reason: reason.clone() }),
            };
            match taken {
                Ok(()) => {
                    pass.in_flight += 1;
                    pass.highest = pass.highest.max(Some(ticket));
                    pass.hold(&claimed);
                }
                Err(Refusal::Full) => {
                    pass.unsent.push_front(claimed);
                    return Ok(true);
                }
                Err(Refusal::Behind { ticket }) => pass.waiting.push(ticket, claimed),
                Err(Refusal::Rejected { reason }) if self.must_come_first(pass, source) => {
                    self.end_before(pass, ticket, reason);
                }
                Err(Refusal::Rejected { reason }) => {
                    if self.dead_letter(pass, source, ticket, &reason)? {
                        self.hold_back(pass, source, &claimed);
                    }
                }
                Err(Refusal::Retry { reason }) => pass.fail(reason, (self.now)()),
                Err(_) => pass.fail("not taken".to_owned(), (self.now)()),
            }
        }
        // With nothing in flight they would wait in vain.
        Ok(pass.in_flight == 0 && pass.waiting.count() > 0)
    }

    fn acknowledge(
        &self,
        pass: &mut Pass,
        acknowledgement: Acknowledgement,
        source: &mut dyn Source,
        now: Instant,
    ) -> Result<(), SourceError> {
        pass.in_flight = pass.in_flight.saturating_sub(1);
        pass.let_go(now);
        pass.spans.acknowledged(acknowledgement.ticket, &acknowledgement.outcome);
        pass.waiting.release(acknowledgement.ticket, &mut pass.unsent);
        match acknowledgement.outcome {
            Outcome::Durable => pass.acknowledged.push(acknowledgement.ticket),
            Outcome::Rejected { reason } => {
                if self.dead_letter(pass, source, acknowledgement.ticket, &reason)? {
                    pass.close();
                }
            }
            Outcome::Retry { reason } => pass.fail(reason, (self.now)()),
            _ => {
                let reason = "the publisher reported an outcome that this relay does not know";
                pass.fail(reason.to_owned(), (self.now)());
            }
        }
        Ok(())
    }

    /// Makes a dead letter of the record. Returns whether the later records of its aggregate are held back: then the next pass
    /// leaves them out.
    fn dead_letter(
        &self,
        pass: &mut Pass,
        source: &mut dyn Source,
        ticket: u64,
        reason: &str,
    ) -> Result<bool, SourceError> {
        let DeadLettered { id, aggregate_type, holds_back, .. } = source.dead_letter(ticket, reason)?;
        let topic = pass.names.topic(self.topic_naming, &aggregate_type).unwrap_or_default();
        self.metrics.dead_lettered(topic, &aggregate_type, &id, reason);
        Ok(holds_back)
    }
}

/// Returns how much of the bounded memory a record takes.
fn size(claimed: &Claimed) -> usize {
    let Ok(record) = &claimed.record else { return 0 };
    let headers = record.headers().iter().map(|(name, value)| name.len() + value.len()).sum::<usize>();
    record.payload().map_or(0, <[u8]>::len) + headers
}

/// Why a pass is about to fail, and since when.
struct Failing {
    reason: String,
    since: Instant,
}

impl Failing {
    fn failure(self) -> PassError {
        PassError::Publisher(PublishError::new(self.reason))
    }
}

/// Where the records of one pass are.
struct Pass {
    began: Instant,
    /// Whether the pass takes on more.
    reading: bool,
    /// Whether the source already reads the next batch.
    reads_ahead: bool,
    /// When a read last found something.
    found: Instant,
    /// When the last read found that there is no more for now.
    caught_up: Option<Instant>,
    unsent: VecDeque<Claimed>,
    waiting: Waiting,
    /// How many records the next read may return.
    tokens: usize,
    /// How many records it has read, and how many of them are in the open transaction.
    taken: usize,
    in_transaction: usize,
    names: TopicNames,
    spans: Spans,
    in_flight: usize,
    /// The highest ticket that was handed over.
    highest: Option<u64>,
    /// The sizes of as many records as are in flight. An acknowledgement removes the one that was handed over first, whichever
    /// record it is about, so `bytes` is exact only if records are acknowledged in order.
    sizes: VecDeque<usize>,
    /// Their sum.
    bytes: usize,
    latencies: Latencies,
    /// When the broker last acknowledged something.
    progress: Instant,
    /// Durable, but not settled yet.
    acknowledged: Vec<u64>,
    settled: Instant,
    published: usize,
    /// Set if the publisher takes no more until it is abandoned. It may still report the outcomes of what it has.
    failing: Option<Failing>,
}

impl Pass {
    fn begin(now: Instant) -> Self {
        Self {
            began: now,
            reading: true,
            reads_ahead: false,
            found: now,
            caught_up: None,
            unsent: VecDeque::new(),
            waiting: Waiting::default(),
            tokens: 0,
            taken: 0,
            in_transaction: 0,
            names: TopicNames::default(),
            spans: Spans::default(),
            in_flight: 0,
            highest: None,
            sizes: VecDeque::new(),
            bytes: 0,
            latencies: Latencies::begin(now),
            progress: now,
            acknowledged: Vec::new(),
            settled: now,
            published: 0,
            failing: None,
        }
    }

    fn hold(&mut self, claimed: &Claimed) {
        let size = size(claimed);
        self.sizes.push_back(size);
        self.bytes += size;
        self.latencies.emitted(claimed.record.as_ref().ok().and_then(Record::created_at));
    }

    fn let_go(&mut self, now: Instant) {
        self.bytes -= self.sizes.pop_front().unwrap_or_default();
        self.latencies.acknowledged(now);
    }

    fn next_read(&self, now: Instant) -> Duration {
        self.caught_up.map_or(Duration::ZERO, |since| (since + READ_ON_PAUSE).saturating_duration_since(now))
    }

    /// Stops taking on records. What was not handed over stays unsent.
    fn close(&mut self) {
        self.reading = false;
        self.unsent.clear();
        self.waiting = Waiting::default();
    }

    fn fail(&mut self, reason: String, now: Instant) {
        self.close();
        self.failing.get_or_insert(Failing { reason, since: now });
    }

    fn settle(&mut self, source: &mut dyn Source, now: Instant) -> Result<(), SourceError> {
        self.settled = now;
        if !self.acknowledged.is_empty() {
            source.settle(&self.acknowledged)?;
            crash_point("while_settling");
            self.published += self.acknowledged.len();
            self.acknowledged.clear();
        }
        Ok(())
    }
}
