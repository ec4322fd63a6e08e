//! A pass whose records become visible in Kafka and settled in the database each exactly once.
//!
//! The records of a pass go into transactions of the broker, `K`, and are settled in one transaction of the database, `T`, which
//! holds the claim. Each `K` also has the ids of its records. The `K`s commit one after the other, each while the next one fills, and then
//! `T` does. What can go wrong lies between the first of these commits and the moment when `T` is on the disk, and the ids are for that.
//!
//! # Why nothing is lost or sent twice
//!
//! Publishers of an outbox have epochs: a publisher that [begins](diesel_outbox_core::Publisher::begin) gets the highest, and the
//! broker commits no transaction of a lower one from then on, and none of theirs is open any more. In this order:
//!
//! 1. A relay locks the rows of all shards in `T`, so no other transaction that settles is open.
//! 2. If its publisher has no epoch, it gets one, and reads the ids that *count*. The relay settles them and commits. If that fails in any
//!    way, the publisher loses its epoch, and everything begins anew.
//! 3. The relay reads what is unsent, publishes it in a `K`, and settles it in `T`, which stays open. When `K` has enough, it begins to
//!    commit, and the pass goes on with the next one. That one begins to commit only if the one before it is known to be committed.
//! 4. The last `K` commits. If the outcome of any was anything but success, `T` is rolled back, the publisher loses its epoch, and 2. finds
//!    out.
//! 5. `T` commits. If the outcome is anything but success, the publisher loses its epoch too. So it does if the source fails between
//!    passes.
//!
//! The ids of a `K` count from its commit until a later `K` says that they do not. It says so only of those whose `T` has committed and cannot
//! be undone by a crash of the database. A crash undoes the last `T`s or none, and the relay learns of it, because its connection is
//! lost. So at each moment, what has been committed in Kafka is settled in the database or counts.
//!
//! *Nothing is sent twice.* Say that `K` commits under an epoch. Each earlier `K'` that committed did so under this epoch or a lower
//! one. Under a lower one, it had committed before the epoch began, so it was settled and could not be undone, or it counted, and 2. has
//! settled it. That counts still, until it cannot be undone. Under the same epoch, `K'` is of the same pass, which reads nothing twice, or 5. has
//! settled it. If that was undone, the epoch has ended. All of this was committed before the reads of 3., so these did not return a record that an
//! earlier `K'` has.
//!
//! *Nothing is lost.* A record is settled only in 2., because a committed `K` names it, and in 3., where it is undone unless the `K` that
//! has it commits. Ids are never used twice, so what 2. names is nothing else, even in a database that was restored.
//!
//! *A dead letter was not sent.* If `T` has a dead letter that the publisher refused, the last `K` commits something even if it has no records.
//! So no other relay's `K` can have taken the record since 2.
//!
//! *The order is kept.* Within `K` it is the order in which the records were handed over. A `K` gets no record before all of the one before it
//! are stored, so they are before it in each partition, and consumers do not read beyond a transaction that is still open.
//!
//! None of this trusts the lock: a relay that was frozen or cut off while its claim went to another one has a lower epoch. If its `K`
//! committed all the same, then before the other's epoch began, which has read of it. The claim has another purpose: in 2. it makes
//! sure that no row to be settled is still locked by a `T` of which nobody knows how it ends.
//!
//! If the WAL is read, `T` begins only after the last `K` has committed, stores up to where all is sent, and holds no claim.
//! `source/wal/committed.rs` says what takes its place.

#[cfg(test)]
mod simulation;

use std::time::Instant;

use diesel_outbox_core::{Lane, PublishError, Publisher, Source};

use super::{Pass, PassError, Passed, Pipeline};

/// How many records a pass takes on at most. A relay that takes over finds as many ids.
const LARGEST_PASS: usize = 200_000;

