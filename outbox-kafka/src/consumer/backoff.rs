use std::time::Duration;

/// How long to wait before the next try: twice as long each time, up to a longest wait.
#[derive(Debug, Clone, Copy)]
pub(super) struct Backoff {
    pub(super) first: Duration,
    pub(super) longest: Duration,
}

impl Backoff {
    /// Returns the wait after this many attempts.
    pub(super) fn after(self, attempts: u32) -> Duration {
        let factor = 2_u32.saturating_pow(attempts.saturating_sub(1));
        self.first.saturating_mul(factor).min(self.longest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_the_longest() {
        let backoff = Backoff { first: Duration::from_millis(100), longest: Duration::from_secs(10) };
        let waits = [1, 2, 3, 7, 8, u32::MAX].map(|attempts| backoff.after(attempts).as_millis());
        assert_eq!(waits, [100, 200, 400, 6_400, 10_000, 10_000]);
    }
}
