//! PostgreSQL, polled. The fence and the progress of a pass are the real ones. What they ask of the database in SQL is written here once
//! more, for a simulated one: see `polling/postgres/claim.rs` and `read.rs`.

use std::collections::HashSet;
use std::time::Duration;

use diesel::QueryResult;
use diesel::result::Error;
use diesel_outbox_core::{Claimed, DeadLettered, SHARDS, Source, SourceError};
use uuid::Uuid;

use super::database::{Fate, Row, ShardRow, SimulatedDatabase, Snapshot, Transaction, Tx};
use super::hand::Hand;
use super::kind::Mistake;
use super::world::World;
use crate::source::fence::{Fence, Transactions};
use crate::source::polling::postgres::progress::{
    ClaimedShard, LOWER_BOUND_LAG, LOWER_BOUND_STEP, Moves, Progress,
};
use crate::source::polling::postgres::read::Unread;
use crate::source::sequence::Sequence;

pub(super) struct SimulatedPostgres {
    hand: Hand,
    session: Option<Session>,
    /// The passes whose commits the server may lose when it crashes.
    undoable: Vec<Tx>,
}

struct Session {
    /// How often the server had crashed when it began.
    crashes: u64,
    fence: Fence,
    workers: usize,
    pass: Option<PostgresPass>,
}

struct PostgresPass {
    tx: Tx,
    progress: Progress,
    has_read: bool,
    ahead: Option<(Unread, Snapshot)>,
}

fn nothing_claimed() -> SourceError {
    SourceError::new("nothing is claimed")
}

/// The database as a fence sees it.
struct Look<'a> {
    hand: &'a Hand,
    crashes: u64,
    own: Option<Tx>,
}

impl Look<'_> {
    fn ask<T>(&self, work: impl FnOnce(&mut World) -> T) -> QueryResult<T> {
        let asked =
            self.hand.statement(|world| (world.database.crashes == self.crashes).then(|| work(world)));
        asked.ok().flatten().ok_or(Error::BrokenTransactionManager)
    }

    fn holders<'b>(&self, database: &'b SimulatedDatabase) -> impl Iterator<Item = (Tx, &'b Transaction)> {
        let own = self.own;
        let all = database.transactions.iter().enumerate();
        all.filter(move |(tx, its)| its.holds_table && Some(*tx) != own)
    }
}

impl Transactions for Look<'_> {
    fn sequence(&mut self) -> QueryResult<Sequence> {
        self.ask(|world| Sequence { last: world.database.last_number, file: 1 })
    }

    fn holders(&mut self) -> QueryResult<(HashSet<String>, usize)> {
        self.ask(|world| {
            let workers = 1 + world.chance.below(self.hand.workers() as u64) as usize;
            let holders =
                Self::holders(self, &world.database).map(|(tx, _)| world.database.name(tx)).collect();
            let overlooks = self.hand.mistake == Some(Mistake::PassesLateCommits);
            (if overlooks { HashSet::new() } else { holders }, workers)
        })
    }

    fn ids(&mut self) -> QueryResult<Vec<(String, Option<i64>, bool)>> {
        self.ask(|world| {
            let database = &world.database;
            let running = |its: &Transaction| its.id.filter(|_| its.fate == Fate::Open);
            let holders = Self::holders(self, database);
            holders.map(|(tx, its)| (database.name(tx), running(its), its.has_number)).collect()
        })
    }
}

/// A shard as `Claim` looks at it.
struct Looked {
    shard: i16,
    oldest: Option<i64>,
    begin: i64,
    is_wanted: bool,
}

/// The number after which the unsent rows of a shard may lie.
fn start(
    database: &SimulatedDatabase,
    (sent_through, passed): (i64, i64),
    open: &crate::source::fence::OpenTransactions,
    snapshot: Snapshot,
) -> (i64, bool) {
    let ended = open.iter().filter(|(id, _)| database.has_ended(**id, snapshot));
    let first = ended.map(|(_, after)| *after).min();
    (sent_through.max(first.map_or(passed, |first| passed.min(first))), first.is_some())
}

