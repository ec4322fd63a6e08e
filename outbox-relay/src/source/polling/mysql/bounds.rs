//! The bounds from which the relay looks for a shard's rows, without ever passing over a row that commits late.
//!
//! A row gets its `seq` when it is inserted, and becomes visible when its transaction commits. So a row with a low `seq` may appear behind
//! rows that were sent long ago. But no relay can look at everything that was ever sent, each time. So each shard has a bound and a list:
//! every row up to the bound has been sent, is in the list, or will never exist. A look reads the listed rows by their numbers, and the
//! rows after the bound.
//!
//! How a bound moves to `last`, a number that the relay has read:
//!
//! 1. A row with that number exists, so every number up to `last` has been taken. If a transaction has taken one of them and has not
//!    stored its row yet, it is in the middle of its INSERT, and the server counts the table as in use. So once the server reports that
//!    the table is not in use, every number up to `last` has its row, committed or not, or will never have one: see [`Fence`].
//! 2. Then the worker, which holds the shard's lock, reads the unsent rows up to `last` twice. READ UNCOMMITTED shows the rows of open
//!    transactions, and READ COMMITTED shows the rows that others are about to change. No other row up to `last` can still appear or wait
//!    to be sent, so these are the list.
//! 3. The pass's own transaction writes the bound and the list. If that fails, so does what the pass has settled.
//!
//! The rows of a transaction that stays open for hours stay in the list. If there are more than [`MOST_LISTED`], the bound moves only as
//! far as the list reaches.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use mysql::Conn;

use super::connection::Statements;
use super::wakeup::Wake;

/// How many rows a list may have. Each look looks each of them up.
pub(crate) const MOST_LISTED: usize = 1_000;
/// How often the worker asks whether the table is in use.
const INTERVAL: Duration = Duration::from_millis(25);
/// It asks again and again for this part of the time for which the table has always been in use, but no longer than [`LONGEST_ASKING`].
const ASKING_SHARE: u32 = 20;
const LONGEST_ASKING: Duration = Duration::from_secs(2);
const ASKING_PAUSE: Duration = Duration::from_micros(200);
/// If it asks for longer than this, the other workers do not begin to read meanwhile.
const SHORT_ASKING: Duration = Duration::from_millis(50);
/// How far a bound must be able to move before it does.
const STEP: i64 = 1_024;

/// Where the relay begins to look for a shard's rows.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Bound {
    pub(crate) sent_through: i64,
    pub(crate) unsent: Vec<i64>,
    pub(crate) witness: Option<Witness>,
}

/// The `seq` and id of a row that was there when the bound was written.
pub(crate) type Witness = (i64, String);

/// The columns of `outbox_shard` that `load` takes.
pub(crate) const COLUMNS: &str = "shard, sent_through, unsent, witness, witness_id";

/// Those columns.
pub(super) type Row = (i16, i64, Option<String>, Option<i64>, Option<String>);

pub(super) fn of_row((shard, sent_through, unsent, witness, witness_id): Row) -> (i16, Bound) {
    let unsent = unsent.unwrap_or_default();
    let unsent = unsent.split(',').filter_map(|seq| seq.parse().ok()).collect();
    (shard, Bound { sent_through, unsent, witness: witness.zip(witness_id) })
}

/// Returns numbers as an SQL list. SQL has no empty list, so that one holds -1, which no row has.
pub(crate) fn listed<N: ToString>(numbers: impl IntoIterator<Item = N>) -> String {
    let numbers: Vec<String> = numbers.into_iter().map(|number| number.to_string()).collect();
    if numbers.is_empty() { "-1".to_owned() } else { numbers.join(",") }
}

/// Returns the numbers of the claimed shards as an SQL list.
pub(super) fn shards(claimed: &Claimed) -> String {
    listed(claimed.iter().map(|(shard, _)| shard))
}

/// Returns the rows in the shards' lists as an SQL list.
pub(crate) fn unsent(claimed: &Claimed) -> String {
    listed(claimed.iter().flat_map(|(_, bound)| &bound.unsent))
}

