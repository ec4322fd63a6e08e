//! Times as SQLite computes them.

/// Milliseconds since 1970 from a Julian day.
macro_rules! unix_ms {
    ($julian_day:literal) => {
        concat!("CAST(round((", $julian_day, " - 2440587.5) * 86400000.0) AS INTEGER)")
    };
}
pub(crate) use unix_ms;

/// When a row was emitted. If SQLite does not understand the time, this is now, so that the row does not stop the relay.
macro_rules! created_at_ms {
    () => {
        crate::source::julian_day::unix_ms!("coalesce(julianday(created_at), julianday('now'))")
    };
}
pub(crate) use created_at_ms;
