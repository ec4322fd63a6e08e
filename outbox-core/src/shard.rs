/// The number of shards that aggregates are divided into: 16. It is also the largest number of workers that can drain one outbox
/// at the same time, and is part of the table's contract.
pub const SHARDS: i16 = 16;

/// Returns the shard of an aggregate, from 0 to 15.
///
/// A program in another language that writes to the outbox must compute it in the same way: the 64-bit FNV-1a hash over the bytes
/// of the aggregate type, a zero byte and the aggregate id; its high 32 bits combined with its low 32 bits by exclusive or; modulo
/// [`SHARDS`]. No database's own hash is used, so that all databases and all their versions agree.
///
/// ```
/// use diesel_outbox_core::shard_of;
///
/// assert_eq!(["0", "1", "2", "3"].map(|id| shard_of("order", id)), [0, 3, 10, 13]);
/// ```
#[must_use]
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
        // Stored rows hold the shard. If any of these changed, two workers could own one aggregate.
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