/// Returns the lowest bound. All unsent rows of these shards lie behind it or are listed.
pub(crate) fn lowest(claimed: &Claimed) -> i64 {
    claimed.iter().map(|(_, bound)| bound.sent_through).min().unwrap_or_default()
}

/// Learns up to which number every row is stored, or never will be.
///
/// The more writers there are, the more rarely the table is not in use, and the other workers' reads use it too. While the bounds stand still,
/// those reads take longer and longer. So the longer the table has always been in use, the longer this asks, and then the other workers
/// wait with their reads.
#[derive(Default)]
pub(crate) struct Fence {
    stored_through: i64,
    asked: Option<Instant>,
    /// Since when there is a number to go to.
    waiting: Option<Instant>,
}

impl Fence {
    /// Asks, if it is time to, whether anybody is in the middle of a statement on the table. `last` is a number that was read before.
    pub(super) fn advance(&mut self, conn: &mut Conn, wake: &Wake, last: i64) -> mysql::Result<()> {
        let Some(longest) = self.asks_for(Instant::now(), last) else { return Ok(()) };
        // Others need not wait if another worker asks already.
        let holds_reads = longest > SHORT_ASKING && wake.hold_reads(conn)?;
        let began = Instant::now();
        let is_unused = loop {
            if is_unused(conn)? {
                break true;
            }
            if began.elapsed() >= longest {
                break false;
            }
            std::thread::sleep(ASKING_PAUSE);
        };
        if holds_reads {
            wake.let_read(conn)?;
        }
        self.is_told(Instant::now(), last, is_unused);
        Ok(())
    }

    /// Returns for how long to ask, or `None` if it is not time to.
    pub(crate) fn asks_for(&mut self, now: Instant, last: i64) -> Option<Duration> {
        let asked = |asked| now.duration_since(asked) < INTERVAL;
        if last < self.stored_through + STEP || self.asked.is_some_and(asked) {
            return None;
        }
        let waiting = *self.waiting.get_or_insert(now);
        Some(asking(now.duration_since(waiting)))
    }

    /// Notes whether the table was not in use after `last` had been read.
    pub(crate) fn is_told(&mut self, now: Instant, last: i64, is_unused: bool) {
        self.asked = Some(now);
        if is_unused {
            (self.stored_through, self.waiting) = (last, None);
        }
    }

    /// Returns up to which number to look for unsent rows of these shards, so that their bounds can move, or `None` if that is not worth
    /// it.
    pub(crate) fn looks_through(&self, claimed: &Claimed) -> Option<i64> {
        let lowest = lowest(claimed);
        let is_listed = claimed.iter().any(|(_, bound)| !bound.unsent.is_empty());
        (self.stored_through >= lowest + STEP || is_listed).then_some(self.stored_through.max(lowest))
    }
}

/// Returns how long to ask, if the table has always been in use for this time.
fn asking(waiting: Duration) -> Duration {
    (waiting / ASKING_SHARE).min(LONGEST_ASKING)
}

fn is_unused(conn: &mut Conn) -> mysql::Result<bool> {
    // Its columns: database, table, how many statements use it, whether its name is locked.
    let open: Vec<(String, String, i64, i64)> =
        conn.load("SHOW OPEN TABLES WHERE `Database` = DATABASE() AND `Table` = 'outbox'")?;
    // The table is there, because it was just read. There may be two, because the server ignores the case of names here.
    Ok(!open.is_empty() && open.iter().all(|(_, _, in_use, _)| *in_use == 0))
}

/// Claimed shards, by number, with their bounds as the table has them.
pub(crate) type Claimed = Vec<(i16, Bound)>;

