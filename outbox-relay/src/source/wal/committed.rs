//! What Kafka has committed and the stored position does not say yet, if records are sent exactly once.
//!
//! A pass takes the next rows in their order. Each of its transactions, `K`, has all rows from the end of the one before it up to some row. When
//! the last one has committed, the position behind them is stored, `T`. `pipeline/exactly_once.rs` has the proof, for a `T` that holds a claim. Here
//! none does, and this takes its place:
//!
//! - The position is stored only over the one that the relay has stored or loaded itself, with the bound that it had then.
//! - A relay that takes over stores the position once more after its epoch has begun, with another bound, on the disk. From then on one that was frozen or
//!   cut off cannot store anything, neither a position nor a dead letter. If it has done so since this one loaded the position, this one begins anew. Of the `K`s that have committed by then, the position has
//!   all but those that count, and their rows that it does not have are the next ones. It stores that they are settled, on the disk, before it gives
//!   another row.
//! - A record becomes a dead letter only if it is the next one, in the transaction that stores the position behind it, on the disk. A pass in
//!   which others come before it ends there.

use std::collections::HashSet;

use uuid::Uuid;

use crate::source::row::StoredRow;

#[derive(Default)]
pub(super) struct Committed {
    /// What the broker has acknowledged in this pass. It is committed when the pass ends.
    of_pass: Vec<u64>,
    /// What counted when this relay took over. These rows come next, unless the position has them.
    last: HashSet<Uuid>,
    /// Whether some of them have come, and that is not stored.
    came: bool,
}

impl Committed {
    pub(super) fn of_pass(&mut self, tickets: &[u64]) {
        self.of_pass.extend(tickets);
    }

    /// Forgets what was acknowledged in the pass, and returns it.
    pub(super) fn end_pass(&mut self) -> Vec<u64> {
        std::mem::take(&mut self.of_pass)
    }

    pub(super) fn by_the_last(&mut self, ids: &[Uuid]) {
        self.last = ids.iter().copied().collect();
    }

    /// Returns whether the next row was committed last.
    pub(super) fn has(&mut self, row: &StoredRow) -> bool {
        let has = row.id.as_ref().is_ok_and(|id| self.last.remove(id));
        self.came |= has;
        if !has {
            self.last.clear();
        }
        has
    }

    /// Returns whether all that have come must be stored now, because the next row is another one. It asks for that once.
    pub(super) fn is_to_be_stored(&mut self) -> bool {
        self.last.is_empty() && std::mem::take(&mut self.came)
    }
}
