use std::collections::{BTreeMap, VecDeque};

use diesel_outbox_core::Claimed;

use super::size;

/// Records that the publisher takes only after the outcome of another one is known, in their order.
#[derive(Default)]
pub(super) struct Waiting {
    behind: BTreeMap<u64, VecDeque<Claimed>>,
    count: usize,
    bytes: usize,
}

impl Waiting {
    pub(super) fn push(&mut self, behind: u64, claimed: Claimed) {
        self.count += 1;
        self.bytes += size(&claimed);
        self.behind.entry(behind).or_default().push_back(claimed);
    }

    /// Puts those that wait for this ticket before what is unsent, which was read later.
    pub(super) fn release(&mut self, ticket: u64, unsent: &mut VecDeque<Claimed>) {
        for claimed in self.behind.remove(&ticket).unwrap_or_default().into_iter().rev() {
            self.count -= 1;
            self.bytes -= size(&claimed);
            unsent.push_front(claimed);
        }
    }

    pub(super) fn release_all(&mut self, unsent: &mut VecDeque<Claimed>) {
        while let Some((&ticket, _)) = self.behind.last_key_value() {
            self.release(ticket, unsent);
        }
    }

    pub(super) fn count(&self) -> usize {
        self.count
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }
}