/// Returns the bounds to which those of the claimed shards can move, or `None` if that is not worth it. `conn` is the pass's connection,
/// and `uncommitted` another one.
///
/// The lists get the rows that are unsent in either view. The pass's view has the rows that others are about to change, and perhaps will
/// not: an operator may delete rows and roll back, and after a crash the server may still be rolling back a pass.
pub(super) fn moved(
    claimed: &Claimed,
    fence: &Fence,
    witness: Option<&Witness>,
    conn: &mut Conn,
    uncommitted: &mut Conn,
) -> mysql::Result<Option<Claimed>> {
    let Some(through) = fence.looks_through(claimed) else { return Ok(None) };
    let lowest = lowest(claimed);
    let (shards, old) = (shards(claimed), unsent(claimed));
    let most = MOST_LISTED + 1;
    let unsent = format!(
        "(SELECT seq, shard FROM outbox WHERE seq IN ({old}) AND seq <= {lowest} AND shard IN ({shards}) AND sent_at IS NULL) UNION ALL \
         (SELECT seq, shard FROM outbox FORCE INDEX (PRIMARY) WHERE seq > {lowest} AND seq <= {through} \
         AND shard IN ({shards}) AND sent_at IS NULL ORDER BY seq LIMIT {most})"
    );
    let stored: Vec<(i64, i16)> = uncommitted.load(&unsent)?;
    let committed: Vec<(i64, i16)> = conn.load(&unsent)?;
    let unsent: BTreeSet<(i64, i16)> = stored.into_iter().chain(committed).collect();
    let unsent: Vec<(i64, i16)> = unsent.into_iter().collect();
    Ok(Some(with_unsent(claimed, lowest, through, &unsent, witness)))
}

/// Returns the bounds with these `unsent` rows as their lists: the rows of the old lists up to `lowest`, and then those after it up to
/// `through`, in their order. If there are too many, the bounds go to just before the first one that has no place. If another worker has
/// moved a shard's bound further, it stays there.
pub(crate) fn with_unsent(
    claimed: &Claimed,
    lowest: i64,
    through: i64,
    unsent: &[(i64, i16)],
    witness: Option<&Witness>,
) -> Claimed {
    let through = unsent.get(MOST_LISTED).map_or(through, |(seq, _)| through.min(seq - 1));
    let looked_through = through.max(lowest);
    claimed
        .iter()
        .map(|(shard, bound)| {
            let sent_through = bound.sent_through.max(through);
            let found =
                unsent.iter().filter(|(seq, of)| of == shard && *seq <= sent_through).map(|(seq, _)| *seq);
            let listed = bound.unsent.iter().copied().filter(|seq| *seq > looked_through);
            let unsent: BTreeSet<i64> = found.chain(listed).collect();
            (*shard, Bound { sent_through, unsent: unsent.into_iter().collect(), witness: witness.cloned() })
        })
        .collect()
}

/// Returns the bounds that have changed.
pub(crate) fn changed<'a>(claimed: &Claimed, moved: &'a Claimed) -> Vec<&'a (i16, Bound)> {
    moved
        .iter()
        .zip(claimed)
        .filter(|((_, new), (_, old))| new.sent_through != old.sent_through || new.unsent != old.unsent)
        .map(|(new, _)| new)
        .collect()
}

/// Returns the statement that writes the bounds that have changed, or `None` if none has.
pub(super) fn update(claimed: &Claimed, moved: &Claimed) -> Option<String> {
    let changed = changed(claimed, moved);
    if changed.is_empty() {
        return None;
    }
    let (mut through, mut unsent, mut witness, mut witness_id) =
        <(String, String, String, String)>::default();
    for (shard, bound) in &changed {
        let list: Vec<String> = bound.unsent.iter().map(i64::to_string).collect();
        through += &format!(" WHEN {shard} THEN {}", bound.sent_through);
        unsent += &format!(" WHEN {shard} THEN '{}'", list.join(","));
        if let Some((seq, id)) = &bound.witness {
            witness += &format!(" WHEN {shard} THEN {seq}");
            witness_id += &format!(" WHEN {shard} THEN '{id}'");
        }
    }
    let shards = listed(changed.iter().map(|(shard, _)| shard));
    Some(format!(
        "UPDATE outbox_shard SET sent_through = CASE shard{through} END, unsent = CASE shard{unsent} END, \
         witness = {}, witness_id = {} WHERE shard IN ({shards})",
        case(&witness),
        case(&witness_id)
    ))
}

