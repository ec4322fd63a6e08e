//! Threads that run until they are asked to stop. The handles of a relay and of a consumer are built on them. They need no async
//! runtime, so a handle can be awaited on any.

use std::any::Any;
use std::fmt;
use std::future::{Future, poll_fn};
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::thread;
use std::time::Duration;

/// A flag that is set once, when the threads should stop.
#[derive(Debug, Clone, Default)]
pub struct Stop(Arc<AtomicBool>);

impl Stop {
    /// Asks the threads to stop.
    pub fn set(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Returns whether the threads should stop.
    pub fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// Running threads. If one of them fails or panics, the others are stopped.
pub struct Running<E> {
    stop: Stop,
    end: Arc<End<E>>,
}

/// The state shared by the threads and whoever waits for their end.
struct End<E> {
    state: Mutex<State<E>>,
    changed: Condvar,
}

struct State<E> {
    at_work: usize,
    outcome: Result<(), E>,
    /// Whether nobody waits any longer.
    timed_out: bool,
    waker: Option<Waker>,
}

impl<E: Send + 'static> Running<E> {
    /// Starts a named thread for each piece of work. If one panics, `panicked` turns the panic's message into an error.
    ///
    /// # Errors
    /// The system's error if it cannot start another thread. Those that were started are stopped.
    pub fn start<W>(
        stop: Stop,
        work: impl IntoIterator<Item = (String, W)>,
        panicked: fn(String) -> E,
    ) -> io::Result<Self>
    where
        W: FnOnce() -> Result<(), E> + Send + 'static,
    {
        // All of it is made before anything runs: if making it panics, nothing is left at work.
        let work: Vec<(String, W)> = work.into_iter().collect();
        let state = State { at_work: 0, outcome: Ok(()), timed_out: false, waker: None };
        let end = Arc::new(End { state: Mutex::new(state), changed: Condvar::new() });
        let running = Self { stop, end };
        for (name, work) in work {
            let (stop, end) = (running.stop.clone(), running.end.clone());
            running.end.lock().at_work += 1;
            let run = move || {
                let outcome = catch_unwind(AssertUnwindSafe(work))
                    .unwrap_or_else(|panic| Err(panicked(panic_message(&*panic).to_owned())));
                end.leave(&stop, outcome);
            };
            if let Err(error) = thread::Builder::new().name(name).spawn(run) {
                running.stop.set();
                return Err(error);
            }
        }
        Ok(running)
    }

    /// Returns whether all threads have ended.
    pub fn is_finished(&self) -> bool {
        self.end.lock().at_work == 0
    }

    /// Asks the threads to stop, without waiting for them. Returns whether that is news to threads at work.
    pub fn abandon(&self) -> bool {
        let is_news = !self.stop.is_set() && !self.is_finished();
        self.stop.set();
        is_news
    }

    /// Waits until all threads have ended by themselves or `shutdown` completes.
    pub async fn until(&self, shutdown: impl Future<Output = ()>) {
        let mut shutdown = pin!(shutdown);
        poll_fn(|context| match self.end.poll(context) {
            Poll::Ready(_) => Poll::Ready(()),
            Poll::Pending => shutdown.as_mut().poll(context),
        })
        .await;
    }

    /// Stops the threads and waits for their end. Returns `None` if they did not end in time.
    pub async fn stop(&self, timeout: Duration) -> Option<Result<(), E>> {
        self.stop.set();
        let end = self.end.clone();
        // A thread, because only a runtime has a timer, and this code knows none. A process stops only once.
        let timer =
            thread::Builder::new().name("outbox-stop".to_owned()).spawn(move || end.time_out(timeout));
        if timer.is_err() {
            self.end.time_out(timeout);
        }
        poll_fn(|context| self.end.poll(context)).await.then(|| self.end.take())
    }

    /// Does what [`stop`](Self::stop) does, but blocks the thread.
    pub fn stop_blocking(&self, timeout: Duration) -> Option<Result<(), E>> {
        self.stop.set();
        self.end.time_out(timeout);
        self.is_finished().then(|| self.end.take())
    }
}

impl<E> End<E> {
    fn lock(&self) -> MutexGuard<'_, State<E>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn leave(&self, stop: &Stop, outcome: Result<(), E>) {
        let waker = {
            let mut state = self.lock();
            state.at_work -= 1;
            if outcome.is_err() {
                stop.set();
                state.outcome = outcome;
            }
            if state.at_work == 0 { state.waker.take() } else { None }
        };
        self.changed.notify_all();
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// Is ready with `true` once all threads have ended, or with `false` once nobody waits any longer.
    fn poll(&self, context: &Context<'_>) -> Poll<bool> {
        let mut state = self.lock();
        if state.at_work == 0 || state.timed_out {
            return Poll::Ready(state.at_work == 0);
        }
        state.waker = Some(context.waker().clone());
        Poll::Pending
    }

