//! The statements of pruning on PostgreSQL.

mod rounds;

use diesel::connection::SimpleConnection;
use diesel::pg::{Pg, PgConnection};
use diesel::prelude::*;
use diesel::result::{DatabaseErrorKind, Error};
use diesel::sql_types::{BigInt, Bool, Double, Nullable, Text};
use diesel_outbox_core::advisory_locks;

pub(in super::super) use self::rounds::PostgresPruning;
use super::{
    CountedDown, Expiry, How, PRUNE_CHUNK, Prunable, PrunedChunk, PrunedDeadLetters, TimedExpiry, Turn,
};
use crate::source::advisory_lock::{Lock, Unlock, table_oid};
use crate::source::check::was_sent_from_wal;
use crate::source::{BLOCKED, sees_all_rows};
use crate::statement::statement;

/// The name keeps the session apart from relays', for whoever counts those. It waits no longer than this for somebody else's lock on the
/// table, such as that of an index being made, or on a row.
const SETTINGS: &str = "SET application_name = 'outbox pruning'; SET lock_timeout = '200ms'";
/// A relay's sessions have these. The statistics say nothing while the table fills and empties.
const PLANS: &str = "SET enable_seqscan = off; SET enable_bitmapscan = off; SET enable_hashjoin = off; SET enable_mergejoin = off; \
                     SET enable_sort = off; SET random_page_cost = 1; SET jit = off";
/// What the session had before both.
const RESET: &str = "RESET application_name; RESET lock_timeout; RESET enable_seqscan; RESET enable_bitmapscan; RESET enable_hashjoin; \
                     RESET enable_mergejoin; RESET enable_sort; RESET random_page_cost; RESET jit";

impl Prunable for PgConnection {
    fn prepare(&mut self, of_outbox: bool) -> QueryResult<()> {
        if of_outbox {
            sees_all_rows(self)?;
        }
        self.batch_execute(&format!("{SETTINGS}; {PLANS}"))
    }

    fn restore(&mut self) -> QueryResult<()> {
        self.batch_execute(RESET)
    }

    fn take_turn(&mut self) -> QueryResult<Option<Turn>> {
        let table = table_oid(self)?;
        let has_locked: bool = Lock::new(advisory_locks::PRUNING, table).get_result(self)?;
        Ok(has_locked.then_some(Turn { _file: None }))
    }

    fn end_turn(&mut self, _turn: Turn) -> QueryResult<()> {
        let table = table_oid(self)?;
        Unlock::new(advisory_locks::PRUNING, table).execute(self).map(drop)
    }

    fn count_down(&mut self, below: i64, limit: i64) -> QueryResult<CountedDown> {
        CountDown::new(below, limit).get_result(self)
    }

    fn sent_below(&mut self, below: i64, others: i64) -> QueryResult<Option<i64>> {
        SentBelow::new(below, others).get_result(self).optional()
    }

    /// Deletes exactly the rows that have expired, never a range, which could contain the row of a late commit.
    fn sent_chunk(&mut self, after: i64, expiry: Expiry, how: How) -> QueryResult<PrunedChunk> {
        let Expiry { seconds, through } = expiry;
        let counted = match how {
            How::Counts => Count::new(through, through, seconds, after, PRUNE_CHUNK).get_result(self),
            How::Deletes => {
                match Prune::new(through, through, seconds, after, PRUNE_CHUNK).get_result(self) {
                    // Perhaps because somebody has locked a row.
                    Err(Error::DatabaseError(DatabaseErrorKind::Unknown, _)) => {
                        return self.sent_chunk(after, expiry, How::DeletesFree);
                    }
                    counted => counted,
                }
            }
            How::DeletesFree => {
                PruneBesideLocks::new(through, through, seconds, after, PRUNE_CHUNK).get_result(self)
            }
        };
        Ok(chunk(after, counted?))
    }

    fn dead_letters_expire_before(&mut self, expiry: TimedExpiry) -> QueryResult<String> {
        let TimedExpiry { seconds, newer } = expiry;
        DeadLettersExpireBefore::new(seconds, newer, newer).get_result(self)
    }

    fn dead_letter_chunk(
        &mut self,
        (seq, id): &(i64, String),
        before: &str,
        deletes: bool,
    ) -> QueryResult<PrunedDeadLetters> {
        let (before, blocked, id) = (before.to_owned(), BLOCKED.to_owned(), id.clone());
        let counted = if deletes {
            PruneDeadLetters::new(before, blocked, *seq, id, PRUNE_CHUNK).get_result(self)
        } else {
            CountDeadLetters::new(before, blocked, *seq, id, PRUNE_CHUNK).get_result(self)
        };
        let (last_seq, last_id, rows, expired): (Option<i64>, Option<String>, i64, i64) = counted?;
        let next = last_seq.zip(last_id).filter(|_| rows == PRUNE_CHUNK);
        Ok(PrunedDeadLetters { next, expired: expired.unsigned_abs() })
    }

