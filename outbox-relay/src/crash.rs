//! Named points at which the tests let the relay die, as if it were killed there.

/// Ends the process if `OUTBOX_CRASH_AT` names this point, such as `after_sending`. `after_sending:3` means the third time. Nothing
/// is flushed, closed or settled.
#[cfg(feature = "__crash-points")]
pub(crate) fn crash_point(name: &str) {
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicUsize, Ordering};

    static CHOSEN: OnceLock<Option<(String, usize)>> = OnceLock::new();
    static PASSED: AtomicUsize = AtomicUsize::new(0);
    let chosen = CHOSEN.get_or_init(|| {
        let chosen = std::env::var("OUTBOX_CRASH_AT").ok()?;
        match chosen.split_once(':') {
            Some((name, time)) => Some((name.to_owned(), time.parse().ok()?)),
            None => Some((chosen, 1)),
        }
    });
    if let Some((point, time)) = chosen
        && point == name
        && PASSED.fetch_add(1, Ordering::Relaxed) + 1 == *time
    {
        std::process::abort();
    }
}

/// Does nothing.
#[cfg(not(feature = "__crash-points"))]
pub(crate) fn crash_point(_: &str) {}
