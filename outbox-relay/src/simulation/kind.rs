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
    /// In these, a dead letter holds back its aggregate until somebody requeues it.
    PostgresBlocking,
    MysqlBlocking,
    SqliteBlocking,
    WalBlocking,
}

impl Kind {
    pub(super) const ALL: [Self; 10] = [
        Self::Postgres,
        Self::Mysql,
        Self::Sqlite,
        Self::Wal,
        Self::PostgresExactlyOnce,
        Self::MysqlExactlyOnce,
        Self::PostgresBlocking,
        Self::MysqlBlocking,
        Self::SqliteBlocking,
        Self::WalBlocking,
    ];
    pub(super) const AT_LEAST_ONCE: [Self; 4] = [Self::Postgres, Self::Mysql, Self::Sqlite, Self::Wal];
    pub(super) const EXACTLY_ONCE: [Self; 2] = [Self::PostgresExactlyOnce, Self::MysqlExactlyOnce];
    pub(super) const BLOCKING: [Self; 4] =
        [Self::PostgresBlocking, Self::MysqlBlocking, Self::SqliteBlocking, Self::WalBlocking];

    pub(super) fn of(seed: u64) -> Self {
        Self::ALL[(seed % Self::ALL.len() as u64) as usize]
    }

    pub(super) fn is_polled_on_postgres(self) -> bool {
        matches!(self, Self::Postgres | Self::PostgresExactlyOnce | Self::PostgresBlocking)
    }

    pub(super) fn blocks(self) -> bool {
        Self::BLOCKING.contains(&self)
    }

    pub(super) fn is_sqlite(self) -> bool {
        matches!(self, Self::Sqlite | Self::SqliteBlocking)
    }

    pub(super) fn reads_wal(self) -> bool {
        matches!(self, Self::Wal | Self::WalBlocking)
    }

    /// Whether a requeue waits for no pass, so that what a pass holds back may join the dead letters after the requeue of those before it.
    pub(super) fn requeues_at_once(self) -> bool {
        matches!(self, Self::SqliteBlocking | Self::WalBlocking)
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
    /// What comes after a dead letter is held back only until somebody requeues that, and not until it has come.
    ForgetsWhatWasRequeued,
    /// It stays noted that a dead letter was requeued, though it has come and is settled.
    KeepsWhatWasRequeued,
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
