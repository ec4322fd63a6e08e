use std::time::Duration;

use diesel_outbox_core::DeadLetterPolicy;

/// How a source treats the table. The defaults suit most services.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct SourceOptions {
    /// The schema that holds the tables, which is a database on MySQL and MariaDB. SQLite has none. Default: the first schema in the
    /// connection's `search_path` that has them, or the URL's database.
    pub schema: Option<String>,
    /// What the relay does with rows that it has sent. Default: it keeps them for 7 days.
    pub sent_rows: SentRows,
    /// How many sent rows the relay keeps at most, if [`SentRows::Keep`] keeps them: it prunes what is beyond that or has expired.
    /// Default: any number.
    pub keep_sent_rows: Option<u64>,
    /// How long the relay keeps dead letters. Default: for ever. With [`DeadLetterPolicy::Block`], it always keeps them, because each holds
    /// back its aggregate.
    pub keep_dead_letters: Option<Duration>,
    /// How many dead letters the relay keeps at most, the last ones. Default: any number. With [`DeadLetterPolicy::Block`], it keeps all.
    pub keep_dead_letter_rows: Option<u64>,
    /// What happens to the later records of an aggregate after one of its records became a dead letter. Default: the relay sends
    /// them.
    pub dead_letter_policy: DeadLetterPolicy,
    /// How often a source looks at the table if nothing notifies it, and how often one that stands by looks whether the leader is
    /// gone. Default: 15 s on PostgreSQL. On SQLite a source always looks at the file's change counter every 10 ms. On MySQL and
    /// MariaDB it looks at least every 1.25 s.
    pub poll_interval: Duration,
    /// How often a source measures the number and age of the unsent rows. Default: 15 s. On PostgreSQL, MySQL and MariaDB it
    /// measures less often if counting would take more than a fiftieth of the time.
    pub lag_interval: Duration,
    /// The name of the database's server, which precedes the database in the name of the outbox: `db-1/shop.public`. Default: none,
    /// so the name is `shop.public`.
    pub server_name: Option<String>,
    /// Whether records are sent exactly once. Then one relay works on the outbox, and the others stand by. Default: no.
    pub exactly_once: bool,
}

impl SourceOptions {
    /// Sets the schema that holds the tables.
    #[must_use]
    pub fn schema(mut self, schema: impl Into<String>) -> Self {
        self.schema = Some(schema.into());
        self
    }

    /// Sets what the relay does with rows that it has sent.
    #[must_use]
    pub fn sent_rows(mut self, sent_rows: SentRows) -> Self {
        self.sent_rows = sent_rows;
        self
    }

    /// Sets how many sent rows the relay keeps at most.
    #[must_use]
    pub fn keep_sent_rows(mut self, rows: u64) -> Self {
        self.keep_sent_rows = Some(rows);
        self
    }

    /// Sets how long the relay keeps dead letters.
    #[must_use]
    pub fn keep_dead_letters(mut self, retention: Duration) -> Self {
        self.keep_dead_letters = Some(retention);
        self
    }

    /// Sets how many dead letters the relay keeps at most.
    #[must_use]
    pub fn keep_dead_letter_rows(mut self, rows: u64) -> Self {
        self.keep_dead_letter_rows = Some(rows);
        self
    }

    /// Sets what happens to the later records of an aggregate after one of its records became a dead letter.
    #[must_use]
    pub fn dead_letter_policy(mut self, policy: DeadLetterPolicy) -> Self {
        self.dead_letter_policy = policy;
        self
    }

    /// Sets how often a source looks at the table if nothing notifies it.
    #[must_use]
    pub fn poll_interval(mut self, interval: Duration) -> Self {
        self.poll_interval = interval;
        self
    }

    /// Sets the name of the database's server, which precedes the database in the name of the outbox.
    #[must_use]
    pub fn server_name(mut self, server: impl Into<String>) -> Self {
        self.server_name = Some(server.into());
        self
    }

    /// Sets whether records are sent exactly once.
    #[must_use]
    pub fn exactly_once(mut self, exactly_once: bool) -> Self {
        self.exactly_once = exactly_once;
        self
    }

    /// Returns the name of the outbox in metrics and log lines, given its database and schema.
    #[cfg(any(feature = "mysql", feature = "postgres"))]
    pub(crate) fn name_of(&self, outbox: &str) -> String {
        self.server_name.as_ref().map_or(outbox.to_owned(), |server| format!("{server}/{outbox}"))
    }

    /// Sets how often a source measures the lag.
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
            keep_sent_rows: None,
            keep_dead_letters: None,
            keep_dead_letter_rows: None,
            dead_letter_policy: DeadLetterPolicy::default(),
            poll_interval: Duration::from_secs(15),
            lag_interval: Duration::from_secs(15),
            server_name: None,
            exactly_once: false,
        }
    }
}

/// What a relay does with rows that it has sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum SentRows {
    /// It sets `sent_at`, and prunes the rows when that is longer ago than the retention.
    Keep {
        /// How long sent rows are kept.
        retention: Duration,
    },
    /// It deletes them at once. This is a little faster, and the table stays small.
    Delete,
}

impl Default for SentRows {
    /// Kept for 7 days.
    fn default() -> Self {
        Self::Keep { retention: Duration::from_secs(7 * 24 * 60 * 60) }
    }
}
