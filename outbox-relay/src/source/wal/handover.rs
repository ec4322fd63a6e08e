//! How a thread that reads the WAL hands over what it reads, as far as the relay keeps up.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TryRecvError, sync_channel};
use std::time::Duration;

use diesel_outbox_core::SourceError;
use pg_walstream::CancellationToken;

use super::decode::Message;
use super::position::Lsn;

/// Messages that are handed over at once.
pub(super) type Messages = Result<Vec<Message>, SourceError>;

/// How often messages may wait for the relay, and how many messages and about how many bytes are handed over at once.
const MOST_WAITING: usize = 2;
pub(super) const MOST_MESSAGES: usize = 4_000;
pub(super) const ENOUGH_BYTES: usize = 2 << 20;

/// The relay's end.
pub(super) struct Handover {
    received: Receiver<Messages>,
    orders: Arc<Orders>,
}

/// What the thread that reads hears from the relay.
#[derive(Default)]
pub(super) struct Orders {
    confirmed: AtomicU64,
    pub(super) ends: CancellationToken,
}

/// What comes of a look.
pub(super) enum HandedOver {
    Messages(Vec<Message>),
    Nothing,
    /// Nothing more comes: what was to be read has been read.
    End,
}

impl Handover {
    pub(super) fn new() -> (SyncSender<Messages>, Arc<Orders>, Self) {
        let (sender, received) = sync_channel(MOST_WAITING);
        let orders = Arc::<Orders>::default();
        (sender, orders.clone(), Self { received, orders })
    }

    /// What has come, or comes within this time.
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

    /// The server may forget what lies before this.
    pub(super) fn confirm(&self, lsn: Lsn) {
        self.orders.confirmed.store(lsn, Ordering::Relaxed);
    }

    /// Nothing more is to be read.
    pub(super) fn cancel(&self) {
        self.orders.ends.cancel();
    }

    /// Lets the thread end, which may be about to hand something over, and waits until it hands over nothing more.
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
