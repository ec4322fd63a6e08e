//! Events of a size, of aggregates in a number of shards.

use diesel_outbox_core::{Record, SHARDS};

use crate::rows::AGGREGATES;

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Events {
    /// Bytes of payload in each.
    pub(super) bytes: usize,
    /// How many shards have any.
    pub(super) shards: i16,
}

impl Events {
    pub(super) const USUAL: Self = Self { bytes: 200, shards: SHARDS };

    /// Returns one event of each aggregate.
    pub(super) fn records(self) -> Vec<Record> {
        (0..)
            .map(|n: u64| {
                Record::new("order", n.to_string(), "OrderPlaced").with_payload(text(n, self.bytes))
            })
            .filter(|record| record.shard() < self.shards)
            .take(AGGREGATES)
            .collect()
    }
}

/// Returns text that PostgreSQL cannot compress, so that a large payload does not cost as little as a small one.
fn text(seed: u64, bytes: usize) -> Vec<u8> {
    let mut random = (seed + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let characters = std::iter::repeat_with(|| {
        // xorshift64, of which the highest six bits choose one.
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        b'0' + (random >> 58) as u8
    });
    characters.take(bytes).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn aggregates_are_in_as_many_shards_as_asked_for() {
        for shards in [1, 4, SHARDS] {
            let records = Events { bytes: 50, shards }.records();
            let ids: HashSet<&str> = records.iter().map(Record::aggregate_id).collect();
            let used: HashSet<i16> = records.iter().map(Record::shard).collect();
            assert_eq!((ids.len(), used.len()), (AGGREGATES, shards as usize));
        }
    }

    #[test]
    fn payloads_do_not_repeat_themselves() {
        let text = text(0, 20_000);
        let pieces: HashSet<&[u8]> = text.chunks(8).collect();
        assert_eq!((text.len(), pieces.len()), (20_000, 2_500));
    }
}
