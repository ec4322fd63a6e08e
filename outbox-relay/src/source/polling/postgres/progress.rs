//! How far a pass has come with the shards that it has claimed: which of their rows were given, and how far their bounds may move. It
//! asks the database nothing, so a simulation can work with it.

use super::read::Unread;
use super::tuple_id::TupleId;
use super::unsettled::Unsettled;
use crate::source::fence::{Bounds, OpenTransactions};

/// How far a shard's lower bound may stay behind if the shard has nothing unsent. If it is farther behind, a pass claims the shard
/// all the same, so that the next claims need not pass over what it has sent since.
pub(crate) const LOWER_BOUND_LAG: i64 = 65_536;

/// How far a shard's lower bound must be able to move before it is written: about 64 rows of each shard, if events are spread
/// evenly.
pub(crate) const LOWER_BOUND_STEP: i64 = 1_024;

pub(crate) struct Progress {
    shards: Vec<Shard>,
    /// Up to where rows were visible at the last look at the table.
    bounds: Bounds,
    /// The last number that is polled. It changes only while nothing is claimed.
    polled_through: i64,
    /// The last row that was read. All earlier ones of these shards have been read too.
    last: i64,
    /// Whether there was nothing after it.
    exhausted: bool,
    unsettled: Unsettled,
    has_settled: bool,
}

/// A shard's row in the table, and where its unsent rows begin.
pub(crate) struct ClaimedShard {
    pub(crate) number: i16,
    pub(crate) sent_through: i64,
    pub(crate) polled_through: i64,
    pub(crate) passed: i64,
    pub(crate) begin: i64,
    pub(crate) open: OpenTransactions,
}

/// A claimed shard.
struct Shard {
    number: i16,
    /// Its bounds, as the table has them.
    sent_through: i64,
    passed: i64,
    /// The relay has been given all of its rows up to here, or they will never exist.
    given: i64,
    /// The same, except for rows of transactions that were open.
    given_of_ended: i64,
    open: OpenTransactions,
    /// Whether the table has other transactions there.
    open_changed: bool,
}

/// The bounds that are to be written: those of each shard, and the open transactions of all.
#[derive(Default)]
pub(crate) struct Moves {
    pub(crate) shards: Vec<i16>,
    pub(crate) lower_bounds: Vec<i64>,
    pub(crate) passed: Vec<i64>,
    pub(crate) open: OpenTransactions,
}

impl Progress {
    /// Begins with nothing claimed. The bounds are those of the look before.
    pub(crate) fn begin(bounds: &Bounds) -> Self {
        Self {
            shards: Vec::new(),
            bounds: bounds.clone(),
            polled_through: i64::MAX,
            last: 0,
            exhausted: false,
            unsettled: Unsettled::default(),
            has_settled: false,
        }
    }

    /// Returns the numbers of the claimed shards.
    pub(crate) fn shards(&self) -> Vec<i16> {
        self.shards.iter().map(|shard| shard.number).collect()
    }

    /// Returns up to which number no row of the claimed shards is unsent.
    pub(crate) fn sent_through(&self) -> i64 {
        self.shards.iter().map(|shard| shard.sent_through).min().unwrap_or_default()
    }

    /// Adds a shard that was claimed.
    pub(crate) fn claimed(&mut self, shard: ClaimedShard) {
        let ClaimedShard { number, sent_through, polled_through, passed, begin, open } = shard;
        self.polled_through = polled_through;
        self.shards.push(Shard {
            number,
            sent_through,
            passed,
            given: sent_through,
            // The rows of a transaction that has ended may be many, and the next pass need not go past those again that this
            // pass gives. The bounds are those of the locked row: somebody may have lowered them since the snapshot that
            // `begin` comes from.
            given_of_ended: begin.min(passed.max(sent_through)),
            open,
            open_changed: false,
        });
    }

    /// Sets the bounds for the next read, which are older than its snapshot.
    pub(crate) fn look_with(&mut self, bounds: &Bounds) {
        self.bounds.clone_from(bounds);
    }

