//! Compares the ledger with what is on Kafka.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use crate::ledger::{Entry, Ledger, payload};
use crate::reader::{Arrived, Content};

/// What a run may cost.
#[derive(Clone, Debug, Default)]
pub struct Allowed {
    /// How many records may be repetitions, and where on the topic, in order.
    pub repetitions: Vec<Repetitions>,
    /// Events that Kafka itself has lost, because their topic was deleted.
    pub gone: BTreeSet<String>,
    /// Events that were committed and then undone, as an asynchronous failover or a restored backup may do.
    pub undone: BTreeSet<String>,
    /// Whether the topic has got more partitions. Then an aggregate may move to another one.
    pub has_new_partitions: bool,
}

/// How many records may be repetitions in a part of the topic.
#[derive(Clone, Debug, Default)]
pub struct Repetitions {
    /// Where the part begins in each partition; at its first record if that is not here.
    pub from: BTreeMap<i32, i64>,
    /// How many there may be.
    pub allowed: usize,
}

/// What was found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    /// How many events were committed.
    pub committed: usize,
    /// Committed events that are neither on Kafka nor dead letters that had to be.
    pub lost: Vec<String>,
    /// Records of events that nobody committed.
    pub phantom: Vec<String>,
    /// How many records are of events that were undone.
    pub undone: usize,
    /// Events whose first occurrence comes after that of a later event of the same aggregate, or in another partition.
    pub reordered: Vec<String>,
    /// Events whose bytes are not those that were emitted, or not the same in each occurrence.
    pub differing: Vec<String>,
    /// How many records repeat one.
    pub duplicates: usize,
    /// Where there are more repetitions than allowed.
    pub repeated: Vec<String>,
    /// Dead letters of events that Kafka can take.
    pub dead: Vec<String>,
    /// How many events are unsent in the end.
    pub unsent: usize,
}

impl Verdict {
    /// Compares what was committed with what arrived.
    pub fn of(ledger: &Ledger, received: &[Arrived], allowed: &Allowed) -> Self {
        let mut verdict = Self { committed: ledger.entries.len(), unsent: ledger.unsent, ..Self::default() };
        let mut first: BTreeMap<&str, &Content> = BTreeMap::new();
        let mut seen_in: BTreeSet<(i32, &str)> = BTreeSet::new();
        let mut last: BTreeMap<(i32, &str), i64> = BTreeMap::new();
        let mut home: BTreeMap<&str, i32> = BTreeMap::new();
        let mut repetitions = vec![0; allowed.repetitions.len()];
        let mut received: Vec<&Arrived> = received.iter().collect();
        received.sort_by_key(|record| (record.partition, record.offset));
        for &Arrived { partition, offset, ref content } in received {
            let place = format!("[{partition}]@{offset}");
            let Some((id, entry)) =
                content.header("id").and_then(|id| ledger.entries.get(id).map(|entry| (id, entry)))
            else {
                if content.header("id").is_some_and(|id| allowed.undone.contains(id)) {
                    verdict.undone += 1;
                    continue;
                }
                verdict.phantom.push(format!("{} at {place}", content.header("id").unwrap_or("no id")));
                continue;
            };
            match first.get(id) {
                Some(before) => {
                    verdict.duplicates += 1;
                    let begins =
                        |part: &Repetitions| part.from.get(&partition).is_none_or(|from| *from <= offset);
                    if let Some(part) = allowed.repetitions.iter().rposition(begins) {
                        repetitions[part] += 1;
                    }
                    if *before != content {
                        verdict.differing.push(format!("{id} at {place} differs from its first occurrence"));
                    }
                }
                None => {
                    first.insert(id, content);
                    let is_as_emitted = content.payload.as_deref() == id.parse().ok().map(payload).as_deref()
                        && content.key.as_deref() == Some(entry.aggregate.as_bytes())
                        && content.header("eventType") == Some("Noted");
                    if !is_as_emitted && !entry.is_poison {
                        verdict.differing.push(format!("{id} at {place} is not as it was emitted"));
                    }
                }
            }
            let in_order = !seen_in.insert((partition, id)) || {
                let before = last.insert((partition, &entry.aggregate), entry.number);
                before.is_none_or(|before| before < entry.number)
            };
            let at_home = *home.entry(&entry.aggregate).or_insert(partition) == partition;
            if !in_order || !(at_home || allowed.has_new_partitions) {
                let Entry { aggregate, number, .. } = entry;
                verdict.reordered.push(format!("{id}, number {number} of aggregate {aggregate}, at {place}"));
            }
        }
        for (id, entry) in &ledger.entries {
            let is_dead = ledger.dead_letters.contains(id);
            if is_dead && !entry.is_poison {
                verdict.dead.push(id.clone());
            } else if !is_dead && !first.contains_key(id.as_str()) && !allowed.gone.contains(id) {
                let Entry { aggregate, number, .. } = entry;
                verdict.lost.push(format!("{id}, number {number} of aggregate {aggregate}"));
            }
        }
        // What a fault repeats may still come when later ones have begun, but not before it.
        let mut left = 0;
        for (number, (part, found)) in allowed.repetitions.iter().zip(repetitions).enumerate() {
            if found > part.allowed + left {
                verdict
                    .repeated
                    .push(format!("{found} in part {number}, where {} are allowed", part.allowed + left));
            }
            left = (left + part.allowed).saturating_sub(found);
        }
        verdict
    }

