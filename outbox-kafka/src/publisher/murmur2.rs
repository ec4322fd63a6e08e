//! The hash by which Java clients choose partitions.

/// Returns the partition of a key with this hash. Java leaves out the sign rather than to take the absolute value.
pub fn partition(hash: u32, partitions: i32) -> i32 {
    (hash & 0x7fff_ffff) as i32 % partitions.max(1)
}

/// Returns the hash of a key: MurmurHash2 as Kafka has it: Austin Appleby's, with a seed of Kafka's own.
pub fn murmur2(key: &[u8]) -> u32 {
    const SEED: u32 = 0x9747_b28c;
    const MULTIPLIER: u32 = 0x5bd1_e995;
    let (words, rest) = key.as_chunks::<4>();
    let mut hash = SEED ^ key.len() as u32;
    for word in words {
        let mut mixed = u32::from_le_bytes(*word).wrapping_mul(MULTIPLIER);
        mixed ^= mixed >> 24;
        hash = hash.wrapping_mul(MULTIPLIER) ^ mixed.wrapping_mul(MULTIPLIER);
    }
    if !rest.is_empty() {
        let last = rest.iter().rev().fold(0, |last, byte| last << 8 | u32::from(*byte));
        hash = (hash ^ last).wrapping_mul(MULTIPLIER);
    }
    hash = (hash ^ hash >> 13).wrapping_mul(MULTIPLIER);
    hash ^ hash >> 15
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The hashes are those of Kafka's own test, `org.apache.kafka.common.utils.UtilsTest`.
    #[test]
    fn hashes_are_those_of_java_clients() {
        for (key, hash) in [
            ("21", -973_932_308),
            ("foobar", -790_332_482),
            ("a-little-bit-long-string", -985_981_536),
            ("a-little-bit-longer-string", -1_486_304_829),
            ("lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58_897_971),
            ("abc", 479_470_107),
        ] {
            assert_eq!(murmur2(key.as_bytes()) as i32, hash, "{key}");
        }
    }

    proptest::proptest! {
        #[test]
        fn a_partition_is_one_of_the_topics(key in proptest::collection::vec(proptest::num::u8::ANY, 0..40), partitions in 1..i32::MAX) {
            proptest::prop_assert!((0..partitions).contains(&partition(murmur2(&key), partitions)));
            proptest::prop_assert_eq!(partition(murmur2(&key), 1), 0);
        }
    }
}
