//! What becomes of a batch when a record of it becomes a dead letter, and the policy is to hold its aggregate back.

use diesel_outbox_core::{Claimed, Source};

use super::{Pass, Pipeline};

impl Pipeline<'_> {
    /// Takes on no more, and leaves out the records of the batch that come after this one in its aggregate: the next pass
    /// makes dead letters of them. The rest of the batch goes on, so that many dead letters do not take as many passes. A row that
    /// cannot be read stays, whichever its aggregate is: it becomes a dead letter anyway.
    ///
    /// Records of the aggregate that wait or are in flight came before this one.
    pub(super) fn hold_back(&self, pass: &mut Pass, source: &dyn Source, dead: &Claimed) {
        pass.reading = false;
        match &dead.record {
            // What is committed then must have no gap.
            _ if self.limits.exactly_once && source.settles_in_order() => pass.unsent.clear(),
            Ok(dead) => pass.unsent.retain(|claimed| {
                claimed.record.as_ref().map_or(true, |record| {
                    record.aggregate_id() != dead.aggregate_id()
                        || record.aggregate_type() != dead.aggregate_type()
                })
            }),
            // Only the database knows its aggregate, and any record may be of it.
            Err(_) => pass.unsent.clear(),
        }
    }
}

#[cfg(test)]
mod tests {
    use diesel_outbox_core::Record;

    use super::*;
    use crate::pipeline::rehearsal::{self, Quick, Rows};

    /// Returns what one pass settles, and of what it makes dead letters, if each row is an aggregate and an event type.
    fn pass(rows: &[Option<(&str, &str)>]) -> (Vec<u64>, Vec<u64>) {
        let record = |row: &Option<(&str, &str)>| {
            let row = row.ok_or("unreadable")?;
            Ok::<_, &str>(Record::new("order", row.0, row.1))
        };
        let claimed = |(n, row)| Claimed::new(n as u64 + 1, record(row).map_err(str::to_owned));
        let mut source = Rows { unread: rows.iter().enumerate().map(claimed).collect(), ..Rows::default() };
        rehearsal::pass(&mut source, &mut Quick::default()).unwrap();
        (source.settled, source.dead)
    }

    #[test]
    fn one_pass_makes_dead_letters_of_many_aggregates_and_sends_the_others() {
        let (sound, refused) = ("Placed", "Refused");
        let rows = [("a", refused), ("b", sound), ("a", sound), ("c", refused), ("c", sound), ("b", sound)];
        assert_eq!(pass(&rows.map(Some)), (vec![2, 6], vec![1, 4]));
    }

    #[test]
    fn nothing_that_comes_after_an_unreadable_row_is_sent_because_it_may_be_of_its_aggregate() {
        let (sound, refused) = (Some(("a", "Placed")), Some(("b", "Refused")));
        assert_eq!(pass(&[sound, refused, None, sound, refused]), (vec![1], vec![2, 3]));
    }
}
