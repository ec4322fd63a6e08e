//! MySQL, polled. The fence, the groups of shards and the new bounds are the real ones. What they ask of the database in SQL is written
//! here once more, for a simulated one: see `polling/mysql/claim.rs`, `read.rs` and `bounds.rs`.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::time::Duration;

use diesel_outbox_core::{Claimed as ClaimedRecord, DeadLettered, SHARDS, Source, SourceError};
use uuid::Uuid;

use super::database::{Fate, Row, ShardRow, SimulatedDatabase, Snapshot, Tx};
use super::hand::Hand;
use super::kind::Mistake;
use super::postgres;
use super::world::World;
use crate::source::polling::mysql::bounds::{self, Bound, Claimed, Fence, MOST_LISTED};
use crate::source::polling::mysql::claim::{Wanted, groups};

pub(super) struct SimulatedMysql {
    hand: Hand,
    session: Option<Session>,
}

struct Session {
    /// The bounds of all shards as they were at the last look.
    bounds: Claimed,
    fence: Fence,
    last: i64,
    workers: usize,
    pass: Option<MysqlPass>,
}

struct MysqlPass {
    tx: Tx,
    claimed: Claimed,
    unsettled: HashSet<i64>,
    has_settled: bool,
    ahead: Option<Ahead>,
}

/// A backlog that is read ahead in a snapshot.
struct Ahead {
    snapshot: Snapshot,
    given: HashSet<i64>,
    after: i64,
}

fn nothing_claimed() -> SourceError {
    SourceError::new("nothing is claimed")
}

fn bounds_of(database: &SimulatedDatabase) -> Claimed {
    (0..SHARDS).zip(database.shards.iter().map(|row| row.bound.clone())).collect()
}

fn wanted(database: &SimulatedDatabase, known: &Claimed) -> Wanted {
    let (snapshot, mut oldest) = (database.snapshot(), BTreeMap::new());
    for row in database.rows.iter().filter(|row| database.waits(row, snapshot, None)) {
        let is_looked_for =
            |(shard, bound): &(i16, Bound)| *shard == row.shard && row.seq > bound.sent_through;
        // A listed row is found whatever its shard.
        if known.iter().any(|known| is_looked_for(known) || known.1.unsent.contains(&row.seq)) {
            let first = oldest.entry(row.shard).or_insert(row.seq);
            *first = row.seq.min(*first);
        }
    }
    oldest.into_iter().collect()
}

fn unsent(
    database: &SimulatedDatabase,
    claimed: &Claimed,
    given: &HashSet<i64>,
    after: i64,
    (snapshot, by): (Snapshot, Option<Tx>),
    limit: usize,
) -> Vec<i64> {
    let lowest = bounds::lowest(claimed);
    let is_listed = |seq| claimed.iter().any(|(_, bound)| bound.unsent.contains(&seq));
    let is_claimed = |row: &Row| claimed.iter().any(|(shard, _)| *shard == row.shard);
    let mut rows: Vec<i64> = database
        .rows
        .iter()
        .filter(|row| is_claimed(row) && !given.contains(&row.seq))
        .filter(|row| row.seq > after && (row.seq > lowest || is_listed(row.seq)))
        .filter(|row| database.waits(row, snapshot, by))
        .map(|row| row.seq)
        .collect();
    rows.sort_unstable();
    rows.truncate(limit);
    rows
}

/// Says of each row whether it is held back.
fn flagged(
    database: &SimulatedDatabase,
    seqs: Vec<i64>,
    (snapshot, by): (Snapshot, Option<Tx>),
    blocks: bool,
) -> Vec<(i64, bool)> {
    let is_held_back = |seq: i64| {
        let row = database.rows.iter().find(|row| row.seq == seq);
        blocks && row.is_some_and(|row| database.is_held_back(row, snapshot, by))
    };
    seqs.into_iter().map(|seq| (seq, is_held_back(seq))).collect()
}

