//! What reads the log for the relay, on a thread of its own, and hands it over as far as the relay keeps up.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TryRecvError, sync_channel};
use std::time::Duration;

use diesel_outbox_core::SourceError;
use pg_walstream::CancellationToken;

use super::decode::Message;
use super::place::Lsn;

/// Messages that are handed over at once.
pub(super) type Batch = Result<Vec<Message>, SourceError>;

/// How many batches may wait for the relay, and how many messages and about how many bytes each has at most.
const BATCHES: usize = 2;
pub(super) const BATCH_MESSAGES: usize = 4_000;
pub(super) const BATCH_BYTES: usize = 2 << 20;

/// The relay's end.
pub(super) struct Handover {
    received: Receiver<Batch>,
    shared: Arc<Shared>,
}

/// What both sides know.
#[derive(Default)]
pub(super) struct Shared {
    confirmed: AtomicU64,
    pub(super) ends: CancellationToken,
}

pub(super) enum Received {
    Batch(Vec<Message>),
    Nothing,
    /// Nothing more comes, as what was to be read has been read.
    End,
}

impl Handover {
    pub(super) fn new() -> (SyncSender<Batch>, Arc<Shared>, Self) {
        let (batches, received) = sync_channel(BATCHES);
        let shared = Arc::<Shared>::default();
        (batches, shared.clone(), Self { received, shared })
    }

    /// What has come, or comes within this time.
    pub(super) fn receive(&self, limit: Duration) -> Result<Received, SourceError> {
        let received = if limit.is_zero() {
            self.received.try_recv().map_err(|error| error == TryRecvError::Empty)
        } else {
            self.received.recv_timeout(limit).map_err(|error| error == RecvTimeoutError::Timeout)
        };
        match received {
            Ok(batch) => batch.map(Received::Batch),
            Err(true) => Ok(Received::Nothing),
            Err(false) => Ok(Received::End),
        }
    }

    /// The server may forget what lies before this.
    pub(super) fn confirm(&self, lsn: Lsn) {
        self.shared.confirmed.store(lsn, Ordering::Relaxed);
    }

    /// Nothing more is to be read.
    pub(super) fn cancel(&self) {
        self.shared.ends.cancel();
    }

    /// Lets the thread end, which may be about to hand something over, and waits until it hands over nothing more.
    pub(super) fn end(&self) {
        self.cancel();
        self.received.iter().for_each(drop);
    }
}

impl Drop for Handover {
    fn drop(&mut self) {
        self.shared.ends.cancel();
    }
}

impl Shared {
    pub(super) fn confirmed(&self) -> Lsn {
        self.confirmed.load(Ordering::Relaxed)
    }
}
