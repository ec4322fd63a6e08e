//! One pass over the table: a transaction that holds the lock of each claimed shard.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use diesel_outbox_core::SHARDS;
use mysql::Conn;
use uuid::Uuid;

use super::bounds::{self, Bound, COLUMNS, Claimed, Witness, listed};
use super::connection::Statements;

/// A shard's number and the `seq` of its oldest unsent row.
pub(crate) type Wanted = Vec<(i16, i64)>;

pub(super) struct PollingPass {
    pub(super) claimed: Claimed,
    /// What was given to the relay and has not been settled.
    pub(super) unsettled: HashSet<i64>,
    pub(super) has_settled: bool,
    /// Whether the last read found no more after what it gave.
    pub(super) exhausted: bool,
    /// Whether it found more than a batch at once.
    pub(super) was_large: bool,
    pub(super) blocks: bool,
}

/// What a look found.
#[derive(Default)]
pub(super) struct Looked {
    pub(super) wanted: Wanted,
    /// The bounds of all shards as the table has them.
    pub(super) bounds: Claimed,
    /// The shards whose witness is gone, or that have none.
    pub(super) without_witness: HashSet<i16>,
    /// Whether one is gone, as if the table had been truncated.
    pub(super) is_restarted: bool,
}

/// Looks for unsent rows. The look begins at `known`. If those bounds are older than the table's, the look is only longer.
pub(super) fn look(conn: &mut Conn, known: &Claimed) -> mysql::Result<Looked> {
    let unsent = bounds::unsent(known);
    let witnesses: Vec<&Witness> = known.iter().filter_map(|(_, bound)| bound.witness.as_ref()).collect();
    let seqs: BTreeSet<i64> = witnesses.iter().map(|(seq, _)| *seq).collect();
    let mut query = format!(
        "(SELECT {COLUMNS} FROM outbox_shard) \
         UNION ALL (SELECT {WITNESS}, seq, NULL, NULL, id FROM outbox WHERE seq IN ({})) \
         UNION ALL (SELECT shard, seq, NULL, NULL, NULL FROM outbox WHERE seq IN ({unsent}) AND sent_at IS NULL)",
        listed(seqs)
    );
    for (shard, Bound { sent_through, .. }) in known {
        query += &format!(
            " UNION ALL (SELECT shard, seq, NULL, NULL, NULL FROM outbox FORCE INDEX (outbox_shard_seq) WHERE shard = {shard} \
             AND seq > {sent_through} AND sent_at IS NULL ORDER BY seq LIMIT 1)"
        );
    }
    let (mut looked, mut oldest, mut found) = (Looked::default(), BTreeMap::new(), HashSet::new());
    for row in conn.load::<bounds::Row>(&query)? {
        let (shard, seq, ..) = row;
        match row {
            (WITNESS, _, _, _, Some(id)) => {
                // An emitter of another kind may have written it in capitals, or without hyphens.
                let id = Uuid::try_parse(&id).map_or(id, |uuid| uuid.to_string());
                found.insert((seq, id));
            }
            row @ (_, _, Some(_), ..) => looked.bounds.push(bounds::of_row(row)),
            _ => {
                oldest.entry(shard).and_modify(|first: &mut i64| *first = seq.min(*first)).or_insert(seq);
            }
        }
    }
    looked.bounds.sort_unstable_by_key(|(shard, _)| *shard);
    looked.wanted = oldest.into_iter().collect();
    let is_witnessed = |bound: &Bound| bound.witness.as_ref().is_some_and(|witness| found.contains(witness));
    looked.is_restarted = witnesses.iter().any(|witness| !found.contains(*witness));
    looked.without_witness = known
        .iter()
        .filter(|(_, bound)| bound.sent_through > 0 && !is_witnessed(bound))
        .map(|(shard, _)| *shard)
        .collect();
    Ok(looked)
}

/// The bounds whose witnesses a look has looked for, and the shards whose bound is not to be trusted.
pub(super) struct Known<'a> {
    pub(super) bounds: &'a Claimed,
    pub(super) distrusted: &'a HashSet<i16>,
}

impl Known<'_> {
    fn has(&self, claimed: &(i16, Bound)) -> bool {
        self.distrusted.contains(&claimed.0) || self.bounds.contains(claimed)
    }
}