    fn consumer_after(&mut self, consumer: Option<&str>) -> QueryResult<Option<String>> {
        ConsumerAfter::new(consumer.is_none(), consumer.unwrap_or_default().to_owned()).get_result(self)
    }

    fn marks_expire_before(&mut self, consumer: &str, expiry: TimedExpiry) -> QueryResult<String> {
        let TimedExpiry { seconds, newer } = expiry;
        MarksExpireBefore::new(seconds, consumer.to_owned(), newer, newer).get_result(self)
    }

    fn count_marks(&mut self, consumer: &str, before: &str) -> QueryResult<u64> {
        let count: i64 = CountMarks::new(consumer.to_owned(), before.to_owned()).get_result(self)?;
        Ok(count.unsigned_abs())
    }

    fn prune_marks(&mut self, consumer: &str, before: &str, limit: i64) -> QueryResult<u64> {
        let pruned = PruneMarks::new(consumer.to_owned(), before.to_owned(), limit).execute(self)?;
        Ok(pruned as u64)
    }
}

/// The last number, the first one that has not expired, how many rows there are, how many of them have expired, and whether later ones may
/// have.
type Counted = (Option<i64>, Option<i64>, i64, i64, bool);

fn chunk(cursor: i64, (last, first_kept, rows, expired, is_old): Counted) -> PrunedChunk {
    let last = last.unwrap_or(cursor);
    let is_last = rows < PRUNE_CHUNK || (expired == 0 && !is_old);
    PrunedChunk::new(last, first_kept, is_last, expired.unsigned_abs())
}

/// When a row `o` of a shard `s` was sent. Rows that were read from the write-ahead log are sent, though nothing marks them: up to their
/// shard's lower bound while the WAL is read, and later up to `unmarked`, if they are not later ones with a number that came again.
macro_rules! sent {
    () => {
        concat!(
            "coalesce(o.sent_at, CASE WHEN CASE WHEN s.polled_through < 9223372036854775807 THEN o.seq <= s.sent_through ELSE ",
            was_sent_from_wal!(),
            " END THEN o.created_at AT TIME ZONE 'utc' END)"
        )
    };
}

/// A chunk in the order of `seq`: where each row lies, whether it has expired, and whether later rows may have expired too, because it was
/// emitted long enough ago or is beyond the number that is kept.
macro_rules! chunk {
    () => {
        concat!(
            "chunk AS MATERIALIZED (SELECT seq, place, \
             coalesce(sent < expiry OR (sent IS NOT NULL AND seq <= ?), false) AS expired, \
             created < expiry OR seq <= ? AS is_old FROM \
             (SELECT o.seq, o.ctid AS place, o.created_at AT TIME ZONE 'utc' AS created, ",
            sent!(),
            " AS sent, now() - pg_catalog.make_interval(secs => ?) AS expiry FROM ONLY outbox AS o JOIN outbox_shard AS s \
             ON s.shard = o.shard WHERE o.seq > ? ORDER BY o.seq LIMIT ?) AS o)"
        )
    };
}

macro_rules! counted {
    () => {
        "SELECT max(seq), min(seq) FILTER (WHERE NOT expired), count(*), count(*) FILTER (WHERE expired), \
         coalesce(bool_and(is_old), false) FROM chunk"
    };
}

statement!(
    Pg,
    CountDown { below: i64 => BigInt, limit: i64 => BigInt } -> (BigInt, BigInt, Nullable<BigInt>),
    concat!(
        "SELECT count(*), pg_catalog.count(sent), min(seq) FROM (SELECT o.seq, ",
        sent!(),
        " AS sent FROM ONLY outbox AS o JOIN outbox_shard AS s ON s.shard = o.shard WHERE o.seq < ? ORDER BY o.seq DESC LIMIT ?) AS o"
    )
);

statement!(
    Pg,
    SentBelow { below: i64 => BigInt, others: i64 => BigInt } -> BigInt,
    concat!(
        "SELECT o.seq FROM ONLY outbox AS o JOIN outbox_shard AS s ON s.shard = o.shard WHERE o.seq < ? AND ",
        sent!(),
        " IS NOT NULL ORDER BY o.seq DESC LIMIT 1 OFFSET ?"
    )
);

statement!(
    Pg,
    /// Whether a round has something to do: its first chunk has expired rows, or there may be some behind it.
    IsWanted {
        through: i64 => BigInt, same: i64 => BigInt, retention: f64 => Double, cursor: i64 => BigInt, limit: i64 => BigInt,
        all: i64 => BigInt
    } -> Bool,
    concat!("WITH ", chunk!(), " SELECT coalesce(bool_or(expired) OR bool_and(is_old) AND count(*) = ?, false) FROM chunk")
);

statement!(
    Pg,
    Count {
        through: i64 => BigInt, same: i64 => BigInt, retention: f64 => Double, cursor: i64 => BigInt, limit: i64 => BigInt
    } -> (Nullable<BigInt>, Nullable<BigInt>, BigInt, BigInt, Bool),
    concat!("WITH ", chunk!(), " ", counted!())
);

