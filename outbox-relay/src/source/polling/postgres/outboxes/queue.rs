use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::outbox::Outbox;

/// The outboxes that need a look, and what the workers report of those that they have looked at.
#[derive(Default)]
pub(crate) struct Queue {
    state: Mutex<State>,
    /// The number of outboxes that wait, for those who only want to know whether there are any.
    waiting: AtomicUsize,
    has_outbox: Condvar,
    has_news: Condvar,
}

#[derive(Default)]
struct State {
    outboxes: VecDeque<Arc<Outbox>>,
    news: Vec<(Arc<Outbox>, News)>,
}

/// What a worker reports of an outbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum News {
    /// It has work: a pass has begun. The worker keeps it.
    HasWork,
    /// A look found nothing, and the watch has it again. `after_work` says whether there was work before.
    FoundNothing { after_work: bool },
    /// A pass failed, and the watch has it again. It needs another look after this time.
    PutOff(Duration),
}

impl Queue {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts an outbox at the end.
    pub(super) fn put(&self, outbox: Arc<Outbox>) {
        self.change(|outboxes| outboxes.push_back(outbox));
    }

    /// Puts an outbox back that was taken and not looked at.
    pub(super) fn put_back(&self, outbox: Arc<Outbox>) {
        self.change(|outboxes| outboxes.push_front(outbox));
    }

    fn change(&self, change: impl FnOnce(&mut VecDeque<Arc<Outbox>>)) {
        let mut state = self.state();
        change(&mut state.outboxes);
        self.waiting.store(state.outboxes.len(), Ordering::Relaxed);
        drop(state);
        self.has_outbox.notify_one();
    }

    /// Takes the outbox that has waited longest.
    pub(super) fn next(&self) -> Option<Arc<Outbox>> {
        self.next_if(|_| true)
    }

    /// Takes the outbox that has waited longest of those for which this is true.
    pub(super) fn next_if(&self, is_wanted: impl Fn(&Outbox) -> bool) -> Option<Arc<Outbox>> {
        let mut state = self.state();
        state.outboxes.retain(|outbox| !outbox.is_gone());
        let place = state.outboxes.iter().position(|outbox| is_wanted(outbox));
        let outbox = place.and_then(|place| state.outboxes.remove(place));
        self.waiting.store(state.outboxes.len(), Ordering::Relaxed);
        outbox
    }

    /// Returns whether an outbox waits for a worker.
    pub(super) fn has_waiting(&self) -> bool {
        self.waiting.load(Ordering::Relaxed) > 0
    }

    /// Waits until an outbox waits for a worker, but no longer than `limit`. Returns whether one does.
    pub(super) fn wait(&self, limit: Duration) -> bool {
        let waited =
            self.has_outbox.wait_timeout_while(self.state(), limit, |state| state.outboxes.is_empty());
        let (state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        !state.outboxes.is_empty()
    }

    pub(super) fn report(&self, outbox: Arc<Outbox>, news: News) {
        self.state().news.push((outbox, news));
        self.has_news.notify_one();
    }

    /// Waits until a worker reports something, but no longer than `limit`. Returns what they have reported.
    pub(super) fn news(&self, limit: Duration) -> Vec<(Arc<Outbox>, News)> {
        let waited = self.has_news.wait_timeout_while(self.state(), limit, |state| state.news.is_empty());
        let (mut state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        std::mem::take(&mut state.news)
    }
}
