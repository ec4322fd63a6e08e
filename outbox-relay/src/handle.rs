use std::time::Duration;

use diesel_outbox_core::__private::{Running, Stop};
use diesel_outbox_core::SourceError;

use crate::{Health, History, RelayError};

/// What a thread of a relay does until the relay stops.
pub(crate) type Work = Box<dyn FnOnce() -> Result<(), SourceError> + Send>;

/// A running relay.
///
/// Keep it for as long as the relay should work, then [stop](Self::stop) it. If you drop it, the relay stops too: the drop does not
/// wait for that, and logs a warning. Call [`detach`](Self::detach) if the relay should work until the process ends.
#[derive(Debug)]
#[must_use = "the relay stops as soon as its handle is dropped: keep the handle, or call `detach`"]
pub struct RelayHandle {
    running: Running<RelayError>,
    health: Health,
    history: History,
    shutdown_timeout: Duration,
}

impl RelayHandle {
    /// Starts a named thread for each piece of work.
    pub(crate) fn start(
        stop: Stop,
        work: Vec<(String, Work)>,
        health: Health,
        history: History,
        shutdown_timeout: Duration,
    ) -> Result<Self, RelayError> {
        let work = work.into_iter().map(|(name, work)| (name, move || work().map_err(RelayError::Source)));
        let running = Running::start(stop, work, RelayError::Panicked)?;
        Ok(Self { running, health, history, shutdown_timeout })
    }

    /// Stops the relay gracefully. The relay begins nothing new, waits until the broker has acknowledged what is in flight, settles
    /// that, and closes its connections. So a stop alone makes no record arrive twice. Await it on any async runtime.
    ///
    /// # Errors
    /// Returns [`RelayError::ShutdownTimeout`] if the stop took longer than
    /// [`Relay::shutdown_timeout`](crate::Relay::shutdown_timeout). If the relay had ended by itself, returns why:
    /// [`RelayError::Source`] or [`RelayError::Panicked`].
    pub async fn stop(self) -> Result<(), RelayError> {
        self.outcome(self.running.stop(self.shutdown_timeout).await)
    }

    /// Stops the relay as [`stop`](Self::stop) does, and blocks the thread meanwhile. For programs without an async runtime.
    ///
    /// # Errors
    /// As for [`stop`](Self::stop).
    pub fn stop_blocking(self) -> Result<(), RelayError> {
        self.outcome(self.running.stop_blocking(self.shutdown_timeout))
    }

    /// Gives up the handle and lets the relay work until the process ends.
    ///
    /// Nothing stops it gracefully then: the next relay sends again what was in flight.
    pub fn detach(self) {
        // Its threads keep what they share with it for as long as they work.
        std::mem::forget(self);
    }

    /// Returns whether the relay has ended by itself. It does so only if it cannot go on; [`stop`](Self::stop) returns why.
    pub fn is_finished(&self) -> bool {
        self.running.is_finished()
    }

    /// Returns what reports whether the relay makes progress. It can be asked after the relay has stopped too.
    pub fn health(&self) -> Health {
        self.health.clone()
    }

    /// Returns what the relay did in the last hour. It can be asked after the relay has stopped too.
    pub fn history(&self) -> History {
        self.history.clone()
    }

    /// Waits until the relay has ended by itself or the future ends, and stops it.
    pub(crate) async fn run(self, shutdown: impl Future<Output = ()>) -> Result<(), RelayError> {
        self.running.until(shutdown).await;
        self.stop().await
    }

    fn outcome(&self, ended: Option<Result<(), RelayError>>) -> Result<(), RelayError> {
        ended.unwrap_or(Err(RelayError::ShutdownTimeout(self.shutdown_timeout)))
    }
}

impl Drop for RelayHandle {
    fn drop(&mut self) {
        if self.running.abandon() {
            tracing::warn!(
                "the relay's handle was dropped, so the relay stops: keep the handle for as long as the relay should work, or \
                 call `detach` on it"
            );
        }
    }
}
