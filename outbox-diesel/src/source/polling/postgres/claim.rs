//! One pass over the table: a transaction that holds the lock of each claimed shard.

use std::collections::{HashSet, VecDeque};

use diesel::connection::{AnsiTransactionManager, SimpleConnection, TransactionManager};
use diesel::pg::{Pg, PgConnection};
use diesel::prelude::*;
use diesel::sql_types::{Array, BigInt, SmallInt, Text};
use diesel_outbox_core::{Claimed, SHARDS};

use super::super::row::{ChunkSize, StoredRow};
use super::place::TupleId;
use super::read::{self, Fetch, ReadOn, Rows};
use super::unsettled::Unsettled;
use super::wake;
use crate::backend::postgres::oldest_unsent;
use crate::statement::statement;

/// How far a shard's lower bound must be able to move before it is written: about 64 rows of each shard where events are
/// spread evenly.
const LOW_STEP: i64 = 1_024;

/// How many rows make a pass that others could have shared.
const LARGE: usize = 4_000;

/// How many chunks are fetched before they are asked for.
const CHUNKS_AHEAD: usize = 3;

/// The aggregates, by type and id, whose records are held back.
type Blocked = HashSet<(String, String)>;

pub(super) struct Pass {
    shards: Vec<Shard>,
    /// Every row up to here was visible when the table was last looked at, or never will be.
    safe: i64,
    /// The last row read; all earlier ones of these shards have been read too.
    last: i64,
    /// Whether there was nothing after it.
    exhausted: bool,
    /// Whether the cursor has given all that its snapshot has.
    reads_on: bool,
    /// The next chunks, as far as they are there already, and how many rows were asked for last.
    ahead: VecDeque<Chunk>,
    limit: usize,
    /// How many rows the cursor gave.
    cursor_rows: usize,
    unsettled: Unsettled,
    blocked: Option<Blocked>,
}

/// A claimed shard.
pub(super) struct Shard {
    pub(super) number: i16,
    /// Its lower bound, as the table has it.
    pub(super) low: i64,
    /// None of its rows up to here is unsent any more, as far as this pass knows.
    sent: i64,
}

/// Rows that were read together.
#[derive(Default)]
pub(super) struct Chunk {
    pub(super) records: Vec<Claimed>,
    /// The tickets of those whose aggregate is held back.
    pub(super) held_back: Vec<u64>,
    /// The tickets and numbers of all.
    given: Vec<(u64, i64)>,
    /// Whether there are no more after these.
    exhausts: bool,
}

impl Pass {
    /// Locks this worker's part of the free shards that have unsent rows, and opens a cursor on those rows.
    ///
    /// The cursor keeps one snapshot for all that it gives. Without it a read could find an aggregate's later event and
    /// miss an earlier one: its transaction took a `seq` that a former read had already passed, and committed since.
    pub(super) fn begin(
        conn: &mut PgConnection,
        workers: usize,
        safe: i64,
        block: bool,
    ) -> QueryResult<Option<Self>> {
        AnsiTransactionManager::begin_transaction(conn)?;
        let mut pass = Self {
            shards: Vec::new(),
            safe,
            last: 0,
            exhausted: false,
            reads_on: false,
            ahead: VecDeque::new(),
            limit: 0,
            cursor_rows: 0,
            unsettled: Unsettled::default(),
            blocked: block.then(Blocked::new),
        };
        pass.claim(conn, workers)?;
        if pass.shards.is_empty() {
            Self::roll_back(conn)?;
            return Ok(None);
        }
        conn.batch_execute(&read::cursor(&pass.shards))?;
        Ok(Some(pass))
    }

    fn claim(&mut self, conn: &mut PgConnection, workers: usize) -> QueryResult<()> {
        let share = (SHARDS.unsigned_abs() as usize).div_ceil(workers.max(1));
        let Some(free @ 1..) = share.checked_sub(self.shards.len()) else { return Ok(()) };
        let claimed = self.shards.iter().map(|shard| shard.number).collect();
        let shards = Claim::new(claimed, free as i64).load::<(i16, i64)>(conn)?;
        if let Some(blocked) = &mut self.blocked
            && !shards.is_empty()
        {
            let claimed = shards.iter().map(|(number, _)| *number).collect();
            blocked.extend(BlockedAggregates::new(claimed).load::<(String, String)>(conn)?);
        }
        self.shards.extend(shards.into_iter().map(|(number, low)| Shard { number, low, sent: low }));
        Ok(())
    }

    /// The next chunk of up to so many rows, in their order. None of it counts as read before it is given.
    pub(super) fn read(
        &mut self,
        conn: &mut PgConnection,
        chunk_size: &mut ChunkSize,
        limit: usize,
    ) -> QueryResult<Chunk> {
        let chunk = match self.ahead.pop_front() {
            Some(chunk) => chunk,
            None => self.fetch(conn, chunk_size, limit)?,
        };
        self.limit = limit;
        self.cursor_rows += chunk.given.len();
        self.reads_on = chunk.exhausts;
        self.give(&chunk);
        Ok(chunk)
    }

    /// Whether the cursor has given all, and what has been committed since can be read.
    pub(super) fn reads_on(&self) -> bool {
        self.reads_on
    }

