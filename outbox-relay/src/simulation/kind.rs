//! What a history is about.

/// Where the records are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Postgres,
    Mysql,
    Sqlite,
    Wal,
    PostgresExactlyOnce,
    MysqlExactlyOnce,
    /// A dead letter holds back its aggregate until somebody requeues it.
    PostgresBlocking,
}

impl Kind {
    pub(super) const ALL: [Self; 7] = [
        Self::Postgres,
        Self::Mysql,
        Self::Sqlite,
        Self::Wal,
        Self::PostgresExactlyOnce,
        Self::MysqlExactlyOnce,
        Self::PostgresBlocking,
    ];
    pub(super) const AT_LEAST_ONCE: [Self; 4] = [Self::Postgres, Self::Mysql, Self::Sqlite, Self::Wal];
    pub(super) const EXACTLY_ONCE: [Self; 2] = [Self::PostgresExactlyOnce, Self::MysqlExactlyOnce];

    pub(super) fn of(seed: u64) -> Self {
        Self::ALL[(seed % 7) as usize]
    }

    pub(super) fn is_polled_on_postgres(self) -> bool {
        matches!(self, Self::Postgres | Self::PostgresExactlyOnce | Self::PostgresBlocking)
    }

    pub(super) fn blocks(self) -> bool {
        self == Self::PostgresBlocking
    }

    pub(super) fn is_exactly_once(self) -> bool {
        Self::EXACTLY_ONCE.contains(&self)
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
    /// What comes after a dead letter of its aggregate is sent.
    HoldsNothingBack,
    /// The position is confirmed as soon as the rows were given.
    ConfirmsWhatIsNotSettled,
    /// Whoever takes over lets the others go on committing.
    FencesNobody,
    /// Whoever takes over does not settle what was committed last.
    ForgetsWhatWasCommitted,
    /// If the broker does not say whether it has committed, it has.
    TakesSilenceForACommit,
    /// The database may forget what was settled when it crashes, and nobody counts with it.
    SettlesLazily,
    /// A transaction is committed before the one before it is known to be.
    CommitsBesideTheLast,
    /// Whoever takes over fences others under one of the two ids only.
    FencesOneOfTwo,
}
