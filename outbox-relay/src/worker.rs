//! A worker: one thread with its own connection and publisher, which makes one pass after the other.

use std::cell::Cell;
use std::time::{Duration, Instant};

use diesel_outbox_core::__private::Stop;
use diesel_outbox_core::wire::TopicNaming;
use diesel_outbox_core::{Publisher, Source, SourceError};

use crate::backoff::Backoff;
use crate::health::WorkerHealth;
use crate::max_rate::MaxRate;
use crate::metrics::{self, Metrics};
use crate::pipeline::{Limits, PassError, Passed, Pipeline};

/// How long a worker waits before it looks whether it should stop: after a failure, and when there is nothing to do.
const SLICE: Duration = Duration::from_millis(50);
const IDLE_SLICE: Duration = Duration::from_millis(200);
const IDLE_LISTEN: Duration = Duration::from_secs(1);
/// How many times as many records a pass takes as the one before, after a failure of the database.
const TRUST_GROWS: usize = 8;
const READY_WAIT: Duration = Duration::from_secs(2);
/// How often the worker asks the source whether something is due besides passes. If events come one by one, passes are more
/// frequent than this.
const UPKEEP_INTERVAL: Duration = Duration::from_millis(50);

/// A thread's work, and what it keeps from pass to pass.
pub(crate) struct Worker {
    pub(crate) source: Box<dyn Source>,
    pub(crate) publisher: Box<dyn Publisher>,
    pub(crate) topic_naming: TopicNaming,
    pub(crate) limits: Limits,
    /// All workers of the relay share it.
    pub(crate) max_rate: MaxRate,
    /// How many records a pass takes. After a failure of the database that is one, and with each pass that goes well more again: a
    /// database that takes no writes, perhaps because its disk is full, must not have the same records sent at every attempt. Not after
    /// a failure of the broker: the oldest record may be of a partition that takes nothing, and must not keep back those of others.
    pub(crate) trust: usize,
    pub(crate) stop: Stop,
    pub(crate) broker_is_away: bool,
    /// When the source was last asked whether something is due.
    pub(crate) upkept: Option<Instant>,
    /// How many records it has published.
    pub(crate) published: Cell<usize>,
    pub(crate) metrics: Metrics,
    pub(crate) health: WorkerHealth,
}

impl Worker {
    /// Works until it should stop. Returns an error that trying again cannot correct, or the last one that nobody had corrected by
    /// then.
    pub(crate) fn run(mut self) -> Result<(), SourceError> {
        let health = self.health.clone();
        let ended = self.work();
        health.ended(ended.as_ref().err().map(|error| error as &dyn std::error::Error));
        ended
    }

    fn work(&mut self) -> Result<(), SourceError> {
        let mut retry = Retry::new();
        let mut uncorrected = None;
        while !self.stop.is_set() {
            let before = self.published.get();
            self.health.lives();
            let turned = self.turn();
            if self.published.get() > before {
                self.health.settled();
            }
            if turned.is_err() && self.limits.exactly_once {
                // The source may have forgotten what was committed last, so the publisher must say it again.
                self.publisher.abandon();
            }
            match turned {
                Ok(()) => {
                    self.health.went_well();
                    uncorrected = None;
                    retry.succeeded();
                }
                Err(PassError::Source(error)) if error.is_permanent() => {
                    self.stop.set();
                    self.metrics.name(self.source.outbox());
                    self.metrics.gave_up(&error);
                    return Err(error);
                }
                Err(failure) => {
                    self.metrics.name(self.source.outbox());
                    self.broker_is_away |= matches!(failure, PassError::Publisher(_));
                    if let Some(wait) = self.source.put_off(failure.of_source()) {
                        failure.report(&self.metrics, wait);
                        continue;
                    }
                    if self.published.get() > before {
                        retry.begin_anew();
                    }
                    self.health.failed(failure.error());
                    retry.failed(&failure, &self.stop, &self.metrics);
                    if let PassError::Source(_) = &failure {
                        self.trust = 1;
                    }
                    uncorrected = match failure {
                        PassError::Source(error) if error.is_misconfigured() => Some(error),
                        _ => None,
                    };
                }
            }
        }
        metrics::stopped(self.published.get());
        uncorrected.map_or(Ok(()), Err)
    }