    /// Claims and reads what has been committed since the last read: all that is unsent and was not given yet, from the
    /// oldest on. A snapshot that holds an aggregate's later event holds its earlier ones too, so that order is kept. The
    /// cursor stays open: as long as its snapshot lives no row that was given moves.
    pub(super) fn read_on(
        &mut self,
        conn: &mut PgConnection,
        chunk_size: &mut ChunkSize,
        limit: usize,
        workers: usize,
        safe: i64,
    ) -> QueryResult<Chunk> {
        self.sent_up_to_here();
        self.claim(conn, workers)?;
        self.safe = safe;
        let given = self.unsettled.tickets().map(TupleId::from).collect();
        let (shards, lows) = self.shards.iter().map(|shard| (shard.number, shard.sent)).unzip();
        let limit = chunk_size.rows(limit);
        let query = ReadOn::new(shards, lows, given, limit as i64);
        let chunk = self.load(query, conn, chunk_size, limit)?;
        self.give(&chunk);
        Ok(chunk)
    }

    pub(super) fn may_read_ahead(&self) -> bool {
        let all_fetched = self.ahead.back().map_or(self.reads_on, |chunk| chunk.exhausts);
        self.last > 0 && !all_fetched && self.ahead.len() < CHUNKS_AHEAD
    }

    pub(super) fn read_ahead(
        &mut self,
        conn: &mut PgConnection,
        chunk_size: &mut ChunkSize,
    ) -> QueryResult<()> {
        let chunk = self.fetch(conn, chunk_size, self.limit)?;
        self.ahead.push_back(chunk);
        Ok(())
    }

    fn fetch(&self, conn: &mut PgConnection, chunk_size: &mut ChunkSize, limit: usize) -> QueryResult<Chunk> {
        let limit = chunk_size.rows(limit);
        self.load(Fetch { limit }, conn, chunk_size, limit)
    }

    fn load(
        &self,
        query: impl Rows,
        conn: &mut PgConnection,
        chunk_size: &mut ChunkSize,
        limit: usize,
    ) -> QueryResult<Chunk> {
        let mut chunk = Chunk::default();
        let mut bytes = 0;
        read::load(query, conn, |row| {
            chunk.given.push((row.ticket, row.seq));
            bytes += row.bytes();
            if self.blocks(&row) {
                chunk.held_back.push(row.ticket);
            } else {
                chunk.records.push(row.claimed());
            }
        })?;
        chunk_size.learn(chunk.given.len(), bytes);
        chunk.exhausts = chunk.given.len() < limit;
        Ok(chunk)
    }

    fn give(&mut self, chunk: &Chunk) {
        self.unsettled.give(&chunk.given);
        self.last = chunk.given.last().map_or(self.last, |(_, seq)| *seq);
        self.exhausted = chunk.exhausts;
    }

    /// Learns up to where the claimed shards have been sent.
    fn sent_up_to_here(&mut self) {
        let read = if self.exhausted { self.safe } else { self.last.min(self.safe) };
        let sent = self.unsettled.oldest().map_or(read, |oldest| read.min(oldest - 1));
        for shard in &mut self.shards {
            shard.sent = shard.sent.max(sent);
        }
    }

    /// Whether other workers would have found something to do.
    pub(super) fn was_large(&self) -> bool {
        !self.reads_on || self.cursor_rows >= LARGE
    }

    pub(super) fn settled(&mut self, tickets: &[u64]) {
        self.unsettled.settle(tickets);
    }

    fn blocks(&self, row: &StoredRow) -> bool {
        self.blocked.as_ref().is_some_and(|blocked| {
            !blocked.is_empty() && blocked.contains(&(row.aggregate_type.clone(), row.aggregate_id.clone()))
        })
    }

    /// Holds the aggregates back, if that is the policy.
    pub(super) fn block(&mut self, aggregates: Vec<(String, String)>) -> bool {
        self.blocked.as_mut().map(|blocked| blocked.extend(aggregates)).is_some()
    }

    /// Moves the lower bounds, lets the other relays know of a backlog, and commits.
    pub(super) fn end(mut self, conn: &mut PgConnection, backlog: bool) -> QueryResult<()> {
        self.sent_up_to_here();
        let (shards, lows): (Vec<i16>, Vec<i64>) = self
            .shards
            .iter()
            .filter(|shard| shard.sent >= shard.low + LOW_STEP)
            .map(|shard| (shard.number, shard.sent))
            .unzip();
        if !shards.is_empty() {
            MoveLow::new(shards, lows).execute(conn)?;
        }
        if backlog {
            wake::call_for_help(conn)?;
        }
        AnsiTransactionManager::commit_transaction(conn)
    }

    pub(super) fn roll_back(conn: &mut PgConnection) -> QueryResult<()> {
        AnsiTransactionManager::rollback_transaction(conn)
    }
}

statement!(
    Pg,
    /// The oldest first.
    Claim { claimed: Vec<i16> => Array<SmallInt>, limit: i64 => BigInt } -> (SmallInt, BigInt),
    concat!(
        "SELECT s.shard, s.low FROM outbox_shard AS s ",
        oldest_unsent!(),
        " WHERE s.shard <> ALL (?) ORDER BY oldest.seq LIMIT ? FOR UPDATE OF s SKIP LOCKED"
    )
);

statement!(
    Pg,
    MoveLow { shards: Vec<i16> => Array<SmallInt>, lows: Vec<i64> => Array<BigInt> } -> BigInt,
    "UPDATE outbox_shard AS s SET low = moved.low FROM unnest(?, ?) AS moved (shard, low) \
     WHERE s.shard = moved.shard"
);

statement!(
    Pg,
    BlockedAggregates { shards: Vec<i16> => Array<SmallInt> } -> (Text, Text),
    "SELECT DISTINCT aggregatetype, aggregateid FROM outbox_dead_letter WHERE shard = ANY (?)"
);
