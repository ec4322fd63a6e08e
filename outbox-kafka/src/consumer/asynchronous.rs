use std::error::Error;
use std::fmt;
use std::pin::Pin;

use diesel::QueryResult;
use diesel_async::AsyncConnection;
use diesel_outbox::{Inbox, Once, OutboxBackend, Pruning};
use diesel_outbox_core::InboxEvent;
use serde::de::DeserializeOwned;
use tokio::runtime::Handle;

use super::connection::Connect;
use super::handlers::{Handler, HandlerError};
use super::{Consumer, ConsumerError, ConsumerHandle, Received};

/// A handler that works with an asynchronous connection.
pub struct AsyncHandler<C>(Box<dyn Call<C> + Send>);

type Called<'a> = Pin<Box<dyn Future<Output = Result<(), HandlerError>> + 'a>>;

trait Call<C> {
    fn call<'a>(&'a mut self, conn: &'a mut C, received: &'a Received) -> Called<'a>;
}

impl<C, F: AsyncFnMut(&mut C, &Received) -> Result<(), HandlerError>> Call<C> for F {
    fn call<'a>(&'a mut self, conn: &'a mut C, received: &'a Received) -> Called<'a> {
        Box::pin(self(conn, received))
    }
}

impl<C> fmt::Debug for AsyncHandler<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AsyncHandler")
    }
}

impl<C: 'static> Consumer<C> {
    /// A consumer on a connection of diesel-async. Its handlers and the closure that connects are asynchronous; otherwise as for
    /// [`new`](Self::new).
    ///
    /// ```no_run
    /// use diesel_async::AsyncPgConnection;
    /// use diesel_outbox_kafka::consumer::Consumer;
    /// # #[derive(serde::Deserialize)] struct Order;
    /// # async fn charge(_: &mut AsyncPgConnection, _: &Order) -> diesel::QueryResult<usize> { Ok(1) }
    ///
    /// # async fn f() -> Result<(), Box<dyn std::error::Error>> {
    /// let consumer = Consumer::<AsyncPgConnection>::new_async("localhost:9092", "billing")
    ///     .database_url("postgres://localhost/billing")
    ///     .topics(["outbox.event.order"])
    ///     .on_json("OrderPlaced", async |c, order: Order| {
    ///         charge(c, &order).await?;
    ///         Ok(())
    ///     })
    ///     .spawn()?;
    /// // ... the service does its work ...
    /// consumer.stop().await?; // finish the record in hand, commit, leave the group
    /// # Ok(())
    /// # }
    /// ```
    pub fn new_async(brokers: impl Into<String>, name: impl Into<String>) -> Consumer<C, AsyncHandler<C>>
    where
        C: AsyncConnection<Backend: OutboxBackend>,
    {
        Consumer::with_defaults(brokers.into(), name.into())
    }
}