    /// Whether everything that is promised was kept.
    pub fn is_good(&self) -> bool {
        let Self { lost, phantom, reordered, differing, dead, repeated, .. } = self;
        [lost, phantom, reordered, differing, dead, repeated].into_iter().all(Vec::is_empty)
            && self.unsent == 0
    }
}

/// In one line, and then the first of each kind of finding.
impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let findings = [
            ("lost", &self.lost),
            ("phantom", &self.phantom),
            ("out of order", &self.reordered),
            ("differing", &self.differing),
            ("dead", &self.dead),
            ("too often repeated", &self.repeated),
        ];
        write!(f, "{} committed", self.committed)?;
        for (name, found) in findings {
            write!(f, ", {} {name}", found.len())?;
        }
        write!(f, ", {} duplicates, {} unsent", self.duplicates, self.unsent)?;
        if self.undone > 0 {
            write!(f, ", {} records of undone events", self.undone)?;
        }
        for (name, found) in findings {
            for one in found.iter().take(3) {
                write!(f, "\n    {name}: {one}")?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use uuid::Uuid;

    use super::*;

    fn ledger(numbers: &[i64]) -> (Ledger, Vec<Uuid>) {
        let ids: Vec<Uuid> = numbers.iter().map(|_| Uuid::now_v7()).collect();
        let entry = |number: &i64| Entry { aggregate: "7".to_owned(), number: *number, is_poison: false };
        let entries = ids.iter().map(Uuid::to_string).zip(numbers.iter().map(entry)).collect();
        (Ledger { entries, ..Ledger::default() }, ids)
    }

    fn received(ids: &[Uuid]) -> Vec<Arrived> {
        let record = |(offset, id): (usize, &Uuid)| {
            let headers = [("id", id.to_string()), ("eventType", "Noted".to_owned())];
            let headers: BTreeMap<_, _> =
                headers.into_iter().map(|(name, value)| (name.to_owned(), value.into_bytes())).collect();
            let content =
                Content { key: Some(b"7".to_vec()), payload: Some(payload(*id)), headers, timestamp: 1 };
            Arrived { partition: 0, offset: offset as i64, content }
        };
        ids.iter().enumerate().map(record).collect()
    }

    #[test]
    fn what_arrives_in_order_and_is_repeated_as_often_as_allowed_is_good() {
        let (ledger, ids) = ledger(&[1, 2, 3]);
        let received = received(&[ids[0], ids[1], ids[0], ids[1], ids[2]]);
        let verdict = |parts: &[(i64, usize)]| {
            let part = |&(from, allowed)| Repetitions { from: [(0, from)].into(), allowed };
            let repetitions = parts.iter().map(part).collect();
            Verdict::of(&ledger, &received, &Allowed { repetitions, ..Allowed::default() })
        };
        assert!(verdict(&[(0, 2)]).is_good(), "{}", verdict(&[(0, 2)]));
        assert!(!verdict(&[(0, 1)]).is_good());
        assert!(verdict(&[(0, 0), (2, 2), (4, 0)]).is_good());
        // They may come late, but not early.
        assert!(verdict(&[(0, 2), (2, 0)]).is_good());
        assert!(!verdict(&[(0, 0), (4, 2)]).is_good());
        assert!(verdict(&[(0, 2), (1, 0), (2, 0)]).is_good());
    }

    #[test]
    fn each_kind_of_harm_is_found() {
        let (ledger, ids) = ledger(&[1, 2, 3]);
        let of = |received: &[Arrived]| Verdict::of(&ledger, received, &Allowed::default());
        assert_eq!(of(&received(&ids[..2])).lost.len(), 1);
        let phantom = Uuid::now_v7();
        let with_phantom = received(&[ids[0], ids[1], ids[2], phantom]);
        assert_eq!(of(&with_phantom).phantom.len(), 1);
        let undone = Allowed { undone: [phantom.to_string()].into(), ..Allowed::default() };
        let verdict = Verdict::of(&ledger, &with_phantom, &undone);
        assert!(verdict.is_good() && verdict.undone == 1, "{verdict}");
        assert_eq!(of(&received(&[ids[0], ids[2], ids[1]])).reordered.len(), 1);
        let mut changed = received(&[ids[0], ids[1], ids[2], ids[2]]);
        changed[3].content.timestamp = 2;
        assert_eq!(of(&changed).differing.len(), 1);
        let mut elsewhere = received(&ids);
        elsewhere[2].partition = 1;
        assert_eq!(of(&elsewhere).reordered.len(), 1);
    }

    #[test]
    fn a_dead_letter_is_no_loss_if_kafka_can_never_take_it() {
        let (mut ledger, ids) = ledger(&[1, 2]);
        ledger.dead_letters.insert(ids[1].to_string());
        let of = |ledger: &Ledger| Verdict::of(ledger, &received(&ids[..1]), &Allowed::default());
        assert_eq!(of(&ledger).dead.len(), 1);
        ledger.entries.get_mut(&ids[1].to_string()).unwrap().is_poison = true;
        assert!(of(&ledger).is_good());
    }
}
