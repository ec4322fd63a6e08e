//! Up to which number rows are known to be sent. It becomes the shards' lower bound, by which pruning and [`drop`](super::drop()) go.
//!
//! Every row with a number up to the fence's has come, or never will, in what the WAL has when the fence is read: rows are
//! in the WAL before their transaction is seen to have ended. So once all is sent up to the end that the WAL had then, those rows
//! are sent; unless the publication kept one back, which is checked before the bound is raised.

use std::collections::VecDeque;

use diesel::pg::PgConnection;
use diesel::prelude::*;

use super::position::Lsn;
use super::slot;
use crate::source::fence::Fence;
use crate::source::sequence::Sequence;

pub(super) struct LowerBound {
    fence: Fence,
    /// Up to where all was sent at the last look.
    looked_at: Lsn,
    /// Numbers, each of which is known to be sent as soon as all is sent up to the place beside it.
    numbers: VecDeque<(i64, Lsn)>,
}

impl LowerBound {
    pub(super) fn begin(conn: &mut PgConnection) -> QueryResult<Self> {
        let fence = Fence::after(Sequence::load(conn)?);
        Ok(Self { fence, looked_at: 0, numbers: VecDeque::new() })
    }

    /// A number up to which all rows are known to be sent, if another one is known now. All is sent up to `confirmed`.
    pub(super) fn rise(&mut self, conn: &mut PgConnection, confirmed: Lsn) -> QueryResult<Option<i64>> {
        if confirmed == self.looked_at && self.numbers.is_empty() {
            return Ok(None);
        }
        self.looked_at = confirmed;
        self.fence.advance(conn)?;
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
