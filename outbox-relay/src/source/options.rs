use std::time::Duration;

use diesel_outbox_core::DeadLetterPolicy;

/// How a source treats the table. The defaults suit most services.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct SourceOptions {
    /// The schema that holds the tables (PostgreSQL). Default: what the connection's `search_path` says.
    pub schema: Option<String>,
    /// What becomes of rows that were sent. Default: they are kept for 7 days.
    pub sent_rows: SentRows,
    /// What happens to the later records of an aggregate after one of its records became a dead letter. Default: they are sent.
    pub dead_letter_policy: DeadLetterPolicy,
    /// How often a source that is not notified looks at the table, and how often one that stands by looks whether the
    /// listening relay is gone. Default: 15 s on PostgreSQL; SQLite looks at the file's change counter every 10 ms in
    /// any case.
    pub poll_interval: Duration,
    /// How often the number and age of the unsent rows is measured. Default: 15 s. On PostgreSQL it is less often if
    /// counting them would take more than a fiftieth of the time.
    pub lag_interval: Duration,
}

impl SourceOptions {
    /// Sets the schema that holds the tables.
    #[must_use]
    pub fn schema(mut self, schema: impl Into<String>) -> Self {
        self.schema = Some(schema.into());
        self
    }

    /// Sets what becomes of rows that were sent.
    #[must_use]
    pub fn sent_rows(mut self, sent_rows: SentRows) -> Self {
        self.sent_rows = sent_rows;
        self
    }

    /// Sets what happens to the later records of an aggregate after one of its records became a dead letter.
    #[must_use]
    pub fn dead_letter_policy(mut self, policy: DeadLetterPolicy) -> Self {
        self.dead_letter_policy = policy;
        self
    }

    /// Sets how often a source that is not notified looks at the table.
    #[must_use]
    pub fn poll_interval(mut self, interval: Duration) -> Self {
        self.poll_interval = interval;
        self
    }

    /// Sets how often the lag is measured.
    #[must_use]
    pub fn lag_interval(mut self, interval: Duration) -> Self {
        self.lag_interval = interval;
        self
    }
}

impl Default for SourceOptions {
    fn default() -> Self {
        Self {
            schema: None,
            sent_rows: SentRows::default(),
            dead_letter_policy: DeadLetterPolicy::default(),
            poll_interval: Duration::from_secs(15),
            lag_interval: Duration::from_secs(15),
        }
    }
}

/// What becomes of rows that were sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum SentRows {
    /// They get a `sent_at`, and are pruned when that is longer ago than this.
    Keep {
        /// How long they are kept.
        retention: Duration,
    },
    /// They are deleted as soon as they are sent. Somewhat faster, and the table stays small.
    Delete,
}

impl Default for SentRows {
    /// Kept for 7 days.
    fn default() -> Self {
        Self::Keep { retention: Duration::from_secs(7 * 24 * 60 * 60) }
    }
}