/// The rows up to `through` that may have to be sent, with their shards.
fn listed(
    database: &SimulatedDatabase,
    claimed: &Claimed,
    through: i64,
    is_unsent: impl Fn(&Row) -> bool,
) -> Vec<(i64, i16)> {
    let lowest = bounds::lowest(claimed);
    let is_claimed = |row: &Row| claimed.iter().any(|(shard, _)| *shard == row.shard);
    let is_old = |seq: i64| seq <= lowest && claimed.iter().any(|(_, bound)| bound.unsent.contains(&seq));
    let rows = database.rows.iter().filter(|row| is_claimed(row) && is_unsent(row));
    let mut rows: Vec<(i64, i16)> = rows
        .filter(|row| is_old(row.seq) || (row.seq > lowest && row.seq <= through))
        .map(|row| (row.seq, row.shard))
        .collect();
    rows.sort_unstable();
    rows.truncate(MOST_LISTED + 1);
    rows
}

impl Session {
    fn pass(&mut self) -> Result<&mut MysqlPass, SourceError> {
        self.pass.as_mut().ok_or_else(nothing_claimed)
    }

    fn claim(&mut self, hand: &Hand) -> Result<bool, SourceError> {
        let known = self.bounds.clone();
        let (wanted, looked) =
            hand.statement(|world| (wanted(&world.database, &known), bounds_of(&world.database)))?;
        self.bounds = looked;
        if wanted.is_empty() {
            return Ok(false);
        }
        let worker = hand.worker;
        let tx = hand.statement(|world| {
            self.workers = 1 + world.chance.below(hand.workers() as u64) as usize;
            world.database.begin(Some(worker))
        })?;
        self.pass = Some(MysqlPass {
            tx,
            claimed: Claimed::new(),
            unsettled: HashSet::new(),
            has_settled: false,
            ahead: None,
        });
        let once = hand.kind.is_exactly_once();
        let (groups, share) = groups(&wanted, if once { 1 } else { self.workers });
        let shares = hand.mistake == Some(Mistake::SharesShards);
        for group in groups {
            let claimed = &mut self.pass.as_mut().ok_or_else(nothing_claimed)?.claimed;
            let Some(free @ 1..) = share.checked_sub(claimed.len()) else { break };
            claimed.extend(hand.statement_in(tx, |world| {
                let locked = world.database.lock(tx, &group, free, shares);
                let bound = |shard: i16| (shard, world.database.shards[shard as usize].bound.clone());
                locked.into_iter().map(bound).collect::<Vec<_>>()
            })?);
        }
        let claimed = &self.pass()?.claimed;
        let has_wanted = claimed.iter().any(|(shard, _)| wanted.iter().any(|(other, _)| other == shard));
        let lacks_one = once && claimed.len() < SHARDS as usize;
        if !has_wanted || lacks_one || !claimed.iter().all(|claimed| known.contains(claimed)) {
            hand.statement(|world| world.database.roll_back(tx))?;
            self.pass = None;
            return Ok(false);
        }
        Ok(true)
    }

