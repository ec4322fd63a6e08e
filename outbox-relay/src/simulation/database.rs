//! A database: transactions and what they see, rows, and the shards' rows with their locks.

use std::collections::BTreeSet;

use bytes::Bytes;
use diesel_outbox_core::{SHARDS, shard_of};
use uuid::Uuid;

use super::kind::Kind;
use crate::source::fence::OpenTransactions;
use crate::source::polling::mysql::bounds::Bound;
use crate::source::row::StoredRow;
use crate::source::wal::held_back::Found;

/// A transaction's number here.
pub(super) type Tx = usize;
/// How many transactions had ended when it was taken: it sees what those have done.
pub(super) type Snapshot = u64;

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    Open,
    Committed(Snapshot),
    RolledBack(Snapshot),
}

pub(super) struct Transaction {
    pub(super) fate: Fate,
    /// Its session's worker, or nobody if a service has it.
    pub(super) worker: Option<usize>,
    pub(super) id: Option<i64>,
    /// Whether it has been prepared, and waits for COMMIT PREPARED.
    pub(super) is_prepared: bool,
    /// It holds its locks for a moment longer than it is open.
    pub(super) holds_table: bool,
    pub(super) has_number: bool,
    /// Between the number and the row, in the middle of an INSERT.
    pub(super) is_inserting: bool,
    /// Its client is gone, and the server has not noticed yet.
    pub(super) is_orphan: bool,
    /// What becomes of the shards' rows when it commits.
    pub(super) moves: Vec<(usize, ShardRow)>,
}

/// An event's row.
pub(super) struct Row {
    pub(super) seq: i64,
    pub(super) tx: Tx,
    pub(super) aggregate: usize,
    pub(super) shard: i16,
    /// Whether a savepoint was rolled back.
    pub(super) is_undone: bool,
    pub(super) sent_by: Option<Tx>,
    pub(super) dead_by: Option<Tx>,
    /// Whether it has reached the broker.
    pub(super) has_arrived: bool,
}

#[derive(Clone, Default)]
pub(super) struct ShardRow {
    /// The bounds as PostgreSQL has them.
    pub(super) sent_through: i64,
    pub(super) passed: i64,
    pub(super) open: OpenTransactions,
    /// The bounds as MySQL has them.
    pub(super) bound: Bound,
}

pub(super) struct SimulatedDatabase {
    pub(super) transactions: Vec<Transaction>,
    ended: Snapshot,
    next_id: i64,
    pub(super) last_number: i64,
    pub(super) rows: Vec<Row>,
    /// The events that the broker takes by now, because they were requeued when somebody had seen to that.
    requeued: BTreeSet<i64>,
    pub(super) shards: Vec<ShardRow>,
    pub(super) locked_by: Vec<Option<Tx>>,
    /// How often the server has crashed.
    pub(super) crashes: u64,
    /// The commits that a crash of the server would undo, with the shards' rows from before.
    unflushed: Vec<(Tx, Vec<(usize, ShardRow)>)>,
    /// The rows of each committed transaction, in the order of the commits.
    pub(super) wal: Vec<WalTransaction>,
    pub(super) end_of_wal: u64,
    /// The dead letters that were requeued, as the table notes them.
    notes: Vec<Requeued>,
}

/// Under which number the event comes again, and its own number.
struct Requeued {
    seq: i64,
    place: i64,
    aggregate: usize,
}

pub(super) struct WalTransaction {
    pub(super) commit: u64,
    pub(super) end: u64,
    /// Each row, and the number that it has here.
    pub(super) rows: Vec<(usize, i64)>,
}

pub(super) fn key(aggregate: usize) -> String {
    format!("order-{aggregate}")
}

impl SimulatedDatabase {
    pub(super) fn new() -> Self {
        Self {
            transactions: Vec::new(),
            ended: 0,
            next_id: 700,
            last_number: 0,
            rows: Vec::new(),
            requeued: BTreeSet::new(),
            shards: vec![ShardRow::default(); SHARDS as usize],
            locked_by: vec![None; SHARDS as usize],
            crashes: 0,
            unflushed: Vec::new(),
            wal: Vec::new(),
            end_of_wal: 100,
            notes: Vec::new(),
        }
    }

    pub(super) fn begin(&mut self, worker: Option<usize>) -> Tx {
        self.transactions.push(Transaction {
            fate: Fate::Open,
            worker,
            id: None,
            is_prepared: false,
            holds_table: false,
            has_number: false,
            is_inserting: false,
            is_orphan: false,
            moves: Vec::new(),
        });
        self.transactions.len() - 1
    }

