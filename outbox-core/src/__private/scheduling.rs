use std::time::{Duration, SystemTime};

use super::{LONGEST_RETENTION, unix_ms};

/// When an event is due. The database counts, so that services' clocks do not matter if it is due after some time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Due {
    /// At this time, in milliseconds since 1970.
    At(i64),
    /// When so many microseconds have passed.
    After(i64),
}

/// The end of the year 9999, which every database can store.
const LATEST_MS: i64 = 253_402_300_799_000;

impl Due {
    /// Returns the time, rounded up to a millisecond so that it is not early. A time that not every database can store becomes one that
    /// is as good.
    pub fn at(time: SystemTime) -> Self {
        let rounded_up = time.checked_add(Duration::from_nanos(999_999)).unwrap_or(time);
        Self::At(unix_ms(rounded_up).clamp(0, LATEST_MS))
    }

    /// Returns when this much time has passed, 100 years at most.
    pub fn after(time: Duration) -> Self {
        Self::After(i64::try_from(time.min(LONGEST_RETENTION).as_micros()).unwrap_or(i64::MAX))
    }
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use super::*;

    #[test]
    fn a_time_is_never_early_and_one_that_cannot_be_stored_is_as_good_as_one_that_can() {
        assert_eq!(Due::at(UNIX_EPOCH + Duration::from_nanos(1_000_001)), Due::At(2));
        assert_eq!(Due::at(UNIX_EPOCH + Duration::from_millis(5)), Due::At(5));
        assert_eq!(Due::at(UNIX_EPOCH - Duration::from_secs(60)), Due::At(0));
        assert_eq!(Due::at(UNIX_EPOCH + Duration::from_secs(u64::MAX >> 2)), Due::At(LATEST_MS));
        assert_eq!(Due::after(Duration::from_millis(3)), Due::After(3_000));
        assert_eq!(Due::after(Duration::MAX), Due::after(LONGEST_RETENTION));
    }
}
