//! Settling: exactly the rows that the broker has acknowledged are marked as sent, or deleted.

use std::collections::HashSet;

use mysql::Conn;
use mysql::prelude::Queryable;
use uuid::Uuid;

use super::bounds::{self, Claimed};
use super::connection::{Statements, row_of};
use crate::source::SentRows;

/// Each row is looked up by its primary key, which locks nothing else, so that nobody who emits waits for it, and this waits for nobody.
/// Of a long list in `IN (..)` the optimizer makes a scan of the whole table, which waits for each row that is not committed.
///
/// Numbers without a gap between them are settled as a range, which takes little more than half as long. The range holds no other
/// number, so no row that commits late can be in it. Its scan looks at the row behind it, too. An UPDATE does not wait if that is not
/// committed: it reads what others have locked as it was before
/// (<https://dev.mysql.com/doc/refman/8.4/en/innodb-transaction-isolation-levels.html>). A DELETE would wait. So its range ends before the
/// last number, which is one of these rows too, and that one is looked up.
pub(super) fn settle(conn: &mut Conn, tickets: &[u64], sent_rows: SentRows) -> mysql::Result<()> {
    let ranges = ranges(tickets);
    let is_scattered = ranges.len() * FEW > tickets.len();
    if sent_rows == SentRows::Delete {
        return if is_scattered { delete(conn, tickets) } else { delete_ranges(conn, &ranges) };
    }
    if is_scattered {
        return conn.execute(&format!("UPDATE {} SET o.sent_at = UTC_TIMESTAMP(3)", rows(tickets))).map(drop);
    }
    for ranges in ranges.chunks(MOST_RANGES) {
        let ranges = between(ranges);
        conn.execute(&format!(
            "UPDATE outbox FORCE INDEX (PRIMARY) SET sent_at = UTC_TIMESTAMP(3) WHERE {ranges}"
        ))?;
    }
    Ok(())
}

/// Settles those of these records that are unsent. No index has the ids, so this looks at all unsent rows, which locks nothing.
pub(super) fn settle_committed(
    conn: &mut Conn,
    claimed: &Claimed,
    ids: &[Uuid],
    sent_rows: SentRows,
) -> mysql::Result<()> {
    let ids: HashSet<&Uuid> = ids.iter().collect();
    let (lowest, unsent) = (bounds::lowest(claimed), bounds::unsent(claimed));
    let mut committed = Vec::new();
    let rows = conn.query_iter(format!(
        "SELECT seq, id FROM outbox FORCE INDEX (PRIMARY) WHERE (seq > {lowest} OR seq IN ({unsent})) AND sent_at IS NULL"
    ))?;
    for row in rows {
        let (seq, id): (u64, String) = row_of(row?)?;
        if Uuid::try_parse(&id).is_ok_and(|id| ids.contains(&id)) {
            committed.push(seq);
        }
    }
    // The server refuses statements that are too long.
    committed.chunks(MOST_COMMITTED).try_for_each(|seqs| settle(conn, seqs, sent_rows))
}

/// How many of them are settled by a statement.
const MOST_COMMITTED: usize = 10_000;

fn delete_ranges(conn: &mut Conn, ranges: &[(u64, u64)]) -> mysql::Result<()> {
    for ranges in ranges.chunks(MOST_RANGES) {
        let before: Vec<(u64, u64)> = ranges
            .iter()
            .filter(|(first, last)| first < last)
            .map(|(first, last)| (*first, last - 1))
            .collect();
        if !before.is_empty() {
            let before = between(&before);
            conn.execute(&format!("DELETE o FROM outbox AS o FORCE INDEX (PRIMARY) WHERE {before}"))?;
        }
        delete(conn, &ranges.iter().map(|(_, last)| *last).collect::<Vec<_>>())?;
    }
    Ok(())
}

fn between(ranges: &[(u64, u64)]) -> String {
    let ranges: Vec<String> =
        ranges.iter().map(|(first, last)| format!("seq BETWEEN {first} AND {last}")).collect();
    ranges.join(" OR ")
}

/// Ranges that are shorter than this on average are not worth it.
const FEW: usize = 16;
/// How many ranges a statement has at most. The server compares each row with all of them.
const MOST_RANGES: usize = 64;

/// Returns the first and the last number of each range without a gap.
fn ranges(tickets: &[u64]) -> Vec<(u64, u64)> {
    let mut sorted = tickets.to_vec();
    sorted.sort_unstable();
    let mut ranges: Vec<(u64, u64)> = Vec::new();
    for number in sorted {
        match ranges.last_mut() {
            Some((_, last)) if *last + 1 == number => *last = number,
            _ => ranges.push((number, number)),
        }
    }
    ranges
}

/// Deletes exactly these rows.
pub(crate) fn delete(conn: &mut Conn, seqs: &[impl ToString]) -> mysql::Result<()> {
    conn.execute(&format!("DELETE o FROM {}", rows(seqs))).map(drop)
}

/// The rows with these numbers, as `o`. If the table has few rows, or the server's statistics say so, which follow a backlog only after a
/// while, the optimizer would rather scan all rows for each number, and wait for those that are not committed.
pub(crate) fn rows(seqs: &[impl ToString]) -> String {
    let seqs: Vec<String> = seqs.iter().map(ToString::to_string).collect();
    format!(
        "(SELECT seq FROM JSON_TABLE('[{}]', '$[*]' COLUMNS (seq bigint PATH '$')) AS j) AS t \
         STRAIGHT_JOIN outbox AS o FORCE INDEX (PRIMARY) ON o.seq = t.seq",
        seqs.join(",")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_ends_at_a_gap() {
        assert_eq!(ranges(&[7, 3, 1, 2, 8, 12]), [(1, 3), (7, 8), (12, 12)]);
        assert_eq!(ranges(&[]), []);
    }
}
