use std::future::Future;
use std::time::Duration;

#[cfg(feature = "postgres-wal")]
use crate::source::wal::{WalOptions, WalSource};
use crate::source::{SentRows, SourceOptions};
use diesel_outbox_core::wire::Topics;
use diesel_outbox_core::{Broker, DeadLetterPolicy, SHARDS, Source};

use crate::pipeline::CHUNK_BYTES;
use crate::worker::{Stop, Worker};
use crate::{Limits, RelayError, RelayHandle};

/// Databases cannot count back much further.
const LONGEST_RETENTION: Duration = Duration::from_secs(100 * 365 * 24 * 60 * 60);

/// Builds a relay: from which database, to which broker, and how. `Relay::postgres` and `Relay::sqlite` are there with the
/// features `postgres` and `sqlite`.
///
/// ```no_run
/// # #[cfg(all(feature = "postgres", feature = "kafka"))]
/// # async fn f(database_url: String) -> Result<(), diesel_outbox_relay::RelayError> {
/// use diesel_outbox_relay::{Kafka, Relay};
///
/// let relay = Relay::postgres(&database_url).publisher(Kafka::new("localhost:9092")).spawn()?;
/// // ... the service does its work ...
/// relay.stop().await?; // flush, settle, leave
/// # Ok(())
/// # }
/// ```
#[must_use]
pub struct Relay {
    source: Box<dyn Fn(SourceOptions) -> Box<dyn Source> + Send>,
    broker: Option<Box<dyn Broker>>,
    options: SourceOptions,
    topics: Topics,
    limits: Limits,
    workers: usize,
    most_workers: usize,
    stop_time: Duration,
}

impl Relay {
    /// A relay for the outbox in this PostgreSQL database. Several relays may work on one outbox: they share the work,
    /// and take over from each other.
    ///
    /// The connection must be a session of its own, so a pooler in transaction mode does not do. TLS and time-outs are
    /// set in the URL, as libpq has them (`?sslmode=verify-full&tcp_user_timeout=10000`). Keepalives let both sides notice
    /// within a minute that the other is gone, unless the URL sets its own. A process that is frozen is taken over after
    /// half a minute; by a Unix socket it may keep its claim until it ends.
    #[cfg(feature = "postgres")]
    pub fn postgres(database_url: impl Into<String>) -> Self {
        let database_url = database_url.into();
        Self::from_source(move |options| {
            Box::new(crate::source::PostgresSource::new(database_url.clone(), options))
        })
    }

    /// A relay for the outbox in this PostgreSQL database that reads the write-ahead log, from the slot that
    /// [`wal::setup`](crate::source::wal::setup) or `outbox wal setup` has made. Of several relays one is active, and
    /// another takes over within two seconds when it is gone.
    ///
    /// The connection's role needs `REPLICATION`; otherwise as for [`postgres`](Self::postgres). Events are sent in the order of
    /// the commits.
    #[cfg(feature = "postgres-wal")]
    pub fn wal(database_url: impl Into<String>, wal: WalOptions) -> Self {
        let database_url = database_url.into();
        let relay = Self::from_source(move |options| {
            Box::new(WalSource::new(database_url.clone(), options, wal.clone()))
        });
        Self { most_workers: 1, ..relay }
    }

    /// A relay for the outbox in this SQLite file. One relay works at a time; a second one waits its turn.
    ///
    /// The relay writes to the file too, now and then. Set `PRAGMA busy_timeout` on the service's own connections, and emit in
    /// `conn.immediate_transaction(|c| ..)`: a plain `transaction` that reads first finds the database locked at once, however long
    /// the timeout is, if the relay has written since.
    #[cfg(feature = "sqlite")]
    pub fn sqlite(path: impl Into<String>) -> Self {
        let path = path.into();
        Self::from_source(move |options| Box::new(crate::source::SqliteSource::new(path.clone(), options)))
    }

    /// A relay that gets its records from a source of your own; each worker asks for one.
    pub fn from_source(source: impl Fn(SourceOptions) -> Box<dyn Source> + Send + 'static) -> Self {
        Self {
            source: Box::new(source),
            broker: None,
            options: SourceOptions::default(),
            topics: Topics::default(),
            limits: Limits::default(),
            workers: 1,
            most_workers: SHARDS.unsigned_abs() as usize,
            stop_time: Duration::from_secs(30),
        }
    }

    /// Where the records go.
    pub fn publisher(mut self, broker: impl Broker + 'static) -> Self {
        self.broker = Some(Box::new(broker));
        self
    }

    /// How topics are named, and which may be written to. Default: `outbox.event.{aggregatetype}`, all of them.
    pub fn topics(mut self, topics: Topics) -> Self {
        self.topics = topics;
        self
    }

    /// The schema that holds the tables (PostgreSQL). Default: what the connection's `search_path` says.
    pub fn schema(mut self, schema: impl Into<String>) -> Self {
        self.options.schema = Some(schema.into());
        self
    }

    /// How long sent rows are kept, 100 years at most. Default: 7 days.
    pub fn retention(mut self, retention: Duration) -> Self {
        self.options.sent_rows = SentRows::Keep { retention };
        self
    }

