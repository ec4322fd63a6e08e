//! How a thread that reads the WAL hands over what it reads, as fast as the relay takes it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TryRecvError, sync_channel};
use std::time::Duration;

use diesel_outbox_core::SourceError;
use pg_walstream::CancellationToken;

use super::decode::Message;
use super::position::Lsn;

/// The messages that are handed over at once.
pub(super) type Messages = Result<Vec<Message>, SourceError>;

/// How many handovers may wait for the relay, and how many messages and about how many bytes each has at most.
const MOST_WAITING: usize = 2;
pub(super) const MOST_MESSAGES: usize = 4_000;
pub(super) const ENOUGH_BYTES: usize = 2 << 20;

/// The relay's end.
pub(super) struct Handover {
    received: Receiver<Messages>,
    orders: Arc<Orders>,
}

/// What the relay orders the reading thread to do.
#[derive(Default)]
pub(super) struct Orders {
    confirmed: AtomicU64,
    pub(super) ends: CancellationToken,
}

/// What a look at the handover finds.
pub(super) enum HandedOver {
    Messages(Vec<Message>),
    Nothing,
    /// Nothing more comes: the thread has read what it should.
    End,
}

impl Handover {
    pub(super) fn new() -> (SyncSender<Messages>, Arc<Orders>, Self) {
        let (sender, received) = sync_channel(MOST_WAITING);
        let orders = Arc::<Orders>::default();
        (sender, orders.clone(), Self { received, orders })
    }

    /// Returns what has come, or comes within this time.
    pub(super) fn receive(&self, limit: Duration) -> Result<HandedOver, SourceError> {
        let received = if limit.is_zero() {
            self.received.try_recv().map_err(|error| error == TryRecvError::Empty)
        } else {
            self.received.recv_timeout(limit).map_err(|error| error == RecvTimeoutError::Timeout)
        };
        match received {
            Ok(messages) => messages.map(HandedOver::Messages),
            Err(true) => Ok(HandedOver::Nothing),
            Err(false) => Ok(HandedOver::End),
        }
    }

    /// Lets the server forget what lies before this.
    pub(super) fn confirm(&self, lsn: Lsn) {
        self.orders.confirmed.store(lsn, Ordering::Relaxed);
    }

    /// Orders the thread to read nothing more.
    pub(super) fn cancel(&self) {
        self.orders.ends.cancel();
    }

    /// Orders the thread to end, even if it is about to hand something over, and waits until it hands over nothing more.
    pub(super) fn end(&self) {
        self.cancel();
        self.received.iter().for_each(drop);
    }
}

impl Drop for Handover {
    fn drop(&mut self) {
        self.orders.ends.cancel();
    }
}

impl Orders {
    pub(super) fn confirmed(&self) -> Lsn {
        self.confirmed.load(Ordering::Relaxed)
    }
}
