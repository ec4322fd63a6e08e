//! One pass over the table: a transaction that holds the lock of each claimed shard.

use diesel::connection::{AnsiTransactionManager, TransactionManager};
use diesel::data_types::PgTimestamp;
use diesel::pg::{Pg, PgConnection};
use diesel::prelude::*;
use diesel::sql_types::{Array, BigInt, Binary, Nullable, SmallInt, Text, Timestamptz, Uuid as SqlUuid};
use diesel_outbox_core::SHARDS;
use uuid::Uuid;

use super::super::StoredRow;
use super::{Blocked, wake};
use crate::statement::statement;

/// How far a shard's lower bound must be able to move before it is written: about 64 rows of each shard where events are
/// spread evenly.
const LOW_STEP: i64 = 1_024;

pub(super) struct Pass {
    shards: Vec<Shard>,
    /// Every row up to here was visible when the pass began, or never will be.
    safe: i64,
    read: usize,
    settled: usize,
    blocked: Option<Blocked>,
}

struct Shard {
    shard: i16,
    low: i64,
    /// The last row read.
    cursor: i64,
    exhausted: bool,
}

impl Pass {
    /// Locks this worker's part of the free shards that have unsent rows.
    pub(super) fn begin(
        conn: &mut PgConnection,
        workers: usize,
        safe: i64,
        block: bool,
    ) -> QueryResult<Option<Self>> {
        let share = (SHARDS.unsigned_abs() as usize).div_ceil(workers.max(1)) as i64;
        AnsiTransactionManager::begin_transaction(conn)?;
        let shards: Vec<Shard> = Claim::new(share)
            .load::<(i16, i64)>(conn)?
            .into_iter()
            .map(|(shard, low)| Shard { shard, low, cursor: low, exhausted: false })
            .collect();
        if shards.is_empty() {
            Self::roll_back(conn)?;
            return Ok(None);
        }
        let blocked = if block {
            let claimed = shards.iter().map(|shard| shard.shard).collect();
            Some(BlockedAggregates::new(claimed).load::<(String, String)>(conn)?.into_iter().collect())
        } else {
            None
        };
        Ok(Some(Self { shards, safe, read: 0, settled: 0, blocked }))
    }

    /// The next rows of each shard, in the shard's order. Shards take turns, as each read covers all of them.
    pub(super) fn read(&mut self, conn: &mut PgConnection, limit: usize) -> QueryResult<Vec<StoredRow>> {
        let open: Vec<&mut Shard> = self.shards.iter_mut().filter(|shard| !shard.exhausted).collect();
        if open.is_empty() {
            return Ok(Vec::new());
        }
        let share = limit.div_ceil(open.len());
        let read = Read::new(
            open.iter().map(|shard| shard.shard).collect(),
            open.iter().map(|shard| shard.cursor).collect(),
            share as i64,
        );
        let rows: Vec<Row> = read.load(conn)?;
        for shard in open {
            let (mut count, mut last) = (0, shard.cursor);
            for row in rows.iter().filter(|row| row.0 == shard.shard) {
                count += 1;
                last = last.max(row.1);
            }
            shard.cursor = last;
            shard.exhausted = count < share;
        }
        self.read += rows.len();
        Ok(rows.into_iter().map(stored).collect())
    }

    pub(super) fn has_more(&self) -> bool {
        self.shards.iter().any(|shard| !shard.exhausted)
    }

    pub(super) fn settled(&mut self, count: usize) {
        self.settled += count;
    }

    pub(super) fn blocks(&self, row: &StoredRow) -> bool {
        self.blocked.as_ref().is_some_and(|blocked| {
            !blocked.is_empty() && blocked.contains(&(row.aggregate_type.clone(), row.aggregate_id.clone()))
        })
    }

    pub(super) fn block(&mut self, aggregates: Vec<(String, String)>) {
        if let Some(blocked) = &mut self.blocked {
            blocked.extend(aggregates);
        }
    }

    /// Moves the lower bounds, lets the other relays know of a backlog, and commits.
    pub(super) fn end(self, conn: &mut PgConnection, backlog: bool) -> QueryResult<()> {
        // A row that was read and not settled holds every bound where it is; that is rare, and soon over.
        if self.read == self.settled {
            let (shards, lows): (Vec<i16>, Vec<i64>) = self
                .shards
                .iter()
                .map(|shard| {
                    let sent = if shard.exhausted { self.safe } else { shard.cursor.min(self.safe) };
                    (shard, sent)
                })
                .filter(|(shard, sent)| *sent >= shard.low + LOW_STEP)
                .map(|(shard, sent)| (shard.shard, sent))
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

type Row = (i16, i64, Uuid, String, String, String, Option<Vec<u8>>, Option<String>, PgTimestamp);

/// 1 January 2000, from which PostgreSQL counts microseconds.
const POSTGRES_EPOCH_MS: i64 = 946_684_800_000;

fn stored(row: Row) -> StoredRow {
    let (_, seq, id, aggregate_type, aggregate_id, event_type, payload, headers, created_at) = row;
    let created_at_ms = created_at.0.div_euclid(1_000) + POSTGRES_EPOCH_MS;
    StoredRow { seq, id: Ok(id), aggregate_type, aggregate_id, event_type, payload, headers, created_at_ms }
}

statement!(
    Pg,
    /// The oldest first. `shard` stands in the order so that only the index on (shard, seq) can serve it.
    Claim { limit: i64 => BigInt } -> (SmallInt, BigInt),
    "SELECT s.shard, s.low FROM outbox_shard AS s CROSS JOIN LATERAL \
     (SELECT o.seq FROM outbox AS o WHERE o.shard = s.shard AND o.seq > s.low AND o.sent_at IS NULL \
     ORDER BY o.shard, o.seq LIMIT 1) AS oldest \
     ORDER BY oldest.seq LIMIT ? FOR UPDATE OF s SKIP LOCKED"
);

statement!(
    Pg,
    Read { shards: Vec<i16> => Array<SmallInt>, cursors: Vec<i64> => Array<BigInt>, limit: i64 => BigInt }
        -> (SmallInt, BigInt, SqlUuid, Text, Text, Text, Nullable<Binary>, Nullable<Text>, Timestamptz),
    "SELECT o.shard, o.seq, o.id, o.aggregatetype, o.aggregateid, o.type, o.payload, o.headers::text, o.created_at \
     FROM unnest(?, ?) AS s (shard, cursor) CROSS JOIN LATERAL \
     (SELECT * FROM outbox AS o WHERE o.shard = s.shard AND o.seq > s.cursor AND o.sent_at IS NULL \
     ORDER BY o.shard, o.seq LIMIT ?) AS o"
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
