use std::collections::HashMap;
use std::error::Error;

use diesel::QueryResult;
use diesel_outbox::{Inbox, Once, Pruning};

use super::Received;

/// What a handler may fail with: any error, so that `?` works on all of them.
///
/// The record is tried again, unless the error is a [`Rejected`](super::Rejected). The error's text is logged, the texts
/// of its sources are not; all of them are kept with the dead letter.
pub type HandlerError = Box<dyn Error + Send + Sync>;

/// What a consumer does with a record whose event type no handler was given for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum UnknownTypes {
    /// It is skipped (the default): topics carry event types that are of no interest to a consumer.
    #[default]
    Skip,
    /// It goes to the dead letters.
    DeadLetter,
}

/// A handler of either kind, and what the loop does with its kind of connection.
pub(super) trait Handler<C> {
    /// Runs this handler as the inbox's effect, and tells whether it was reached.
    fn once(
        &mut self,
        conn: &mut C,
        inbox: &Inbox,
        received: &Received,
        reached: &mut bool,
    ) -> Result<Once<()>, HandlerError>;

    /// A step of pruning. Whether there may be more.
    fn prune(conn: &mut C, inbox: &Inbox, pruning: &mut Pruning) -> QueryResult<bool>;

    fn is_alive(conn: &mut C) -> bool;
}

/// The handlers by event type.
pub(super) struct Handlers<H> {
    pub(super) by_type: HashMap<String, H>,
    pub(super) other: Option<H>,
}

impl<H> Handlers<H> {
    pub(super) fn new() -> Self {
        Self { by_type: HashMap::new(), other: None }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.by_type.is_empty() && self.other.is_none()
    }

    pub(super) fn find(&mut self, event_type: &str) -> Option<&mut H> {
        self.by_type.get_mut(event_type).or(self.other.as_mut())
    }
}