    fn read(&mut self, hand: &Hand, limit: usize) -> Result<(Vec<ClaimedRecord>, bool), SourceError> {
        let blocks = hand.kind.blocks() && hand.mistake != Some(Mistake::HoldsNothingBack);
        let pass = self.pass()?;
        let rows = if let Some(Ahead { snapshot, given, after }) = pass.ahead.take() {
            let rows = hand.statement(|world| {
                let view = (snapshot, None);
                let rows = unsent(&world.database, &pass.claimed, &given, after, view, limit);
                flagged(&world.database, rows, view, blocks)
            })?;
            let tx = pass.tx;
            let still_claimed = hand.statement(|world| world.database.transactions[tx].fate == Fate::Open)?;
            if !still_claimed {
                return Err(nothing_claimed());
            }
            if let (true, Some((last, _))) = (rows.len() == limit, rows.last()) {
                pass.ahead = Some(Ahead { snapshot, given, after: *last });
            }
            rows
        } else {
            hand.statement(|world| {
                let view = (world.database.snapshot(), Some(pass.tx));
                let rows = unsent(&world.database, &pass.claimed, &pass.unsettled, i64::MIN, view, limit);
                flagged(&world.database, rows, view, blocks)
            })?
        };
        pass.unsettled.extend(rows.iter().map(|(seq, _)| seq));
        self.last = self.last.max(rows.last().map_or(0, |(seq, _)| *seq));
        let more = rows.len() == limit;
        let pass = self.pass()?;
        for (seq, _) in rows.iter().filter(|(_, is_held_back)| *is_held_back) {
            hand.statement_in(pass.tx, |world| world.database.dead_letter(pass.tx, seq.unsigned_abs()))?;
            pass.settled(&[seq.unsigned_abs()]);
        }
        let world = hand.world();
        let stored = |seq: &i64| {
            let row = world.database.rows.iter().find(|row| row.seq == *seq)?;
            Some(row.stored(seq.unsigned_abs()).claimed())
        };
        let sent = rows.iter().filter(|(_, is_held_back)| !is_held_back).map(|(seq, _)| seq);
        Ok((sent.filter_map(stored).collect(), more))
    }

    /// Returns the bounds to which those of the pass can move.
    fn moved(&mut self, hand: &Hand) -> Result<Option<Claimed>, SourceError> {
        let now = hand.world().now();
        if self.fence.asks_for(now, self.last).is_some() {
            let overlooks = hand.mistake == Some(Mistake::PassesLateCommits);
            let is_unused = hand.statement(|world| {
                overlooks || !world.database.transactions.iter().any(|its| its.is_inserting)
            })?;
            let now = hand.world().now();
            self.fence.is_told(now, self.last, is_unused);
        }
        let Some(pass) = &self.pass else { return Ok(None) };
        let (tx, claimed) = (pass.tx, &pass.claimed);
        let Some(through) = self.fence.looks_through(claimed) else { return Ok(None) };
        let overlooks = hand.mistake == Some(Mistake::PassesLateCommits);
        let stored = hand.statement(|world| {
            let database = &world.database;
            let is_rolled_back = |tx: Tx| matches!(database.transactions[tx].fate, Fate::RolledBack(_));
            listed(database, claimed, through, |row| {
                !row.is_undone
                    && !is_rolled_back(row.tx)
                    && row.sent_by.is_none()
                    && row.dead_by.is_none()
                    && !overlooks
            })
        })?;
        let committed = hand.statement(|world| {
            let database = &world.database;
            let snapshot = database.snapshot();
            listed(database, claimed, through, |row| database.waits(row, snapshot, Some(tx)))
        })?;
        let unsent: BTreeSet<(i64, i16)> = stored.into_iter().chain(committed).collect();
        let unsent: Vec<(i64, i16)> = unsent.into_iter().collect();
        Ok(Some(bounds::with_unsent(claimed, bounds::lowest(claimed), through, &unsent, None)))
    }

    fn release(&mut self, hand: &Hand) -> Result<(), SourceError> {
        let moved = self.moved(hand)?;
        let MysqlPass { tx, claimed, .. } = self.pass.take().ok_or_else(nothing_claimed)?;
        hand.world().database.transactions[tx].is_orphan = true;
        let changed: Claimed =
            moved.iter().flat_map(|moved| bounds::changed(&claimed, moved)).cloned().collect();
        for (shard, bound) in &changed {
            if let Some((_, known)) = self.bounds.iter_mut().find(|(known, _)| known == shard) {
                known.clone_from(bound);
            }
        }
        hand.statement(|world| {
            let row =
                |(shard, bound): (i16, Bound)| (shard as usize, ShardRow { bound, ..ShardRow::default() });
            world.database.transactions[tx].moves = changed.into_iter().map(row).collect();
            world.commit_pass(tx)
        })?
    }
}

impl SimulatedMysql {
    pub(super) fn new(hand: Hand) -> Self {
        Self { hand, session: None }
    }