    /// Gives the transaction an id, if it has none.
    pub(super) fn identify(&mut self, tx: Tx) {
        if self.transactions[tx].id.is_none() {
            self.transactions[tx].id = Some(self.next_id);
            self.next_id += 1;
        }
    }

    pub(super) fn name(&self, tx: Tx) -> String {
        match &self.transactions[tx] {
            Transaction { is_prepared: true, id: Some(id), .. } => format!("-1/{id}"),
            _ => format!("{}/{tx}", 3 + tx % 5),
        }
    }

    pub(super) fn snapshot(&self) -> Snapshot {
        self.ended
    }

    /// Returns whether a snapshot knows that the transaction with this id has ended.
    pub(super) fn has_ended(&self, id: i64, snapshot: Snapshot) -> bool {
        let its = self.transactions.iter().find(|transaction| transaction.id == Some(id));
        match its.map(|transaction| transaction.fate) {
            Some(Fate::Open) => false,
            Some(Fate::Committed(at) | Fate::RolledBack(at)) => at <= snapshot,
            None => true,
        }
    }

    fn is_seen(&self, tx: Tx, snapshot: Snapshot, by: Option<Tx>) -> bool {
        Some(tx) == by || matches!(self.transactions[tx].fate, Fate::Committed(at) if at <= snapshot)
    }

    /// Returns whether this transaction, in this snapshot, sees the row as one that waits to be sent.
    pub(super) fn waits(&self, row: &Row, snapshot: Snapshot, by: Option<Tx>) -> bool {
        let is_seen = |tx| self.is_seen(tx, snapshot, by);
        !row.is_undone
            && is_seen(row.tx)
            && !row.sent_by.is_some_and(is_seen)
            && !row.dead_by.is_some_and(is_seen)
    }

    pub(super) fn is_committed(&self, row: &Row) -> bool {
        !row.is_undone && matches!(self.transactions[row.tx].fate, Fate::Committed(_))
    }

    /// Takes a number for a row. There are gaps, so that few rows go far beyond the steps in which bounds move.
    pub(super) fn take_number(&mut self, tx: Tx, gap: i64) -> i64 {
        self.last_number += 1 + gap;
        self.transactions[tx].has_number = true;
        self.last_number
    }

    pub(super) fn insert(&mut self, tx: Tx, seq: i64, aggregate: usize) {
        self.identify(tx);
        let shard = shard_of("order", &key(aggregate));
        self.rows.push(Row {
            seq,
            tx,
            aggregate,
            shard,
            is_undone: false,
            sent_by: None,
            dead_by: None,
            has_arrived: false,
        });
    }

    /// What the transaction has done is seen from now on. It still holds its locks on the table.
    pub(super) fn commit(&mut self, tx: Tx) {
        self.ended += 1;
        self.transactions[tx].fate = Fate::Committed(self.ended);
        let moves = std::mem::take(&mut self.transactions[tx].moves);
        let before = moves.iter().map(|(shard, _)| (*shard, self.shards[*shard].clone())).collect();
        for (shard, row) in moves {
            self.shards[shard] = row;
        }
        if self.transactions[tx].worker.is_some() {
            // The relay does not wait until this is on the disk.
            self.unflushed.push((tx, before));
        } else {
            self.unflushed.clear();
        }
        let its = |row: &Row| row.tx == tx && !row.is_undone;
        let rows = self.rows.iter().enumerate().filter(|(_, row)| its(row));
        let rows: Vec<(usize, i64)> = rows.map(|(at, row)| (at, row.seq)).collect();
        if self.transactions[tx].worker.is_none() {
            self.write_to_wal(rows);
        } else {
            self.end_of_wal += 10 + 10 * rows.len() as u64;
        }
        self.unlock(tx);
    }

    fn write_to_wal(&mut self, rows: Vec<(usize, i64)>) {
        self.end_of_wal += 10 + 10 * rows.len() as u64;
        self.wal.push(WalTransaction { commit: self.end_of_wal - 1, end: self.end_of_wal, rows });
    }

    pub(super) fn roll_back(&mut self, tx: Tx) {
        if self.transactions[tx].fate == Fate::Open {
            self.undo(tx);
        }
    }

    fn undo(&mut self, tx: Tx) {
        self.ended += 1;
        self.transactions[tx].fate = Fate::RolledBack(self.ended);
        self.transactions[tx].is_inserting = false;
        for row in &mut self.rows {
            row.sent_by.take_if(|by| *by == tx);
            row.dead_by.take_if(|by| *by == tx);
        }
        self.unlock(tx);
        self.transactions[tx].holds_table = false;
    }

    fn unlock(&mut self, tx: Tx) {
        self.locked_by.iter_mut().for_each(|by| _ = by.take_if(|by| *by == tx));
        if self.transactions[tx].worker.is_some() {
            self.transactions[tx].holds_table = false;
        }
    }