impl<C: 'static> Consumer<C, AsyncHandler<C>> {
    /// Sets the URL of the database. This or [`connect_with`](Self::connect_with) is required.
    ///
    /// The consumer has one connection, which it keeps until it is lost. Set TLS and time-outs in the URL.
    pub fn database_url(self, database_url: impl Into<String>) -> Self
    where
        C: AsyncConnection,
    {
        let url = database_url.into();
        self.connect_with(async move || C::establish(&url).await)
    }

    /// Sets an async closure that the consumer calls for each new connection: one that takes it from a pool, or that asks for a
    /// password that changes.
    ///
    /// If the closure fails, the consumer logs the error and calls it again, as if the database were away.
    pub fn connect_with<F, E>(mut self, mut connect: F) -> Self
    where
        F: AsyncFnMut() -> Result<C, E> + Send + 'static,
        E: Into<Box<dyn Error + Send + Sync>>,
    {
        self.connect = Some(Connect::new(move || Handle::current().block_on(connect())));
        self
    }

    /// Handles all events of a type that derives `InboxEvent`, as [its namesake](Consumer::on_event) for synchronous connections
    /// does. Prefer this to [`on_json`](Self::on_json) and [`on`](Self::on).
    pub fn on_event<E: InboxEvent>(
        mut self,
        mut handler: impl AsyncFnMut(&mut C, E) -> Result<(), HandlerError> + Send + 'static,
    ) -> Self {
        let handler = async move |c: &mut C, received: &Received| handler(c, received.decode()?).await;
        self.handlers.insert(E::EVENT_TYPES.iter().copied(), AsyncHandler(Box::new(handler)));
        self
    }

    /// Handles the events of this type with their payload, read as JSON. A payload that is not such JSON makes the
    /// record a dead letter at once. Otherwise as for [`on`](Self::on).
    pub fn on_json<T: DeserializeOwned>(
        self,
        event_type: impl Into<String>,
        mut handler: impl AsyncFnMut(&mut C, T) -> Result<(), HandlerError> + Send + 'static,
    ) -> Self {
        self.on(event_type, async move |c: &mut C, received: &Received| handler(c, received.json()?).await)
    }

    /// Handles the events of this type with the record as it is, as [its namesake](Consumer::on) for synchronous connections does.
    pub fn on<F>(mut self, event_type: impl Into<String>, handler: F) -> Self
    where
        F: AsyncFnMut(&mut C, &Received) -> Result<(), HandlerError> + Send + 'static,
    {
        self.handlers.insert([event_type], AsyncHandler(Box::new(handler)));
        self
    }

    /// Handles the events of all types that have no handler of their own.
    pub fn on_other<F>(mut self, handler: F) -> Self
    where
        F: AsyncFnMut(&mut C, &Received) -> Result<(), HandlerError> + Send + 'static,
    {
        self.handlers.insert_other(AsyncHandler(Box::new(handler)));
        self
    }

    /// Starts the consumer, as [its namesake](Consumer::spawn) for synchronous connections does.
    ///
    /// It has a thread of its own all the same. Its handlers run there, with the tokio runtime that this is called in, whose threads
    /// must be free to serve it. Stop the consumer before the runtime.
    ///
    /// # Errors
    /// A setting is missing or wrong, the system has no more threads, or this was not called in a tokio runtime.
    pub fn spawn(self) -> Result<ConsumerHandle, ConsumerError>
    where
        C: AsyncConnection<Backend: OutboxBackend>,
    {
        let runtime = Handle::try_current().map_err(|_| ConsumerError::NoRuntime)?;
        let shutdown_timeout = self.shutdown_timeout;
        let consumer = self.start()?;
        ConsumerHandle::start(shutdown_timeout, move |stop| {
            let _entered = runtime.enter();
            consumer.run(stop)
        })
    }

    /// Runs the consumer until the future ends, then stops it gracefully. Returns earlier if the consumer cannot go on.
    ///
    /// # Errors
    /// As for [`spawn`](Self::spawn) and [`ConsumerHandle::stop`].
    pub async fn run(self, shutdown: impl Future<Output = ()>) -> Result<(), ConsumerError>
    where
        C: AsyncConnection<Backend: OutboxBackend>,
    {
        self.spawn()?.run(shutdown).await
    }
}

impl<C: AsyncConnection<Backend: OutboxBackend>> Handler<C> for AsyncHandler<C> {
    fn once(
        &mut self,
        conn: &mut C,
        inbox: &Inbox,
        received: &Received,
        reached: &mut bool,
    ) -> Result<Once<()>, HandlerError> {
        Handle::current().block_on(inbox.once_async(conn, received.id(), async |c| {
            *reached = true;
            self.0.call(c, received).await
        }))
    }

    fn prune(conn: &mut C, inbox: &Inbox, pruning: &mut Pruning) -> QueryResult<bool> {
        Handle::current().block_on(inbox.prune_step_async(conn, pruning))
    }

    fn has_inbox(conn: &mut C, inbox: &Inbox) -> QueryResult<bool> {
        Handle::current().block_on(inbox.has_table_async(conn))
    }

    fn is_alive(conn: &mut C) -> bool {
        Handle::current().block_on(conn.batch_execute("SELECT 1")).is_ok()
    }
}
