//! Reads a backlog ahead of the relay on a connection of its own, while the worker's connection settles.
//!
//! If that fails, the worker's connection reads instead, batch by batch.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use diesel_outbox_core::SourceError;

/// What a source reads ahead: one backlog at a time, in the pass that it belongs to.
pub(super) struct ReadAhead<B, R> {
    thread: Option<Ahead<B, R>>,
    /// The backlog that is read ahead in this pass.
    batches: Option<Batches<R>>,
    /// When reading ahead last failed.
    failed: Option<Instant>,
}

/// How long to do without reading ahead after it failed.
const RETRY: Duration = Duration::from_secs(30);

/// A thread that reads ahead the batches `R` of backlogs `B`. It ends, and with it the connection, when this is dropped.
pub(super) struct Ahead<B, R> {
    backlogs: Sender<(B, Handing<R>)>,
}

/// The batches of a backlog. Each is read when it is asked for.
struct Batches<R> {
    wanted: Sender<()>,
    is_asked: bool,
    read: Receiver<R>,
}

/// The thread's end of [`Batches`].
pub(super) struct Handing<R> {
    wanted: Receiver<()>,
    read: Sender<R>,
}

/// How long to wait for a batch. The connection may never be made, or may hang.
const WAIT: Duration = Duration::from_secs(1);

impl<B, R> Default for ReadAhead<B, R> {
    fn default() -> Self {
        Self { thread: None, batches: None, failed: None }
    }
}

impl<B: Send + 'static, R: Send + 'static> ReadAhead<B, R> {
    /// Returns whether a backlog may be read ahead, and none is.
    pub(super) fn may_begin(&self) -> bool {
        self.batches.is_none() && self.failed.is_none_or(|failed| failed.elapsed() >= RETRY)
    }

    /// Reads this backlog ahead from now on. `start` starts the thread if there is none.
    pub(super) fn begin(&mut self, backlog: B, start: impl FnOnce() -> std::io::Result<Ahead<B, R>>) {
        if self.thread.is_none() {
            self.thread = start().ok();
        }
        self.batches = self.thread.as_ref().map(|thread| thread.read(backlog));
    }

    /// Asks for the next batch, if a backlog is read ahead.
    pub(super) fn ask(&mut self) {
        if let Some(batches) = &mut self.batches {
            batches.ask();
        }
    }

    /// Returns the next batch that was read ahead, or `None` if nothing is read ahead. `is_last` says whether a batch is the last of its
    /// backlog.
    pub(super) fn next(&mut self, is_last: impl FnOnce(&R) -> bool) -> Option<R> {
        let Some(batch) = self.batches.as_mut()?.next() else {
            (self.batches, self.thread) = (None, None);
            self.failed = Some(Instant::now());
            return None;
        };
        if is_last(&batch) {
            self.batches = None;
        }
        Some(batch)
    }

    /// Forgets the backlog, because its pass has ended.
    pub(super) fn end_pass(&mut self) {
        self.batches = None;
    }

    /// Ends the thread, because there is nothing to do.
    pub(super) fn rest(&mut self) {
        self.thread = None;
    }
}

impl<R> Batches<R> {
    /// Asks the thread to read the next batch.
    fn ask(&mut self) {
        if !self.is_asked {
            // If the thread has ended, there is no next one.
            self.is_asked = self.wanted.send(()).is_ok();
        }
    }

    /// Returns the next batch; the last one says that it is the last. Returns `None` if the connection fails.
    fn next(&mut self) -> Option<R> {
        self.ask();
        self.is_asked = false;
        self.read.recv_timeout(WAIT).ok()
    }
}

impl<R> Handing<R> {
    /// Waits until a batch is wanted. Returns `false` if none will be.
    pub(super) fn wants(&self) -> bool {
        self.wanted.recv().is_ok()
    }

    pub(super) fn hand(&self, batch: R) {
        // If nobody takes it, none will be wanted.
        let _ = self.read.send(batch);
    }
}

impl<B: Send + 'static, R: Send + 'static> Ahead<B, R> {
    /// Starts the thread. It calls `read` for each backlog, which hands over batches for as long as they are wanted. If it fails, it
    /// connects anew for the next one.
    pub(super) fn begin(
        mut read: impl FnMut(B, &Handing<R>) -> Result<(), SourceError> + Send + 'static,
    ) -> std::io::Result<Self> {
        let (backlogs, received) = channel();
        let reader = move || {
            for (backlog, handing) in received {
                if let Err(error) = read(backlog, &handing) {
                    tracing::warn!(
                        %error,
                        "cannot read a backlog ahead, so the relay reads it more slowly; nothing is lost. If this comes again and again, \
                         correct the error, such as too few connections"
                    );
                }
            }
        };
        thread::Builder::new().name("outbox-ahead".into()).spawn(reader)?;
        Ok(Self { backlogs })
    }

    /// Returns the batches of this backlog.
    fn read(&self, backlog: B) -> Batches<R> {
        let ((wanted, asked), (hand, read)) = (channel(), channel());
        // If the thread has ended, there are no batches, and the worker's connection reads.
        let _ = self.backlogs.send((backlog, Handing { wanted: asked, read: hand }));
        Batches { wanted, is_asked: false, read }
    }
}
