use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};

use super::ConsumerError;
use super::database::message;

/// A running consumer. Dropping it tells the consumer to stop, without waiting for it.
#[derive(Debug)]
#[must_use = "dropping the handle stops the consumer"]
pub struct ConsumerHandle {
    stop: Arc<AtomicBool>,
    /// Taken when it is joined.
    thread: Option<JoinHandle<Result<(), ConsumerError>>>,
}

impl ConsumerHandle {
    /// Lets this work on a thread of its own; it asks the function that it is given whether to stop.
    pub(super) fn spawn(
        work: impl FnOnce(&dyn Fn() -> bool) -> Result<(), ConsumerError> + Send + 'static,
    ) -> Result<Self, ConsumerError> {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = thread::Builder::new().name("outbox-consumer".to_owned());
        let thread = thread.spawn(move || work(&|| stopped.load(Ordering::Relaxed)))?;
        Ok(Self { stop, thread: Some(thread) })
    }

    /// Stops gracefully and waits for that: the record in hand is finished, the offsets are committed, the group is
    /// left, so that others take over at once. It takes as long as the handler at work does.
    ///
    /// # Errors
    /// Why the consumer had ended before by itself.
    pub fn stop(mut self) -> Result<(), ConsumerError> {
        self.stop.store(true, Ordering::Relaxed);
        match self.thread.take().map(JoinHandle::join) {
            None => Ok(()),
            Some(Ok(outcome)) => outcome,
            Some(Err(panic)) => Err(ConsumerError::Panicked(message(&*panic).to_owned())),
        }
    }

    /// [`stop`](Self::stop) for async code, which must not wait for a thread.
    ///
    /// # Errors
    /// As for [`stop`](Self::stop).
    #[cfg(feature = "async")]
    pub async fn stop_async(self) -> Result<(), ConsumerError> {
        match tokio::task::spawn_blocking(|| self.stop()).await {
            Ok(outcome) => outcome,
            Err(_) => Err(ConsumerError::NoRuntime),
        }
    }

    /// Whether the consumer has ended by itself, which it does only for the reasons that
    /// [`ConsumerError::Kafka`] names; [`stop`](Self::stop) tells why.
    pub fn is_finished(&self) -> bool {
        self.thread.as_ref().is_none_or(JoinHandle::is_finished)
    }
}

impl Drop for ConsumerHandle {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}
