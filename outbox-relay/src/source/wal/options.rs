use std::time::Duration;

/// Which slot a relay reads, and when it warns. The defaults suit most services.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct WalOptions {
    /// The name of the replication slot. Slot names are unique on a server, so give each outbox its own. Default: `outbox`.
    pub slot: String,
    /// The name of the publication. Default: `outbox`.
    pub publication: String,
    /// How many bytes of WAL the slot may retain before the relay logs a warning. Default: 1 GiB.
    pub slot_size_warning: u64,
    /// How often the relay confirms to the server what it has sent, at least 1 ms. After a crash it sends again what it had not
    /// confirmed. Default: 100 ms.
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
    /// Sets the name of the replication slot.
    #[must_use]
    pub fn slot(mut self, name: impl Into<String>) -> Self {
        self.slot = name.into();
        self
    }

    /// Sets the name of the publication.
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

    /// Sets how often the relay confirms to the server what it has sent.
    #[must_use]
    pub fn confirm_interval(mut self, interval: Duration) -> Self {
        self.confirm_interval = interval;
        self
    }

    /// Returns the command that does this with a slot, for an error to advise.
    pub(super) fn command(&self, verb: &str, slot: &str) -> String {
        let command = format!("outbox wal {verb} --slot {slot}");
        if self.publication == Self::default().publication {
            command
        } else {
            format!("{command} --publication {}", self.publication)
        }
    }
}
