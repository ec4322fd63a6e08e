//! What a relay did in the last hour, for charts.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use diesel_outbox_core::Lag;

/// How long a point lasts, and how many are kept.
const INTERVAL: Duration = Duration::from_secs(10);
const POINTS: usize = 360;

/// What a relay of this process did in the last hour, as one point for every 10 seconds. [`RelayHandle::history`](crate::RelayHandle::history)
/// returns it, and it outlives the handle. It takes about 20 kB.
///
/// A relay notes here what it knows anyway, once for each pass, and asks the database nothing.
#[derive(Clone)]
pub struct History(Arc<Mutex<Kept>>);

struct Kept {
    began: Instant,
    /// How long a measured lag is good for: only the relay that leads measures it.
    lag_is_good_for: Duration,
    /// Those that have ended, the oldest first.
    ended: VecDeque<Point>,
    /// The number of the point that is going on.
    number: u64,
    open: Open,
    /// What waited in each outbox at the last measuring. Those in which nothing waits are left out.
    waiting: HashMap<Arc<str>, (u64, Instant)>,
    measured: Option<Instant>,
}

/// A point that is going on.
#[derive(Default)]
struct Open {
    published: u64,
    /// The latencies that were counted: how many, and their mean in milliseconds.
    latencies: Vec<(u64, f64)>,
}

/// Ten seconds of a relay.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
#[non_exhaustive]
pub struct Point {
    /// How many events a second it sent.
    pub rate: f64,
    /// How long half of them took at most from emit to the broker's acknowledgement. `None` if it sent none.
    pub p50: Option<Duration>,
    /// The same for 99 of 100.
    pub p99: Option<Duration>,
    /// How many events waited at the end, in all of its outboxes. `None` if this relay does not know, because another one leads.
    pub unsent: Option<u64>,
    /// The age of the oldest of them.
    pub oldest: Option<Duration>,
}

impl History {
    /// How long a [`Point`] lasts.
    pub const INTERVAL: Duration = INTERVAL;
    /// How many points are kept.
    pub const POINTS: usize = POINTS;

    pub(crate) fn new(lag_interval: Duration) -> Self {
        Self::began(Instant::now(), lag_interval)
    }

    fn began(began: Instant, lag_interval: Duration) -> Self {
        Self(Arc::new(Mutex::new(Kept {
            began,
            lag_is_good_for: (lag_interval * 3).max(INTERVAL),
            ended: VecDeque::new(),
            number: 0,
            open: Open::default(),
            waiting: HashMap::new(),
            measured: None,
        })))
    }

    /// Returns the points that have ended, the oldest first: up to [`POINTS`](Self::POINTS).
    #[must_use]
    pub fn points(&self) -> Vec<Point> {
        self.points_at(Instant::now())
    }

    fn points_at(&self, now: Instant) -> Vec<Point> {
        self.until(now).ended.iter().copied().collect()
    }

    /// Notes a pass: how many records it sent, and how many of them took how many milliseconds.
    pub(crate) fn published(&self, count: u64, latencies: impl Iterator<Item = (u64, f64)>) {
        self.published_at(Instant::now(), count, latencies);
    }

    fn published_at(&self, now: Instant, count: u64, latencies: impl Iterator<Item = (u64, f64)>) {
        let mut kept = self.until(now);
        kept.open.published += count;
        for (count, mean) in latencies {
            kept.open.add(count, mean);
        }
    }

    /// Notes the lag of an outbox.
    pub(crate) fn measured(&self, outbox: &Arc<str>, lag: &Lag) {
        self.measured_at(Instant::now(), outbox, lag);
    }

    fn measured_at(&self, now: Instant, outbox: &Arc<str>, lag: &Lag) {
        let mut kept = self.until(now);
        kept.measured = Some(now);
        let emitted = now.checked_sub(lag.oldest).unwrap_or(now);
        if lag.unsent == 0 {
            kept.waiting.remove(outbox);
        } else {
            kept.waiting.insert(outbox.clone(), (lag.unsent, emitted));
        }
    }

    /// Ends the points that are over by now.
    fn until(&self, now: Instant) -> MutexGuard<'_, Kept> {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let since_the_beginning = now.saturating_duration_since(kept.began).as_secs();
        let number = since_the_beginning / INTERVAL.as_secs();
        let over = number.saturating_sub(kept.number);
        // After a day's sleep there is no more than an hour to write, and what was open then is of another hour.
        if over > POINTS as u64 {
            kept.open = Open::default();
        }
        for passed in over.saturating_sub(POINTS as u64)..over {
            let end = INTERVAL * u32::try_from(kept.number + passed + 1).unwrap_or(u32::MAX);
            let end = kept.began.checked_add(end).unwrap_or(now);
            let point = kept.point(end);
            if kept.ended.len() == POINTS {
                kept.ended.pop_front();
            }
            kept.ended.push_back(point);
        }
        kept.number = kept.number.max(number);
        kept
    }
}

