//! Whether a relay makes progress, for probes.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use diesel_outbox_core::Lag;

/// Reports whether a running relay makes progress. [`RelayHandle::health`](crate::RelayHandle::health) returns it, and it outlives the
/// handle, so that a probe can ask it at any time.
#[derive(Debug, Clone)]
pub struct Health {
    workers: Arc<[WorkerHealth]>,
    lag_interval: Duration,
}

/// What is known of one worker, which notes it here.
#[derive(Debug, Clone)]
pub(crate) struct WorkerHealth(Arc<Mutex<Noted>>);

#[derive(Debug)]
struct Noted {
    /// When the worker last did anything at all.
    lived: Instant,
    /// Whether a pass has gone well, even one that found nothing.
    reached: bool,
    /// When the failures began that have not been followed by anything that went well, and what the last one was.
    failing: Option<(Instant, String)>,
    settled: Instant,
    waiting: Option<Waiting>,
    /// Why it has ended, if it has.
    ended: Option<String>,
}

/// The oldest record that waits.
#[derive(Debug, Clone, Copy)]
struct Waiting {
    emitted: Instant,
    /// Since when it has been the oldest one, as far as this worker knows.
    since: Instant,
    measured: Instant,
}

/// Two measurements of the same record's age differ by less.
const SAME: Duration = Duration::from_secs(1);

impl Health {
    pub(crate) fn new(workers: usize, lag_interval: Duration) -> Self {
        Self { workers: (0..workers).map(|_| WorkerHealth::new()).collect(), lag_interval }
    }

    pub(crate) fn workers(&self) -> impl Iterator<Item = WorkerHealth> {
        self.workers.iter().cloned()
    }

    /// Returns why the relay does not make progress, or `None` if it does. The text is one line without secrets, as in the log.
    ///
    /// The relay makes none
    /// - until its first pass, which may have found nothing, and after it has ended;
    /// - if each attempt has failed for as long as `patience`;
    /// - if a worker has done nothing at all for that long;
    /// - if the same record has been the oldest one that waits for that long, and this relay has settled nothing meanwhile. Only the relay
    ///   that leads knows this. One that stands by, because others do the work, is fine.
    ///
    /// Let `patience` be at least twice as long as [`Relay::lag_interval`](crate::Relay::lag_interval), and longer than
    /// [`Relay::stall_timeout`](crate::Relay::stall_timeout): a minute suits the defaults. If the relay has several outboxes, one of them
    /// that fails does not count: the metrics show it.
    pub fn problem(&self, patience: Duration) -> Option<String> {
        self.problem_at(Instant::now(), patience)
    }

    fn problem_at(&self, now: Instant, patience: Duration) -> Option<String> {
        let all: Vec<_> = self.workers.iter().map(WorkerHealth::noted).collect();
        let settled = all.iter().map(|noted| noted.settled).max();
        let settled = now.saturating_duration_since(settled.unwrap_or(now));
        all.iter().find_map(|noted| {
            let for_long =
                |since: Instant| Some(now.saturating_duration_since(since)).filter(|time| *time >= patience);
            if let Some(ended) = &noted.ended {
                return Some(format!("the relay has ended: {ended}"));
            }
            if let Some((since, error)) = &noted.failing {
                if !noted.reached {
                    return Some(format!("the relay has not made its first pass: {error}"));
                }
                if let Some(time) = for_long(*since) {
                    return Some(format!("each attempt has failed for {} s: {error}", time.as_secs()));
                }
            }
            if let Some(time) = for_long(noted.lived) {
                return Some(format!("a worker has done nothing for {} s", time.as_secs()));
            }
            if !noted.reached {
                return Some("the relay has not made its first pass".to_owned());
            }
            // A relay that no longer leads does not know whether the record still waits.
            let is_known = |waiting: &Waiting| {
                now.saturating_duration_since(waiting.measured) <= patience.max(2 * self.lag_interval)
            };
            let waiting = noted.waiting.filter(is_known)?;
            for_long(waiting.since).filter(|_| settled >= patience)?;
            let age = now.saturating_duration_since(waiting.emitted);
            Some(format!(
                "an event has waited for {} s, and this relay has settled nothing for {} s",
                age.as_secs(),
                settled.as_secs()
            ))
        })
    }
}

impl WorkerHealth {
    pub(crate) fn new() -> Self {
        let now = Instant::now();
        let noted =
            Noted { lived: now, reached: false, failing: None, settled: now, waiting: None, ended: None };
        Self(Arc::new(Mutex::new(noted)))
    }

    fn noted(&self) -> MutexGuard<'_, Noted> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that the worker is alive.
    pub(crate) fn lives(&self) {
        self.noted().lived = Instant::now();
    }

    #[cfg(test)]
    pub(crate) fn was_silent_for(&self, time: Duration) {
        let mut noted = self.noted();
        noted.lived = noted.lived.checked_sub(time).unwrap_or(noted.lived);
    }

    #[cfg(test)]
    pub(crate) fn silence(&self) -> Duration {
        self.noted().lived.elapsed()
    }

