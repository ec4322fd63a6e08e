//! A worker's connection on a thread of its own, so that the relay need not wait for what it only tells.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::{self, JoinHandle};

use diesel_outbox_core::SourceError;

use super::session::Sessions;
use crate::source::database::Database;

pub(super) struct OnThread {
    database: Database,
    /// Begun when it is first needed.
    thread: Option<Thread>,
}

/// Ends, and with it the connection, when it is dropped.
struct Thread {
    jobs: Option<SyncSender<Job>>,
    /// Whether something has failed that has not been told.
    failed: Arc<AtomicBool>,
    handle: Option<JoinHandle<()>>,
}

/// How many things may be told and not done yet: the table is not read on beyond what can be settled.
const TOLD: usize = 16;

type Job = Box<dyn FnOnce(&mut Worked) + Send>;

/// What the thread works on.
struct Worked {
    sessions: Sessions,
    /// Why something failed that nobody waited for. Nothing is done until that has been told.
    failed: Option<SourceError>,
}

impl OnThread {
    pub(super) fn new(database: Database) -> Self {
        Self { database, thread: None }
    }

    /// Does this when all else is done, and waits for its outcome.
    pub(super) fn ask<T: Send + 'static>(
        &mut self,
        work: impl FnOnce(&mut Sessions) -> Result<T, SourceError> + Send + 'static,
    ) -> Result<T, SourceError> {
        let (answer, answered) = sync_channel(1);
        self.send(Box::new(move |worked| {
            let done = match worked.failed.take() {
                Some(error) => Err(error),
                None => work(&mut worked.sessions),
            };
            // Nobody waits any more where the source was dropped.
            let _ = answer.send(done);
        }))?;
        answered.recv().unwrap_or_else(|_| Err(self.ended()))
    }

    /// Does this when all else is done. If it fails, who comes next is told.
    pub(super) fn tell(
        &mut self,
        work: impl FnOnce(&mut Sessions) -> Result<(), SourceError> + Send + 'static,
    ) -> Result<(), SourceError> {
        if self.thread.as_ref().is_some_and(|thread| thread.failed.load(Ordering::Relaxed)) {
            return self.ask(work);
        }
        self.send(Box::new(move |worked| {
            if worked.failed.is_none() {
                worked.failed = work(&mut worked.sessions).err();
            }
        }))
    }

    pub(super) fn abandon(&mut self) {
        let (done, abandoned) = sync_channel(1);
        let sent = self.send(Box::new(move |worked| {
            worked.failed = None;
            worked.sessions.abandon();
            let _ = done.send(());
        }));
        if sent.is_ok() {
            let _ = abandoned.recv();
        }
    }

    fn send(&mut self, job: Job) -> Result<(), SourceError> {
        let thread = match &mut self.thread {
            Some(thread) => thread,
            none => none.insert(Thread::begin(Sessions::new(self.database.clone()))?),
        };
        match thread.jobs.as_ref().map(|jobs| jobs.send(job)) {
            Some(Ok(())) => Ok(()),
            _ => Err(self.ended()),
        }
    }

    /// The next one begins anew.
    fn ended(&mut self) -> SourceError {
        self.thread = None;
        SourceError::new("the thread that works on the database has ended: it must have panicked")
    }
}

impl Thread {
    fn begin(sessions: Sessions) -> Result<Self, SourceError> {
        let (jobs, received) = sync_channel(TOLD);
        let failed = Arc::new(AtomicBool::new(false));
        let fails = failed.clone();
        let handle = thread::Builder::new()
            .name("outbox-source".into())
            .spawn(move || work(Worked { sessions, failed: None }, &received, &fails))
            .map_err(|error| {
                SourceError::because(format!("cannot start a thread for the database: {error}"), error)
            })?;
        Ok(Self { jobs: Some(jobs), failed, handle: Some(handle) })
    }
}

impl Drop for Thread {
    fn drop(&mut self) {
        self.jobs = None;
        if let Some(handle) = self.handle.take() {
            // Its panic has been told where it mattered.
            let _ = handle.join();
        }
    }
}

fn work(mut worked: Worked, jobs: &Receiver<Job>, failed: &AtomicBool) {
    for job in jobs {
        job(&mut worked);
        failed.store(worked.failed.is_some(), Ordering::Relaxed);
    }
}
