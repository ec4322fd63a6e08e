//! One pass over the table: a transaction that holds the lock of each claimed shard.

use std::collections::HashSet;

use diesel::connection::{AnsiTransactionManager, SimpleConnection, TransactionManager};
use diesel::pg::{Pg, PgConnection};
use diesel::prelude::*;
use diesel::sql_types::{Array, BigInt, SmallInt, Text};
use diesel_outbox_core::{Claimed, SHARDS};

use super::super::row::{ChunkSize, StoredRow};
use super::{read, wake};
use crate::backend::postgres::oldest_unsent;
use crate::statement::statement;

/// How far a shard's lower bound must be able to move before it is written: about 64 rows of each shard where events are
/// spread evenly.
const LOW_STEP: i64 = 1_024;

/// How many rows make a pass that others could have shared.
const LARGE: usize = 4_000;

/// The aggregates, by type and id, whose records are held back.
type Blocked = HashSet<(String, String)>;

pub(super) struct Pass {
    /// The claimed shards and their lower bounds.
    shards: Vec<(i16, i64)>,
    /// Every row up to here was visible when the pass began, or never will be.
    safe: i64,
    /// The last row read; all earlier ones of these shards have been read too.
    last: i64,
    exhausted: bool,
    /// The next chunk, where it is there already, and how many rows were asked for last.
    ahead: Option<Chunk>,
    limit: usize,
    read: usize,
    settled: usize,
    blocked: Option<Blocked>,
}

/// Rows that were read together.
#[derive(Default)]
pub(super) struct Chunk {
    pub(super) records: Vec<Claimed>,
    /// The tickets of those whose aggregate is held back.
    pub(super) held_back: Vec<u64>,
    rows: usize,
    last: Option<i64>,
    /// Whether there are no more after these.
    exhausts: bool,
}

impl Pass {
    /// Locks this worker's part of the free shards that have unsent rows, and opens a cursor on those rows.
    ///
    /// The cursor keeps one snapshot for all reads of the pass. Without it a read could find an aggregate's later event
    /// and miss an earlier one: its transaction took a `seq` that a former read had already passed, and committed since.
    pub(super) fn begin(
        conn: &mut PgConnection,
        workers: usize,
        safe: i64,
        block: bool,
    ) -> QueryResult<Option<Self>> {
        let share = (SHARDS.unsigned_abs() as usize).div_ceil(workers.max(1)) as i64;
        AnsiTransactionManager::begin_transaction(conn)?;
        let shards = Claim::new(share).load::<(i16, i64)>(conn)?;
        if shards.is_empty() {
            Self::roll_back(conn)?;
            return Ok(None);
        }
        let blocked = if block {
            let claimed = shards.iter().map(|(shard, _)| *shard).collect();
            Some(BlockedAggregates::new(claimed).load::<(String, String)>(conn)?.into_iter().collect())
        } else {
            None
        };
        conn.batch_execute(&read::cursor(&shards))?;
        Ok(Some(Self {
            shards,
            safe,
            last: 0,
            exhausted: false,
            ahead: None,
            limit: 0,
            read: 0,
            settled: 0,
            blocked,
        }))
    }

    /// The next chunk of up to so many rows, in their order. None of it counts as read before it is given.
    pub(super) fn read(
        &mut self,
        conn: &mut PgConnection,
        chunk_size: &mut ChunkSize,
        limit: usize,
    ) -> QueryResult<Chunk> {
        let chunk = match self.ahead.take() {
            Some(chunk) => chunk,
            None if self.exhausted => return Ok(Chunk::default()),
            None => self.fetch(conn, chunk_size, limit)?,
        };
        self.limit = limit;
        self.last = chunk.last.unwrap_or(self.last);
        self.read += chunk.rows;
        self.exhausted = chunk.exhausts;
        Ok(chunk)
    }

    pub(super) fn may_read_ahead(&self) -> bool {
        self.read > 0 && !self.exhausted && self.ahead.is_none()
    }

    pub(super) fn read_ahead(
        &mut self,
        conn: &mut PgConnection,
        chunk_size: &mut ChunkSize,
    ) -> QueryResult<()> {
        self.ahead = Some(self.fetch(conn, chunk_size, self.limit)?);
        Ok(())
    }

    fn fetch(&self, conn: &mut PgConnection, chunk_size: &mut ChunkSize, limit: usize) -> QueryResult<Chunk> {
        let limit = chunk_size.rows(limit);
        let mut chunk = Chunk::default();
        let mut bytes = 0;
        read::fetch(conn, limit, |row| {
            chunk.rows += 1;
            chunk.last = Some(row.seq);
            bytes += row.bytes();
            if self.blocks(&row) {
                chunk.held_back.push(row.ticket);
            } else {
                chunk.records.push(row.claimed());
            }
        })?;
        chunk_size.learn(chunk.rows, bytes);
        chunk.exhausts = chunk.rows < limit;
        Ok(chunk)
    }

    /// Whether other workers would have found something to do.
    pub(super) fn was_large(&self) -> bool {
        !self.exhausted || self.read >= LARGE
    }

    pub(super) fn settled(&mut self, count: usize) {
        self.settled += count;
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
    pub(super) fn end(self, conn: &mut PgConnection, backlog: bool) -> QueryResult<()> {
        // A row that was read and not settled holds every bound where it is; that is rare, and soon over.
        if self.read == self.settled {
            let sent = if self.exhausted { self.safe } else { self.last.min(self.safe) };
            let (shards, lows): (Vec<i16>, Vec<i64>) = self
                .shards
                .into_iter()
                .filter(|(_, low)| sent >= low + LOW_STEP)
                .map(|(shard, _)| (shard, sent))
                .unzip();
            if !shards.is_empty() {
                MoveLow::new(shards, lows).execute(conn)?;
            }
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
    Claim { limit: i64 => BigInt } -> (SmallInt, BigInt),
    concat!(
        "SELECT s.shard, s.low FROM outbox_shard AS s ",
        oldest_unsent!(),
        " ORDER BY oldest.seq LIMIT ? FOR UPDATE OF s SKIP LOCKED"
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
