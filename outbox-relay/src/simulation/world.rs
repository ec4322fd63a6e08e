//! All that the workers share, and what happens beside them.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use diesel_outbox_core::SourceError;

use super::broker::{Broker, FORGETS_AFTER};
use super::database::{Fate, Row, SimulatedDatabase, Tx};
use super::kind::Kind;
use super::writers::{AGGREGATES, Writers};
use crate::pipeline::simulation::Chance;
use crate::source::wal::position::Position;

pub(super) struct World {
    pub(super) kind: Kind,
    pub(super) chance: Chance,
    pub(super) database: SimulatedDatabase,
    pub(super) broker: Broker,
    pub(super) writers: Writers,
    /// In milliseconds.
    pub(super) clock: u64,
    began: Instant,
    /// One step in so many fails, until the faults end.
    fault_rate: Option<u64>,
    /// How many steps the faults go on for when nobody writes any more.
    faults_left: u64,
    /// There are no faults, and nobody writes. Since then so many rows have waited, or fewer.
    calm: Option<Calm>,
    /// How often all dead letters were requeued since then.
    requeues: u64,
    /// The worker that has the lock of the only relay at work, and the session.
    pub(super) active: Option<(usize, u64)>,
    sessions: u64,
    pub(super) slot: SimulatedSlot,
    pub(super) is_over: bool,
    /// What went wrong.
    pub(super) wrong: Option<String>,
    pub(super) faults: u64,
}

/// What the server and the table know of the slot.
#[derive(Default)]
pub(super) struct SimulatedSlot {
    /// The positions that the table has had, which a crash may take it back to.
    pub(super) kept: Vec<Position>,
    /// How many of them are on the disk.
    pub(super) kept_for_good: usize,
    pub(super) confirmed: u64,
    /// What the server has on its disk.
    pub(super) flushed: u64,
}

struct Calm {
    since: u64,
    waiting: usize,
}

/// When there are no faults any more, fewer rows must wait after so many milliseconds, until none does. All of them together have
/// no limit: workers that find nothing wait one after the other here, so time goes faster than the work.
const PATIENCE: u64 = 60_000;

/// What happens to a statement.
pub(super) enum Fault {
    None,
    /// It was not carried out.
    Before,
    /// It was, and nobody heard of it.
    After,
    /// The relay ends here.
    Crash,
}

impl World {
    pub(super) fn new(seed: u64, kind: Kind) -> Self {
        let chance = Chance::new(seed);
        let writers = Writers::new(kind, &chance);
        let fault_rate = [None, Some(400), Some(120), Some(40)][chance.below(4) as usize];
        Self {
            kind,
            database: SimulatedDatabase::new(),
            broker: Broker::new(kind.is_exactly_once()),
            writers,
            clock: 0,
            began: Instant::now(),
            fault_rate,
            faults_left: chance.below(400),
            calm: None,
            requeues: 0,
            active: None,
            sessions: 0,
            slot: SimulatedSlot::default(),
            is_over: false,
            wrong: None,
            faults: 0,
            chance,
        }
    }

    pub(super) fn now(&self) -> Instant {
        self.began + Duration::from_millis(self.clock)
    }

    pub(super) fn new_session(&mut self) -> u64 {
        self.sessions += 1;
        self.sessions
    }

    fn is_calm(&self) -> bool {
        self.calm.is_some()
    }

