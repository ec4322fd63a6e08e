use std::any::Any;
use std::error::Error;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use diesel::result::ConnectionError;
use diesel_outbox::connection_problem;
use diesel_outbox::{Inbox, Once, Pruning};
use tracing::{info, warn};

use super::Received;
use super::backoff::Backoff;
use super::handlers::{Handler, HandlerError};

/// The consumer's connection to the database, made again whenever it is lost.
pub(super) struct Database<C> {
    connect: Box<dyn FnMut() -> Result<C, String> + Send>,
    conn: Option<C>,
    backoff: Backoff,
    /// How often connecting has failed in a row, and when it is tried again.
    failures: u32,
    not_before: Instant,
}

/// What became of a record that was handed to the database.
pub(super) enum Attempt {
    Done(Once<()>),
    /// The handler failed, so that it counts as one of the record's attempts.
    Failed(HandlerError),
    /// The database is away or refuses the inbox, which is not the record's fault.
    Unavailable,
}

impl<C> Database<C> {
    pub(super) fn new<E>(mut connect: impl FnMut() -> Result<C, E> + Send + 'static, backoff: Backoff) -> Self
    where
        E: Error + 'static,
    {
        Self {
            connect: Box::new(move || connect().map_err(|error| describe(&error))),
            conn: None,
            backoff,
            failures: 0,
            not_before: Instant::now(),
        }
    }

    /// The wait until connecting is tried again; none where that may be now.
    pub(super) fn wait(&self) -> Duration {
        match &self.conn {
            Some(_) => Duration::ZERO,
            None => self.not_before.saturating_duration_since(Instant::now()),
        }
    }

    /// Runs the handler, unless the inbox knows the record, in one transaction with the inbox's mark.
    pub(super) fn once<H: Handler<C>>(
        &mut self,
        inbox: &Inbox,
        received: &Received,
        handler: &mut H,
    ) -> Attempt {
        let Some(conn) = self.connection() else {
            return Attempt::Unavailable;
        };
        let mut reached = false;
        let once = || handler.once(conn, inbox, received, &mut reached);
        let outcome = catch_unwind(AssertUnwindSafe(once));
        match outcome {
            Ok(Ok(once)) => Attempt::Done(once),
            Ok(Err(error)) if reached && self.conn.as_mut().is_some_and(H::is_alive) => {
                Attempt::Failed(error)
            }
            Ok(Err(error)) => {
                warn!(%error, ?received, "the database failed; connecting again");
                self.conn = None;
                Attempt::Unavailable
            }
            Err(panic) => {
                // The transaction ends with the connection. Where there is no new one, the old one may well have been
                // what the handler panicked about.
                self.conn = None;
                match self.connection() {
                    Some(_) => Attempt::Failed(format!("the handler panicked: {}", message(&*panic)).into()),
                    None => Attempt::Unavailable,
                }
            }
        }
    }

    /// Forgets some of what the inbox need not know any more, and gives whether there may be more.
    pub(super) fn prune<H: Handler<C>>(&mut self, inbox: &Inbox, pruning: &mut Pruning) -> bool {
        let Some(conn) = self.connection() else {
            return false;
        };
        H::prune(conn, inbox, pruning).unwrap_or_else(|error| {
            warn!(%error, "the inbox could not be pruned; it is tried again later");
            self.conn = None;
            false
        })
    }

    fn connection(&mut self) -> Option<&mut C> {
        if self.conn.is_none() && self.wait().is_zero() {
            match (self.connect)() {
                Ok(conn) => {
                    info!(after_failures = self.failures, "connected to the database");
                    self.failures = 0;
                    self.conn = Some(conn);
                }
                Err(error) => {
                    self.failures = self.failures.saturating_add(1);
                    let wait = self.backoff.after(self.failures);
                    warn!(error, ?wait, "cannot connect to the database");
                    self.not_before = Instant::now() + wait;
                }
            }
        }
        self.conn.as_mut()
    }
}

/// What may be logged of the error: Diesel's own can repeat the URL, and so a password.
fn describe(error: &(dyn Error + 'static)) -> String {
    error.downcast_ref::<ConnectionError>().map_or_else(|| error.to_string(), connection_problem)
}

/// What a panic said.
pub(super) fn message(panic: &(dyn Any + Send)) -> &str {
    match (panic.downcast_ref::<&str>(), panic.downcast_ref::<String>()) {
        (Some(text), _) => text,
        (_, Some(text)) => text,
        _ => "no message",
    }
}
