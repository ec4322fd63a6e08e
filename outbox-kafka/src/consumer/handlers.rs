use std::collections::BTreeMap;
use std::error::Error;
use std::fmt;

use diesel::QueryResult;
use diesel_outbox::{Inbox, Once, Pruning};

use super::Received;

/// What a handler may fail with: any error, so that `?` works on all of them.
///
/// The record is tried again, unless the error is a [`Rejected`](super::Rejected). The consumer logs the error's text, but not the
/// texts of its sources; the dead letter has them all.
pub type HandlerError = Box<dyn Error + Send + Sync>;

/// What a consumer does with a record whose event type has no handler.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum UnknownTypes {
    /// Skips it (the default): topics carry event types that are of no interest to a consumer.
    #[default]
    Skip,
    /// Sends it to the dead-letter topic.
    DeadLetter,
}

/// A handler of either kind, and what the loop does with its kind of connection.
pub(super) trait Handler<C> {
    /// Runs this handler as the inbox's effect, and sets whether it was reached.
    fn once(
        &mut self,
        conn: &mut C,
        inbox: &Inbox,
        received: &Received,
        reached: &mut bool,
    ) -> Result<Once<()>, HandlerError>;

    /// Does a step of pruning, and returns whether there may be more.
    fn prune(conn: &mut C, inbox: &Inbox, pruning: &mut Pruning) -> QueryResult<bool>;

    fn has_inbox(conn: &mut C, inbox: &Inbox) -> QueryResult<bool>;

    fn is_alive(conn: &mut C) -> bool;
}

/// The handlers by event type.
pub(super) struct Handlers<H> {
    all: Vec<H>,
    /// The handler's place among all.
    by_type: BTreeMap<String, usize>,
    other: Option<H>,
    /// What was given a second handler.
    ambiguous: Option<String>,
}

impl<H> Handlers<H> {
    pub(super) fn new() -> Self {
        Self { all: Vec::new(), by_type: BTreeMap::new(), other: None, ambiguous: None }
    }

    /// Adds a handler for these event types.
    pub(super) fn insert(&mut self, event_types: impl IntoIterator<Item: Into<String>>, handler: H) {
        let place = self.all.len();
        self.all.push(handler);
        for event_type in event_types {
            let event_type = event_type.into();
            // An enum has the same type again for each version.
            match self.by_type.insert(event_type.clone(), place) {
                Some(other) if other != place => {
                    self.ambiguous = Some(format!("the event type `{event_type}`"));
                }
                _ => {}
            }
        }
    }

    /// Adds the handler for all other event types.
    pub(super) fn insert_other(&mut self, handler: H) {
        if self.other.replace(handler).is_some() {
            self.ambiguous = Some("all other event types".to_owned());
        }
    }

    /// Returns what has two handlers, so that nobody knows which one is meant.
    pub(super) fn ambiguous(&self) -> Option<&str> {
        self.ambiguous.as_deref()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.by_type.is_empty() && self.other.is_none()
    }

    pub(super) fn find(&mut self, event_type: &str) -> Option<&mut H> {
        match self.by_type.get(event_type) {
            Some(place) => self.all.get_mut(*place),
            None => self.other.as_mut(),
        }
    }
}

impl<H> fmt::Debug for Handlers<H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let other = self.other.as_ref().map(|_| "all others");
        f.debug_list().entries(self.by_type.keys()).entries(other).finish()
    }
}