/// Stands for a shard in a row that is a witness.
const WITNESS: i16 = -1;

/// Returns the wanted shards in the groups in which they are claimed, and how many shards are a worker's share. The shards of a share lie
/// together, because then a read passes over the rows between them fastest. The group with the oldest row comes first. A worker that is
/// alone claims all shards, so that it need not claim again for rows that come to the others later.
pub(crate) fn groups(wanted: &Wanted, workers: usize) -> (Vec<Vec<i16>>, usize) {
    let share = (SHARDS.unsigned_abs() as usize).div_ceil(workers.max(1));
    if workers <= 1 {
        return (vec![(0..SHARDS).collect()], share);
    }
    let mut groups: Vec<(i64, Vec<i16>)> = Vec::new();
    for shards in wanted.chunk_by(|(one, _), (other, _)| *one as usize / share == *other as usize / share) {
        let oldest = shards.iter().map(|(_, seq)| *seq).min().unwrap_or_default();
        groups.push((oldest, shards.iter().map(|(shard, _)| *shard).collect()));
    }
    groups.sort_unstable();
    (groups.into_iter().map(|(_, shards)| shards).collect(), share)
}

impl PollingPass {
    /// Locks this worker's share of the free shards among the wanted ones. Returns `None` if none of them is free, and if another worker
    /// has moved the bound of one since the look: only the next look knows whether that bound's witness is still there. Without a number
    /// of workers, also returns `None` unless all shards are free.
    pub(super) fn begin(
        conn: &mut Conn,
        wanted: &Wanted,
        known: &Known<'_>,
        workers: Option<usize>,
        blocks: bool,
    ) -> mysql::Result<Option<Self>> {
        conn.execute("START TRANSACTION")?;
        let (groups, share) = groups(wanted, workers.unwrap_or(1));
        let mut claimed = Claimed::new();
        for group in groups {
            let Some(free @ 1..) = share.checked_sub(claimed.len()) else { break };
            claimed.extend(bounds::load(
                conn,
                &format!(
                    "SELECT {COLUMNS} FROM outbox_shard WHERE shard IN ({}) ORDER BY shard LIMIT {free} \
                     FOR UPDATE SKIP LOCKED",
                    listed(group)
                ),
            )?);
        }
        let has_wanted = claimed.iter().any(|(shard, _)| wanted.iter().any(|(other, _)| other == shard));
        let lacks_one = workers.is_none() && claimed.len() < SHARDS.unsigned_abs().into();
        if !has_wanted || lacks_one || !claimed.iter().all(|claimed| known.has(claimed)) {
            conn.execute("ROLLBACK")?;
            return Ok(None);
        }
        for (shard, bound) in &mut claimed {
            if known.distrusted.contains(shard) {
                *bound = Bound::default();
            }
        }
        Ok(Some(Self {
            claimed,
            unsettled: HashSet::new(),
            has_settled: false,
            exhausted: false,
            was_large: false,
            blocks,
        }))
    }

    pub(super) fn settled(&mut self, tickets: &[u64]) {
        self.has_settled = true;
        for ticket in tickets {
            self.unsettled.remove(&(*ticket as i64));
        }
    }

    /// Writes the bounds that have moved, and commits.
    pub(super) fn end(self, conn: &mut Conn, moved: Option<Claimed>) -> mysql::Result<()> {
        if let Some(update) = moved.and_then(|moved| bounds::update(&self.claimed, &moved)) {
            conn.execute(&update)?;
        }
        conn.execute("COMMIT").map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_alone_claims_all_shards_and_others_a_share_that_lies_together() {
        let wanted = vec![(1, 70), (2, 50), (7, 60), (8, 10), (15, 90)];
        assert_eq!(groups(&wanted, 1), (vec![(0..16).collect()], 16));
        assert_eq!(groups(&wanted, 2), (vec![vec![8, 15], vec![1, 2, 7]], 8));
        assert_eq!(groups(&wanted, 16), (vec![vec![8], vec![2], vec![7], vec![1], vec![15]], 1));
        assert_eq!(groups(&wanted, 60).1, 1);
        assert_eq!(groups(&vec![], 3), (vec![], 6));
    }
}
