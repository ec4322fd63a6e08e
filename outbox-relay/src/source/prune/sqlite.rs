//! The statements of pruning on SQLite. They only read the rows that stay, because SQLite has one write lock and emitters wait for it.

use std::fs::{File, TryLockError};

use diesel::connection::DefaultLoadingMode;
use diesel::prelude::*;
use diesel::result::Error;
use diesel::sql_types::{BigInt, Bool, Double, Nullable, Text};
use diesel::sqlite::{Sqlite, SqliteConnection};

use super::{
    CountedDown, Expiry, How, PRUNE_CHUNK, Prunable, PrunedChunk, PrunedDeadLetters, TimedExpiry, Turn,
};
use crate::source::BLOCKED;
use crate::statement::statement;

/// How many bytes fill a chunk. `sent_at` lies behind the payload in a row, so SQLite reads the payload too.
const CHUNK_BYTES: i64 = 8 * 1024 * 1024;

impl Prunable for SqliteConnection {
    /// Locks a file beside the database.
    fn take_turn(&mut self) -> QueryResult<Option<Turn>> {
        let path = DatabaseFile::new().get_result::<String>(self)?;
        let failed = |error: std::io::Error| {
            Error::QueryBuilderError(format!("cannot lock {path}-outbox-prune: {error}").into())
        };
        let lock = format!("{path}-outbox-prune");
        // The file may be that of another user who has pruned by hand. To lock it, it is enough to read it.
        let file = File::options().create(true).append(true).open(&lock).or_else(|_| File::open(&lock));
        let file = file.map_err(failed)?;
        match file.try_lock() {
            Ok(()) => Ok(Some(Turn { _file: Some(file) })),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => Err(failed(error)),
        }
    }

    fn end_turn(&mut self, turn: Turn) -> QueryResult<()> {
        drop(turn);
        Ok(())
    }

    fn count_down(&mut self, below: i64, limit: i64) -> QueryResult<CountedDown> {
        CountDown::new(below, limit).get_result(self)
    }

    fn sent_below(&mut self, below: i64, others: i64) -> QueryResult<Option<i64>> {
        SentBelow::new(below, others).get_result(self).optional()
    }