impl Kept {
    /// Takes the open point, which ended at this time.
    fn point(&mut self, end: Instant) -> Point {
        let mut open = std::mem::take(&mut self.open);
        let is_known = self
            .measured
            .is_some_and(|measured| end.saturating_duration_since(measured) <= self.lag_is_good_for);
        let emitted = self.waiting.values().map(|(_, emitted)| *emitted).min();
        Point {
            rate: open.published as f64 / INTERVAL.as_secs_f64(),
            p50: open.quantile(0.5),
            p99: open.quantile(0.99),
            unsent: is_known.then(|| self.waiting.values().map(|(unsent, _)| unsent).sum()),
            oldest: is_known.then(|| emitted.map_or(Duration::ZERO, |at| end.saturating_duration_since(at))),
        }
    }
}

impl Open {
    /// Adds latencies to those of about the same length, so that a point stays small.
    fn add(&mut self, count: u64, mean: f64) {
        if count == 0 {
            return;
        }
        let class = |mean: f64| (mean.max(0.5).log2() * 4.0).round() as i64;
        match self.latencies.iter_mut().find(|(_, other)| class(*other) == class(mean)) {
            Some((have, of_all)) => {
                *of_all = (*of_all * *have as f64 + mean * count as f64) / (*have + count) as f64;
                *have += count;
            }
            None => self.latencies.push((count, mean)),
        }
    }

    fn quantile(&mut self, part: f64) -> Option<Duration> {
        self.latencies.sort_by(|(_, one), (_, other)| one.total_cmp(other));
        let all: u64 = self.latencies.iter().map(|(count, _)| count).sum();
        let mut passed = 0;
        let found = self.latencies.iter().find(|(count, _)| {
            passed += count;
            passed as f64 >= all as f64 * part
        });
        found.and_then(|(_, mean)| Duration::try_from_secs_f64(mean / 1_000.0).ok())
    }
}

impl fmt::Debug for History {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("History").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LAG_INTERVAL: Duration = Duration::from_secs(15);

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn started() -> (History, Instant) {
        let began = Instant::now();
        (History::began(began, LAG_INTERVAL), began)
    }

    fn lag(unsent: u64, oldest: u64) -> Lag {
        let mut lag = Lag::default();
        (lag.unsent, lag.oldest) = (unsent, seconds(oldest));
        lag
    }

    #[test]
    fn a_point_has_the_rate_and_the_latencies_of_ten_seconds() {
        let (history, began) = started();
        history.published_at(began + seconds(3), 60, [(59, 2.0), (1, 900.0)].into_iter());
        history.published_at(began + seconds(9), 40, [(40, 2.0)].into_iter());
        assert_eq!(history.points_at(began + seconds(9)), []);
        let points = history.points_at(began + seconds(25));
        let ms = |ms| Some(Duration::from_millis(ms));
        assert_eq!((points.len(), points[0].rate, points[0].p50, points[0].p99), (2, 10.0, ms(2), ms(2)));
        assert_eq!(points[1], Point::default());
        // The slowest of a hundred is one of the slowest two.
        history.published_at(began + seconds(31), 50, [(49, 2.0), (1, 900.0)].into_iter());
        assert_eq!(history.points_at(began + seconds(40))[3].p99, ms(900));
    }

    #[test]
    fn what_waits_is_known_while_this_relay_leads_and_the_oldest_ages() {
        let (history, began) = started();
        let (shop, billing): (Arc<str>, Arc<str>) = ("shop".into(), "billing".into());
        history.measured_at(began + seconds(5), &shop, &lag(3, 2));
        history.measured_at(began + seconds(5), &billing, &lag(4, 1));
        let points = history.points_at(began + seconds(70));
        let waited: Vec<_> = points.iter().map(|point| (point.unsent, point.oldest)).collect();
        assert_eq!(waited[0], (Some(7), Some(seconds(7))));
        assert_eq!(waited[4], (Some(7), Some(seconds(47))));
        // Nobody has measured for too long.
        assert_eq!(waited[5..], [(None, None), (None, None)]);
        history.measured_at(began + seconds(71), &shop, &lag(0, 0));
        history.measured_at(began + seconds(71), &billing, &lag(0, 0));
        let points = history.points_at(began + seconds(80));
        assert_eq!((points[7].unsent, points[7].oldest), (Some(0), Some(Duration::ZERO)));
    }

    #[test]
    fn an_hour_is_kept_however_long_nobody_looked() {
        let (history, began) = started();
        history.published_at(began + seconds(1), 10, [].into_iter());
        assert_eq!(history.points_at(began + seconds(3_599)).len(), 359);
        history.published_at(began + seconds(200_000), 10, [].into_iter());
        let sent = |points: Vec<Point>| points.iter().filter(|point| point.rate > 0.0).count();
        // What was sent long ago is not among them.
        assert_eq!(sent(history.points_at(began + seconds(200_000))), 0);
        let points = history.points_at(began + seconds(200_010));
        assert_eq!((points.len(), points[359].rate), (POINTS, 1.0));
        assert_eq!(sent(points), 1);
    }
}
