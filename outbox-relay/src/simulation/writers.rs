//! Services that emit. A transaction takes an aggregate's lock first, so the aggregate's events are committed in their order; whatever
//! else happens in other transactions, it may commit late, roll back, or be prepared.

use super::database::{Fate, SimulatedDatabase, Tx};
use super::kind::Kind;
use crate::pipeline::simulation::Chance;

pub(super) const AGGREGATES: usize = 7;

pub(super) struct Writer {
    tx: Option<Tx>,
    /// The aggregates whose locks it has.
    aggregates: Vec<usize>,
    /// How many steps it is still open.
    steps: u64,
    /// A number that it has taken for a row that is not there yet, and the row's aggregate.
    number: Option<(i64, usize)>,
    /// The number of rows when it set its savepoint.
    savepoint: Option<usize>,
    /// It rests until then, in milliseconds.
    rests_until: u64,
}

pub(super) struct Writers {
    writers: Vec<Writer>,
    /// How many transactions they will still begin.
    pub(super) left: u64,
    longest: u64,
}

impl Writers {
    pub(super) fn new(kind: Kind, chance: &Chance) -> Self {
        let writer = || Writer {
            tx: None,
            aggregates: Vec::new(),
            steps: 0,
            number: None,
            savepoint: None,
            rests_until: 0,
        };
        let count = 1 + chance.below(5);
        Self {
            writers: (0..count).map(|_| writer()).collect(),
            left: 10 + chance.below(60),
            longest: if kind.is_sqlite() { 12 } else { [6, 20, 200][chance.below(3) as usize] },
        }
    }

    pub(super) fn are_done(&self) -> bool {
        self.left == 0 && self.writers.iter().all(|writer| writer.tx.is_none())
    }

    /// One of them does one step.
    pub(super) fn step(&mut self, database: &mut SimulatedDatabase, kind: Kind, chance: &Chance, now: u64) {
        let at = chance.below(self.writers.len() as u64) as usize;
        if kind.is_sqlite() {
            // There, one transaction writes at a time, and nobody sees it before it has committed.
            while self.step_of(at, database, kind, chance, now) {}
        } else {
            self.step_of(at, database, kind, chance, now);
        }
    }

    /// Returns whether it has an open transaction.
    fn step_of(
        &mut self,
        at: usize,
        database: &mut SimulatedDatabase,
        kind: Kind,
        chance: &Chance,
        now: u64,
    ) -> bool {
        let taken: Vec<usize> = self.writers.iter().flat_map(|writer| &writer.aggregates).copied().collect();
        let writer = &mut self.writers[at];
        if now < writer.rests_until {
            return writer.tx.is_some();
        }
        let Some(tx) = writer.tx else {
            if self.left > 0 {
                self.left -= 1;
                writer.tx = Some(database.begin(None));
                writer.steps = 1 + chance.below(self.longest);
            }
            return writer.tx.is_some();
        };
        if let Fate::Committed(_) | Fate::RolledBack(_) = database.transactions[tx].fate {
            // The locks go a moment later than the transaction ends.
            database.transactions[tx].holds_table = false;
            writer.end();
            return false;
        }
        if let Some((seq, aggregate)) = writer.number.take() {
            database.insert(tx, seq, aggregate);
            database.transactions[tx].is_inserting = false;
            return true;
        }
        writer.steps = writer.steps.saturating_sub(1);
        if writer.steps == 0 {
            if !database.transactions[tx].is_prepared
                && kind.is_polled_on_postgres()
                && database.transactions[tx].id.is_some()
                && chance.one_in(6)
            {
                database.transactions[tx].is_prepared = true;
                writer.steps = 1 + chance.below(self.longest);
            } else if chance.one_in(5) {
                database.roll_back(tx);
            } else {
                database.commit(tx);
            }
            return true;
        }
        if database.transactions[tx].is_prepared {
            return true;
        }
        match chance.below(12) {
            0..=5 => {
                let aggregate = chance.below(AGGREGATES as u64) as usize;
                let is_own = writer.aggregates.contains(&aggregate);
                if taken.contains(&aggregate) && !is_own {
                    return true;
                }
                if !is_own {
                    writer.aggregates.push(aggregate);
                }
                if database.transactions[tx].holds_table {
                    let number = database.take_number(tx, chance.below(700) as i64);
                    writer.number = Some((number, aggregate));
                    database.transactions[tx].is_inserting = true;
                } else {
                    // The statement begins with the lock on the table.
                    database.transactions[tx].holds_table = true;
                }
            }
            6 => writer.savepoint = Some(database.rows.len()),
            7 => {
                if let Some(from) = writer.savepoint.take() {
                    let since = database.rows.iter_mut().skip(from);
                    since.filter(|row| row.tx == tx).for_each(|row| row.is_undone = true);
                }
            }
            8 if !kind.is_sqlite() && chance.one_in(4) => writer.rests_until = now + chance.below(1_500),
            // Another row of the transaction gets an id, not one of the outbox.
            9 => database.identify(tx),
            _ => {}
        }
        true
    }
}

impl Writer {
    fn end(&mut self) {
        self.tx = None;
        self.aggregates.clear();
        self.number = None;
        self.savepoint = None;
    }
}
