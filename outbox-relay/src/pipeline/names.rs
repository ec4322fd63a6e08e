use std::collections::HashMap;

use diesel_outbox_core::wire::{TopicError, TopicNaming};

/// The topics of the aggregate types that a pass has met. Each name is made once.
#[derive(Default)]
pub(super) struct TopicNames {
    known: HashMap<String, Result<String, TopicError>>,
}

impl TopicNames {
    /// Returns how many there are.
    pub(super) fn count(&self) -> usize {
        self.known.len()
    }

    pub(super) fn topic(&mut self, naming: &TopicNaming, aggregate_type: &str) -> Result<&str, &TopicError> {
        if !self.known.contains_key(aggregate_type) {
            self.known.insert(aggregate_type.to_owned(), naming.topic(aggregate_type));
        }
        match &self.known[aggregate_type] {
            Ok(topic) => Ok(topic),
            Err(error) => Err(error),
        }
    }
}