fn oldest(
    database: &SimulatedDatabase,
    shard: i16,
    start: i64,
    snapshot: Snapshot,
    by: Option<Tx>,
) -> Option<i64> {
    let rows = database.rows.iter().filter(|row| row.shard == shard && row.seq > start);
    rows.filter(|row| database.waits(row, snapshot, by)).map(|row| row.seq).min()
}

fn look(database: &SimulatedDatabase, by: Option<Tx>, passed: i64, quiet_since: i64) -> Vec<Looked> {
    let snapshot = database.snapshot();
    let shards = (0..SHARDS).zip(&database.shards);
    let looked = shards.map(|(shard, row)| {
        let (begin, _) = start(database, (row.sent_through, row.passed), &row.open, snapshot);
        let second = row.sent_through.max(row.passed);
        let start = if second <= passed { second } else { begin };
        let oldest = oldest(database, shard, start, snapshot, by);
        let limit = quiet_since.min(i64::MAX - LOWER_BOUND_STEP);
        let is_wanted = oldest.is_some() || begin < start || second <= limit;
        Looked { shard, oldest, begin, is_wanted }
    });
    looked.collect()
}

/// The oldest rows that were not read, up to `limit`, with their tickets.
fn unsent(
    database: &SimulatedDatabase,
    unread: &Unread,
    snapshot: Snapshot,
    by: Option<Tx>,
    limit: usize,
) -> Vec<(u64, i64)> {
    let bounds = unread.lower_bounds.iter().copied().zip(unread.passed.iter().copied());
    let starts = bounds.map(|bounds| start(database, bounds, &unread.open, snapshot));
    let starts: Vec<(i16, i64, bool)> =
        unread.shards.iter().zip(starts).map(|(shard, (start, ended))| (*shard, start, ended)).collect();
    let first = if starts.iter().any(|(.., ended)| *ended) {
        starts.iter().map(|(_, start, _)| start + 1).min()
    } else {
        starts.iter().filter_map(|(shard, start, _)| oldest(database, *shard, *start, snapshot, by)).min()
    };
    let Some(first) = first else { return Vec::new() };
    let given: HashSet<u64> = unread.given.iter().map(|place| u64::from(*place)).collect();
    let mut rows: Vec<i64> = database
        .rows
        .iter()
        .filter(|row| row.seq >= first && unread.shards.contains(&row.shard))
        .filter(|row| row.seq > unread.last_given || !given.contains(&row.seq.unsigned_abs()))
        .filter(|row| database.waits(row, snapshot, by))
        .map(|row| row.seq)
        .collect();
    rows.sort_unstable();
    rows.truncate(limit);
    rows.into_iter().map(|seq| (seq.unsigned_abs(), seq)).collect()
}

/// The tickets of those rows that are held back.
fn held_back(
    hand: &Hand,
    database: &SimulatedDatabase,
    rows: &[(u64, i64)],
    (snapshot, by): (Snapshot, Option<Tx>),
) -> Vec<u64> {
    let blocks = hand.kind.blocks() && hand.mistake != Some(Mistake::HoldsNothingBack);
    let is_held_back = |(_, seq): &&(u64, i64)| {
        let row = database.rows.iter().find(|row| row.seq == *seq);
        blocks && row.is_some_and(|row| database.is_held_back(row, snapshot, by))
    };
    rows.iter().filter(is_held_back).map(|(ticket, _)| *ticket).collect()
}

