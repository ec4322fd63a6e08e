use std::collections::{BTreeMap, VecDeque};

use diesel_outbox_core::Claimed;

use super::size;

/// Records that the publisher takes only when it knows the outcome of another one, in order.
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

    /// Puts those that wait for this ticket before the unsent ones, which were read later.
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

    /// Returns the highest ticket of them.
    pub(super) fn highest(&self) -> Option<u64> {
        self.behind.values().flatten().map(|claimed| claimed.ticket).max()
    }

    pub(super) fn count(&self) -> usize {
        self.count
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use diesel_outbox_core::{Acknowledgement, Outcome, PublishError, Publisher, Record, Refusal};

    use super::*;
    use crate::pipeline::Passed;
    use crate::pipeline::rehearsal::{Rows, pass};

    struct OneByOne(Option<u64>);

    impl Publisher for OneByOne {
        fn publish(&mut self, ticket: u64, _: &str, _: &Record) -> Result<(), Refusal> {
            match self.0 {
                Some(ticket) => Err(Refusal::Behind { ticket }),
                None => {
                    self.0 = Some(ticket);
                    Ok(())
                }
            }
        }

        fn acknowledgements(
            &mut self,
            _: Duration,
            acknowledgements: &mut Vec<Acknowledgement>,
        ) -> Result<(), PublishError> {
            let durable = |ticket| Acknowledgement::new(ticket, Outcome::Durable);
            acknowledgements.extend(self.0.take().map(durable));
            Ok(())
        }

        fn abandon(&mut self) {}

        fn ready(&mut self, _: Duration) -> Result<(), PublishError> {
            Ok(())
        }
    }

    #[test]
    fn a_record_that_waits_is_sent_though_a_later_one_blocks_its_aggregate() {
        let record = |ticket| Claimed::new(ticket, Ok(Record::new("order", "1", "OrderPlaced")));
        let unreadable = Claimed::new(3, Err("unreadable".to_owned()));
        let mut rows = Rows { unread: vec![record(1), record(2), unreadable], ..Rows::default() };
        assert!(matches!(pass(&mut rows, &mut OneByOne(None)), Ok(Passed::Worked)));
        assert_eq!(rows.settled, [1, 2]);
    }
}