    /// Takes the write lock only if there are rows to delete, and only to delete them.
    fn sent_chunk(&mut self, after: i64, expiry: Expiry, how: How) -> QueryResult<PrunedChunk> {
        let Expiry { seconds, through } = expiry;
        let (mut expired, mut first_kept) = (Vec::new(), None);
        let (mut last, mut rows, mut bytes, mut is_old) = (after, 0, 0, true);
        let oldest = Oldest::new(seconds, through, seconds, through, after, PRUNE_CHUNK);
        for row in oldest.load_iter::<(i64, bool, bool, i64), DefaultLoadingMode>(self)? {
            let (seq, has_expired, was_emitted_long_ago, size) = row?;
            is_old &= was_emitted_long_ago;
            if has_expired {
                expired.push(seq.to_string());
            } else {
                first_kept.get_or_insert(seq);
            }
            (last, rows, bytes) = (seq, rows + 1, bytes + size);
            if bytes >= CHUNK_BYTES {
                break;
            }
        }
        if how != How::Counts && !expired.is_empty() {
            Expired::new(format!("[{}]", expired.join(",")), seconds, through).execute(self)?;
        }
        let is_full = rows == PRUNE_CHUNK || bytes >= CHUNK_BYTES;
        let goes_on = is_full && (is_old || !expired.is_empty());
        Ok(PrunedChunk::new(last, first_kept, !goes_on, expired.len() as u64))
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
        let (seq, id, before) = (*seq, id.clone(), before.to_owned());
        let rows: Vec<(i64, String, i64, bool)> =
            DeadLetters::new(before.clone(), BLOCKED.to_owned(), seq, id, PRUNE_CHUNK).load(self)?;
        let expired: Vec<String> =
            rows.iter().filter(|(.., expired)| *expired).map(|(_, _, rowid, _)| rowid.to_string()).collect();
        if deletes && !expired.is_empty() {
            ForgetDeadLetters::new(format!("[{}]", expired.join(",")), before).execute(self)?;
        }
        let next = rows.last().filter(|_| rows.len() as i64 == PRUNE_CHUNK);
        let next = next.map(|(seq, id, ..)| (*seq, id.clone()));
        Ok(PrunedDeadLetters { next, expired: expired.len() as u64 })
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

statement!(
    Sqlite,
    DatabaseFile {} -> Text,
    "SELECT file FROM pragma_database_list WHERE name = 'main'"
);

statement!(
    Sqlite,
    CountDown { below: i64 => BigInt, limit: i64 => BigInt } -> (BigInt, BigInt, Nullable<BigInt>),
    "SELECT count(*), count(sent_at), min(seq) FROM (SELECT seq, sent_at FROM outbox WHERE seq < ? ORDER BY seq DESC LIMIT ?)"
);

statement!(
    Sqlite,
    SentBelow { below: i64 => BigInt, others: i64 => BigInt } -> BigInt,
    "SELECT seq FROM outbox WHERE seq < ? AND sent_at IS NOT NULL ORDER BY seq DESC LIMIT 1 OFFSET ?"
);

/// The time that is so many seconds ago.
macro_rules! ago {
    () => {
        "strftime('%Y-%m-%dT%H:%M:%fZ', 'now', '-' || ? || ' seconds')"
    };
}

/// Whether a row was sent longer ago than the retention, or was sent and is beyond the number that is kept.
macro_rules! has_expired {
    () => {
        concat!("coalesce(sent_at < ", ago!(), " OR (sent_at IS NOT NULL AND seq <= ?), 0)")
    };
}

statement!(
    Sqlite,
    /// Rows in their order, whether each has expired, whether later ones may have, and the size of its payload.
    Oldest {
        retention: f64 => Double, through: i64 => BigInt, same_retention: f64 => Double, same_through: i64 => BigInt,
        cursor: i64 => BigInt, limit: i64 => BigInt
    } -> (BigInt, Bool, Bool, BigInt),
    concat!(
        "SELECT seq, ",
        has_expired!(),
        ", created_at < ",
        ago!(),
        " OR seq <= ?, coalesce(length(payload), 0) FROM outbox WHERE seq > ? ORDER BY seq LIMIT ?"
    )
);

statement!(
    Sqlite,
    /// Deletes exactly these rows, and not one that has got such a number since.
    Expired { seqs: String => Text, retention: f64 => Double, through: i64 => BigInt } -> Bool,
    concat!("DELETE FROM outbox WHERE seq IN (SELECT value FROM json_each(?)) AND ", has_expired!())
);

statement!(
    Sqlite,
    DeadLettersExpireBefore { seconds: f64 => Double, newer: i64 => BigInt, same: i64 => BigInt } -> Text,
    concat!(
        "SELECT max(",
        ago!(),
        ", coalesce((SELECT failed_at FROM outbox_dead_letter WHERE ? >= 0 ORDER BY failed_at DESC LIMIT 1 OFFSET ?), ''))"
    )
);

statement!(
    Sqlite,
    /// Dead letters in their order, and whether each may go.
    DeadLetters { before: String => Text, blocked: String => Text, seq: i64 => BigInt, id: String => Text, limit: i64 => BigInt }
        -> (BigInt, Text, BigInt, Bool),
    "SELECT seq, id, rowid, failed_at < ? AND (aggregatetype, aggregateid) NOT IN \
     (SELECT aggregatetype, aggregateid FROM outbox_dead_letter WHERE reason = ?) \
     FROM outbox_dead_letter WHERE (seq, id) > (?, ?) ORDER BY seq, id LIMIT ?"
);

statement!(
    Sqlite,
    /// Deletes exactly these, and not one that has got such a number since.
    ForgetDeadLetters { rows: String => Text, before: String => Text } -> Bool,
    "DELETE FROM outbox_dead_letter WHERE rowid IN (SELECT value FROM json_each(?)) AND failed_at < ?"
);

statement!(
    Sqlite,
    ConsumerAfter { is_first: bool => Bool, consumer: String => Text } -> Nullable<Text>,
    "SELECT min(consumer) FROM inbox WHERE ? OR consumer > ?"
);

statement!(
    Sqlite,
    MarksExpireBefore { seconds: f64 => Double, consumer: String => Text, newer: i64 => BigInt, same: i64 => BigInt } -> Text,
    concat!(
        "SELECT max(",
        ago!(),
        ", coalesce((SELECT received_at FROM inbox WHERE consumer = ? AND ? >= 0 ORDER BY received_at DESC LIMIT 1 OFFSET ?), ''))"
    )
);

statement!(
    Sqlite,
    CountMarks { consumer: String => Text, before: String => Text } -> BigInt,
    "SELECT count(*) FROM inbox WHERE consumer = ? AND received_at < ?"
);

statement!(
    Sqlite,
    PruneMarks { consumer: String => Text, before: String => Text, limit: i64 => BigInt } -> Bool,
    "DELETE FROM inbox WHERE (consumer, event_id) IN (SELECT consumer, event_id FROM inbox WHERE consumer = ? AND received_at < ? \
     ORDER BY received_at LIMIT ?)"
);
