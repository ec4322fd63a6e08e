//! Waits for a condition, never for a fixed time.

use std::fmt::Display;
use std::thread;
use std::time::{Duration, Instant};

const POLL: Duration = Duration::from_millis(10);

/// Waits until `condition` returns a value. Panics with `what` if it does not `within` that time.
#[track_caller]
pub fn eventually<T>(what: &str, within: Duration, condition: impl FnMut() -> Option<T>) -> T {
    match unless_late(within, condition) {
        Some(value) => value,
        None => panic!("waited {within:?} in vain for {what}"),
    }
}

/// Waits until `condition` returns a value, but no longer than `within`.
pub(crate) fn unless_late<T>(within: Duration, mut condition: impl FnMut() -> Option<T>) -> Option<T> {
    let started = Instant::now();
    loop {
        let value = condition();
        if value.is_some() || started.elapsed() >= within {
            return value;
        }
        thread::sleep(POLL);
    }
}

/// Waits until `attempt` succeeds. Panics with its last error if it does not `within` that time.
#[track_caller]
pub fn eventually_ok<T, E: Display>(
    what: &str,
    within: Duration,
    mut attempt: impl FnMut() -> Result<T, E>,
) -> T {
    let started = Instant::now();
    loop {
        match attempt() {
            Ok(value) => return value,
            Err(error) if started.elapsed() >= within => {
                panic!("waited {within:?} in vain for {what}: {error}")
            }
            Err(_) => thread::sleep(POLL),
        }
    }
}

/// [`eventually`] for async tests: other tasks run while it waits.
pub async fn eventually_async<T>(
    what: &str,
    within: Duration,
    mut condition: impl AsyncFnMut() -> Option<T>,
) -> T {
    let started = Instant::now();
    loop {
        if let Some(value) = condition().await {
            return value;
        }
        assert!(started.elapsed() < within, "waited {within:?} in vain for {what}");
        tokio::time::sleep(POLL).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_condition_is_asked_until_it_gives_a_value() {
        let mut asked = 0;
        let value = eventually("the third time", Duration::from_secs(5), || {
            asked += 1;
            (asked == 3).then_some("here")
        });
        assert_eq!((value, asked), ("here", 3));
    }

    #[test]
    #[should_panic(expected = "waited 20ms in vain for a reply: not yet")]
    fn a_failure_names_what_was_awaited_and_the_last_error() {
        eventually_ok("a reply", Duration::from_millis(20), || Err::<(), _>("not yet"));
    }
}