impl Pipeline<'_> {
    /// Makes sure that no other relay can commit any more, and settles what was committed last. Returns `false` if that had to be
    /// done: then the pass is over.
    pub(super) fn own(
        &self,
        source: &mut dyn Source,
        publisher: &mut dyn Publisher,
    ) -> Result<bool, PassError> {
        let owned = self.take_over(source, publisher);
        if owned.is_err() {
            publisher.abandon();
            source.abandon();
        }
        owned
    }

    fn take_over(&self, source: &mut dyn Source, publisher: &mut dyn Publisher) -> Result<bool, PassError> {
        let Some(outbox) = source.outbox() else {
            let reason = "the source does not name its outbox, so nothing can be sent exactly once";
            return Err(PassError::Publisher(PublishError::new(reason)));
        };
        let lane =
            Lane::new(outbox).with_origin(source.origin()).with_undoable_passes(source.undoable_passes());
        let begun = publisher.begin(&lane, self.limits.stall_timeout);
        let Some(committed) = begun.map_err(PassError::Publisher)? else { return Ok(true) };
        self.metrics.took_over(committed.len());
        source.settle_committed(&committed)?;
        source.release()?;
        Ok(false)
    }

    /// Closes the pass when it has enough, and when it has caught up: what it has published last is not visible before it ends.
    pub(super) fn limit_transactions(&self, pass: &mut Pass) {
        pass.taken += pass.unsent.len();
        pass.in_transaction += pass.unsent.len();
        if self.limits.exactly_once && (pass.taken >= LARGEST_PASS || pass.caught_up.is_some()) {
            pass.reading = false;
        }
    }

    /// Returns whether the broker's transaction has enough records. Then the pass takes on no more before it has begun another one.
    pub(super) fn has_full_transaction(&self, pass: &Pass) -> bool {
        self.limits.exactly_once && pass.in_transaction >= self.limits.transaction
    }

    /// Lets the broker commit what the pass has published. Nothing that was read before any of that is still unsent.
    pub(super) fn commit_ahead(
        &self,
        pass: &mut Pass,
        publisher: &mut dyn Publisher,
    ) -> Result<(), PassError> {
        publisher.commit_ahead(self.limits.stall_timeout).map_err(PassError::Publisher)?;
        pass.in_transaction = 0;
        Ok(())
    }

    /// Takes on no more because the relay should stop. What the pass has read goes on, if all of it should be settled together.
    pub(super) fn stop(&self, pass: &mut Pass) {
        if self.limits.exactly_once {
            pass.reading = false;
        } else {
            pass.close();
        }
    }

    /// Returns whether a record cannot become a dead letter in this pass, because others come before it.
    pub(super) fn must_come_first(&self, pass: &Pass, source: &dyn Source) -> bool {
        self.limits.exactly_once
            && source.settles_in_order()
            && (pass.highest.is_some() || pass.waiting.count() > 0)
    }

    /// Ends the pass before a record that the broker will never take. If later ones were handed over already, the pass fails. The
    /// publisher then refuses the record at once, before those.
    pub(super) fn end_before(&self, pass: &mut Pass, ticket: u64, reason: String) {
        let is_handed_over = |ticket: u64| pass.highest.is_some_and(|highest| ticket < highest);
        let is_late =
            is_handed_over(ticket) || pass.waiting.highest().is_some_and(|waiting| ticket < waiting);
        if is_late || pass.unsent.iter().any(|claimed| is_handed_over(claimed.ticket)) {
            pass.fail(reason, (self.now)());
        } else {
            pass.reading = false;
            pass.unsent.clear();
        }
    }

    /// Commits the broker's last transaction, then the source's.
    pub(super) fn end_exactly_once(
        &self,
        mut pass: Pass,
        failure: Option<PassError>,
        source: &mut dyn Source,
        publisher: &mut dyn Publisher,
        began: Instant,
    ) -> Result<Passed, PassError> {
        let ended = match failure {
            Some(failure) => Err(failure),
            None => self.commit(&mut pass, source, publisher),
        };
        match ended {
            Ok(()) => {
                self.report(&mut pass, began);
                Ok(Passed::Worked)
            }
            Err(error) => {
                publisher.abandon();
                source.abandon();
                Err(error)
            }
        }
    }

    fn commit(
        &self,
        pass: &mut Pass,
        source: &mut dyn Source,
        publisher: &mut dyn Publisher,
    ) -> Result<(), PassError> {
        // The database works on this while the broker commits.
        pass.settle(source, (self.now)())?;
        let began = (self.now)();
        publisher.commit(self.limits.stall_timeout).map_err(PassError::Publisher)?;
        self.metrics.committed((self.now)().duration_since(began));
        source.release()?;
        Ok(())
    }
}
