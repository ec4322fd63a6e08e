//! How a worker touches the world: one step at a time, between which anything may happen.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use diesel_outbox_core::SourceError;

use super::database::{Fate, Tx};
use super::kind::{Kind, Mistake};
use super::turns::Turns;
use super::world::{Fault, World};

pub(super) struct Shared {
    pub(super) world: Mutex<World>,
    pub(super) turns: Turns,
    pub(super) workers: usize,
}

/// A relay's worker, from its start until it ends or crashes.
#[derive(Clone)]
pub(super) struct Hand {
    shared: Arc<Shared>,
    pub(super) worker: usize,
    pub(super) kind: Kind,
    pub(super) mistake: Option<Mistake>,
    has_crashed: Arc<AtomicBool>,
}

impl Hand {
    pub(super) fn new(shared: Arc<Shared>, worker: usize, kind: Kind, mistake: Option<Mistake>) -> Self {
        Self { shared, worker, kind, mistake, has_crashed: Arc::default() }
    }

    pub(super) fn world(&self) -> MutexGuard<'_, World> {
        self.shared.world.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn workers(&self) -> usize {
        self.shared.workers
    }

    pub(super) fn has_crashed(&self) -> bool {
        self.has_crashed.load(Ordering::Relaxed)
    }

    /// Lets others go on, and returns the world, unless the relay has crashed or all is over.
    pub(super) fn turn(&self) -> Option<MutexGuard<'_, World>> {
        if self.has_crashed() {
            return None;
        }
        let mut world = self.world();
        if world.is_over {
            return None;
        }
        world.go_on();
        if world.chance.one_in(4) {
            let other = world.chance.below(self.shared.workers as u64) as usize;
            drop(world);
            self.shared.turns.give(self.worker, other);
            world = self.world();
        }
        (!world.is_over).then_some(world)
    }

    /// Carries out a statement, if nothing fails.
    pub(super) fn statement<T>(&self, work: impl FnOnce(&mut World) -> T) -> Result<T, SourceError> {
        let gone = || SourceError::new("the database is away by chance");
        let mut world = self.turn().ok_or_else(gone)?;
        match world.fault() {
            Fault::None => Ok(work(&mut world)),
            Fault::Before => Err(gone()),
            Fault::After => {
                work(&mut world);
                Err(gone())
            }
            Fault::Crash => {
                if world.chance.one_in(2) {
                    work(&mut world);
                }
                world.orphan(self.worker);
                self.has_crashed.store(true, Ordering::Relaxed);
                Err(gone())
            }
        }
    }

    /// Does the same in a transaction, which the server may have rolled back.
    pub(super) fn statement_in<T>(
        &self,
        tx: Tx,
        work: impl FnOnce(&mut World) -> T,
    ) -> Result<T, SourceError> {
        let done = self.statement(|world| {
            let is_open = world.database.transactions[tx].fate == Fate::Open;
            is_open.then(|| work(world))
        })?;
        done.ok_or_else(|| SourceError::new("the transaction was rolled back"))
    }
}