impl PostgresPass {
    fn claim(
        &mut self,
        hand: &Hand,
        workers: usize,
        passed: i64,
        quiet_since: i64,
    ) -> Result<bool, SourceError> {
        let share = (SHARDS as usize).div_ceil(workers.max(1));
        let claimed = self.progress.shards();
        let Some(free @ 1..) = share.checked_sub(claimed.len()) else { return Ok(false) };
        let tx = self.tx;
        let mut looked = hand.statement_in(tx, |world| {
            world.database.identify(tx);
            look(&world.database, Some(tx), passed, quiet_since)
        })?;
        looked.retain(|its| !claimed.contains(&its.shard) && (its.is_wanted || workers <= 1));
        let part = |its: &Looked| its.shard as usize / share;
        let first: Vec<Option<i64>> = looked
            .iter()
            .map(|its| {
                looked.iter().filter(|other| part(other) == part(its)).filter_map(|other| other.oldest).min()
            })
            .collect();
        let mut order: Vec<usize> = (0..looked.len()).collect();
        let last = |seq: Option<i64>| seq.unwrap_or(i64::MAX);
        order.sort_by_key(|at| (last(first[*at]), last(looked[*at].oldest)));
        let order: Vec<i16> = order.into_iter().map(|at| looked[at].shard).collect();
        // The statement locks the rows as they are by then.
        let shares = hand.mistake == Some(Mistake::SharesShards);
        let locked = hand.statement_in(tx, |world| {
            let locked = world.database.lock(tx, &order, free, shares);
            locked
                .into_iter()
                .map(|shard| (shard, world.database.shards[shard as usize].clone()))
                .collect::<Vec<_>>()
        })?;
        let mut any_wanted = false;
        for (number, ShardRow { sent_through, passed, open, .. }) in locked {
            let Some(its) = looked.iter().find(|its| its.shard == number) else { continue };
            any_wanted |= its.is_wanted;
            self.progress.claimed(ClaimedShard {
                number,
                sent_through,
                polled_through: i64::MAX,
                passed,
                begin: its.begin,
                open,
            });
        }
        Ok(any_wanted)
    }
}

impl SimulatedPostgres {
    pub(super) fn new(hand: Hand) -> Self {
        Self { hand, session: None, undoable: Vec::new() }
    }

    /// Works in the session, and drops it if something fails. The server notices that later.
    fn with<T>(
        &mut self,
        work: impl FnOnce(&Hand, &mut Session) -> Result<T, SourceError>,
    ) -> Result<T, SourceError> {
        let mut session = match self.session.take() {
            Some(session) => session,
            None => self.hand.statement(|world| Session {
                crashes: world.database.crashes,
                fence: Fence::after(Sequence { last: world.database.last_number, file: 1 }),
                workers: 1,
                pass: None,
            })?,
        };
        let is_good = self.hand.world().database.crashes == session.crashes;
        let done = if is_good {
            work(&self.hand, &mut session)
        } else {
            Err(SourceError::new("the server has crashed"))
        };
        match done {
            Ok(done) => {
                self.session = Some(session);
                Ok(done)
            }
            Err(error) => {
                if let Some(PostgresPass { tx, .. }) = session.pass {
                    self.hand.world().database.transactions[tx].is_orphan = true;
                }
                Err(error)
            }
        }
    }
}

impl Session {
    fn advance(&mut self, hand: &Hand) -> Result<(), SourceError> {
        let own = self.pass.as_ref().map(|pass| pass.tx);
        let now = hand.world().now();
        let failed = |_| SourceError::new("the fence cannot be moved");
        let mut look = Look { hand, crashes: self.crashes, own };
        if let Some(workers) = self.fence.advance(now, &mut look).map_err(failed)? {
            self.workers = workers;
        }
        Ok(())
    }

    fn claim(&mut self, hand: &Hand) -> Result<bool, SourceError> {
        self.advance(hand)?;
        let bounds = self.fence.bounds().clone();
        let quiet_since = bounds.passed - LOWER_BOUND_LAG;
        let is_wanted = hand.statement(|world| {
            look(&world.database, None, bounds.passed, quiet_since).iter().any(|its| its.is_wanted)
        })?;
        if !is_wanted {
            return Ok(false);
        }
        let worker = hand.worker;
        let tx = hand.statement(|world| world.database.begin(Some(worker)))?;
        let progress = Progress::begin(&bounds);
        let pass = self.pass.insert(PostgresPass { tx, progress, has_read: false, ahead: None });
        let workers = if hand.kind.is_exactly_once() { 1 } else { self.workers };
        let mut any_wanted = pass.claim(hand, workers, bounds.passed, quiet_since)?;
        // Whoever sends exactly once has all shards.
        any_wanted &= !hand.kind.is_exactly_once() || pass.progress.shards().len() == SHARDS as usize;
        if !any_wanted {
            hand.statement(|world| world.database.roll_back(tx))?;
            self.pass = None;
        }
        Ok(any_wanted)
    }

