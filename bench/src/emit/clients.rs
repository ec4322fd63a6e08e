//! Clients that make one transaction after the other, each on a connection of its own.

mod blocking;
mod tasks;

use std::time::{Duration, Instant};

pub(super) use self::tasks::Client;

/// How a transaction writes its event.
#[derive(Clone, Copy)]
pub(super) enum How {
    Emit,
    /// An ordinary Diesel insert of the same row, which wakes nobody.
    Insert,
}

#[derive(Clone, Copy)]
pub(super) struct Clients {
    pub(super) count: usize,
    pub(super) time: Duration,
    /// The pause before each transaction. It does not count as time.
    pub(super) pause: Duration,
    /// Bytes of payload in each event.
    pub(super) bytes: usize,
}

/// How many transactions each client makes before the clock starts: statements become prepared, and the server settles on plans.
const WARM_UP: usize = 20;

/// Counts one client's transactions and the time they took.
struct Clock {
    until: Instant,
    transactions: u32,
    spent: Duration,
}

impl Clock {
    fn start(time: Duration) -> Self {
        Self { until: Instant::now() + time, transactions: 0, spent: Duration::ZERO }
    }

    fn is_over(&self) -> bool {
        Instant::now() >= self.until
    }

    fn count(&mut self, began: Instant) {
        self.transactions += 1;
        self.spent += began.elapsed();
    }

    /// Returns the transactions per second.
    fn speed(&self) -> f64 {
        f64::from(self.transactions) / self.spent.as_secs_f64()
    }
}