    /// Lets others than the workers do something.
    pub(super) fn go_on(&mut self) {
        for _ in 0..self.chance.below(4) {
            match self.chance.below(16) {
                0..=6 => self.writers.step(&mut self.database, self.kind, &self.chance, self.clock),
                7..=11 => {
                    let fails = !self.is_calm() && self.fault_rate.is_some();
                    let stepped = self.broker.step(&mut self.database, &self.chance, self.clock, fails);
                    if let Err(wrong) = stepped {
                        self.fails(wrong);
                    }
                }
                12 => self.notice_orphans(),
                13 if self.chance.one_in(10) => self.clock += self.chance.below(300),
                15 if self.kind.blocks() && self.chance.one_in(40) => {
                    let aggregate = self.chance.below(AGGREGATES as u64) as usize;
                    self.requeue([aggregate]);
                }
                // For so long, nobody emits.
                14 if !self.is_calm() && self.chance.one_in(300) && self.broker.is_idle() => {
                    self.clock += FORGETS_AFTER;
                }
                _ => self.clock += self.chance.below(6),
            }
        }
        if self.writers.are_done() && !self.is_calm() {
            self.faults_left = self.faults_left.saturating_sub(1);
            if self.faults_left == 0 {
                self.calm = Some(Calm { since: self.clock, waiting: self.waiting().count() });
            }
        }
        self.look_for_progress();
    }

    fn look_for_progress(&mut self) {
        let Some(calm) = self.calm.as_ref().filter(|calm| self.clock > calm.since + PATIENCE) else { return };
        let (before, waiting) = (calm.waiting, self.waiting().count());
        if waiting < before {
            self.calm = Some(Calm { since: self.clock, waiting });
            return;
        }
        let oldest = self.waiting().next().map(|row| {
            let shard = &self.database.shards[row.shard as usize];
            let locked_by = self.database.locked_by[row.shard as usize];
            let (bounds, mysql) = ((shard.sent_through, shard.passed, &shard.open), &shard.bound);
            format!(
                "{}, arrived {}, bounds {bounds:?}, {mysql:?}, locked by {locked_by:?}",
                row.seq, row.has_arrived
            )
        });
        self.fails(format!(
            "though there are no faults any more, not all is sent: {waiting} wait, {oldest:?}"
        ));
    }

    /// The rows that must still be sent and settled, so far as the database knows.
    fn waiting(&self) -> impl Iterator<Item = &Row> {
        let is_done = |row: &Row| {
            row.dead_by.is_some()
                || if self.kind.reads_wal() { row.has_arrived } else { row.sent_by.is_some() }
        };
        self.database.rows.iter().filter(move |row| self.database.is_committed(row) && !is_done(row))
    }

    pub(super) fn fails(&mut self, wrong: String) {
        self.wrong.get_or_insert(wrong);
        self.is_over = true;
    }

    pub(super) fn fault(&mut self) -> Fault {
        let Some(rate) = self.fault_rate.filter(|_| !self.is_calm()) else { return Fault::None };
        if !self.chance.one_in(rate) {
            return Fault::None;
        }
        self.faults += 1;
        match self.chance.below(10) {
            0..=3 => Fault::Before,
            4..=6 => Fault::After,
            7 if self.kind.is_exactly_once() && self.chance.one_in(2) => {
                self.end_a_session();
                Fault::None
            }
            7 if self.kind.is_polled_on_postgres() || self.kind.reads_wal() => {
                let lost = self.chance.below(self.database.unflushed() as u64 + 1) as usize;
                self.database.crash(lost);
                self.slot.lose(&self.chance);
                self.active = None;
                Fault::Before
            }
            _ => Fault::Crash,
        }
    }

    /// The server ends a session that has been idle for too long, for example because its relay is frozen.
    fn end_a_session(&mut self) {
        let is_open = |tx: &usize| {
            let its = &self.database.transactions[*tx];
            its.worker.is_some() && its.fate == Fate::Open
        };
        let open: Vec<Tx> = (0..self.database.transactions.len()).filter(is_open).collect();
        if !open.is_empty() {
            self.database.roll_back(open[self.chance.below(open.len() as u64) as usize]);
        }
    }

    /// A pass commits, unless the server has rolled it back. What it has settled must have arrived.
    pub(super) fn commit_pass(&mut self, tx: Tx) -> Result<(), SourceError> {
        if self.database.transactions[tx].fate != Fate::Open {
            return Err(SourceError::new("the transaction was rolled back"));
        }
        let lost = self.database.rows.iter().find(|row| row.sent_by == Some(tx) && !row.has_arrived);
        if let Some(seq) = lost.map(|row| row.seq) {
            self.fails(format!("the event {seq} was settled, and has not arrived"));
        }
        self.database.commit(tx);
        Ok(())
    }