    fn read(&mut self, hand: &Hand, limit: usize) -> Result<(Vec<Claimed>, bool), SourceError> {
        let ahead = self.pass.as_mut().ok_or_else(nothing_claimed)?.ahead.take();
        let (rows, held_back, exhausts) = if let Some((mut unread, snapshot)) = ahead {
            let pass = self.pass.as_mut().ok_or_else(nothing_claimed)?;
            let (rows, held_back) = hand.statement(|world| {
                let rows = unsent(&world.database, &unread, snapshot, None, limit);
                let held_back = held_back(hand, &world.database, &rows, (snapshot, None));
                (rows, held_back)
            })?;
            unread.go_past(&rows);
            let exhausts = rows.len() < limit;
            pass.ahead = (!exhausts).then_some((unread, snapshot));
            (rows, held_back, exhausts)
        } else {
            self.advance(hand)?;
            let pass = self.pass.as_mut().ok_or_else(nothing_claimed)?;
            let bounds = self.fence.bounds();
            pass.progress.given_up_to_here();
            if std::mem::replace(&mut pass.has_read, true) {
                pass.claim(hand, self.workers, bounds.passed, i64::MIN)?;
            }
            pass.progress.look_with(bounds);
            let (tx, unread) = (pass.tx, pass.progress.unread(0));
            let read = |world: &mut World| {
                let snapshot = world.database.snapshot();
                let rows = unsent(&world.database, &unread, snapshot, Some(tx), limit);
                let held_back = held_back(hand, &world.database, &rows, (snapshot, Some(tx)));
                (rows, held_back)
            };
            let (rows, held_back) = hand.statement_in(tx, read)?;
            let exhausts = rows.len() < limit;
            (rows, held_back, exhausts)
        };
        let pass = self.pass.as_mut().ok_or_else(nothing_claimed)?;
        pass.progress.give(&rows, exhausts);
        let tx = pass.tx;
        let given = {
            let world = hand.world();
            let sent = rows.iter().filter(|(ticket, _)| !held_back.contains(ticket));
            let stored = |(ticket, seq): &(u64, i64)| {
                let row = world.database.rows.iter().find(|row| row.seq == *seq)?;
                Some(row.stored(*ticket).claimed())
            };
            sent.filter_map(stored).collect()
        };
        if !held_back.is_empty() {
            hand.statement_in(tx, |world| {
                held_back.iter().for_each(|ticket| world.database.dead_letter(tx, *ticket));
            })?;
        }
        Ok((given, !exhausts))
    }

    fn pass(&mut self) -> Result<&mut PostgresPass, SourceError> {
        self.pass.as_mut().ok_or_else(nothing_claimed)
    }
}

/// Settles what was acknowledged, or by mistake all that lies between.
pub(super) fn settle(hand: &Hand, world: &mut World, tx: Tx, tickets: &[u64], shards: &[i16]) {
    let by_others =
        |row: &&Row| row.sent_by.is_some_and(|by| by != tx) && tickets.contains(&row.seq.unsigned_abs());
    if let Some(seq) = world.database.rows.iter().find(by_others).map(|row| row.seq) {
        world.fails(format!("the event {seq} is settled by two passes"));
    }
    if hand.mistake == Some(Mistake::SettlesByRange) {
        let (first, last) = (tickets.iter().min().copied(), tickets.iter().max().copied());
        let between = |row: &&Row| {
            let ticket = row.seq.unsigned_abs();
            first <= Some(ticket) && Some(ticket) <= last && shards.contains(&row.shard)
        };
        let snapshot = world.database.snapshot();
        let database = &world.database;
        let rows = database.rows.iter().filter(between).filter(|row| database.waits(row, snapshot, Some(tx)));
        let all: Vec<u64> = rows.map(|row| row.seq.unsigned_abs()).collect();
        world.database.settle(tx, &all);
    } else {
        world.database.settle(tx, tickets);
    }
}