    /// Waits until all threads have ended, but no longer than `timeout`.
    fn time_out(&self, timeout: Duration) {
        let state = self.lock();
        let waited = self.changed.wait_timeout_while(state, timeout, |state| state.at_work > 0);
        let (mut state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        state.timed_out = true;
        if let Some(waker) = state.waker.take() {
            waker.wake();
        }
    }

    fn take(&self) -> Result<(), E> {
        std::mem::replace(&mut self.lock().outcome, Ok(()))
    }
}

impl<E> fmt::Debug for Running<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let at_work = self.end.lock().at_work;
        f.debug_struct("Running").field("threads", &at_work).field("stopping", &self.stop.is_set()).finish()
    }
}

/// Returns the message of a panic.
pub fn panic_message(panic: &(dyn Any + Send)) -> &str {
    match (panic.downcast_ref::<&str>(), panic.downcast_ref::<String>()) {
        (Some(text), _) => text,
        (_, Some(text)) => text,
        _ => "no message",
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    type Work = Box<dyn FnOnce() -> Result<(), String> + Send>;

    fn start(stop: &Stop, work: Vec<Work>) -> Running<String> {
        let named = work.into_iter().map(|work| ("test".to_owned(), work));
        Running::start(stop.clone(), named, |message| format!("panicked: {message}")).unwrap()
    }

    fn until_stopped(stop: &Stop) -> Work {
        let stop = stop.clone();
        Box::new(move || {
            while !stop.is_set() {
                thread::yield_now();
            }
            Ok(())
        })
    }

    /// Polls on this thread, which sleeps until it is woken.
    fn block_on<T>(future: impl Future<Output = T>) -> T {
        struct Unpark(thread::Thread);
        impl std::task::Wake for Unpark {
            fn wake(self: Arc<Self>) {
                self.0.unpark();
            }
        }
        let waker = Waker::from(Arc::new(Unpark(thread::current())));
        let mut future = pin!(future);
        loop {
            match future.as_mut().poll(&mut Context::from_waker(&waker)) {
                Poll::Ready(value) => return value,
                Poll::Pending => thread::park(),
            }
        }
    }

    #[test]
    fn threads_stop_when_they_are_asked_to() {
        let stop = Stop::default();
        let running = start(&stop, vec![until_stopped(&stop), until_stopped(&stop)]);
        assert!(!running.is_finished());
        assert_eq!(block_on(running.stop(LONG)), Some(Ok(())));
        let stop = Stop::default();
        assert_eq!(start(&stop, vec![until_stopped(&stop)]).stop_blocking(LONG), Some(Ok(())));
    }

    #[test]
    fn a_thread_that_fails_or_panics_stops_the_others_and_says_why() {
        let failing: [(Work, &str); 2] = [
            (Box::new(|| Err("failed".to_owned())), "failed"),
            (Box::new(|| panic!("number {}", 7)), "panicked: number 7"),
        ];
        for (work, why) in failing {
            let stop = Stop::default();
            let running = start(&stop, vec![until_stopped(&stop), work]);
            block_on(running.until(std::future::pending()));
            assert!(running.is_finished());
            assert_eq!(running.stop_blocking(LONG), Some(Err(why.to_owned())));
        }
    }

    #[test]
    fn a_thread_that_does_not_stop_is_not_waited_for_any_longer() {
        let stop = Stop::default();
        let (release, released) = mpsc::channel::<()>();
        let running = start(
            &stop,
            vec![Box::new(move || {
                let _ = released.recv();
                Ok(())
            })],
        );
        assert_eq!(block_on(running.stop(Duration::from_millis(1))), None);
        drop(release);
    }

    #[test]
    fn the_future_that_asks_for_the_end_ends_the_wait() {
        let stop = Stop::default();
        let running = start(&stop, vec![until_stopped(&stop)]);
        block_on(running.until(std::future::ready(())));
        assert!(!running.is_finished());
        assert_eq!(running.stop_blocking(LONG), Some(Ok(())));
    }
}
