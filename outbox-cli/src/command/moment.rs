//! How a point in time is written.

use std::str::FromStr;
use std::time::SystemTime;

/// A point in time.
#[derive(Debug, Clone, Copy)]
pub(super) struct Moment(pub(super) SystemTime);

impl FromStr for Moment {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if let Ok(time) = humantime::parse_rfc3339_weak(text) {
            return Ok(Self(time));
        }
        let ago = humantime::parse_duration(text).ok().and_then(|ago| SystemTime::now().checked_sub(ago));
        ago.map(Self).ok_or_else(|| {
            "it must be a time in UTC, such as 2026-11-28T09:00:00Z, or how long ago, such as 2h or 7d"
                .to_owned()
        })
    }
}