impl Source for SimulatedPostgres {
    fn claim(&mut self) -> Result<bool, SourceError> {
        self.with(|hand, session| session.claim(hand))
    }

    fn read(&mut self, limit: usize, records: &mut Vec<Claimed>) -> Result<bool, SourceError> {
        let (batch, more) = self.with(|hand, session| session.read(hand, limit))?;
        records.extend(batch);
        Ok(more)
    }

    fn read_ahead(&mut self, _: usize) -> Result<(), SourceError> {
        self.with(|hand, session| {
            let pass = session.pass()?;
            if pass.ahead.is_none() && pass.progress.may_have_backlog() {
                let unread = pass.progress.unread(0);
                pass.ahead = Some((unread, hand.statement(|world| world.database.snapshot())?));
            }
            Ok(())
        })
    }

    fn settle(&mut self, tickets: &[u64]) -> Result<(), SourceError> {
        self.with(|hand, session| {
            let pass = session.pass()?;
            let (tx, shards) = (pass.tx, pass.progress.shards());
            hand.statement_in(tx, |world| settle(hand, world, tx, tickets, &shards))?;
            pass.progress.settled(tickets);
            Ok(())
        })
    }

    fn settle_committed(&mut self, ids: &[Uuid]) -> Result<(), SourceError> {
        self.with(|hand, session| {
            let pass = session.pass()?;
            let (tx, sent_through) = (pass.tx, pass.progress.sent_through());
            let is_looked_at = |row: &Row| row.seq > sent_through;
            hand.statement_in(tx, |world| world.database.settle_committed(tx, ids, is_looked_at))
        })
    }

    fn dead_letter(&mut self, ticket: u64, _: &str) -> Result<DeadLettered, SourceError> {
        self.with(|hand, session| {
            let pass = session.pass()?;
            let tx = pass.tx;
            hand.statement_in(tx, |world| world.database.dead_letter(tx, ticket))?;
            pass.progress.settled(&[ticket]);
            Ok(DeadLettered::default().holding_back(hand.kind.blocks()))
        })
    }

    fn release(&mut self) -> Result<(), SourceError> {
        let released = self.with(|hand, session| {
            let PostgresPass { tx, progress, .. } = session.pass.take().ok_or_else(nothing_claimed)?;
            let Moves { shards, lower_bounds, passed, open } = progress.end();
            let moves =
                shards.into_iter().zip(lower_bounds).zip(passed).map(|((shard, sent_through), passed)| {
                    let row = ShardRow { sent_through, passed, open: open.clone(), ..ShardRow::default() };
                    (shard as usize, row)
                });
            let (moves, crashes): (Vec<_>, u64) = (moves.collect(), session.crashes);
            // The connection may be lost only now.
            hand.world().database.transactions[tx].is_orphan = true;
            hand.statement(|world| {
                if world.database.crashes == crashes {
                    world.database.transactions[tx].moves = moves;
                    world.commit_pass(tx)?;
                    return Ok(tx);
                }
                Err(SourceError::new("the server has crashed"))
            })?
        });
        match released {
            Ok(tx) => {
                self.undoable.push(tx);
                let world = self.hand.world();
                self.undoable.retain(|tx| world.database.is_undoable(*tx));
            }
            Err(_) => self.undoable.clear(),
        }
        released.map(drop)
    }

    fn undoable_passes(&self) -> usize {
        if self.hand.mistake == Some(Mistake::SettlesLazily) { 0 } else { self.undoable.len() }
    }

    fn abandon(&mut self) {
        if let Some(session) = &mut self.session
            && let Some(PostgresPass { tx, .. }) = session.pass.take()
        {
            self.hand.world().database.roll_back(tx);
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