    /// The server crashes: whatever is open is rolled back, but for what was prepared, and so are the last `lost` commits that were
    /// not on the disk.
    pub(super) fn crash(&mut self, lost: usize) {
        self.crashes += 1;
        for tx in 0..self.transactions.len() {
            if !self.transactions[tx].is_prepared {
                self.roll_back(tx);
                self.transactions[tx].holds_table = false;
            }
        }
        for _ in 0..lost.min(self.unflushed.len()) {
            let Some((tx, before)) = self.unflushed.pop() else { break };
            self.undo(tx);
            for (shard, row) in before {
                self.shards[shard] = row;
            }
        }
        self.unflushed.clear();
    }

    /// What was committed is on the disk.
    pub(super) fn flush(&mut self) {
        self.unflushed.clear();
    }

    /// Returns whether a crash of the server could undo this transaction, which was committed.
    pub(super) fn is_undoable(&self, tx: Tx) -> bool {
        self.unflushed.iter().any(|(unflushed, _)| *unflushed == tx)
    }

    pub(super) fn unflushed(&self) -> usize {
        self.unflushed.len()
    }

    /// Locks those of these shards that are free, or all of them if a shard may be shared, up to so many.
    pub(super) fn lock(&mut self, tx: Tx, shards: &[i16], limit: usize, shares: bool) -> Vec<i16> {
        let free = |shard: &&i16| shares || self.locked_by[**shard as usize].is_none();
        let locked: Vec<i16> = shards.iter().filter(free).take(limit).copied().collect();
        for shard in &locked {
            self.locked_by[*shard as usize] = Some(tx);
        }
        locked
    }

    pub(super) fn row_mut(&mut self, seq: i64) -> Option<&mut Row> {
        self.rows.iter_mut().find(|row| row.seq == seq && !row.is_undone)
    }

    /// Marks these rows as sent. It is not told how many there were, as SQL would.
    pub(super) fn settle(&mut self, tx: Tx, tickets: &[u64]) {
        let tickets: BTreeSet<u64> = tickets.iter().copied().collect();
        for row in self.rows.iter_mut().filter(|row| tickets.contains(&row.seq.unsigned_abs())) {
            row.sent_by = Some(tx);
        }
        self.transactions[tx].holds_table = true;
    }

    /// Marks those of these events as sent that wait, as this transaction sees them, and that it looks at.
    pub(super) fn settle_committed(&mut self, tx: Tx, ids: &[Uuid], is_looked_at: impl Fn(&Row) -> bool) {
        let snapshot = self.ended;
        let is_meant =
            |row: &Row| is_looked_at(row) && ids.contains(&row.id()) && self.waits(row, snapshot, Some(tx));
        let seqs: Vec<u64> =
            self.rows.iter().filter(|row| is_meant(row)).map(|row| row.seq.unsigned_abs()).collect();
        self.settle(tx, &seqs);
    }

    pub(super) fn dead_letter(&mut self, tx: Tx, ticket: u64) {
        if let Some(row) = self.row_mut(ticket as i64) {
            row.dead_by = Some(tx);
        }
        self.transactions[tx].holds_table = true;
    }

    /// The broker refuses it, with all of its batch.
    pub(super) fn is_refused(&self, seq: i64) -> bool {
        seq % 43 == 0 && !self.requeued.contains(&seq)
    }

    /// The producer refuses it at once.
    pub(super) fn is_refused_at_once(&self, seq: i64) -> bool {
        seq % 41 == 0 && !self.requeued.contains(&seq)
    }

    /// Returns whether this transaction, in this snapshot, sees a dead letter of the row's aggregate that comes before it.
    pub(super) fn is_held_back(&self, row: &Row, snapshot: Snapshot, by: Option<Tx>) -> bool {
        let is_seen = |dead| self.is_seen(dead, snapshot, by);
        let comes_before = |other: &Row| other.aggregate == row.aggregate && other.seq < row.seq;
        self.rows.iter().any(|other| comes_before(other) && other.dead_by.is_some_and(is_seen))
    }

    /// Returns the aggregates that have dead letters, or requeued ones of which there is a note.
    pub(super) fn with_dead_letters(&self) -> BTreeSet<usize> {
        let dead = self.rows.iter().filter(|row| row.dead_by.is_some()).map(|row| row.aggregate);
        dead.chain(self.notes.iter().map(|note| note.aggregate)).collect()
    }