    /// Returns what was claimed and not read.
    pub(crate) fn unread(&mut self, table: u32) -> Unread {
        let last_given = self.unsettled.newest().unwrap_or(i64::MIN);
        let given = self.unsettled.tickets().map(TupleId::from).collect();
        let mut open = OpenTransactions::new();
        self.shards.iter().for_each(|shard| merge(&mut open, &shard.open));
        Unread {
            table,
            shards: self.shards(),
            lower_bounds: self.shards.iter().map(|shard| shard.given).collect(),
            passed: self.shards.iter().map(|shard| shard.given.max(shard.given_of_ended)).collect(),
            open,
            polled_through: self.polled_through,
            given,
            last_given,
        }
    }

    /// Returns whether a backlog may be read ahead. Another connection does not see what this pass has settled, and would read it
    /// again, so there is no backlog once something was settled.
    pub(crate) fn may_have_backlog(&self) -> bool {
        !self.exhausted && !self.has_settled
    }

    /// Notes that these rows were given to the relay, and whether there were no more after them.
    pub(crate) fn give(&mut self, rows: &[(u64, i64)], exhausts: bool) {
        self.unsettled.give(rows);
        self.last = rows.last().map_or(self.last, |(_, seq)| *seq);
        self.exhausted = exhausts;
    }

    pub(crate) fn settled(&mut self, tickets: &[u64]) {
        self.has_settled = true;
        self.unsettled.settle(tickets);
    }

    /// Learns up to which number the relay has been given all rows of the claimed shards.
    ///
    /// Its inputs belong to the last read: `self.bounds` was set just before it, and `self.last` and `self.exhausted` come from it,
    /// or from the last batch that was read ahead in a later snapshot. So this runs before the next read sets the bounds anew, and
    /// at the end. Before the first read `self.last` is 0, and this learns nothing.
    ///
    /// Why it is right up to `safe`. The bounds are older than the read's snapshot, so the read saw each row up to `safe` that will
    /// ever be visible. It began at the oldest unsent row of all shards claimed by then, took the oldest first, and stopped at
    /// `last`, or at the end if it was exhausted. So of the rows up to both, it gave all that were unsent and not given before.
    /// None becomes unsent behind its back, because whoever puts dead letters back must lock the shard.
    ///
    /// Up to `passed` the same holds except for rows of the transactions in `bounds.open`, so the second bound comes with those. If
    /// the shard has a transaction that the bounds do not have, it had ended before the read, which saw its rows. So it is left out
    /// once the read has come as far as the second bound, and not before.
    pub(crate) fn given_up_to_here(&mut self) {
        let read = if self.exhausted { self.polled_through } else { self.last };
        let (given, of_ended) = (read.min(self.bounds.safe), read.min(self.bounds.passed));
        for shard in &mut self.shards {
            shard.given = shard.given.max(given);
            if of_ended >= shard.given_of_ended {
                shard.given_of_ended = of_ended;
                shard.open_changed |= !shard.open.keys().eq(self.bounds.open.keys());
                shard.open.retain(|id, _| self.bounds.open.contains_key(id));
                merge(&mut shard.open, &self.bounds.open);
            }
        }
    }

    /// Ends the pass. Returns how the lower bounds move: to what was given and is settled.
    pub(crate) fn end(mut self) -> Moves {
        self.given_up_to_here();
        // What was given and not settled is unsent.
        let sent = self.unsettled.oldest().map_or(i64::MAX, |oldest| oldest - 1);
        let mut moves = Moves::default();
        for shard in self.shards {
            let (sent_through, of_ended) = (shard.given.min(sent), shard.given_of_ended.min(sent));
            // If a transaction has ended, the next look would begin at `sent_through` again.
            let has_moved = sent_through >= shard.sent_through + LOWER_BOUND_STEP
                || of_ended >= shard.sent_through.max(shard.passed) + LOWER_BOUND_STEP
                || (shard.open_changed && (of_ended > sent_through || shard.passed > shard.sent_through));
            if has_moved {
                moves.shards.push(shard.number);
                moves.lower_bounds.push(sent_through);
                moves.passed.push(of_ended);
                merge(&mut moves.open, &shard.open);
            }
        }
        moves
    }
}

/// Adds what is known of transactions. If two numbers of one are known, both hold, and the higher one says more.
fn merge(open: &mut OpenTransactions, more: &OpenTransactions) {
    for (&id, &after) in more {
        let known = open.entry(id).or_insert(after);
        *known = after.max(*known);
    }
}
