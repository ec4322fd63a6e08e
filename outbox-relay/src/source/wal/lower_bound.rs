//! Up to which number the rows are known to be sent. This becomes the shards' lower bound, which pruning and
//! [`drop`](super::drop()) use.
//!
//! When the relay reads the fence, every row up to the fence's number is in the WAL or never will be, because rows are in the WAL
//! before their transaction is seen to have ended. So once everything is sent up to where the WAL ended at that moment, those rows
//! are sent, unless the publication kept one back. The relay checks that before it raises the bound.

use std::collections::VecDeque;
use std::time::Instant;

use diesel::pg::PgConnection;
use diesel::prelude::*;

use super::position::Lsn;
use super::slot;
use crate::source::fence::Fence;
use crate::source::sequence::Sequence;

/// The numbers that become the lower bound.
pub(super) struct LowerBound {
    fence: Fence,
    /// Up to where all was sent at the last look.
    looked_at: Lsn,
    /// Numbers, each with a place in the WAL. Once all is sent up to the place, all rows up to the number are sent.
    numbers: VecDeque<(i64, Lsn)>,
}

impl LowerBound {
    pub(super) fn begin(conn: &mut PgConnection) -> QueryResult<Self> {
        let fence = Fence::after(Sequence::load(conn)?);
        Ok(Self { fence, looked_at: 0, numbers: VecDeque::new() })
    }

    /// Returns a new number up to which all rows are known to be sent, if there is one. All is sent up to `confirmed`.
    pub(super) fn rise(&mut self, conn: &mut PgConnection, confirmed: Lsn) -> QueryResult<Option<i64>> {
        if confirmed == self.looked_at && self.numbers.is_empty() {
            return Ok(None);
        }
        self.looked_at = confirmed;
        self.fence.advance(Instant::now(), conn)?;
        let safe = self.fence.bounds().safe;
        if self.numbers.back().is_none_or(|(seq, _)| *seq < safe) {
            self.numbers.push_back((safe, slot::end_of_wal(conn)?));
        }
        let mut sent_through = None;
        while self.numbers.front().is_some_and(|(_, end)| *end <= confirmed) {
            sent_through = self.numbers.pop_front().map(|(seq, _)| seq);
        }
        Ok(sent_through)
    }
}