    /// The worker's sessions have lost their client.
    pub(super) fn orphan(&mut self, worker: usize) {
        for transaction in self.database.transactions.iter_mut().filter(|its| its.worker == Some(worker)) {
            transaction.is_orphan = true;
        }
        if self.active.is_some_and(|(active, _)| active == worker) {
            self.active = None;
        }
    }

    /// The server notices some of the sessions that have lost their client.
    fn notice_orphans(&mut self) {
        let orphans: Vec<usize> = (0..self.database.transactions.len())
            .filter(|tx| {
                let its = &self.database.transactions[*tx];
                its.is_orphan && its.fate == Fate::Open
            })
            .collect();
        for tx in orphans {
            if self.chance.one_in(3) {
                self.database.roll_back(tx);
            }
        }
    }

    /// Whether nothing is left to do, and so all must be there.
    pub(super) fn is_done(&mut self) -> bool {
        let is_drained = || match self.kind.reads_wal() {
            true => self.waiting().next().is_none(),
            false => self.database.is_drained(),
        };
        self.is_calm() && is_drained() && !self.requeue_the_rest()
    }

    fn requeue(&mut self, aggregates: impl IntoIterator<Item = usize>) {
        let requeued: usize =
            aggregates.into_iter().map(|aggregate| self.database.requeue(aggregate, self.kind)).sum();
        if self.is_calm() && requeued > 0 {
            self.calm = Some(Calm { since: self.clock, waiting: self.waiting().count() });
        }
    }

    /// Puts back what was held back while a requeue went on. Returns whether there was any. That happens once at most, because nothing is
    /// emitted any more, and a second time for what the broker refuses meanwhile.
    fn requeue_the_rest(&mut self) -> bool {
        let dead = self.database.rows.iter().filter(|row| row.dead_by.is_some()).count();
        if !self.kind.requeues_at_once() || dead == 0 {
            return false;
        }
        self.requeues += 1;
        if self.requeues > 3 {
            self.fails(format!("{dead} events are held back, though they were requeued again and again"));
        }
        self.requeue(0..AGGREGATES);
        true
    }

    /// Finds out whether all is as it must be at the end.
    pub(super) fn verdict(&self) -> Result<(), String> {
        if let Some(wrong) = &self.wrong {
            return Err(wrong.clone());
        }
        let mut rows: Vec<&Row> =
            self.database.rows.iter().filter(|row| self.database.is_committed(row)).collect();
        rows.sort_by_key(|row| row.seq);
        let mut blocked = BTreeSet::new();
        for row in rows {
            let seq = row.seq;
            let is_refused = self.database.is_refused(seq) || self.database.is_refused_at_once(seq);
            let is_bad = is_refused || blocked.contains(&row.aggregate);
            if is_bad && self.kind.blocks() {
                blocked.insert(row.aggregate);
            }
            if is_bad != row.dead_by.is_some() {
                return Err(format!("the event {seq} is a dead letter, or is none: {is_bad} was expected"));
            }
            if !is_bad && !row.has_arrived {
                return Err(format!("the event {seq} was committed, and has not arrived"));
            }
        }
        Ok(())
    }
}

impl SimulatedSlot {
    pub(super) fn position(&self) -> Position {
        self.kept.last().copied().unwrap_or_default()
    }

    /// A crash takes back what was not on the disk.
    fn lose(&mut self, chance: &Chance) {
        let kept = self.kept.len().saturating_sub(chance.below(3) as usize).max(self.kept_for_good);
        self.kept.truncate(kept);
        if chance.one_in(2) {
            self.confirmed = self.flushed;
        }
        self.flushed = self.confirmed;
    }
}