    /// Notes that an attempt went well, and whether it settled something.
    pub(crate) fn went_well(&self) {
        let mut noted = self.noted();
        noted.reached = true;
        noted.failing = None;
    }

    pub(crate) fn settled(&self) {
        self.noted().settled = Instant::now();
    }

    pub(crate) fn failed(&self, error: &dyn std::error::Error) {
        let mut noted = self.noted();
        let since = noted.failing.take().map_or_else(Instant::now, |(since, _)| since);
        noted.failing = Some((since, error.to_string()));
    }

    pub(crate) fn ended(&self, error: Option<&dyn std::error::Error>) {
        let why = error.map_or("it was stopped".to_owned(), ToString::to_string);
        self.noted().ended = Some(why);
    }

    pub(crate) fn measured(&self, lag: &Lag) {
        self.measured_at(lag, Instant::now());
    }

    fn measured_at(&self, lag: &Lag, now: Instant) {
        let mut noted = self.noted();
        let emitted = now.checked_sub(lag.oldest).filter(|_| lag.unsent > 0);
        noted.waiting = emitted.map(|emitted| {
            let is_same = |waiting: &Waiting| {
                emitted.saturating_duration_since(waiting.emitted) < SAME
                    && waiting.emitted.saturating_duration_since(emitted) < SAME
            };
            let since = noted.waiting.filter(is_same).map_or(now, |waiting| waiting.since);
            Waiting { emitted, since, measured: now }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Duration = Duration::from_secs(60);

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn lag(unsent: u64, oldest: u64) -> Lag {
        let mut lag = Lag::default();
        (lag.unsent, lag.oldest) = (unsent, seconds(oldest));
        lag
    }

    fn started() -> (Health, WorkerHealth, Instant) {
        let health = Health::new(1, seconds(15));
        let worker = health.workers().next().unwrap();
        (health, worker, Instant::now())
    }

    #[test]
    fn a_relay_is_ready_after_its_first_pass_and_not_before() {
        let (health, worker, _) = started();
        assert_eq!(health.problem(PATIENCE).as_deref(), Some("the relay has not made its first pass"));
        worker.failed(&std::io::Error::other("no such host"));
        let problem = health.problem(PATIENCE);
        assert_eq!(problem.as_deref(), Some("the relay has not made its first pass: no such host"));
        worker.went_well();
        assert_eq!(health.problem(PATIENCE), None);
        worker.ended(None);
        assert_eq!(health.problem(PATIENCE).as_deref(), Some("the relay has ended: it was stopped"));
    }

    #[test]
    fn a_relay_that_fails_for_long_is_not_ready_until_something_goes_well() {
        let (health, worker, now) = started();
        worker.went_well();
        worker.failed(&std::io::Error::other("first"));
        worker.failed(&std::io::Error::other("second"));
        worker.noted().lived = now + seconds(61);
        assert_eq!(health.problem_at(now + seconds(30), PATIENCE), None);
        let problem = health.problem_at(now + seconds(62), PATIENCE);
        assert!(problem.is_some_and(|problem| problem.ends_with("s: second")));
        worker.went_well();
        assert_eq!(health.problem_at(now + seconds(62), PATIENCE), None);
    }

    #[test]
    fn a_worker_that_hangs_makes_the_relay_unready() {
        let (health, worker, now) = started();
        worker.went_well();
        let problem = health.problem_at(now + seconds(61), PATIENCE);
        assert!(problem.is_some_and(|problem| problem.starts_with("a worker has done nothing for 6")));
    }

    #[test]
    fn a_relay_that_leaves_the_oldest_event_unsent_is_not_ready() {
        let (health, worker, now) = started();
        worker.went_well();
        let look = |after: u64, lag: &Lag| {
            worker.measured_at(lag, now + seconds(after));
            worker.noted().lived = now + seconds(after);
            health.problem_at(now + seconds(after), PATIENCE)
        };
        assert_eq!(look(15, &lag(3, 5)), None);
        // Another relay sends: the oldest event is another one.
        assert_eq!(look(75, &lag(3, 30)), None);
        assert_eq!(look(120, &lag(9, 75)), None);
        let problem = look(135, &lag(9, 90));
        let expected = "an event has waited for 90 s, and this relay has settled nothing for 13";
        assert!(problem.as_ref().is_some_and(|problem| problem.starts_with(expected)), "{problem:?}");
        // It settles something.
        worker.noted().settled = now + seconds(136);
        assert_eq!(look(140, &lag(9, 95)), None);
        assert!(look(197, &lag(9, 152)).is_some());
        // Nothing waits.
        assert_eq!(look(200, &lag(0, 0)), None);
    }

    #[test]
    fn a_relay_that_no_longer_leads_forgets_what_waited() {
        let (health, worker, now) = started();
        worker.went_well();
        worker.measured_at(&lag(3, 5), now);
        worker.measured_at(&lag(3, 65), now + seconds(60));
        worker.noted().lived = now + seconds(130);
        assert!(health.problem_at(now + seconds(90), PATIENCE).is_some());
        assert_eq!(health.problem_at(now + seconds(130), PATIENCE), None);
    }
}
