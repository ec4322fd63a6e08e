//! What a history is about.

/// Where the records are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Postgres,
    Mysql,
    Sqlite,
    Wal,
}

impl Kind {
    pub(super) const ALL: [Self; 4] = [Self::Postgres, Self::Mysql, Self::Sqlite, Self::Wal];

    pub(super) fn of(seed: u64) -> Self {
        Self::ALL[(seed % 4) as usize]
    }
}

/// A mistake that is made on purpose, to see that the simulation finds it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mistake {
    /// The publisher calls a record durable as soon as it has it.
    SettlesBeforeTheAcknowledgement,
    /// Settling takes all rows between the first and the last one that was acknowledged.
    SettlesByRange,
    /// The fence does not wait for transactions that are open.
    PassesLateCommits,
    /// A claim takes shards that somebody else has.
    SharesShards,
    /// A new producer may have several requests on their way to a partition.
    HasNoGate,
    /// The position is confirmed as soon as the rows were given.
    ConfirmsWhatIsNotSettled,
}