    /// Makes one pass, or waits if there is nothing to do.
    fn turn(&mut self) -> Result<(), PassError> {
        if self.broker_is_away {
            // It claims nothing then, but the lag is still of interest.
            self.upkeep()?;
            self.reach_broker()?;
        }
        let (stop, health) = (self.stop.clone(), self.health.clone());
        self.wait_for_tokens()?;
        // A pass asks again and again, however long the broker takes.
        let passed = self.pass(&|| {
            health.lives();
            stop.is_set()
        })?;
        self.upkeep_if_due()?;
        if passed == Passed::Idle {
            self.listen()?;
            let mut listened = Instant::now();
            self.health.went_well();
            while !stop.is_set() && !self.source.wait(IDLE_SLICE)? {
                self.health.lives();
                self.upkeep()?;
                if listened.elapsed() >= IDLE_LISTEN {
                    self.listen()?;
                    listened = Instant::now();
                }
            }
        }
        Ok(())
    }

    /// Waits until the relay's rate lets it take on something. It has claimed nothing meanwhile.
    fn wait_for_tokens(&mut self) -> Result<(), PassError> {
        loop {
            let wait = self.max_rate.wait(Instant::now());
            if wait.is_zero() || self.stop.is_set() {
                return Ok(());
            }
            self.health.lives();
            self.upkeep_if_due()?;
            std::thread::sleep(SLICE.min(wait));
        }
    }

    /// Looks after the table, and makes one pass, which takes on nothing more once this says that it is enough.
    #[cfg(feature = "testing")]
    pub(crate) fn step(&mut self, is_enough: &dyn Fn() -> bool) -> Result<Passed, PassError> {
        self.upkeep()?;
        match self.pass(is_enough)? {
            // Before its first pass, a source may not look after the table.
            Passed::Idle => {
                self.upkeep()?;
                self.pass(is_enough)
            }
            passed => Ok(passed),
        }
    }

    fn pass(&mut self, stopping: &dyn Fn() -> bool) -> Result<Passed, PassError> {
        let pipeline = Pipeline {
            topic_naming: &self.topic_naming,
            limits: self.limits.at_most(self.trust),
            max_rate: &self.max_rate,
            now: &Instant::now,
            published: &self.published,
            metrics: &self.metrics,
            stopping,
        };
        let passed = pipeline.pass(self.source.as_mut(), self.publisher.as_mut())?;
        if passed == Passed::Worked {
            self.trust = self.trust.saturating_mul(TRUST_GROWS);
        }
        Ok(passed)
    }

    /// Lets the publisher log what it has to report while nothing is in flight.
    fn listen(&mut self) -> Result<(), PassError> {
        self.publisher.acknowledgements(Duration::ZERO, &mut Vec::new()).map_err(|error| {
            self.publisher.abandon();
            PassError::Publisher(error)
        })
    }

    fn reach_broker(&mut self) -> Result<(), PassError> {
        let reached = self.publisher.ready(READY_WAIT);
        self.broker_is_away = reached.is_err();
        reached.map_err(|error| {
            self.publisher.abandon();
            PassError::Publisher(error)
        })
    }

    fn upkeep_if_due(&mut self) -> Result<(), PassError> {
        let is_due = self.upkept.is_none_or(|upkept| upkept.elapsed() >= UPKEEP_INTERVAL);
        if is_due { self.upkeep() } else { Ok(()) }
    }

    fn upkeep(&mut self) -> Result<(), PassError> {
        self.upkept = Some(Instant::now());
        self.metrics.progress();
        if let Some(lag) = self.source.upkeep()? {
            self.health.measured(&lag);
            self.metrics.lag(lag);
        }
        Ok(())
    }
}

