/// The number of shards into which aggregates are divided, and so the largest number of workers that can drain one
/// outbox at the same time. It is part of the table's contract.
pub const SHARDS: i16 = 16;

/// The shard of an aggregate: 64-bit FNV-1a over the bytes of the aggregate type, a zero byte, and the aggregate id, folded
/// by exclusive or into its low 32 bits, modulo [`SHARDS`].
///
/// It is computed here and never by a database's own hash, so that every database and every version agrees.
///
/// ```
/// assert_eq!(diesel_outbox_core::shard_of("order", "42"), diesel_outbox_core::shard_of("order", "42"));
/// ```
pub fn shard_of(aggregate_type: &str, aggregate_id: &str) -> i16 {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    for byte in aggregate_type.bytes().chain([0]).chain(aggregate_id.bytes()) {
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
    }
    let folded = (hash ^ (hash >> 32)) & 0xffff_ffff;
    i16::try_from(folded % u64::from(SHARDS.unsigned_abs())).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hash_never_changes() {
        // Stored rows carry it: a change of any of these would let two workers own one aggregate.
        let shards: Vec<i16> = (0..8).map(|n| shard_of("order", &n.to_string())).collect();
        assert_eq!(shards, SHARDS_OF_ORDERS);
        assert_ne!(shard_of("ab", "c"), shard_of("a", "bc"));
    }

    const SHARDS_OF_ORDERS: [i16; 8] = [0, 3, 10, 13, 12, 15, 6, 9];

    #[test]
    fn aggregates_spread_evenly() {
        let mut counts = [0_u32; SHARDS as usize];
        for n in 0..16_000 {
            counts[shard_of("order", &n.to_string()) as usize] += 1;
        }
        assert!(counts.iter().all(|&count| (850..1150).contains(&count)), "{counts:?}");
    }
}
