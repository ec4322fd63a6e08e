use std::time::Duration;

/// Which slot a relay reads, and when it warns. The defaults suit most services.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct WalOptions {
    /// The replication slot's name, which is unique on a server: each outbox has a slot of its own. Default: `outbox`.
    pub slot: String,
    /// The publication's name. Default: `outbox`.
    pub publication: String,
    /// How many bytes of WAL the slot may retain before the relay logs a warning. Default: 1 GiB.
    pub slot_size_warning: u64,
    /// How often what was sent is confirmed to the server while there is more, at least 1 ms. What was not confirmed is sent again
    /// after a crash. Default: 100 ms.
    pub confirm_interval: Duration,
}

impl Default for WalOptions {
    fn default() -> Self {
        Self {
            slot: "outbox".into(),
            publication: "outbox".into(),
            slot_size_warning: 1 << 30,
            confirm_interval: Duration::from_millis(100),
        }
    }
}

impl WalOptions {
    /// Sets the replication slot's name.
    #[must_use]
    pub fn slot(mut self, name: impl Into<String>) -> Self {
        self.slot = name.into();
        self
    }

    /// Sets the publication's name.
    #[must_use]
    pub fn publication(mut self, name: impl Into<String>) -> Self {
        self.publication = name.into();
        self
    }

    /// Sets how many bytes of WAL the slot may retain before the relay logs a warning.
    #[must_use]
    pub fn slot_size_warning(mut self, bytes: u64) -> Self {
        self.slot_size_warning = bytes;
        self
    }

    /// Sets how often what was sent is confirmed to the server.
    #[must_use]
    pub fn confirm_interval(mut self, interval: Duration) -> Self {
        self.confirm_interval = interval;
        self
    }

    /// The command that does this with a slot, for whoever reads an error.
    pub(super) fn command(&self, verb: &str, slot: &str) -> String {
        let command = format!("outbox wal {verb} --slot {slot}");
        if self.publication == Self::default().publication {
            command
        } else {
            format!("{command} --publication {}", self.publication)
        }
    }
}