impl PassError {
    /// Returns the error if it is the source's.
    fn of_source(&self) -> Option<&SourceError> {
        match self {
            Self::Source(error) => Some(error),
            Self::Publisher(_) => None,
        }
    }

    fn error(&self) -> &dyn std::error::Error {
        match self {
            Self::Source(error) => error,
            Self::Publisher(error) => error,
        }
    }

    /// Reports the failure, and returns which side has failed.
    fn report(&self, metrics: &Metrics, retry_in: Duration) -> &'static str {
        let (component, is_misconfigured) = match self {
            Self::Source(error) => ("database", error.is_misconfigured()),
            Self::Publisher(_) => ("broker", false),
        };
        metrics.failed(component, self.error(), is_misconfigured, retry_in);
        component
    }
}

/// Waits twice as long after each failure in a row, and reports when the failures are over.
struct Retry {
    backoff: Backoff,
    failure: Option<&'static str>,
}

impl Retry {
    fn new() -> Self {
        Self { backoff: Backoff::new(), failure: None }
    }

    fn succeeded(&mut self) {
        if let Some(failure) = self.failure.take() {
            metrics::recovered(failure);
        }
        self.begin_anew();
    }

    /// Forgets the failures, because something went well before the next one.
    fn begin_anew(&mut self) {
        self.backoff.begin_anew();
    }

