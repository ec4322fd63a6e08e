//! The outboxes that a command is about.

use serde_json::{Value, json};

use super::database::OutboxDatabase;
use super::failure::{self, Failure};
use super::origin::Origins;
use super::output::say;
use super::settings::CommonSettings;

/// The outboxes that the settings name, and whether they can be several: then each line of the output says of which it is.
pub(super) struct Outboxes {
    all: Vec<OutboxDatabase>,
    pub(super) are_several: bool,
}

impl Outboxes {
    pub(super) fn chosen(common: &CommonSettings, origins: &Origins) -> Result<Self, Failure> {
        let databases = OutboxDatabase::chosen(&common.database, origins)?;
        let are_several = databases.len() > 1 || databases.iter().any(OutboxDatabase::has_several);
        let outboxes: Result<Vec<_>, Failure> = databases.into_iter().map(OutboxDatabase::outboxes).collect();
        let all: Vec<_> = outboxes?.into_iter().flatten().collect();
        if all.is_empty() {
            return Err(origins.of("schema").wrong("no schema that matches has an outbox").into());
        }
        Ok(Self { all, are_several })
    }

    /// Does this with each of them. If it fails with some, goes on with the others, and returns one of the failures.
    pub(super) fn each(
        &self,
        mut work: impl FnMut(&OutboxDatabase) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        let mut failed: Option<Failure> = None;
        for outbox in &self.all {
            if let Err(error) = work(outbox)
                && let Some(before) = failed.replace(error)
            {
                say(&failure::in_one_line(&before));
            }
        }
        failed.map_or(Ok(()), Err)
    }

    /// The text, below a line that names the outbox if there are several.
    pub(super) fn headed(&self, outbox: &OutboxDatabase, text: &str) -> String {
        if !self.are_several {
            return text.to_owned();
        }
        let lines: String = text.lines().map(|line| format!("  {line}\n")).collect();
        format!("{outbox}\n{lines}")
    }

    /// The object, with the outbox's place if there are several.
    pub(super) fn placed(&self, outbox: &OutboxDatabase, mut object: Value) -> Value {
        if self.are_several {
            let (database, schema) = outbox.place();
            object["database"] = json!(database);
            object["schema"] = json!(schema);
        }
        object
    }
}
