//! The outboxes that a command is about.

use std::cell::Cell;

use serde_json::{Value, json};

use super::database::OutboxDatabase;
use super::failure::{self, Failure};
use super::origin::Origins;
use super::output::say;
use super::settings::CommonSettings;

/// The outboxes that the settings name, and whether they can be several: then each line of the output says of which it is.
pub(super) struct Outboxes {
    all: Vec<OutboxDatabase>,
    /// Why the outboxes of some databases are not known.
    unknown: Cell<Vec<Failure>>,
    pub(super) are_several: bool,
}

impl Outboxes {
    pub(super) fn chosen(common: &CommonSettings, origins: &Origins) -> Result<Self, Failure> {
        let databases = OutboxDatabase::chosen(&common.database, origins)?;
        let are_several = databases.len() > 1 || databases.iter().any(OutboxDatabase::has_several);
        let (mut all, mut unknown) = (Vec::new(), Vec::new());
        for database in databases {
            match database.outboxes() {
                Ok(outboxes) => all.extend(outboxes),
                Err(failure) => unknown.push(failure),
            }
        }
        if all.is_empty() && unknown.is_empty() {
            return Err(origins.of("schema").wrong("no schema that matches has an outbox").into());
        }
        Ok(Self { all, unknown: Cell::new(unknown), are_several })
    }

    /// Does this with each of them. If it fails with some, goes on with the others, and returns the last failure. It reports those
    /// before.
    pub(super) fn each(
        &self,
        mut work: impl FnMut(&OutboxDatabase) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        let mut failures = self.unknown.take();
        failures.extend(self.all.iter().filter_map(|outbox| work(outbox).err()));
        let last = failures.pop();
        failures.iter().for_each(|failure| say(&failure::in_one_line(failure)));
        last.map_or(Ok(()), Err)
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