    /// Answers what a relay asks that reads the WAL and has come to this row.
    pub(super) fn look(&self, seq: i64, place: i64, last_requeued: i64) -> Option<Found> {
        let its = self.rows.iter().find(|row| row.seq == place)?;
        let notes = || self.notes.iter().filter(|note| note.aggregate == its.aggregate);
        let is_noted = self.notes.iter().any(|note| note.seq == seq);
        let after = if is_noted { last_requeued.max(seq) } else { last_requeued };
        let dead = self.rows.iter().filter(|row| row.aggregate == its.aggregate && row.dead_by.is_some());
        Some(Found {
            place: is_noted.then_some(place),
            first_dead: dead.map(|row| row.seq).min(),
            first_to_come: notes().filter(|note| note.seq > after).map(|note| note.place).min(),
            comes_again: notes().any(|note| note.place == place && note.seq > seq),
        })
    }

    pub(super) fn forget_requeued(&mut self, seqs: &[i64]) {
        self.notes.retain(|note| !seqs.contains(&note.seq));
    }

    /// Whether something of its aggregate that comes before it has not arrived, or comes behind this number in the WAL. It may have arrived
    /// all the same, if a relay sent it before it was refused and the broker works that off late.
    pub(super) fn has_to_wait(&self, place: i64, seq: i64) -> bool {
        let Some(at) = self.rows.iter().position(|row| row.seq == place) else { return false };
        let here = self.wal.iter().find(|its| its.rows.contains(&(at, seq)));
        let end = here.map_or(0, |its| its.end);
        let comes_before = |row: &Row| row.aggregate == self.rows[at].aggregate && row.seq < place;
        self.rows.iter().enumerate().filter(|(_, row)| comes_before(row)).any(|(before, row)| {
            self.is_committed(row) && (!row.has_arrived || self.comes_after(before, end))
        })
    }

    /// Whether the row is a dead letter, or comes in the WAL only behind this place.
    pub(super) fn comes_after(&self, row: usize, end: u64) -> bool {
        let later = self.wal.iter().filter(|its| its.end > end);
        self.rows[row].dead_by.is_some() || later.flat_map(|its| &its.rows).any(|(its, _)| *its == row)
    }

    /// Puts an aggregate's dead letters back, at their place if the table is polled. Passes keep it from doing so while they have the shard,
    /// except on SQLite. It is on the disk when it ends. Returns how many there were.
    pub(super) fn requeue(&mut self, aggregate: usize, kind: Kind) -> usize {
        let shard = shard_of("order", &key(aggregate)) as usize;
        if self.locked_by[shard].is_some() {
            return 0;
        }
        let is_dead = |row: &Row| row.aggregate == aggregate && row.dead_by.is_some();
        let dead: Vec<usize> = (0..self.rows.len()).filter(|row| is_dead(&self.rows[*row])).collect();
        if dead.is_empty() {
            return 0;
        }
        let mut copies = Vec::new();
        let (count, mut by_place) = (dead.len(), dead);
        by_place.sort_by_key(|row| self.rows[*row].seq);
        for row in by_place {
            let place = self.rows[row].seq;
            self.rows[row].dead_by = None;
            self.requeued.insert(place);
            if kind.reads_wal() {
                self.last_number += 1;
                self.notes.push(Requeued { seq: self.last_number, place, aggregate });
                copies.push((row, self.last_number));
            }
            let ShardRow { sent_through, passed, bound, .. } = &mut self.shards[shard];
            *sent_through = (*sent_through).min(place - 1);
            *passed = (*passed).min(place - 1);
            if place <= bound.sent_through && !bound.unsent.contains(&place) {
                bound.unsent.push(place);
                bound.unsent.sort_unstable();
            }
        }
        if kind.reads_wal() {
            self.write_to_wal(copies);
        }
        self.flush();
        count
    }

    /// Returns whether all that was committed is sent or dead, as everybody sees it.
    pub(super) fn is_drained(&self) -> bool {
        !self.rows.iter().any(|row| self.waits(row, self.ended, None))
    }
}

impl Row {
    /// The row as a source reads it.
    pub(super) fn stored(&self, ticket: u64) -> StoredRow {
        StoredRow {
            ticket,
            seq: self.seq,
            id: Ok(self.id()),
            aggregate_type: Bytes::from_static(b"order"),
            aggregate_id: key(self.aggregate).into(),
            event_type: Bytes::from_static(b"Placed"),
            payload: Some(self.payload()),
            headers: Some(Bytes::from_static(br#"{"source":"web"}"#)),
            created_at_ms: self.seq,
        }
    }

    pub(super) fn id(&self) -> Uuid {
        Uuid::from_u128(0x0193_0000_0000_7000_8000_0000_0000_0000 | u128::from(self.seq.unsigned_abs()))
    }

    pub(super) fn payload(&self) -> Bytes {
        self.seq.to_be_bytes().to_vec().into()
    }
}
