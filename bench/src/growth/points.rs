//! The points of the curves.

use diesel_outbox_core::SHARDS;
use diesel_outbox_relay::Relay;

use super::events::Events;

/// A point of a curve, and what is drained there.
pub(super) struct Point {
    /// The curve, and the place on it.
    pub(super) name: String,
    pub(super) events: Events,
    /// How many rows wait at once, and how often.
    pub(super) rows: usize,
    pub(super) batches: usize,
    batch_size: usize,
    workers: usize,
}

/// Enough for a second or more.
const ROWS: usize = 200_000;
/// The most bytes of payload that wait.
const BYTES: usize = 100_000_000;
/// Small batches take longer, so this many of them are enough.
const FULL_BATCHES: usize = 500;

/// Returns all points of all curves. The largest backlog has this many rows.
pub(super) fn points(rows: usize) -> Vec<Point> {
    let payloads = [50, 200, 1_000, 5_000, 20_000].map(|bytes| Point {
        events: Events { bytes, ..Events::USUAL },
        rows: ROWS.min(BYTES / bytes),
        ..usual(format!("payload {bytes} B"))
    });
    let batch_sizes = [100, 500, 1_000, 2_000, 4_000, 8_000].map(|batch_size| Point {
        batch_size,
        rows: ROWS.min(batch_size * FULL_BATCHES),
        ..usual(format!("batch {batch_size} rows"))
    });
    let workers = [1, 2, 4].map(|workers| Point { workers, ..usual(format!("workers {workers}")) });
    let shards = [1, 4, SHARDS].map(|shards| Point {
        events: Events { shards, ..Events::USUAL },
        ..usual(format!("shards {shards}"))
    });
    let backlogs = [10_000, 100_000].into_iter().filter(|&few| few < rows).chain([rows]).map(|rows| Point {
        rows,
        batches: (ROWS / rows.max(1)).max(1),
        ..usual(format!("backlog {rows} rows"))
    });
    payloads.into_iter().chain(batch_sizes).chain(workers).chain(shards).chain(backlogs).collect()
}

fn usual(name: String) -> Point {
    let batch_size = 2_000;
    Point { name, events: Events::USUAL, rows: ROWS, batches: 1, batch_size, workers: 1 }
}

impl Point {
    pub(super) fn set_up(&self, relay: Relay) -> Relay {
        relay.workers(self.workers).batch_size(self.batch_size).max_in_flight(4 * self.batch_size)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_backlog_has_as_many_rows_as_asked_for() {
        let backlogs = |rows| {
            let points = points(rows).into_iter().filter(|point| point.name.starts_with("backlog"));
            points.map(|point| (point.rows, point.batches)).collect::<Vec<_>>()
        };
        assert_eq!(backlogs(1_000_000), [(10_000, 20), (100_000, 2), (1_000_000, 1)]);
        assert_eq!(backlogs(50_000), [(10_000, 20), (50_000, 4)]);
    }

    #[test]
    fn a_point_is_bounded_in_rows_and_bytes() {
        let points = points(1_000_000);
        assert!(points.iter().all(|point| point.rows <= 1_000_000));
        let payloads = points.iter().filter(|point| point.name.starts_with("payload"));
        assert!(payloads.into_iter().all(|point| point.rows * point.events.bytes <= BYTES));
    }
}
