use std::error::Error;
use std::fmt;
use std::pin::Pin;

use diesel::QueryResult;
use diesel_async::AsyncConnection;
use diesel_outbox::{Inbox, Once, OutboxBackend, Pruning};
use serde::de::DeserializeOwned;
use tokio::runtime::Handle;

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

impl<C: AsyncConnection<Backend: OutboxBackend> + 'static> Consumer<C> {
    /// [`new`](Self::new) for diesel-async's connections: handlers and the closure that connects are asynchronous, all
    /// else is the same.
    ///
    /// ```no_run
    /// use diesel_async::{AsyncConnection, AsyncPgConnection};
    /// use diesel_outbox_kafka::consumer::Consumer;
    /// # #[derive(serde::Deserialize)] struct Order;
    /// # async fn charge(_: &mut AsyncPgConnection, _: &Order) -> diesel::QueryResult<usize> { Ok(1) }
    ///
    /// # async fn f(url: String) -> Result<(), Box<dyn std::error::Error>> {
    /// let consumer = Consumer::<AsyncPgConnection>::new_async("localhost:9092", "billing")
    ///     .topics(["outbox.event.order"])
    ///     .on("OrderPlaced", async |c, received| {
    ///         let order: Order = received.json()?;
    ///         charge(c, &order).await?;
    ///         Ok(())
    ///     })
    ///     .spawn(async move || AsyncPgConnection::establish(&url).await)?;
    /// // ... the service does its work ...
    /// consumer.stop_async().await?; // finish the record in hand, commit, leave the group
    /// # Ok(())
    /// # }
    /// ```
    pub fn new_async(brokers: impl Into<String>, name: impl Into<String>) -> Consumer<C, AsyncHandler<C>> {
        Consumer::with_defaults(brokers.into(), name.into())
    }
}

impl<C: AsyncConnection<Backend: OutboxBackend> + 'static> Consumer<C, AsyncHandler<C>> {
    /// Handles the events of this type, as its namesake for synchronous connections does.
    pub fn on<F>(mut self, event_type: impl Into<String>, handler: F) -> Self
    where
        F: AsyncFnMut(&mut C, &Received) -> Result<(), HandlerError> + Send + 'static,
    {
        self.handlers.by_type.insert(event_type.into(), AsyncHandler(Box::new(handler)));
        self
    }

    /// The same for a handler that needs only the payload, read as JSON. A payload that cannot be read so makes the
    /// record a dead letter at once.
    pub fn on_json<T, F>(self, event_type: impl Into<String>, mut handler: F) -> Self
    where
        T: DeserializeOwned,
        F: AsyncFnMut(&mut C, T) -> Result<(), HandlerError> + Send + 'static,
    {
        self.on(event_type, async move |c: &mut C, received: &Received| handler(c, received.json()?).await)
    }

    /// Handles the events of all types that have no handler of their own.
    pub fn on_other<F>(mut self, handler: F) -> Self
    where
        F: AsyncFnMut(&mut C, &Received) -> Result<(), HandlerError> + Send + 'static,
    {
        self.handlers.other = Some(AsyncHandler(Box::new(handler)));
        self
    }

    /// Starts the consumer, as its namesake for synchronous connections does. It has a thread of its own all the same;
    /// its handlers run there, with the runtime that this is called in, whose threads must be free to serve it. Stop the
    /// consumer before the runtime.
    ///
    /// # Errors
    /// A setting is missing or wrong, the thread could not be started, or this was not called in a tokio runtime.
    pub fn spawn<F, E>(self, mut connect: F) -> Result<ConsumerHandle, ConsumerError>
    where
        F: AsyncFnMut() -> Result<C, E> + Send + 'static,
        E: Error + 'static,
    {
        let runtime = Handle::try_current().map_err(|_| ConsumerError::NoRuntime)?;
        let worker = self.start(move || Handle::current().block_on(connect()))?;
        ConsumerHandle::spawn(move |stop| {
            let _entered = runtime.enter();
            worker.run(stop)
        })
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

    fn is_alive(conn: &mut C) -> bool {
        Handle::current().block_on(conn.batch_execute("SELECT 1")).is_ok()
    }
}