    fn with<T>(
        &mut self,
        work: impl FnOnce(&Hand, &mut Session) -> Result<T, SourceError>,
    ) -> Result<T, SourceError> {
        let mut session = match self.session.take() {
            Some(session) => session,
            None => self.hand.statement(|world| Session {
                bounds: bounds_of(&world.database),
                fence: Fence::default(),
                last: 0,
                workers: 1,
                pass: None,
            })?,
        };
        let done = work(&self.hand, &mut session);
        if done.is_ok() {
            self.session = Some(session);
        } else if let Some(MysqlPass { tx, .. }) = session.pass {
            self.hand.world().database.transactions[tx].is_orphan = true;
        }
        done
    }
}

impl Source for SimulatedMysql {
    fn claim(&mut self) -> Result<bool, SourceError> {
        self.with(|hand, session| session.claim(hand))
    }

    fn read(&mut self, limit: usize, records: &mut Vec<ClaimedRecord>) -> Result<bool, SourceError> {
        let (batch, more) = self.with(|hand, session| session.read(hand, limit))?;
        records.extend(batch);
        Ok(more)
    }

    fn read_ahead(&mut self, _: usize) -> Result<(), SourceError> {
        self.with(|hand, session| {
            let pass = session.pass()?;
            if pass.ahead.is_none() && !pass.has_settled {
                let snapshot = hand.statement(|world: &mut World| world.database.snapshot())?;
                let given = pass.unsettled.clone();
                pass.ahead = Some(Ahead { snapshot, given, after: i64::MIN });
            }
            Ok(())
        })
    }

    fn settle(&mut self, tickets: &[u64]) -> Result<(), SourceError> {
        self.with(|hand, session| {
            let pass = session.pass()?;
            let shards: Vec<i16> = pass.claimed.iter().map(|(shard, _)| *shard).collect();
            hand.statement_in(pass.tx, |world| postgres::settle(hand, world, pass.tx, tickets, &shards))?;
            pass.settled(tickets);
            Ok(())
        })
    }

    fn settle_committed(&mut self, ids: &[Uuid]) -> Result<(), SourceError> {
        self.with(|hand, session| {
            let MysqlPass { tx, claimed, .. } = session.pass()?;
            let lowest = bounds::lowest(claimed);
            let is_listed = |seq| claimed.iter().any(|(_, bound)| bound.unsent.contains(&seq));
            let is_looked_at = |row: &Row| row.seq > lowest || is_listed(row.seq);
            hand.statement_in(*tx, |world| world.database.settle_committed(*tx, ids, is_looked_at))
        })
    }

    fn dead_letter(&mut self, ticket: u64, _: &str) -> Result<DeadLettered, SourceError> {
        self.with(|hand, session| {
            let pass = session.pass()?;
            hand.statement_in(pass.tx, |world| world.database.dead_letter(pass.tx, ticket))?;
            pass.settled(&[ticket]);
            Ok(DeadLettered::default().holding_back(hand.kind.blocks()))
        })
    }

    fn release(&mut self) -> Result<(), SourceError> {
        self.with(|hand, session| session.release(hand))
    }

    /// Ends the session.
    fn abandon(&mut self) {
        if let Some(Session { pass: Some(MysqlPass { tx, .. }), .. }) = self.session.take() {
            self.hand.world().database.transactions[tx].is_orphan = true;
        }
    }

    fn lingers(&self) -> bool {
        self.session.as_ref().is_some_and(|session| session.workers <= 1)
    }

    fn wait(&mut self, _: Duration) -> Result<bool, SourceError> {
        Ok(true)
    }

    fn outbox(&self) -> Option<&str> {
        Some("shop.public")
    }
}

impl MysqlPass {
    fn settled(&mut self, tickets: &[u64]) {
        self.has_settled = true;
        for ticket in tickets {
            self.unsettled.remove(&(*ticket as i64));
        }
    }
}
