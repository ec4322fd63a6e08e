use std::time::Duration;

/// Which slot is read, and when to warn of it. The defaults suit most services.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct WalOptions {
    /// The replication slot's name, which is unique on a server: each outbox has a slot of its own. Default: `outbox`.
    pub slot: String,
    /// The publication's name. Default: `outbox`.
    pub publication: String,
    /// A warning is logged where the slot retains more of the log than so many bytes. Default: 1 GiB.
    pub retained_warning: u64,
    /// How often what was sent is confirmed to the server while there is more. What was not confirmed is sent again after a
    /// crash. Default: 100 ms; 1 ms at least.
    pub confirm_interval: Duration,
}

impl Default for WalOptions {
    fn default() -> Self {
        Self {
            slot: "outbox".into(),
            publication: "outbox".into(),
            retained_warning: 1 << 30,
            confirm_interval: Duration::from_millis(100),
        }
    }
}

impl WalOptions {
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
