//! Reads a backlog ahead of the relay on a connection of its own, while the worker's connection settles.
//!
//! If that fails, the worker's connection reads instead, batch by batch.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::Duration;

use diesel_outbox_core::SourceError;

/// A thread that reads ahead the batches `R` of backlogs `B`. It ends, and with it the connection, when this is dropped.
pub(super) struct Ahead<B, R> {
    backlogs: Sender<(B, Handing<R>)>,
}

/// The batches of a backlog. Each is read when it is asked for.
pub(super) struct Batches<R> {
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

impl<R> Batches<R> {
    /// Asks the thread to read the next batch.
    pub(super) fn ask(&mut self) {
        if !self.is_asked {
            // If the thread has ended, there is no next one.
            self.is_asked = self.wanted.send(()).is_ok();
        }
    }

    /// Returns the next batch; the last one says that it is the last. Returns `None` if the connection fails.
    pub(super) fn next(&mut self) -> Option<R> {
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
    pub(super) fn read(&self, backlog: B) -> Batches<R> {
        let ((wanted, asked), (hand, read)) = (channel(), channel());
        // If the thread has ended, there are no batches, and the worker's connection reads.
        let _ = self.backlogs.send((backlog, Handing { wanted: asked, read: hand }));
        Batches { wanted, is_asked: false, read }
    }
}
