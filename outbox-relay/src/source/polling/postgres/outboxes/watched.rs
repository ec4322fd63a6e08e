use std::sync::Arc;
use std::time::{Duration, Instant};

use diesel::QueryResult;
use diesel::pg::PgConnection;
use diesel::result::Error;

use super::outbox::Outbox;
use super::queue::Queue;
use super::schemas::Found;
use crate::backoff::Backoff;
use crate::source::database::PostgresDatabase;
use crate::source::polling::postgres::wakeup::Wake;

/// One of the outboxes that a watch has, and when that needs the next look.
pub(super) struct Watched {
    pub(super) outbox: Arc<Outbox>,
    pub(super) place: Place,
    /// `None` if the session was lost, and with it what it held, or if the session cannot hold it.
    pub(super) wake: Option<Wake>,
    backoff: Backoff,
    /// Whether the session could not do for it what it should, when it last tried.
    is_unwatched: bool,
    /// Whether a notification has come since `wake` was last asked what to do.
    pub(super) is_called: bool,
    /// When a worker was last given it to measure its lag and to prune it.
    pub(super) looked_after: Option<Instant>,
}

#[derive(Debug, Clone, Copy)]
pub(super) enum Place {
    /// In the queue, or in the hands of a worker.
    HandedOut,
    /// Here, until then.
    Waits(Instant),
    /// Here after a failure, until then.
    PutOff(Instant),
}

impl Watched {
    pub(super) fn new(database: &PostgresDatabase, found: Found) -> Self {
        Self {
            outbox: Arc::new(Outbox::new(database, found)),
            place: Place::Waits(Instant::now()),
            wake: None,
            backoff: Backoff::new(),
            is_unwatched: false,
            is_called: false,
            looked_after: None,
        }
    }

    /// Begins awake, with a look.
    pub(super) fn begin(
        &mut self,
        conn: &mut PgConnection,
        may_prepare: bool,
        queue: &Queue,
        poll_interval: Duration,
    ) -> QueryResult<()> {
        self.wake =
            Some(Wake::start(conn, self.outbox.table(), self.outbox.sequence(), may_prepare, poll_interval)?);
        if !matches!(self.place, Place::HandedOut) {
            self.hand_out(queue);
        }
        Ok(())
    }

    /// Notes that the session could not do for it what it should. Unless it is elsewhere, a worker looks at it all the same, after a while.
    pub(super) fn put_off(&mut self, error: &Error) {
        if matches!(self.place, Place::Waits(_)) {
            self.place = Place::PutOff(Instant::now() + self.backoff.next());
        }
        if !std::mem::replace(&mut self.is_unwatched, true) {
            tracing::warn!(
                outbox = &**self.outbox.name(),
                %error,
                "the outbox cannot be watched: until it can, the relay looks at it every few seconds"
            );
        }
    }

    /// Notes that the session could do for it what it should.
    pub(super) fn went_well(&mut self) {
        self.backoff.begin_anew();
        self.is_unwatched = false;
    }

    /// Forgets what the session held.
    pub(super) fn lose(&mut self) {
        self.outbox.lead(false);
        self.wake = None;
        self.is_called = false;
    }

    pub(super) fn hand_out(&mut self, queue: &Queue) {
        self.place = Place::HandedOut;
        queue.put(self.outbox.clone());
    }

    /// Lets the worker that has it next measure its lag and prune it.
    pub(super) fn let_look_after(&mut self, queue: &Queue) {
        self.outbox.set_needs_upkeep(true);
        self.looked_after = Some(Instant::now());
        if matches!(self.place, Place::Waits(_)) {
            self.hand_out(queue);
        }
    }

    pub(super) fn awake(&mut self, conn: &mut PgConnection) -> QueryResult<()> {
        self.wake.as_mut().map_or(Ok(()), |wake| wake.awake(conn))
    }
}
