//! Which rows wait for a dead letter of their aggregate, if the policy is to block.
//!
//! A requeued dead letter comes at the end of the WAL. What was emitted after it and before the requeue comes before it, and must not be
//! sent first. So the transaction that requeues it also notes in the table `outbox_requeued` under which number it comes back, and at which
//! `place` it belongs, which is the number that it had. A row that was never requeued has its own number as its place.
//!
//! # Why the order is kept
//!
//! Claim: when a row is given to be sent, every earlier record of its aggregate (one with a lower place) was sent, or comes before the row in
//! what was given. Assume not, and let the earlier record be the first that breaks it. It came from the WAL before, because the WAL has the
//! order of the commits, and was not given, so it became a dead letter before this row was looked at. One of these is true:
//!
//! - It is in the table `outbox_dead_letter`, with its place. Then the row is held back.
//! - It was requeued. The note was written in the same transaction, and no statement sees one without the other. It stays until the
//!   requeued row has come from the WAL and the stored position lies behind that row: [`settled`](HeldBack::settled) says when, and both are
//!   written in one transaction. So whoever reads the WAL from the stored position either comes to the requeued row, or finds no note of it.
//!   As long as it has not come, the row is held back. When it has come, it was given, or became a dead letter again, at its old place.
//!
//! Nothing of this is kept in memory alone but which requeued rows have come: those with numbers up to the last one of the aggregate, because
//! requeues wait for each other and take their numbers in the order in which they commit. Another relay begins at the stored position, where
//! they come again. The aggregates that have dead letters are looked up once: later ones come from this relay, which writes
//! them only while it has the lock of the active one. Whether a row of one of these
//! aggregates is held back is looked up each time, because anybody may requeue.
//!
//! If a position is read again, a dead letter's row may come again although it was requeued meanwhile. Its requeued row comes later, so
//! neither is it sent, nor does it become a dead letter once more.
//!
//! A note may outlive its row if the relay did not block when the row came, or if a failover undid the transaction that removed the note. It
//! holds back what comes until the shards' lower bounds have passed its number and pruning removes it. That costs a requeue, and no order.

use std::collections::{BTreeMap, HashMap};

use bytes::Bytes;
use diesel_outbox_core::{DeadLetterPolicy, SourceError};

use crate::source::row::StoredRow;

/// An aggregate's type and id.
type Aggregate = (Bytes, Bytes);

/// What is known of an aggregate that has or had dead letters.
#[derive(Debug, Default)]
struct Known {
    /// Whether it has neither dead letters nor requeued rows that are still to come.
    is_free: bool,
    /// The number of the last requeued row that has come.
    last_requeued: i64,
}

/// What the database knows of a row's aggregate.
#[derive(Debug, Default)]
pub(crate) struct Found {
    /// The row's place, if it was requeued.
    pub(crate) place: Option<i64>,
    /// The place of the aggregate's first dead letter.
    pub(crate) first_dead: Option<i64>,
    /// The first place of the requeued rows that are still to come.
    pub(crate) first_to_come: Option<i64>,
    /// Whether the row itself is still to come under a later number.
    pub(crate) comes_again: bool,
}

/// What becomes of a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Turn {
    Sent,
    HeldBack,
    /// It comes again, because it was requeued.
    ComesAgain,
}

pub(crate) struct HeldBack {
    blocks: bool,
    /// The aggregates that have or had dead letters. `None` before they were looked up.
    aggregates: Option<HashMap<Aggregate, Known>>,
    /// The numbers of the requeued rows that have come and are not settled, by their tickets.
    came: BTreeMap<u64, i64>,
}

impl HeldBack {
    pub(crate) fn by(policy: DeadLetterPolicy) -> Self {
        Self { blocks: policy == DeadLetterPolicy::Block, aggregates: None, came: BTreeMap::new() }
    }

    /// Returns whether any aggregate may be held back.
    pub(crate) fn blocks(&self) -> bool {
        self.blocks
    }

    /// Looks up which aggregates have dead letters, unless that was done.
    pub(crate) fn look_up(
        &mut self,
        load: impl FnOnce() -> Result<Vec<(String, String)>, SourceError>,
    ) -> Result<(), SourceError> {
        if self.blocks && self.aggregates.is_none() {
            let known = |(aggregate_type, id): (String, String)| {
                ((aggregate_type.into(), id.into()), Known::default())
            };
            self.aggregates = Some(load()?.into_iter().map(known).collect());
        }
        Ok(())
    }

    /// Notes that a row becomes a dead letter.
    pub(crate) fn add(&mut self, row: &StoredRow) {
        if let Some(aggregates) = &mut self.aggregates {
            aggregates.entry(aggregate(row)).or_default().is_free = false;
        }
    }

    /// Returns what becomes of this row, which comes next. `look` asks the database, and is given the number of the last requeued row of
    /// the aggregate that has come.
    pub(crate) fn turn(
        &mut self,
        row: &StoredRow,
        look: impl FnOnce(i64) -> Result<Found, SourceError>,
    ) -> Result<Turn, SourceError> {
        let aggregates = self.aggregates.as_mut().filter(|aggregates| !aggregates.is_empty());
        let known = aggregates.and_then(|aggregates| aggregates.get_mut(&aggregate(row)));
        let Some(known) = known.filter(|known| !known.is_free) else { return Ok(Turn::Sent) };
        let found = look(known.last_requeued)?;
        if found.place.is_some() {
            known.last_requeued = known.last_requeued.max(row.seq);
            self.came.insert(row.ticket, row.seq);
        }
        let place = found.place.unwrap_or(row.seq);
        // A dead letter at the same place is the row itself, which was read again.
        let waits = found.first_dead.is_some_and(|first| first <= place)
            || found.first_to_come.is_some_and(|first| first < place);
        known.is_free = found.first_dead.is_none() && found.first_to_come.is_none() && !found.comes_again;
        Ok(match (found.comes_again, waits) {
            (true, _) => Turn::ComesAgain,
            (false, true) => Turn::HeldBack,
            (false, false) => Turn::Sent,
        })
    }

    /// Returns the numbers of the requeued rows that were settled since the last call, if all before this ticket is settled. Their notes go
    /// in the transaction that stores the position.
    pub(crate) fn settled(&mut self, first: u64) -> Vec<i64> {
        let unsettled = self.came.split_off(&first);
        std::mem::replace(&mut self.came, unsettled).into_values().collect()
    }
}

fn aggregate(row: &StoredRow) -> Aggregate {
    (row.aggregate_type.clone(), row.aggregate_id.clone())
}
