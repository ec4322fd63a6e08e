use std::iter;
use std::time::Duration;

use diesel_outbox_core::__private::{Running, Stop};

use super::ConsumerError;

/// A running consumer.
///
/// Keep it for as long as the consumer should work, then [stop](Self::stop) it. Dropping the handle stops the consumer too, without
/// waiting for it, and logs a warning. Call [`detach`](Self::detach) if the consumer should work until the process ends.
#[derive(Debug)]
#[must_use = "the consumer stops as soon as its handle is dropped: keep the handle, or call `detach`"]
pub struct ConsumerHandle {
    running: Running<ConsumerError>,
    shutdown_timeout: Duration,
}

impl ConsumerHandle {
    /// Starts a thread for this work, which ends when it is asked to.
    pub(super) fn start(
        shutdown_timeout: Duration,
        work: impl FnOnce(&Stop) -> Result<(), ConsumerError> + Send + 'static,
    ) -> Result<Self, ConsumerError> {
        let stop = Stop::default();
        let stopped = stop.clone();
        let work = iter::once(("outbox-consumer".to_owned(), move || work(&stopped)));
        let running = Running::start(stop, work, ConsumerError::Panicked)?;
        Ok(Self { running, shutdown_timeout })
    }

    /// Stops the consumer gracefully: it finishes the record in hand, commits the offsets and leaves the group, so that others take
    /// over at once. It works on any async runtime.
    ///
    /// # Errors
    /// Returns [`ConsumerError::ShutdownTimeout`] if that took longer than [`Consumer::shutdown_timeout`](super::Consumer::shutdown_timeout).
    /// If the consumer had ended by itself, returns why: [`ConsumerError::NoInbox`], [`ConsumerError::Kafka`] or
    /// [`ConsumerError::Panicked`].
    pub async fn stop(self) -> Result<(), ConsumerError> {
        self.outcome(self.running.stop(self.shutdown_timeout).await)
    }

    /// Does the same as [`stop`](Self::stop) for programs without an async runtime: it blocks the thread.
    ///
    /// # Errors
    /// As for [`stop`](Self::stop).
    pub fn stop_blocking(self) -> Result<(), ConsumerError> {
        self.outcome(self.running.stop_blocking(self.shutdown_timeout))
    }

    /// Lets the consumer work until the process ends, without a handle.
    ///
    /// Nothing stops it gracefully then: Kafka gives its partitions to others only when it misses the heartbeats, and the
    /// inbox recognises the records that are delivered again.
    pub fn detach(self) {
        // Its threads keep what they share with it for as long as they work.
        std::mem::forget(self);
    }

    /// Returns whether the consumer has ended by itself. It does so only if it cannot go on; [`stop`](Self::stop) returns why.
    pub fn is_finished(&self) -> bool {
        self.running.is_finished()
    }

    /// Waits until the consumer has ended by itself or the future ends, and stops it.
    pub(super) async fn run(self, shutdown: impl Future<Output = ()>) -> Result<(), ConsumerError> {
        self.running.until(shutdown).await;
        self.stop().await
    }

    fn outcome(&self, ended: Option<Result<(), ConsumerError>>) -> Result<(), ConsumerError> {
        ended.unwrap_or(Err(ConsumerError::ShutdownTimeout(self.shutdown_timeout)))
    }
}

impl Drop for ConsumerHandle {
    fn drop(&mut self) {
        if self.running.abandon() {
            tracing::warn!(
                "the consumer's handle was dropped, so the consumer stops: keep the handle for as long as the consumer should \
                 work, or call `detach` on it"
            );
        }
    }
}
