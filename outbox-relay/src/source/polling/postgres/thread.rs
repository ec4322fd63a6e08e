//! A worker's connection, and a thread that works on it while the relay does something else.
//!
//! If the relay waits for the outcome, it works on its own thread, unless the other thread still has work. To wake that one takes
//! as long as a short statement.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};

use diesel_outbox_core::SourceError;

use super::connection::Sessions;
use crate::source::database::PostgresDatabase;

pub(super) struct OnThread {
    shared: Arc<SharedSessions>,
    /// Started when it is first needed.
    thread: Option<Thread>,
}

struct SharedSessions {
    worked: Mutex<Worked>,
    /// How many jobs the thread was given and has not done.
    waiting: AtomicUsize,
    /// Whether something failed that the relay does not know of yet.
    failed: AtomicBool,
}

/// The sessions that are worked on.
struct Worked {
    sessions: Sessions,
    /// Why something failed that nobody waited for. Nothing more is done until the relay knows.
    failed: Option<SourceError>,
}

/// A thread, which ends when this is dropped.
struct Thread {
    jobs: Option<SyncSender<Job>>,
    handle: Option<JoinHandle<()>>,
}

/// How many jobs may wait. So the relay reads no further than it can settle.
const TOLD: usize = 16;

type Job = Box<dyn FnOnce(&mut Worked) + Send>;

impl OnThread {
    pub(super) fn new(database: PostgresDatabase) -> Self {
        let worked = Worked { sessions: Sessions::new(database), failed: None };
        let shared = SharedSessions {
            worked: Mutex::new(worked),
            waiting: AtomicUsize::new(0),
            failed: AtomicBool::new(false),
        };
        Self { shared: Arc::new(shared), thread: None }
    }

    /// Does this after all earlier work, and returns its outcome.
    pub(super) fn ask<T: Send + 'static>(
        &mut self,
        work: impl FnOnce(&mut Sessions) -> Result<T, SourceError> + Send + 'static,
    ) -> Result<T, SourceError> {
        self.in_turn(move |worked| match worked.failed.take() {
            Some(error) => Err(error),
            None => work(&mut worked.sessions),
        })?
    }

    /// Does this after all earlier work, without waiting for it. If it fails, the next call returns the error.
    pub(super) fn tell(
        &mut self,
        work: impl FnOnce(&mut Sessions) -> Result<(), SourceError> + Send + 'static,
    ) -> Result<(), SourceError> {
        if self.shared.failed.load(Ordering::Relaxed) {
            return self.ask(work);
        }
        self.send(Box::new(move |worked| {
            if worked.failed.is_none() {
                worked.failed = work(&mut worked.sessions).err();
            }
        }))
    }

    pub(super) fn abandon(&mut self) {
        // If the thread has ended, the session has ended too.
        let _ = self.in_turn(|worked| {
            worked.failed = None;
            worked.sessions.abandon();
        });
    }

    fn in_turn<T: Send + 'static>(
        &mut self,
        work: impl FnOnce(&mut Worked) -> T + Send + 'static,
    ) -> Result<T, SourceError> {
        if self.shared.waiting.load(Ordering::Acquire) == 0 {
            return Ok(self.shared.work(work));
        }
        let (answer, answered) = sync_channel(1);
        self.send(Box::new(move |worked| {
            // Nobody waits any more if the source was dropped.
            let _ = answer.send(work(worked));
        }))?;
        answered.recv().map_err(|_| self.ended())
    }

    fn send(&mut self, job: Job) -> Result<(), SourceError> {
        let thread = match &mut self.thread {
            Some(thread) => thread,
            none => none.insert(Thread::begin(self.shared.clone())?),
        };
        self.shared.waiting.fetch_add(1, Ordering::Relaxed);
        match thread.jobs.as_ref().map(|jobs| jobs.send(job)) {
            Some(Ok(())) => Ok(()),
            _ => Err(self.ended()),
        }
    }

    /// Returns the error that the thread has ended. The next call starts another one.
    fn ended(&mut self) -> SourceError {
        self.thread = None;
        self.shared.waiting.store(0, Ordering::Relaxed);
        SourceError::new("the thread that works on the database has ended: it must have panicked")
    }
}

impl SharedSessions {
    fn work<T>(&self, work: impl FnOnce(&mut Worked) -> T) -> T {
        let mut worked = self.worked();
        let done = work(&mut worked);
        self.failed.store(worked.failed.is_some(), Ordering::Relaxed);
        done
    }

    /// Locks the sessions. A session is taken out while it is in use, so after a panic none is left.
    fn worked(&self) -> MutexGuard<'_, Worked> {
        self.worked.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Thread {
    fn begin(shared: Arc<SharedSessions>) -> Result<Self, SourceError> {
        let (jobs, received) = sync_channel(TOLD);
        let handle = thread::Builder::new()
            .name("outbox-source".into())
            .spawn(move || work(&shared, &received))
            .map_err(|error| {
                SourceError::new(format!("cannot start a thread for the database: {error}"))
                    .with_source(error)
            })?;
        Ok(Self { jobs: Some(jobs), handle: Some(handle) })
    }
}

impl Drop for Thread {
    fn drop(&mut self) {
        self.jobs = None;
        if let Some(handle) = self.handle.take() {
            // If its panic mattered, it was reported.
            let _ = handle.join();
        }
    }
}

fn work(shared: &SharedSessions, jobs: &Receiver<Job>) {
    for job in jobs {
        shared.work(job);
        shared.waiting.fetch_sub(1, Ordering::Release);
    }
}
