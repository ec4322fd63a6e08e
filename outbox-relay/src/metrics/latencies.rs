//! How long records take from emit to acknowledgement. A pass counts them here, and hands the counts to the recorder at its end: to call
//! the recorder for each record would cost more than all else that the relay does with it.

use std::collections::VecDeque;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use metrics::Histogram;

/// The upper ends of the buckets, in milliseconds. A recorder that has some of these in seconds as its own buckets counts exactly.
const BUCKETS_MS: [u64; 17] =
    [1, 2, 5, 10, 25, 50, 100, 250, 500, 1_000, 2_500, 5_000, 10_000, 30_000, 60_000, 300_000, 3_600_000];

/// The latencies of one pass.
#[derive(Debug)]
pub(crate) struct Latencies {
    /// When the pass began, by the two clocks: the time of an emit has only one of them.
    began: Instant,
    began_at_ms: u64,
    /// When the records in flight were emitted, in the order in which they were handed over. An acknowledgement removes the first, whichever
    /// record it is about, so only the sum of all latencies is exact.
    in_flight: VecDeque<Option<u64>>,
    /// How many fell into each bucket, and their sum in milliseconds. The last bucket has no end.
    buckets: [(usize, u64); BUCKETS_MS.len() + 1],
}

impl Latencies {
    pub(crate) fn begin(now: Instant) -> Self {
        Self {
            began: now,
            began_at_ms: unix_ms(SystemTime::now()),
            in_flight: VecDeque::new(),
            buckets: [(0, 0); BUCKETS_MS.len() + 1],
        }
    }

    /// Notes that a record is in flight now, and when it was emitted.
    pub(crate) fn emitted(&mut self, at: Option<SystemTime>) {
        self.in_flight.push_back(at.map(unix_ms));
    }

    /// Counts a record that is not in flight any more.
    pub(crate) fn acknowledged(&mut self, now: Instant) {
        let Some(emitted_at_ms) = self.in_flight.pop_front().flatten() else { return };
        let now_ms = self.began_at_ms + whole_ms(now.saturating_duration_since(self.began));
        // The clock of the database may be ahead of ours.
        let latency_ms = now_ms.saturating_sub(emitted_at_ms);
        let (count, sum) = &mut self.buckets[BUCKETS_MS.partition_point(|end| *end < latency_ms)];
        *count += 1;
        *sum += latency_ms;
    }

    /// Returns what was counted: how many records fell into a bucket, and their mean in milliseconds.
    pub(crate) fn counted(&self) -> impl Iterator<Item = (u64, f64)> {
        let counted = self.buckets.iter().filter(|(count, _)| *count > 0);
        counted.map(|(count, sum)| (*count as u64, *sum as f64 / *count as f64))
    }

    /// Hands over what was counted, with the mean of each bucket, and counts anew.
    pub(crate) fn hand_to(&mut self, histogram: &Histogram) {
        for (count, sum) in std::mem::take(&mut self.buckets).into_iter().filter(|(count, _)| *count > 0) {
            histogram.record_many(sum as f64 / count as f64 / 1_000.0, count);
        }
    }
}

fn unix_ms(at: SystemTime) -> u64 {
    at.duration_since(UNIX_EPOCH).map(whole_ms).unwrap_or_default()
}

fn whole_ms(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use metrics::HistogramFn;

    use super::*;

    #[derive(Default)]
    struct Recorded(Mutex<Vec<(f64, usize)>>);

    impl HistogramFn for Recorded {
        fn record(&self, value: f64) {
            self.record_many(value, 1);
        }

        fn record_many(&self, value: f64, count: usize) {
            self.0.lock().unwrap().push((value, count));
        }
    }

    #[test]
    fn each_bucket_is_handed_over_once_with_its_mean() {
        let began = Instant::now();
        let mut latencies = Latencies::begin(began);
        let at = UNIX_EPOCH + Duration::from_millis(latencies.began_at_ms);
        for ago_ms in [30, 40, 700, 50_000_000] {
            latencies.emitted(Some(at - Duration::from_millis(ago_ms)));
        }
        // One has no time, and one is from the future.
        latencies.emitted(None);
        latencies.emitted(Some(at + Duration::from_secs(9)));
        for _ in 0..6 {
            latencies.acknowledged(began + Duration::from_millis(5));
        }
        // More acknowledgements than records do no harm.
        latencies.acknowledged(began);
        let recorded = Arc::new(Recorded::default());
        let histogram = Histogram::from_arc(recorded.clone());
        latencies.hand_to(&histogram);
        assert_eq!(*recorded.0.lock().unwrap(), [(0.0, 1), (0.04, 2), (0.705, 1), (50_000.005, 1)]);
        latencies.hand_to(&histogram);
        assert_eq!(recorded.0.lock().unwrap().len(), 4);
    }
}
