//! One pass over the table: a transaction that holds the lock of each claimed shard.

use diesel::connection::{AnsiTransactionManager, SimpleConnection, TransactionManager};
use diesel::data_types::PgTimestamp;
use diesel::pg::{Pg, PgConnection};
use diesel::prelude::*;
use diesel::query_builder::{AstPass, Query, QueryFragment, QueryId};
use diesel::sql_types::{Array, BigInt, Binary, Nullable, SmallInt, Text, Timestamptz, Uuid as SqlUuid};
use diesel_outbox_core::SHARDS;
use uuid::Uuid;

use super::super::row::StoredRow;
use super::{Blocked, wake};
use crate::statement::statement;

/// How far a shard's lower bound must be able to move before it is written: about 64 rows of each shard where events are
/// spread evenly.
const LOW_STEP: i64 = 1_024;

/// How many rows make a pass that others could have shared.
const LARGE: usize = 4_000;

pub(super) struct Pass {
    /// The claimed shards and their lower bounds.
    shards: Vec<(i16, i64)>,
    /// Every row up to here was visible when the pass began, or never will be.
    safe: i64,
    /// The last row read; all earlier ones of these shards have been read too.
    last: i64,
    exhausted: bool,
    read: usize,
    settled: usize,
    blocked: Option<Blocked>,
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
        conn.batch_execute(&cursor(&shards))?;
        Ok(Some(Self { shards, safe, last: 0, exhausted: false, read: 0, settled: 0, blocked }))
    }

    /// The next rows, in their order.
    pub(super) fn read(&mut self, conn: &mut PgConnection, limit: usize) -> QueryResult<Vec<StoredRow>> {
        if self.exhausted {
            return Ok(Vec::new());
        }
        let rows: Vec<StoredRow> = Fetch { limit }.load::<Row>(conn)?.into_iter().map(stored).collect();
        self.exhausted = rows.len() < limit;
        self.last = rows.last().map_or(self.last, |row| row.seq);
        self.read += rows.len();
        Ok(rows)
    }

    /// Whether other workers would have found something to do.
    pub(super) fn was_large(&self) -> bool {
        !self.exhausted || self.read >= LARGE
    }

    pub(super) fn settled(&mut self, count: usize) {
        self.settled += count;
    }

    pub(super) fn blocks(&self, row: &StoredRow) -> bool {
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

type Row = (i64, Uuid, String, String, String, Option<Vec<u8>>, Option<String>, PgTimestamp);

/// 1 January 2000, from which PostgreSQL counts microseconds.
const POSTGRES_EPOCH_MS: i64 = 946_684_800_000;

fn stored(row: Row) -> StoredRow {
    let (seq, id, aggregate_type, aggregate_id, event_type, payload, headers, created_at) = row;
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

/// A scan along `seq`, as that is how the rows lie in the table: passing over other shards' rows costs little, and going
/// through the table once for each shard costs several times as much. It begins at the oldest unsent row of the claimed
/// shards, looked up in the cursor's own snapshot: one from before could lie beyond a row that has been committed since.
fn cursor(shards: &[(i16, i64)]) -> String {
    let list = |numbers: Vec<String>| numbers.join(",");
    let lows = list(shards.iter().map(|(_, low)| low.to_string()).collect());
    let shards = list(shards.iter().map(|(shard, _)| shard.to_string()).collect());
    format!(
        "DECLARE outbox_pass NO SCROLL CURSOR FOR \
         SELECT seq, id, aggregatetype, aggregateid, type, payload, headers::text, created_at FROM outbox \
         WHERE shard = ANY ('{{{shards}}}') AND sent_at IS NULL AND seq >= (SELECT min(oldest.seq) \
         FROM unnest('{{{shards}}}'::smallint[], '{{{lows}}}'::bigint[]) AS s (shard, low) CROSS JOIN LATERAL \
         (SELECT o.seq FROM outbox AS o WHERE o.shard = s.shard AND o.seq > s.low AND o.sent_at IS NULL \
         ORDER BY o.shard, o.seq LIMIT 1) AS oldest) ORDER BY seq"
    )
}

/// Reads on from the pass's cursor. The number of rows is part of the text, as FETCH takes no parameters.
#[derive(QueryId)]
struct Fetch {
    limit: usize,
}

impl QueryFragment<Pg> for Fetch {
    fn walk_ast<'b>(&'b self, mut out: AstPass<'_, 'b, Pg>) -> QueryResult<()> {
        out.unsafe_to_cache_prepared();
        out.push_sql(&format!("FETCH {} FROM outbox_pass", self.limit));
        Ok(())
    }
}

impl Query for Fetch {
    type SqlType = (BigInt, SqlUuid, Text, Text, Text, Nullable<Binary>, Nullable<Text>, Timestamptz);
}

impl RunQueryDsl<PgConnection> for Fetch {}

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