    fn failed(&mut self, failure: &PassError, stop: &Stop, metrics: &Metrics) {
        let wait = self.backoff.next();
        self.failure = Some(failure.report(metrics, wait));
        let until = Instant::now() + wait;
        while !stop.is_set() && Instant::now() < until {
            std::thread::sleep(SLICE.min(wait));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;

    use diesel_outbox_core::{Acknowledgement, Claimed, DeadLettered, PublishError, Record, Refusal};

    use super::*;
    use crate::health::Health;
    use crate::pipeline::rehearsal::Quick;

    /// Holds nothing.
    struct Nothing;

    impl Source for Nothing {
        fn claim(&mut self) -> Result<bool, SourceError> {
            Ok(false)
        }

        fn read(&mut self, _: usize, _: &mut Vec<Claimed>) -> Result<bool, SourceError> {
            Ok(false)
        }

        fn settle(&mut self, _: &[u64]) -> Result<(), SourceError> {
            Ok(())
        }

        fn dead_letter(&mut self, _: u64, _: &str) -> Result<DeadLettered, SourceError> {
            Ok(DeadLettered::default())
        }

        fn release(&mut self) -> Result<(), SourceError> {
            Ok(())
        }

        fn abandon(&mut self) {}

        fn wait(&mut self, _: Duration) -> Result<bool, SourceError> {
            Ok(true)
        }
    }

    /// Has failed, until it is abandoned.
    struct Failed(bool);

    impl Publisher for Failed {
        fn publish(&mut self, _: u64, _: &str, _: &Record) -> Result<(), Refusal> {
            Err(Refusal::Full)
        }

        fn acknowledgements(
            &mut self,
            _: Duration,
            _: &mut Vec<Acknowledgement>,
        ) -> Result<(), PublishError> {
            if self.0 { Err(PublishError::new("failed for good")) } else { Ok(()) }
        }

        fn abandon(&mut self) {
            self.0 = false;
        }

        fn ready(&mut self, _: Duration) -> Result<(), PublishError> {
            Ok(())
        }
    }

    fn worker(source: impl Source + 'static, publisher: impl Publisher + 'static) -> Worker {
        Worker {
            source: Box::new(source),
            publisher: Box::new(publisher),
            topic_naming: TopicNaming::default(),
            limits: Limits::default(),
            max_rate: MaxRate::default(),
            trust: usize::MAX,
            stop: Stop::default(),
            broker_is_away: false,
            upkept: None,
            published: Cell::new(0),
            metrics: Metrics::new(),
            health: Health::new(1, Duration::ZERO).workers().next().unwrap(),
        }
    }

    #[test]
    fn a_publisher_that_fails_while_there_is_nothing_to_send_is_given_up() {
        let mut worker = worker(Nothing, Failed(true));
        assert!(matches!(worker.turn(), Err(PassError::Publisher(_))));
        assert!(worker.turn().is_ok());
    }

    const RECORDS: u64 = 1_000;
    const FAILURES: usize = 4;

    /// Has records, and cannot settle any of them for a while, as if its disk were full.
    struct Full {
        given: u64,
        settled: u64,
        failures: usize,
        stop: Stop,
    }

    impl Source for Full {
        fn claim(&mut self) -> Result<bool, SourceError> {
            self.given = self.settled;
            Ok(true)
        }

        fn read(&mut self, limit: usize, records: &mut Vec<Claimed>) -> Result<bool, SourceError> {
            let end = RECORDS.min(self.given + limit as u64);
            records
                .extend((self.given..end).map(|n| Claimed::new(n, Ok(Record::new("order", "1", "Placed")))));
            self.given = end;
            Ok(end < RECORDS)
        }

        fn settle(&mut self, tickets: &[u64]) -> Result<(), SourceError> {
            if tickets.is_empty() {
                return Ok(());
            }
            if self.failures < FAILURES {
                self.failures += 1;
                return Err(SourceError::new("the disk is full"));
            }
            self.settled += tickets.len() as u64;
            if self.settled == RECORDS {
                self.stop.set();
            }
            Ok(())
        }

        fn dead_letter(&mut self, _: u64, _: &str) -> Result<DeadLettered, SourceError> {
            Ok(DeadLettered::default())
        }

        fn release(&mut self) -> Result<(), SourceError> {
            Ok(())
        }

        fn abandon(&mut self) {}

        fn wait(&mut self, _: Duration) -> Result<bool, SourceError> {
            Ok(true)
        }
    }

    #[test]
    fn what_the_database_cannot_settle_is_not_sent_again_as_a_whole_at_each_attempt() {
        let (stop, publisher) = (Stop::default(), Quick::default());
        let taken = publisher.taken.clone();
        let source = Full { given: 0, settled: 0, failures: 0, stop: stop.clone() };
        Worker { stop, ..worker(source, publisher) }.run().unwrap();
        // The first attempt takes all of them, and each that follows one.
        let repeated = taken.load(Ordering::Relaxed) - RECORDS as usize;
        assert_eq!(repeated, RECORDS as usize + FAILURES - 1);
    }

    /// Has one record, and its worker has been silent for an hour when the pass begins.
    struct Slow {
        health: WorkerHealth,
        stop: Stop,
    }

    impl Source for Slow {
        fn claim(&mut self) -> Result<bool, SourceError> {
            self.health.was_silent_for(Duration::from_secs(3_600));
            Ok(true)
        }

        fn read(&mut self, _: usize, _: &mut Vec<Claimed>) -> Result<bool, SourceError> {
            assert!(self.health.silence() < Duration::from_secs(60));
            self.stop.set();
            Ok(false)
        }

        fn settle(&mut self, _: &[u64]) -> Result<(), SourceError> {
            Ok(())
        }

        fn dead_letter(&mut self, _: u64, _: &str) -> Result<DeadLettered, SourceError> {
            Ok(DeadLettered::default())
        }

        fn release(&mut self) -> Result<(), SourceError> {
            Ok(())
        }

        fn abandon(&mut self) {}

        fn wait(&mut self, _: Duration) -> Result<bool, SourceError> {
            Ok(true)
        }
    }

    #[test]
    fn a_worker_lives_while_a_pass_goes_on_however_long_that_takes() {
        let (stop, health) = (Stop::default(), Health::new(1, Duration::ZERO).workers().next().unwrap());
        let source = Slow { health: health.clone(), stop: stop.clone() };
        Worker { stop, health, ..worker(source, Quick::default()) }.run().unwrap();
    }
}
