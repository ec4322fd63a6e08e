//! A pass whose records become visible in Kafka and settled in the database each exactly once.
//!
//! All records of a pass go into one transaction of the broker, `K`, and are settled in one transaction of the database, `T`, which
//! holds the claim. `K` also has the ids of its records. It commits first, then `T` does. The only moment that can go wrong lies between the two, and
//! the ids are for that.
//!
//! # Why nothing is lost or sent twice
//!
//! Publishers of an outbox have epochs: a publisher that [begins](diesel_outbox_core::Publisher::begin) gets the highest, and the
//! broker commits no transaction of a lower one from then on, and none of theirs is open any more. In this order:
//!
//! 1. A relay locks the rows of all shards in `T`, so no other transaction that settles is open.
//! 2. If its publisher has no epoch, it gets one, and reads the ids of the last committed `K`. The relay settles them and
//!    commits. If that fails in any way, the publisher loses its epoch, and everything begins anew.
//! 3. The relay reads what is unsent, publishes it in `K`, and settles it in `T`, which stays open.
//! 4. `K` commits. If the outcome is anything but success, `T` is rolled back, the publisher loses its epoch, and 2. finds out.
//! 5. `T` commits. If the outcome is anything but success, the publisher loses its epoch too. So it does if the source fails between
//!    passes.
//!
//! *Nothing is sent twice.* Say that `K` commits under an epoch. Each earlier `K'` that committed did so under this epoch or a lower
//! one. Under a lower one, it had committed before the epoch began, so 2. has settled the last of those, and whoever committed the
//! ones before it had settled them, in 2. or 5., before it began the next. Under the same epoch, 5. has settled it, or the
//! epoch would have ended. All of this was committed before the reads of 3., so these did not return a record that an
//! earlier `K'` has.
//!
//! *Nothing is lost.* A record is settled only in 2., because a committed `K` names it, and in 3., where it is undone unless the `K` that
//! has it commits. Ids are never used twice, so what 2. names is nothing else, even in a database that was restored.
//!
//! *A dead letter was not sent.* If `T` has a dead letter that the publisher refused, `K` commits something even if it has no records.
//! So no other relay's `K` can have taken the record since 2.
//!
//! *The order is kept.* Within `K` it is the order in which the records were handed over, and the `K`s come one after the other.
//!
//! None of this trusts the lock: a relay that was frozen or cut off while its claim went to another one has a lower epoch. If its `K`
//! committed all the same, then before the other's epoch began, which has read of it. The claim has another purpose: in 2. it makes
//! sure that no row to be settled is still locked by a `T` of which nobody knows how it ends.
//!
//! If the WAL is read, `T` begins only after `K` has committed, stores up to where all is sent, and holds no claim.
//! `source/wal/committed.rs` says what takes its place.

#[cfg(test)]
mod simulation;

use std::time::Instant;

use diesel_outbox_core::{PublishError, Publisher, Source};

use super::{Pass, PassError, Passed, Pipeline};

/// How many records a transaction takes on at most. A relay that takes over finds as many ids.
const LARGEST_TRANSACTION: usize = 50_000;

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
        let begun = publisher.begin(outbox, self.limits.stall_timeout);
        let Some(committed) = begun.map_err(PassError::Publisher)? else { return Ok(true) };
        self.metrics.took_over(committed.len());
        source.settle_committed(&committed)?;
        source.release()?;
        Ok(false)
    }

    /// Closes the pass when its transaction has enough, and when it has caught up: what it has published is not visible before it ends.
    pub(super) fn limit_transaction(&self, pass: &mut Pass) {
        pass.taken += pass.unsent.len();
        if self.limits.exactly_once && (pass.taken >= LARGEST_TRANSACTION || pass.caught_up.is_some()) {
            pass.reading = false;
        }
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

    /// Commits the broker's transaction, then the source's.
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
