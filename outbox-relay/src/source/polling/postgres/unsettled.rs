use std::collections::HashSet;

const MANY: usize = 10_000;

/// The rows that the relay was given in a pass and has not settled.
#[derive(Default)]
pub(super) struct Unsettled {
    /// The tickets and numbers of what was given. Settled ones are removed when somebody asks for the rest, and when there are
    /// many.
    given: Vec<(u64, i64)>,
    settled: Vec<u64>,
}

impl Unsettled {
    pub(super) fn give(&mut self, rows: &[(u64, i64)]) {
        self.given.extend_from_slice(rows);
    }

    pub(super) fn settle(&mut self, tickets: &[u64]) {
        self.settled.extend_from_slice(tickets);
        if self.settled.len() >= MANY {
            self.left();
        }
    }

    /// Returns the lowest number among them.
    pub(super) fn oldest(&mut self) -> Option<i64> {
        self.left().iter().map(|(_, seq)| *seq).min()
    }

    /// Returns the highest number among them.
    pub(super) fn newest(&mut self) -> Option<i64> {
        self.left().iter().map(|(_, seq)| *seq).max()
    }

    pub(super) fn tickets(&mut self) -> impl Iterator<Item = u64> {
        self.left().iter().map(|(ticket, _)| *ticket)
    }

    fn left(&mut self) -> &[(u64, i64)] {
        if self.settled.len() == self.given.len() {
            self.given.clear();
        } else if !self.settled.is_empty() {
            let settled: HashSet<u64> = self.settled.iter().copied().collect();
            self.given.retain(|(ticket, _)| !settled.contains(ticket));
        }
        self.settled.clear();
        &self.given
    }
}
