//! The most records that a relay reads in a second, all of its workers together.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// For how long the relay may save up what it did not read. So it reads that much at once at most.
const SAVED: Duration = Duration::from_millis(100);

/// A bucket of tokens, one for each record, that fills at the rate. The workers of a relay share it. Without a limit it is always full.
#[derive(Debug, Clone, Default)]
pub(crate) struct MaxRate(Option<Arc<Limited>>);

#[derive(Debug)]
struct Limited {
    per_second: f64,
    /// What it holds at most: at least one token, so that a low rate is one too.
    capacity: f64,
    bucket: Mutex<Bucket>,
}

#[derive(Debug)]
struct Bucket {
    tokens: f64,
    /// When it held that many.
    at: Option<Instant>,
}

impl MaxRate {
    /// Returns a limit of so many records in a second.
    pub(crate) fn new(per_second: u32) -> Self {
        let per_second = f64::from(per_second);
        let capacity = (per_second * SAVED.as_secs_f64()).max(1.0);
        let bucket = Mutex::new(Bucket { tokens: capacity, at: None });
        Self(Some(Arc::new(Limited { per_second, capacity, bucket })))
    }

    pub(crate) fn is_limited(&self) -> bool {
        self.0.is_some()
    }

    /// Returns the limit.
    pub(crate) fn per_second(&self) -> Option<f64> {
        self.0.as_ref().map(|limited| limited.per_second)
    }

    /// Takes tokens for this many records, or for as many as there are. Returns how many that is.
    pub(crate) fn take(&self, now: Instant, records: usize) -> usize {
        let Some(limited) = &self.0 else { return records };
        limited.with_bucket(now, |bucket| {
            // Both are small enough to be exact.
            let taken = records.min(bucket.tokens as usize);
            bucket.tokens -= taken as f64;
            taken
        })
    }

    /// Puts tokens back that were not needed.
    pub(crate) fn put_back(&self, now: Instant, records: usize) {
        if let Some(limited) = &self.0 {
            limited.with_bucket(now, |bucket| {
                bucket.tokens = (bucket.tokens + records as f64).min(limited.capacity);
            });
        }
    }

    /// Returns how long it takes until it is worth the while to claim: until the bucket is half full.
    pub(crate) fn wait(&self, now: Instant) -> Duration {
        let Some(limited) = &self.0 else { return Duration::ZERO };
        let missing = limited.with_bucket(now, |bucket| (limited.capacity / 2.0).max(1.0) - bucket.tokens);
        if missing <= 0.0 {
            return Duration::ZERO;
        }
        // A little more, lest rounding leaves it a little short.
        Duration::from_secs_f64(missing / limited.per_second) + Duration::from_micros(1)
    }
}

impl Limited {
    /// Fills the bucket first.
    fn with_bucket<T>(&self, now: Instant, then: impl FnOnce(&mut Bucket) -> T) -> T {
        let mut bucket = self.bucket.lock().unwrap_or_else(PoisonError::into_inner);
        let passed = bucket.at.map_or(Duration::ZERO, |at| now.saturating_duration_since(at));
        bucket.tokens = (bucket.tokens + passed.as_secs_f64() * self.per_second).min(self.capacity);
        // Another worker may have come with a later time.
        bucket.at = bucket.at.max(Some(now));
        then(&mut bucket)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn without_a_limit_everything_is_there_at_once() {
        let (rate, now) = (MaxRate::default(), Instant::now());
        assert_eq!((rate.take(now, 100_000), rate.wait(now)), (100_000, Duration::ZERO));
    }

    #[test]
    fn a_low_rate_gives_one_record_at_a_time() {
        let (rate, began) = (MaxRate::new(2), Instant::now());
        assert_eq!((rate.take(began, 10), rate.take(began, 10)), (1, 0));
        let wait = rate.wait(began);
        assert!((499..=501).contains(&wait.as_millis()), "{wait:?}");
        assert_eq!(rate.take(began + wait, 10), 1);
        // Nothing is saved up in an hour but one record.
        assert_eq!(rate.take(began + Duration::from_secs(3_600), 10), 1);
    }

    #[test]
    fn what_was_not_needed_can_be_taken_again() {
        let (rate, now) = (MaxRate::new(1_000), Instant::now());
        assert_eq!(rate.take(now, 2_000), 100);
        rate.put_back(now, 60);
        assert_eq!(rate.take(now, 2_000), 60);
        rate.put_back(now, 1_000_000);
        assert_eq!(rate.take(now, 2_000), 100, "it holds no more than that");
    }

    proptest! {
        /// Whatever the workers ask for and whenever, in no stretch of time do they get more than the rate and what was saved up.
        #[test]
        fn no_stretch_of_time_has_more_than_the_rate_allows(
            per_second in 1_u32..100_000,
            asks in prop::collection::vec((0_u64..50_000, 0_usize..5_000), 1..60),
        ) {
            let (rate, mut now) = (MaxRate::new(per_second), Instant::now());
            let mut given = Vec::new();
            for (micros, records) in asks {
                now += Duration::from_micros(micros);
                given.push((now, rate.take(now, records)));
            }
            let saved = (f64::from(per_second) / 10.0).max(1.0);
            for first in 0..given.len() {
                let mut sum = 0;
                for (at, taken) in &given[first..] {
                    sum += taken;
                    let most = saved + f64::from(per_second) * (*at - given[first].0).as_secs_f64();
                    prop_assert!(sum as f64 <= most + 0.001, "{sum} in a stretch that has room for {most}");
                }
            }
        }

        /// Whoever waits as long as they are told gets something.
        #[test]
        fn a_wait_is_never_in_vain(per_second in 1_u32..1_000_000, drained in 0_usize..200_000) {
            let (rate, now) = (MaxRate::new(per_second), Instant::now());
            rate.take(now, drained);
            let wait = rate.wait(now);
            prop_assert!(wait <= Duration::from_millis(1_001));
            prop_assert!(rate.take(now + wait, usize::MAX) > 0);
        }
    }
}