    /// Deletes rows as soon as they are sent, instead of keeping them. Somewhat faster, and the table stays small.
    pub fn delete_sent(mut self) -> Self {
        self.options.sent_rows = SentRows::Delete;
        self
    }

    /// What happens to the later records of an aggregate one of whose records became a dead letter. Default: they are
    /// sent.
    pub fn dead_letter_policy(mut self, policy: DeadLetterPolicy) -> Self {
        self.options.dead_letter_policy = policy;
        self
    }

    /// How often a relay that is not notified looks at the table. Default: 15 s.
    pub fn poll_interval(mut self, interval: Duration) -> Self {
        self.options.poll_interval = interval;
        self
    }

    /// How often the lag is measured, logged and set as a metric. Default: 15 s. It is less often where counting what
    /// waits would take more than a fiftieth of the time.
    pub fn lag_interval(mut self, interval: Duration) -> Self {
        self.options.lag_interval = interval;
        self
    }

    /// How many workers this relay has, each a thread with a connection and a producer, 1 to 16. Default: 1, which is
    /// as fast as several where the machine is small; more relays are better than more workers for taking over. On
    /// PostgreSQL each has a second connection while it works off a backlog.
    pub fn workers(mut self, workers: usize) -> Self {
        self.workers = workers;
        self
    }

    /// How much a pass takes on.
    pub fn limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// How long [`run`](Self::run) and [`RelayHandle::stop`] wait for what is in flight. Default: 30 s.
    pub fn stop_time(mut self, time: Duration) -> Self {
        self.stop_time = time;
        self
    }

    /// Starts the relay on threads of its own. It works until its handle is stopped or dropped.
    ///
    /// The database and the broker need not be there yet: the relay waits for them.
    ///
    /// # Errors
    /// A setting is missing or wrong, one of the broker's too, or the system gives no thread.
    pub fn spawn(self) -> Result<RelayHandle, RelayError> {
        let broker = self.broker.as_ref().ok_or(RelayError::NoBroker)?;
        self.check()?;
        let stop = Stop::default();
        let publishers = (0..self.workers).map(|_| broker.publisher()).collect::<Result<Vec<_>, _>>()?;
        let workers = publishers.into_iter().map(|publisher| Worker {
            source: (self.source)(self.options.clone()),
            publisher,
            topics: self.topics.clone(),
            limits: self.limits,
            stop: stop.clone(),
            broker_is_away: false,
            upkept: None,
            published: std::cell::Cell::new(0),
        });
        RelayHandle::start(stop.clone(), workers, self.stop_time)
    }

    /// Runs the relay until the future ends, then stops it gracefully.
    ///
    /// # Errors
    /// As for [`spawn`](Self::spawn) and [`RelayHandle::stop`], and at once where a worker panics.
    pub async fn run(self, shutdown: impl Future<Output = ()>) -> Result<(), RelayError> {
        let mut handle = self.spawn()?;
        let mut shutdown = std::pin::pin!(shutdown);
        std::future::poll_fn(|context| {
            if handle.poll_ended(context).is_ready() {
                return std::task::Poll::Ready(());
            }
            shutdown.as_mut().poll(context)
        })
        .await;
        handle.stop().await
    }

    fn check(&self) -> Result<(), RelayError> {
        let within = |setting, value: usize, range, fits| {
            if fits { Ok(()) } else { Err(RelayError::Setting { setting, value: value.to_string(), range }) }
        };
        let Limits { chunk, in_flight, in_flight_bytes, pass_time, stall_time } = self.limits;
        let range = if self.most_workers == 1 { "1 for the write-ahead log" } else { "1 to 16" };
        within("workers", self.workers, range, (1..=self.most_workers).contains(&self.workers))?;
        within("chunk", chunk, "1 to 100,000", (1..=100_000).contains(&chunk))?;
        within("in_flight", in_flight, "1 to 1,000,000", (1..=1_000_000).contains(&in_flight))?;
        let bytes = CHUNK_BYTES..=(1 << 40);
        within("in_flight_bytes", in_flight_bytes, "16 MiB to 1 TiB", bytes.contains(&in_flight_bytes))?;
        if let SentRows::Keep { retention } = self.options.sent_rows
            && retention > LONGEST_RETENTION
        {
            let value = format!("{retention:?}");
            return Err(RelayError::Setting { setting: "retention", value, range: "100 years at most" });
        }
        // A pass that waits longer would be ended by the database, as one of a process that was stopped. The producer may linger
        // for half of the shortest.
        if !(Duration::from_secs(1)..=Duration::from_secs(20)).contains(&stall_time) {
            let value = format!("{stall_time:?}");
            return Err(RelayError::Setting { setting: "stall_time", value, range: "1 s to 20 s" });
        }
        for (setting, time) in [
            ("pass_time", pass_time),
            ("poll_interval", self.options.poll_interval),
            ("lag_interval", self.options.lag_interval),
            ("stop_time", self.stop_time),
        ] {
            if !(Duration::from_millis(1)..=Duration::from_secs(24 * 60 * 60)).contains(&time) {
                return Err(RelayError::Setting {
                    setting,
                    value: format!("{time:?}"),
                    range: "1 ms to 1 day",
                });
            }
        }
        Ok(())
    }
}