fn case(whens: &str) -> String {
    if whens.is_empty() { "NULL".to_owned() } else { format!("CASE shard{whens} END") }
}

/// Returns the bounds that the query selects.
pub(crate) fn load(conn: &mut impl Statements, query: &str) -> mysql::Result<Claimed> {
    Ok(conn.load(query)?.into_iter().map(of_row).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bound(sent_through: i64, unsent: &[i64]) -> Bound {
        Bound { sent_through, unsent: unsent.to_vec(), witness: None }
    }

    #[test]
    fn the_longer_the_table_is_in_use_the_longer_is_asked() {
        assert_eq!(asking(Duration::ZERO), Duration::ZERO);
        assert_eq!(asking(Duration::from_millis(500)), Duration::from_millis(25));
        assert_eq!(asking(Duration::from_secs(3_600)), LONGEST_ASKING);
    }

    #[test]
    fn a_bound_moves_and_lists_what_is_unsent_below_it() {
        let claimed = vec![(0, bound(10, &[4])), (3, bound(10, &[]))];
        let unsent = [(4, 0), (12, 3), (15, 0)];
        assert_eq!(
            with_unsent(&claimed, 10, 20, &unsent, None),
            [(0, bound(20, &[4, 15])), (3, bound(20, &[12]))]
        );
        // What was listed and is sent is not listed any more.
        assert_eq!(with_unsent(&claimed, 10, 10, &[], None), [(0, bound(10, &[])), (3, bound(10, &[]))]);
    }

    #[test]
    fn a_bound_that_another_worker_moved_further_keeps_what_is_listed_beyond_what_was_looked_at() {
        let claimed = vec![(0, bound(10, &[])), (1, bound(50, &[9, 15, 40]))];
        // 15 was sent, 9 and 40 were not: nobody has looked at 40.
        assert_eq!(
            with_unsent(&claimed, 10, 20, &[(9, 1)], None),
            [(0, bound(20, &[])), (1, bound(50, &[9, 40]))]
        );
    }

    #[test]
    fn a_bound_stays_before_what_is_too_much_for_the_list() {
        let claimed = vec![(0, bound(10, &[]))];
        let unsent: Vec<(i64, i16)> = (0..=MOST_LISTED as i64).map(|n| (100 + 2 * n, 0)).collect();
        let last = 100 + 2 * MOST_LISTED as i64;
        let moved = with_unsent(&claimed, 10, 5_000, &unsent, None);
        assert_eq!((moved[0].1.sent_through, moved[0].1.unsent.len()), (last - 1, MOST_LISTED));
        // What is not listed lies behind the bound.
        assert!(moved[0].1.unsent.iter().all(|seq| *seq < last));
    }

    #[test]
    fn bounds_that_have_changed_are_written_and_read_again() {
        let old = vec![(0, bound(1, &[])), (1, bound(2, &[])), (2, bound(3, &[3]))];
        let id = "0193-a";
        let witness = Some((9, id.to_owned()));
        let new = vec![(0, bound(9, &[4, 5])), (1, bound(2, &[])), (2, Bound { witness, ..bound(9, &[]) })];
        assert_eq!(
            update(&old, &new).as_deref(),
            Some(
                "UPDATE outbox_shard SET sent_through = CASE shard WHEN 0 THEN 9 WHEN 2 THEN 9 END, \
                 unsent = CASE shard WHEN 0 THEN '4,5' WHEN 2 THEN '' END, witness = CASE shard WHEN 2 THEN 9 END, \
                 witness_id = CASE shard WHEN 2 THEN '0193-a' END WHERE shard IN (0,2)"
            )
        );
        assert_eq!(update(&old, &old), None);
        assert_eq!(of_row((0, 9, Some("4,5".into()), None, None)), new[0]);
        assert_eq!(of_row((2, 9, Some("".into()), Some(9), Some(id.into()))), new[2]);
    }
}
