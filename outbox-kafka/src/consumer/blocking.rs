use std::error::Error;
use std::fmt;

use diesel::QueryResult;
use diesel::connection::Connection;
use diesel_outbox::{Inbox, Once, OutboxBackend, Pruning};
use serde::de::DeserializeOwned;

use super::handlers::{Handler, HandlerError};
use super::{Consumer, ConsumerError, ConsumerHandle, Received};

type Call<C> = dyn FnMut(&mut C, &Received) -> Result<(), HandlerError> + Send;

/// A handler that works with a synchronous connection.
pub struct BlockingHandler<C>(Box<Call<C>>);

impl<C> fmt::Debug for BlockingHandler<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("BlockingHandler")
    }
}

impl<C: Connection<Backend: OutboxBackend> + 'static> Consumer<C> {
    /// A consumer of Kafka at these addresses, `host:port` with commas between them. The name is that of the inbox, by
    /// which events that were handled are remembered, and of the consumer group.
    pub fn new(brokers: impl Into<String>, name: impl Into<String>) -> Self {
        Self::with_defaults(brokers.into(), name.into())
    }

    /// Handles the events of this type, replacing the handler there is. What the handler does with the connection
    /// happens once for each event, or not at all; what it does elsewhere may happen more often.
    ///
    /// The handler must neither commit nor roll back; a transaction of its own is a savepoint.
    pub fn on<H>(mut self, event_type: impl Into<String>, handler: H) -> Self
    where
        H: FnMut(&mut C, &Received) -> Result<(), HandlerError> + Send + 'static,
    {
        self.handlers.by_type.insert(event_type.into(), BlockingHandler(Box::new(handler)));
        self
    }

    /// The same for a handler that needs only the payload, read as JSON. A payload that cannot be read so makes the
    /// record a dead letter at once.
    pub fn on_json<T, H>(self, event_type: impl Into<String>, mut handler: H) -> Self
    where
        T: DeserializeOwned,
        H: FnMut(&mut C, T) -> Result<(), HandlerError> + Send + 'static,
    {
        self.on(event_type, move |c: &mut C, received: &Received| handler(c, received.json()?))
    }

    /// Handles the events of all types that have no handler of their own.
    pub fn on_other<H>(mut self, handler: H) -> Self
    where
        H: FnMut(&mut C, &Received) -> Result<(), HandlerError> + Send + 'static,
    {
        self.handlers.other = Some(BlockingHandler(Box::new(handler)));
        self
    }

    /// Starts the consumer on a thread of its own, with connections that `connect` makes or takes from a pool: one at a
    /// time, kept until it is lost. The consumer works until its handle is stopped or dropped.
    ///
    /// The database and Kafka need not be there yet: the consumer waits for them. The tables must be, see
    /// `diesel_outbox::Migrations`.
    ///
    /// # Errors
    /// A setting is missing or wrong, or the thread could not be started.
    pub fn spawn<F, E>(self, connect: F) -> Result<ConsumerHandle, ConsumerError>
    where
        F: FnMut() -> Result<C, E> + Send + 'static,
        E: Error + 'static,
    {
        let worker = self.start(connect)?;
        ConsumerHandle::spawn(move |stop| worker.run(stop))
    }

    /// Runs the consumer on this thread until `stop` says true, and then stops it gracefully. `stop` is asked between
    /// records, and ten times a second while there are none.
    ///
    /// # Errors
    /// As for [`spawn`](Self::spawn), and [`ConsumerError::Kafka`] where the consumer cannot go on.
    pub fn run<F, E>(self, connect: F, stop: impl FnMut() -> bool) -> Result<(), ConsumerError>
    where
        F: FnMut() -> Result<C, E> + Send + 'static,
        E: Error + 'static,
    {
        self.start(connect)?.run(stop)
    }
}

impl<C: Connection<Backend: OutboxBackend>> Handler<C> for BlockingHandler<C> {
    fn once(
        &mut self,
        conn: &mut C,
        inbox: &Inbox,
        received: &Received,
        reached: &mut bool,
    ) -> Result<Once<()>, HandlerError> {
        inbox.once(conn, received.id(), |c| {
            *reached = true;
            (self.0)(c, received)
        })
    }

    fn prune(conn: &mut C, inbox: &Inbox, pruning: &mut Pruning) -> QueryResult<bool> {
        inbox.prune_step(conn, pruning)
    }

    fn is_alive(conn: &mut C) -> bool {
        conn.batch_execute("SELECT 1").is_ok()
    }
}
