use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use crate::RelayError;
use crate::worker::{Stop, Worker};

/// A running relay. Dropping it tells the relay to stop, without waiting for it.
#[must_use = "dropping the handle stops the relay"]
pub struct RelayHandle {
    stop: Stop,
    stop_time: Duration,
    ended: oneshot::Receiver<Result<(), RelayError>>,
    outcome: Option<Result<(), RelayError>>,
}

impl RelayHandle {
    /// Starts a thread for each worker, and one that joins them, so that nobody has to wait for a thread in an async
    /// function.
    pub(crate) fn start(
        stop: Stop,
        workers: impl Iterator<Item = Worker>,
        stop_time: Duration,
    ) -> Result<Self, RelayError> {
        let (sender, ended) = oneshot::channel();
        // Dropped where a thread cannot be started, which stops those that were.
        let handle = Self { stop, stop_time, ended, outcome: None };
        let thread = |name: String| std::thread::Builder::new().name(name);
        let mut threads = Vec::new();
        for (number, worker) in workers.enumerate() {
            threads.push(thread(format!("outbox-relay-{number}")).spawn(move || worker.run())?);
        }
        thread("outbox-relay-end".to_owned()).spawn(move || {
            let mut outcome = Ok(());
            for worker in threads {
                match worker.join() {
                    Ok(Ok(())) => {}
                    Ok(Err(error)) => outcome = Err(RelayError::Source(error)),
                    Err(panic) => outcome = Err(RelayError::Panicked(message(panic.as_ref()))),
                }
            }
            // Nobody may be waiting any more.
            let _ = sender.send(outcome);
        })?;
        Ok(handle)
    }

    /// Stops gracefully: what is in flight is acknowledged and settled, nothing new is begun, the connections are
    /// closed. Nothing is sent twice because of it.
    ///
    /// # Errors
    /// [`RelayError::StopTimeout`] where that took longer than the relay's stop time, [`RelayError::Panicked`] where a
    /// worker had panicked, [`RelayError::Source`] where the source could not go on.
    pub async fn stop(mut self) -> Result<(), RelayError> {
        self.stop.set();
        let time = self.stop_time;
        let ended = std::future::poll_fn(|context| self.poll_ended(context));
        match tokio::time::timeout(time, ended).await {
            Ok(()) => self.outcome.take().unwrap_or(Ok(())),
            Err(_) => Err(RelayError::StopTimeout(time)),
        }
    }

    /// [`stop`](Self::stop) for programs without an async runtime: it blocks the thread.
    ///
    /// # Errors
    /// As for [`stop`](Self::stop).
    pub fn stop_blocking(mut self) -> Result<(), RelayError> {
        self.stop.set();
        let until = Instant::now() + self.stop_time;
        while !self.is_finished() {
            if Instant::now() >= until {
                return Err(RelayError::StopTimeout(self.stop_time));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        self.outcome.take().unwrap_or(Ok(()))
    }

    /// Whether the relay has ended by itself, which it does only where a worker panics or the source cannot go on.
    /// [`stop`](Self::stop) tells why.
    pub fn is_finished(&mut self) -> bool {
        if self.outcome.is_none()
            && let Ok(outcome) = self.ended.try_recv()
        {
            self.outcome = Some(outcome);
        }
        self.outcome.is_some()
    }

    /// Waits until the relay has ended by itself.
    pub(crate) fn poll_ended(&mut self, context: &mut Context<'_>) -> Poll<()> {
        if self.outcome.is_some() {
            return Poll::Ready(());
        }
        std::pin::Pin::new(&mut self.ended).poll(context).map(|outcome| {
            self.outcome = Some(outcome.unwrap_or(Ok(())));
        })
    }
}

impl Drop for RelayHandle {
    fn drop(&mut self) {
        self.stop.set();
    }
}

fn message(panic: &(dyn std::any::Any + Send)) -> String {
    match (panic.downcast_ref::<&str>(), panic.downcast_ref::<String>()) {
        (Some(text), _) => (*text).to_owned(),
        (_, Some(text)) => text.clone(),
        _ => "no message".to_owned(),
    }
}
