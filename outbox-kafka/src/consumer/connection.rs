use std::error::Error;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use diesel::result::ConnectionError;
use diesel_outbox::{EmitError, Inbox, Once, Pruning, connection_problem};
use diesel_outbox_core::__private::panic_message;
use tracing::{info, warn};

use super::backoff::Backoff;
use super::handlers::{Handler, HandlerError};
use super::{ConsumerError, Received};

/// How the consumer gets a connection.
pub(super) struct Connect<C>(Box<dyn FnMut() -> Result<C, String> + Send>);

impl<C> Connect<C> {
    pub(super) fn new<E>(mut connect: impl FnMut() -> Result<C, E> + Send + 'static) -> Self
    where
        E: Into<Box<dyn Error + Send + Sync>>,
    {
        Self(Box::new(move || connect().map_err(|error| describe(&*error.into()))))
    }
}

impl<C> fmt::Debug for Connect<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Connect")
    }
}

/// Returns what may be logged of the error: Diesel's own can repeat the URL, and so a password.
fn describe(error: &(dyn Error + Send + Sync + 'static)) -> String {
    match error.downcast_ref::<ConnectionError>() {
        // Diesel's own words.
        Some(error) if error.to_string() == "Cannot directly establish a pooled connection" => {
            "a pooled connection cannot be made from a URL: take it from its pool. Keep \
             `Consumer::<PooledConnection<ConnectionManager<PgConnection>>>::new(..)`, and call \
             `.connect_with(move || pool.get())` instead of `.database_url(..)`"
                .to_owned()
        }
        Some(error) => connection_problem(error),
        None => error.to_string(),
    }
}

/// The consumer's connection to the database, made again whenever it is lost.
pub(super) struct Reconnecting<C> {
    connect: Connect<C>,
    conn: Option<C>,
    backoff: Backoff,
    /// How often connecting has failed in a row, and when it is tried again.
    failures: u32,
    not_before: Instant,
    /// Whether the inbox has been there once. If it is missing later, somebody may be restoring the database.
    has_begun: bool,
    /// How often looking for the inbox has failed.
    looks: u32,
}

/// What became of a record that was handed to the database.
pub(super) enum Attempt {
    Done(Once<()>),
    /// The handler failed, so that it counts as one of the record's attempts.
    Failed(HandlerError),
    /// The database is away or refuses the inbox, which is not the record's fault.
    Unavailable,
}

impl<C> Reconnecting<C> {
    pub(super) fn new(connect: Connect<C>, backoff: Backoff) -> Self {
        Self {
            connect,
            conn: None,
            backoff,
            failures: 0,
            not_before: Instant::now(),
            has_begun: false,
            looks: 0,
        }
    }

    /// Returns the wait until connecting is tried again; zero if that may be now.
    pub(super) fn wait(&self) -> Duration {
        match &self.conn {
            Some(_) => Duration::ZERO,
            None => self.not_before.saturating_duration_since(Instant::now()),
        }
    }

    /// Connects for the first time, as soon as the database is there, and looks for the inbox.
    ///
    /// # Errors
    /// [`ConsumerError::NoInbox`], because waiting would hide that nobody has created it, and [`ConsumerError::Database`].
    pub(super) fn begin<H: Handler<C>>(&mut self, inbox: &Inbox) -> Result<(), ConsumerError> {
        if self.has_begun {
            return Ok(());
        }
        let Some(conn) = self.connection() else {
            return Ok(());
        };
        match H::has_inbox(conn, inbox) {
            Ok(true) => {
                self.has_begun = true;
                Ok(())
            }
            Ok(false) => Err(ConsumerError::NoInbox),
            // Waiting does not correct it: SQLite has no schemas, for example.
            Err(error) if EmitError::of(&error).is_some() => Err(ConsumerError::Database(error)),
            Err(error) => {
                self.looks = self.looks.saturating_add(1);
                let wait = self.backoff.after(self.looks);
                warn!(%error, ?wait, "the consumer cannot look for its inbox");
                self.conn = None;
                self.not_before = Instant::now() + wait;
                Ok(())
            }
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
                warn!(%error, ?received, "the database failed; the consumer connects again");
                self.conn = None;
                Attempt::Unavailable
            }
            Err(panic) => {
                // The transaction ends with the connection. If there is no new one, the old one may well have been
                // what the handler panicked about.
                self.conn = None;
                match self.connection() {
                    Some(_) => {
                        Attempt::Failed(format!("the handler panicked: {}", panic_message(&*panic)).into())
                    }
                    None => Attempt::Unavailable,
                }
            }
        }
    }

    /// Forgets some of what the inbox need not know any more, and returns whether there may be more.
    pub(super) fn prune<H: Handler<C>>(&mut self, inbox: &Inbox, pruning: &mut Pruning) -> bool {
        let Some(conn) = self.connection() else {
            return false;
        };
        H::prune(conn, inbox, pruning).unwrap_or_else(|error| {
            warn!(%error, "the inbox could not be pruned; the consumer tries again later");
            self.conn = None;
            false
        })
    }

    fn connection(&mut self) -> Option<&mut C> {
        if self.conn.is_none() && self.wait().is_zero() {
            match (self.connect.0)() {
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
