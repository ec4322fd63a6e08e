//! Whose turn it is. Each worker has a thread, because a pass waits in the middle of calls, and only one of them runs at a time: so the
//! seed alone says in which order they do what they do.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

pub(super) struct Turns {
    state: Mutex<State>,
    /// One for each worker.
    changed: Vec<Condvar>,
}

struct State {
    whose: usize,
    is_here: Vec<bool>,
    /// Whether a worker has panicked.
    failed: bool,
}

impl Turns {
    pub(super) fn of(workers: usize) -> Self {
        let state = State { whose: 0, is_here: vec![true; workers], failed: false };
        Self { state: Mutex::new(state), changed: (0..workers).map(|_| Condvar::new()).collect() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until it is this worker's turn.
    pub(super) fn wait(&self, me: usize) {
        self.wait_with(me, self.state());
    }

    fn wait_with(&self, me: usize, mut state: MutexGuard<'_, State>) {
        while state.whose != me && !state.failed {
            state = self.changed[me].wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        if state.failed {
            drop(state);
            // The one that failed has printed why.
            std::panic::resume_unwind(Box::new("another worker has failed"));
        }
    }

    /// Lets another worker go on, if it is still here, and waits for the next turn.
    pub(super) fn give(&self, me: usize, other: usize) {
        let mut state = self.state();
        if other != me && state.is_here[other] {
            state.whose = other;
            self.changed[other].notify_one();
            self.wait_with(me, state);
        }
    }

    /// Leaves for good.
    pub(super) fn leave(&self, me: usize) {
        let mut state = self.state();
        state.is_here[me] = false;
        state.failed |= std::thread::panicking();
        if state.failed {
            self.changed.iter().for_each(Condvar::notify_one);
        } else if let Some(other) = state.is_here.iter().position(|is_here| *is_here) {
            state.whose = other;
            self.changed[other].notify_one();
        }
    }
}