statement!(
    Pg,
    /// Leaves alone a row that was changed since the statement began, because it lies elsewhere then.
    Prune {
        through: i64 => BigInt, same: i64 => BigInt, retention: f64 => Double, cursor: i64 => BigInt, limit: i64 => BigInt
    } -> (Nullable<BigInt>, Nullable<BigInt>, BigInt, BigInt, Bool),
    concat!(
        "WITH ",
        chunk!(),
        ", pruned AS (DELETE FROM ONLY outbox AS o USING chunk AS c WHERE o.ctid = c.place AND c.expired) ",
        counted!()
    )
);

statement!(
    Pg,
    /// Does the same, except for rows that somebody has locked. To find those, it locks each row before it deletes it, which takes twice as
    /// long.
    PruneBesideLocks {
        through: i64 => BigInt, same: i64 => BigInt, retention: f64 => Double, cursor: i64 => BigInt, limit: i64 => BigInt
    } -> (Nullable<BigInt>, Nullable<BigInt>, BigInt, BigInt, Bool),
    concat!(
        "WITH ",
        chunk!(),
        ", free AS MATERIALIZED (SELECT o.ctid AS place FROM ONLY outbox AS o JOIN chunk AS c ON o.ctid = c.place WHERE c.expired \
         FOR UPDATE OF o SKIP LOCKED), pruned AS (DELETE FROM ONLY outbox AS o USING free AS f WHERE o.ctid = f.place) ",
        counted!()
    )
);

statement!(
    Pg,
    /// Whether there are any.
    HasDeadLetters {} -> Bool,
    "SELECT EXISTS (SELECT FROM outbox_dead_letter)"
);

statement!(
    Pg,
    DeadLettersExpireBefore { seconds: f64 => Double, newer: i64 => BigInt, same: i64 => BigInt } -> Text,
    "SELECT greatest(now() - pg_catalog.make_interval(secs => ?), (SELECT failed_at FROM outbox_dead_letter WHERE ? >= 0 \
     ORDER BY failed_at DESC OFFSET greatest(?, 0) LIMIT 1))::text"
);

/// The next dead letters, and whether each may go. Those of an aggregate of which some were held back stay, because they would go while a
/// relay that holds aggregates back might need them.
macro_rules! dead_letters {
    () => {
        "chunk AS MATERIALIZED (SELECT seq, id, failed_at < ?::timestamptz AND (aggregatetype::text, aggregateid::text) NOT IN \
         (SELECT aggregatetype::text, aggregateid::text FROM outbox_dead_letter WHERE reason = ?) AS expired \
         FROM outbox_dead_letter WHERE (seq, id) > (?, ?::uuid) ORDER BY seq, id LIMIT ?)"
    };
}

macro_rules! counted_dead_letters {
    () => {
        "SELECT max(seq), (pg_catalog.array_agg(id::text ORDER BY seq DESC, id DESC))[1], count(*), count(*) FILTER (WHERE expired) FROM chunk"
    };
}

statement!(
    Pg,
    CountDeadLetters {
        before: String => Text, blocked: String => Text, seq: i64 => BigInt, id: String => Text, limit: i64 => BigInt
    } -> (Nullable<BigInt>, Nullable<Text>, BigInt, BigInt),
    concat!("WITH ", dead_letters!(), " ", counted_dead_letters!())
);

statement!(
    Pg,
    PruneDeadLetters {
        before: String => Text, blocked: String => Text, seq: i64 => BigInt, id: String => Text, limit: i64 => BigInt
    } -> (Nullable<BigInt>, Nullable<Text>, BigInt, BigInt),
    concat!(
        "WITH ",
        dead_letters!(),
        ", pruned AS (DELETE FROM outbox_dead_letter AS d USING chunk AS c WHERE d.seq = c.seq AND d.id = c.id AND c.expired) ",
        counted_dead_letters!()
    )
);

statement!(
    Pg,
    ConsumerAfter { is_first: bool => Bool, consumer: String => Text } -> Nullable<Text>,
    "SELECT min(consumer) FROM inbox WHERE ? OR consumer > ?"
);

statement!(
    Pg,
    MarksExpireBefore { seconds: f64 => Double, consumer: String => Text, newer: i64 => BigInt, same: i64 => BigInt } -> Text,
    "SELECT greatest(now() - pg_catalog.make_interval(secs => ?), (SELECT received_at FROM inbox WHERE consumer = ? AND ? >= 0 \
     ORDER BY received_at DESC OFFSET greatest(?, 0) LIMIT 1))::text"
);

statement!(
    Pg,
    CountMarks { consumer: String => Text, before: String => Text } -> BigInt,
    "SELECT count(*) FROM inbox WHERE consumer = ? AND received_at < ?::timestamptz"
);

statement!(
    Pg,
    PruneMarks { consumer: String => Text, before: String => Text, limit: i64 => BigInt } -> Bool,
    "DELETE FROM inbox WHERE ctid = ANY (ARRAY(SELECT ctid FROM inbox WHERE consumer = ? AND received_at < ?::timestamptz \
     ORDER BY received_at LIMIT ?))"
);
