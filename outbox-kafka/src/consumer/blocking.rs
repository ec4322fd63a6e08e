use std::error::Error;
use std::fmt;

use diesel::QueryResult;
use diesel::connection::Connection;
use diesel_outbox::{Inbox, Once, OutboxConnection, Pruning};
use diesel_outbox_core::InboxEvent;
use serde::de::DeserializeOwned;

use super::connection::Connect;
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

impl<C: 'static> Consumer<C> {
    /// A consumer of Kafka at these addresses, `host:port` with commas between them, on a synchronous connection.
    ///
    /// The name is that of the inbox, which remembers by it the events that were handled, and of the consumer group.
    pub fn new(brokers: impl Into<String>, name: impl Into<String>) -> Self
    where
        C: OutboxConnection,
    {
        Self::with_defaults(brokers.into(), name.into())
    }

    /// Sets the URL of the database. This or [`connect_with`](Self::connect_with) is required.
    ///
    /// The consumer has one connection, which it keeps until it is lost. Set TLS and time-outs in the URL.
    pub fn database_url(mut self, database_url: impl Into<String>) -> Self
    where
        C: Connection,
    {
        let url = database_url.into();
        self.connect = Some(Connect::new(move || C::establish(&url)));
        self
    }

    /// Sets a closure that the consumer calls for each new connection: one that takes it from a pool, or that asks for a password
    /// that changes.
    ///
    /// If the closure fails, the consumer logs the error and calls it again, as if the database were away.
    ///
    /// With a pool, name the pooled connection as the consumer's:
    ///
    /// ```no_run
    /// # fn f() -> Result<(), Box<dyn std::error::Error>> {
    /// use diesel::prelude::*;
    /// use diesel::r2d2::{ConnectionManager, Pool, PooledConnection};
    /// use diesel_outbox_kafka::consumer::Consumer;
    ///
    /// let pool = Pool::new(ConnectionManager::<PgConnection>::new("postgres://localhost/billing"))?;
    /// let consumer = Consumer::<PooledConnection<ConnectionManager<PgConnection>>>::new("localhost:9092", "billing")
    ///     .connect_with(move || pool.get())
    ///     .topics(["outbox.event.order"])
    ///     .on_other(|c, received| {
    ///         // diesel::insert_into(invoice::table).values(..).execute(c)?;
    ///         Ok(())
    ///     });
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// With a password that changes:
    ///
    /// ```no_run
    /// # fn f() {
    /// use diesel::prelude::*;
    /// use diesel_outbox_kafka::consumer::Consumer;
    ///
    /// let consumer = Consumer::<PgConnection>::new("localhost:9092", "billing").connect_with(|| {
    ///     let password = std::fs::read_to_string("/run/secrets/database-password").map_err(|error| {
    ///         ConnectionError::BadConnection(format!("could not connect: the password cannot be read: {error}"))
    ///     })?;
    ///     PgConnection::establish(&format!("postgres://billing:{}@localhost/billing", password.trim()))
    /// });
    /// # }
    /// ```
    pub fn connect_with<F, E>(mut self, connect: F) -> Self
    where
        F: FnMut() -> Result<C, E> + Send + 'static,
        E: Into<Box<dyn Error + Send + Sync>>,
    {
        self.connect = Some(Connect::new(connect));
        self
    }

    /// Handles all events of a type that derives `InboxEvent`, an enum for example. Prefer this to [`on_json`](Self::on_json) and
    /// [`on`](Self::on): the event type in the record's header says which variant it is, and its version is taken into account.
    ///
    /// An event that cannot be decoded makes the record a dead letter at once. Otherwise as for [`on`](Self::on).
    ///
    /// ```no_run
    /// # #[cfg(feature = "derive")]
    /// # mod example {
    /// use diesel::prelude::*;
    /// use diesel_outbox_kafka::InboxEvent;
    /// use diesel_outbox_kafka::consumer::Consumer;
    ///
    /// #[derive(serde::Deserialize, InboxEvent)]
    /// enum OrderEvent {
    ///     OrderPlaced { order_id: i64, total_cents: i64 },
    ///     OrderPaid { order_id: i64 },
    /// }
    ///
    /// # fn f() {
    /// let consumer = Consumer::<PgConnection>::new("localhost:9092", "billing").on_event::<OrderEvent>(|c, event| {
    ///     match event {
    ///         OrderEvent::OrderPlaced { order_id, total_cents } => { /* write the invoice */ }
    ///         OrderEvent::OrderPaid { order_id } => { /* settle it */ }
    ///     }
    ///     Ok(())
    /// });
    /// # }
    /// # }
    /// # fn main() {}
    /// ```
    pub fn on_event<E: InboxEvent>(
        mut self,
        mut handler: impl FnMut(&mut C, E) -> Result<(), HandlerError> + Send + 'static,
    ) -> Self {
        let handler = move |c: &mut C, received: &Received| handler(c, received.decode()?);
        self.handlers.insert(E::EVENT_TYPES.iter().copied(), BlockingHandler(Box::new(handler)));
        self
    }

    /// Handles the events of this type with their payload, read as JSON. A payload that is not such JSON makes the
    /// record a dead letter at once. Otherwise as for [`on`](Self::on).
    pub fn on_json<T: DeserializeOwned>(
        self,
        event_type: impl Into<String>,
        mut handler: impl FnMut(&mut C, T) -> Result<(), HandlerError> + Send + 'static,
    ) -> Self {
        self.on(event_type, move |c: &mut C, received: &Received| handler(c, received.json()?))
    }

    /// Handles the events of this type with the record as it is. A type has one handler: if you give it a second one, of whichever
    /// kind, the consumer refuses to start.
    ///
    /// What the handler does with the connection happens once for each event, or not at all; what it does elsewhere may happen
    /// more often. The handler must neither commit nor roll back; a transaction of its own is a savepoint.
    pub fn on<F>(mut self, event_type: impl Into<String>, handler: F) -> Self
    where
        F: FnMut(&mut C, &Received) -> Result<(), HandlerError> + Send + 'static,
    {
        self.handlers.insert([event_type], BlockingHandler(Box::new(handler)));
        self
    }

    /// Handles the events of all types that have no handler of their own.
    pub fn on_other<F>(mut self, handler: F) -> Self
    where
        F: FnMut(&mut C, &Received) -> Result<(), HandlerError> + Send + 'static,
    {
        self.handlers.insert_other(BlockingHandler(Box::new(handler)));
        self
    }

    /// Starts the consumer on a thread of its own. It works until its handle is stopped or dropped.
    ///
    /// The database and Kafka need not be there yet: the consumer waits for them. The table `inbox` must be. Create it with
    /// [`diesel_outbox_kafka::Migrations::inbox_only().run(..)`](diesel_outbox::Migrations::inbox_only) or
    /// `outbox migrate --inbox-only`. Without it the consumer logs an error and ends with [`ConsumerError::NoInbox`].
    ///
    /// # Errors
    /// A setting is missing or wrong, or the system has no more threads.
    pub fn spawn(self) -> Result<ConsumerHandle, ConsumerError>
    where
        C: OutboxConnection,
    {
        let shutdown_timeout = self.shutdown_timeout;
        let consumer = self.start()?;
        ConsumerHandle::start(shutdown_timeout, move |stop| consumer.run(stop))
    }

    /// Runs the consumer until the future ends, then stops it gracefully. Returns earlier if the consumer cannot go on. It works on
    /// any async runtime.
    ///
    /// # Errors
    /// As for [`spawn`](Self::spawn) and [`ConsumerHandle::stop`].
    pub async fn run(self, shutdown: impl Future<Output = ()>) -> Result<(), ConsumerError>
    where
        C: OutboxConnection,
    {
        self.spawn()?.run(shutdown).await
    }
}

impl<C: OutboxConnection> Handler<C> for BlockingHandler<C> {
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

    fn has_inbox(conn: &mut C, inbox: &Inbox) -> QueryResult<bool> {
        inbox.has_table(conn)
    }

    fn is_alive(conn: &mut C) -> bool {
        conn.batch_execute("SELECT 1").is_ok()
    }
}
