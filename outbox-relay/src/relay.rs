use std::fmt;
#[cfg(feature = "postgres")]
use std::sync::Arc;
use std::time::Duration;

use diesel_outbox_core::__private::{LONGEST_RETENTION, Stop};
use diesel_outbox_core::wire::TopicNaming;
use diesel_outbox_core::{Broker, DeadLetterPolicy, Publisher, SHARDS, Source};

use crate::handle::Work;
use crate::health::{Health, WorkerHealth};
use crate::max_rate::MaxRate;
use crate::metrics::Metrics;
use crate::pipeline::{BATCH_BYTES, Limits};
#[cfg(any(feature = "mysql", feature = "postgres"))]
use crate::source::DatabaseUrl;
#[cfg(feature = "postgres")]
use crate::source::database::PostgresDatabase;
#[cfg(feature = "postgres-wal")]
use crate::source::wal::{WalOptions, WalSource};
#[cfg(feature = "postgres")]
use crate::source::{Queue, Schemas, SharedSource, Watch};
use crate::source::{SentRows, SourceOptions};
use crate::worker::Worker;
use crate::{History, RelayError, RelayHandle};

/// How long a pass may last if it is a transaction of Kafka.
const LONGEST_TRANSACTION: Duration = Duration::from_secs(10);

/// One for each worker.
pub(crate) type Sources = Vec<Box<dyn Source>>;

/// Builds a relay: from which database, to which broker, and how.
///
/// `Relay::postgres`, `Relay::mysql` and `Relay::sqlite` need the feature of the same name, and `Relay::postgres_wal` needs `postgres-wal`.
///
/// ```no_run
/// # #[cfg(all(feature = "postgres", feature = "kafka"))]
/// # async fn f(database_url: String) -> Result<(), diesel_outbox_relay::RelayError> {
/// use diesel_outbox_relay::{Kafka, Relay};
///
/// let relay = Relay::postgres(&database_url).broker(Kafka::new("localhost:9092")).spawn()?;
/// // ... the service does its work ...
/// relay.stop().await?; // waits for acknowledgements, settles them and closes the connections
/// # Ok(())
/// # }
/// ```
#[must_use = "a relay does nothing before `spawn` or `run`"]
pub struct Relay {
    source: Box<dyn Fn(SourceOptions) -> Box<dyn Source> + Send>,
    /// The database, if it can have several outboxes for one relay.
    #[cfg(feature = "postgres")]
    shared: Option<DatabaseUrl>,
    schemas: Option<Vec<String>>,
    broker: Option<Box<dyn Broker>>,
    options: SourceOptions,
    topic_naming: TopicNaming,
    pub(crate) limits: Limits,
    max_rate: MaxRate,
    pub(crate) workers: Option<usize>,
    most_workers: usize,
    /// Why nothing can be sent exactly once from this source.
    at_least_once: Option<&'static str>,
    shutdown_timeout: Duration,
}

impl Relay {
    /// Returns a relay that polls the outbox in this PostgreSQL database.
    ///
    /// Several relays may work on one outbox: they share the work, and take over from each other. Give the database by its URL, or
    /// by a closure that returns the URL if its password changes: see [`DatabaseUrl`].
    ///
    /// Each session is the relay's alone. If the URL leads to a pooler in transaction mode, the relay sends nothing, and logs an error
    /// that says so. Services may emit through such a pooler.
    ///
    /// Set TLS and time-outs in the URL, as libpq has them (`?sslmode=verify-full&tcp_user_timeout=10000`). Unless the URL sets
    /// keepalives, the relay does, so that both sides notice within a minute if the other is gone. If a process is frozen, another relay
    /// takes over after half a minute; over a Unix socket, such a process may keep its claim until it ends.
    #[cfg(feature = "postgres")]
    pub fn postgres(database_url: impl Into<DatabaseUrl>) -> Self {
        let database_url = database_url.into();
        let shared = Some(database_url.clone());
        let relay = Self::from_source(move |options| {
            Box::new(crate::source::PostgresSource::new(database_url.clone(), options))
        });
        Self { shared, ..relay }
    }

    /// Returns a relay that reads the outbox in this PostgreSQL database from the write-ahead log, through the slot that
    /// [`wal::setup`](crate::source::wal::setup) or `outbox wal setup` has made.
    ///
    /// One relay is active. If it ends, another takes over within two seconds. Events are sent in the order of the commits. The
    /// connection's role needs `REPLICATION`. Everything else is as for [`postgres`](Self::postgres).
    #[cfg(feature = "postgres-wal")]
    pub fn postgres_wal(database_url: impl Into<DatabaseUrl>, wal: WalOptions) -> Self {
        let database_url = database_url.into();
        let relay = Self::from_source(move |options| {
            Box::new(WalSource::new(database_url.clone(), options, wal.clone()))
        });
        Self { most_workers: 1, ..relay }
    }

    /// Returns a relay for the outbox in this MySQL or MariaDB database, which it polls.
    ///
    /// Several relays may work on one outbox: they share the work, and take over from each other. Give the database by its URL, such as
    /// `mysql://relay:secret@localhost/shop`, or by a closure that returns the URL if its password changes: see [`DatabaseUrl`].
    ///
    /// It looks at the table every few milliseconds while there is traffic, and more and more seldom when there is none, down to once in
    /// 1.25 s. The relay needs sessions of its own, so a proxy that shares sessions does not do. Another relay takes over from a
    /// process that is frozen after half a minute.
    ///
    /// It needs MySQL 8.0.4 or MariaDB 10.6 or later, and InnoDB. It speaks the protocol by itself, so libmysqlclient is not needed.
    #[cfg(feature = "mysql")]
    pub fn mysql(database_url: impl Into<DatabaseUrl>) -> Self {
        let database_url = database_url.into();
        Self::from_source(move |options| {
            Box::new(crate::source::MysqlSource::new(database_url.clone(), options))
        })
    }

    /// Returns a relay for the outbox in this SQLite file. One relay works at a time, and the others wait until it ends.
    ///
    /// The relay writes to the file too, now and then. So set `PRAGMA busy_timeout` on the service's own connections, and emit in
    /// `conn.immediate_transaction(|c| ..)`. A plain `transaction` that reads first fails at once with "database is locked" if the
    /// relay has written since, however long the timeout is.
    #[cfg(feature = "sqlite")]
    pub fn sqlite(path: impl Into<String>) -> Self {
        let path = path.into();
        let relay = Self::from_source(move |options| {
            Box::new(crate::source::SqliteSource::new(path.clone(), options))
        });
        Self { at_least_once: Some("the database is SQLite"), ..relay }
    }

    /// Returns a relay that gets its records from your own source. It calls the closure once for each worker.
    pub fn from_source(source: impl Fn(SourceOptions) -> Box<dyn Source> + Send + 'static) -> Self {
        Self {
            source: Box::new(source),
            #[cfg(feature = "postgres")]
            shared: None,
            schemas: None,
            broker: None,
            options: SourceOptions::default(),
            topic_naming: TopicNaming::default(),
            limits: Limits::default(),
            max_rate: MaxRate::default(),
            workers: None,
            most_workers: SHARDS.unsigned_abs() as usize,
            at_least_once: None,
            shutdown_timeout: Duration::from_secs(30),
        }
    }

    /// Sets the broker that the records go to, such as `Kafka::new("localhost:9092")`. Required.
    pub fn broker(mut self, broker: impl Broker + 'static) -> Self {
        self.broker = Some(Box::new(broker));
        self
    }

    /// Sets how topics are named, and which may be written to. Default: `outbox.event.{aggregatetype}`, all of them.
    pub fn topic_naming(mut self, naming: TopicNaming) -> Self {
        self.topic_naming = naming;
        self
    }

    /// Sets the schema that holds the tables, which is a database on MySQL and MariaDB. SQLite has none. Default: the first schema in
    /// the connection's `search_path` that has them, or the URL's database.
    pub fn schema(mut self, schema: impl Into<String>) -> Self {
        self.options = self.options.schema(schema);
        self
    }

    /// Relays the outboxes of all these schemas of a PostgreSQL database that it polls. A `*` in a name stands for any characters:
    /// `tenant_*` is each schema whose name begins with `tenant_` and that has the tables.
    ///
    /// The outboxes take turns on the relay's workers and share the relay's connections. One session listens for all of them. An outbox
    /// that fails is put off and does not delay the others. The relay takes on schemas that are made while it runs, and lets go of those
    /// that are dropped, within [`poll_interval`](Self::poll_interval).
    ///
    /// ```no_run
    /// # #[cfg(all(feature = "postgres", feature = "kafka"))]
    /// # fn f(database_url: &str) -> Result<(), diesel_outbox_relay::RelayError> {
    /// use diesel_outbox_relay::{Kafka, Relay};
    ///
    /// Relay::postgres(database_url).schemas(["billing", "tenant_*"]).broker(Kafka::new("localhost:9092")).spawn()?.detach();
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// For several databases, start a relay for each.
    pub fn schemas(mut self, schemas: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.schemas = Some(schemas.into_iter().map(Into::into).collect());
        self
    }

    /// Sets the name of the database's server, which precedes the database in the label `outbox` of the metrics and in log lines:
    /// `db-1/shop.public`. Set it if the process has relays for databases of the same name on several servers. Default: none, so the
    /// label is `shop.public`.
    pub fn server_name(mut self, server: impl Into<String>) -> Self {
        self.options = self.options.server_name(server);
        self
    }

    /// Sets how long sent rows are kept, 100 years at most. Default: 7 days.
    pub fn keep_sent(mut self, retention: Duration) -> Self {
        self.options = self.options.sent_rows(SentRows::Keep { retention });
        self
    }

    /// Sets how many sent rows are kept at most: the relay prunes what is beyond that or is kept for too long. Default: any number.
    pub fn keep_sent_rows(mut self, rows: u64) -> Self {
        self.options = self.options.keep_sent_rows(rows);
        self
    }

    /// Sets how long dead letters are kept, 100 years at most. Default: until somebody requeues or drops them. Their events are lost then.
    ///
    /// Those of an aggregate of which some were held back by [`DeadLetterPolicy::Block`] stay. With that policy, the relay does not start if
    /// this is set, because each dead letter holds its aggregate back.
    pub fn keep_dead_letters(mut self, retention: Duration) -> Self {
        self.options = self.options.keep_dead_letters(retention);
        self
    }

    /// Sets how many dead letters are kept at most, the last ones. Default: all. The rest is as for
    /// [`keep_dead_letters`](Self::keep_dead_letters).
    pub fn keep_dead_letter_rows(mut self, rows: u64) -> Self {
        self.options = self.options.keep_dead_letter_rows(rows);
        self
    }

    /// Deletes rows as soon as they are sent, instead of keeping them. This is a little faster, and the table stays small.
    pub fn delete_sent(mut self) -> Self {
        self.options = self.options.sent_rows(SentRows::Delete);
        self
    }

    /// Sets what happens to the later records of an aggregate after one of its records became a dead letter. Default: the relay
    /// sends them.
    pub fn dead_letter_policy(mut self, policy: DeadLetterPolicy) -> Self {
        self.options = self.options.dead_letter_policy(policy);
        self
    }

    /// Sends each record exactly once, for consumers that read with `isolation.level=read_committed`. Default: at least once.
    ///
    /// The records of a pass go into one Kafka transaction together with their ids, which go to a topic of their own. A relay that
    /// takes over finds there what the last one has sent. It needs PostgreSQL, MySQL or MariaDB, and Kafka 2.5 or later. One
    /// relay with one worker works on the outbox, and the others stand by. All relays of the outbox must have this setting.
    ///
    /// `docs/exactly-once.md` in the repository says what it covers, what it costs, and when you want it. An inbox at the consumer
    /// protects the consumer's own work too, which this does not.
    ///
    /// ```no_run
    /// # #[cfg(all(feature = "postgres", feature = "kafka"))]
    /// # fn f(database_url: &str) -> Result<(), diesel_outbox_relay::RelayError> {
    /// use diesel_outbox_relay::{Kafka, Relay};
    ///
    /// Relay::postgres(database_url).broker(Kafka::new("localhost:9092")).exactly_once(true).spawn()?.detach();
    /// # Ok(())
    /// # }
    /// ```
    pub fn exactly_once(mut self, exactly_once: bool) -> Self {
        self.options = self.options.exactly_once(exactly_once);
        self.limits.exactly_once = exactly_once;
        self
    }

    /// Sets how many records a transaction of the broker has, if they are sent exactly once. For tests.
    #[doc(hidden)]
    pub fn transaction_size(mut self, records: usize) -> Self {
        self.limits.transaction = records;
        self
    }

    /// Sets how often a relay looks at the table if nothing notifies it, 1 ms to a day. Default: 15 s. On MySQL and
    /// MariaDB, which notify nobody, it looks at least every 1.25 s.
    pub fn poll_interval(mut self, interval: Duration) -> Self {
        self.options = self.options.poll_interval(interval);
        self
    }

    /// Sets how often the relay measures the lag, logs it and sets it as a metric, 1 ms to a day. Default: 15 s. If counting what
    /// waits would take more than a fiftieth of the time, it measures less often.
    pub fn lag_interval(mut self, interval: Duration) -> Self {
        self.options = self.options.lag_interval(interval);
        self
    }

    /// Sets how many workers this relay has, 1 to 16. Each is a thread with a connection and a producer. Default: 1, or 2 if the relay
    /// has [several outboxes](Self::schemas).
    ///
    /// On a small machine one is as fast as several, and more relays are better for taking over than more workers. On PostgreSQL
    /// each worker has a second connection while it works off a backlog.
    pub fn workers(mut self, workers: usize) -> Self {
        self.workers = Some(workers);
        self
    }

    /// Sets how many records the relay reads, and settles, at once, 1 to 100,000. Default: 2,000. If payloads are large, it reads
    /// fewer by itself.
    pub fn batch_size(mut self, records: usize) -> Self {
        self.limits.batch_size = records;
        self
    }

    /// Sets how many records may be unacknowledged at once, for each worker, 1 to 1,000,000. Default: 8,000.
    ///
    /// If a pass has records of 500 topics, twice as many may be, and of 1,000 topics four times as many, because each topic gets requests of
    /// its own.
    pub fn max_in_flight(mut self, records: usize) -> Self {
        self.limits.max_in_flight = records;
        self
    }

    /// Sets how many bytes of payloads and headers a worker may hold, read and unacknowledged together, 16 MiB to 1 TiB. Default:
    /// 64 MiB. It holds a larger record only on its own.
    pub fn max_in_flight_bytes(mut self, bytes: usize) -> Self {
        self.limits.max_in_flight_bytes = bytes;
        self
    }

    /// Sets how many records the relay sends in a second at most, 1 to 10,000,000, all of its workers together. Default: as many as it can.
    ///
    /// Set it if a backlog must not take what others of the database need. A relay that waits holds no lock. It may send at once what it
    /// could have sent in the last 100 ms. Each relay process has a limit of its own.
    pub fn max_rate(mut self, records_per_second: u32) -> Self {
        self.max_rate = MaxRate::new(records_per_second);
        self
    }

    /// Sets how long a pass keeps reading before it commits what it settled, 1 ms to a day. Default: 500 ms. It still sends the
    /// batch that it is reading at that moment.
    pub fn max_pass_duration(mut self, duration: Duration) -> Self {
        self.limits.max_pass_duration = duration;
        self
    }

    /// Sets how long the broker may acknowledge nothing before the relay gives up the pass, 1 s to 20 s. Default: 5 s.
    ///
    /// Kafka acknowledges a request when it has all of it. After a pass that was given up the requests are small, so that they get there in
    /// time where the way is narrow.
    pub fn stall_timeout(mut self, timeout: Duration) -> Self {
        self.limits.stall_timeout = timeout;
        self
    }

    /// Sets how long [`run`](Self::run) and [`RelayHandle::stop`] wait for what is in flight, 1 ms to a day. Default: 30 s.
    pub fn shutdown_timeout(mut self, timeout: Duration) -> Self {
        self.shutdown_timeout = timeout;
        self
    }

    /// Starts the relay on its own threads. It works until you stop or drop its handle.
    ///
    /// The database and the broker need not be up yet: the relay waits for them. It needs the tables, so run
    /// `diesel_outbox::Migrations` first. While they are missing, the relay logs errors that say so. If you stop it then, it
    /// returns [`RelayError::Source`].
    ///
    /// # Errors
    /// Returns an error if a setting of the relay or of the broker is missing or wrong, or if the system has no more threads.
    pub fn spawn(self) -> Result<RelayHandle, RelayError> {
        let broker = self.broker.as_ref().ok_or(RelayError::NoBroker)?;
        self.check()?;
        let stop = Stop::default();
        let publishers =
            (0..self.number_of_workers()).map(|_| broker.publisher()).collect::<Result<Vec<_>, _>>()?;
        let history = History::new(self.options.lag_interval);
        let (sources, watch) = self.sources(&stop, &history)?;
        let mut work: Vec<(String, Work)> = Vec::new();
        let health = Health::new(self.number_of_workers(), self.options.lag_interval);
        let workers = sources.into_iter().zip(publishers).zip(health.workers());
        for (number, ((source, publisher), health)) in workers.enumerate() {
            let mut worker = self.worker(source, publisher, health, stop.clone());
            worker.metrics = worker.metrics.noting(history.clone());
            work.push((format!("outbox-relay-{number}"), Box::new(move || worker.run())));
        }
        work.extend(watch.map(|watch| ("outbox-watch".to_owned(), watch)));
        RelayHandle::start(stop, work, health, history, self.shutdown_timeout)
    }

    pub(crate) fn worker(
        &self,
        source: Box<dyn Source>,
        publisher: Box<dyn Publisher>,
        health: WorkerHealth,
        stop: Stop,
    ) -> Worker {
        Worker {
            source,
            publisher,
            topic_naming: self.topic_naming.clone(),
            limits: self.limits,
            max_rate: self.max_rate.clone(),
            trust: usize::MAX,
            stop,
            broker_is_away: false,
            upkept: None,
            published: std::cell::Cell::new(0),
            metrics: Metrics::new(),
            health,
        }
    }

    fn number_of_workers(&self) -> usize {
        self.workers.unwrap_or(if self.has_several_outboxes() { 2 } else { 1 })
    }

    fn named_schemas(&self) -> &[String] {
        self.schemas.as_deref().unwrap_or_default()
    }

    pub(crate) fn has_several_outboxes(&self) -> bool {
        self.named_schemas().len() > 1 || self.named_schemas().iter().any(|schema| schema.contains('*'))
    }

    /// Returns a source for each worker. If there are several outboxes, also returns what hands them out.
    pub(crate) fn sources(
        &self,
        stop: &Stop,
        history: &History,
    ) -> Result<(Sources, Option<Work>), RelayError> {
        let workers = self.number_of_workers();
        if !self.has_several_outboxes() {
            let mut options = self.options.clone();
            options.schema = self.named_schemas().first().cloned().or(options.schema);
            return Ok(((0..workers).map(|_| (self.source)(options.clone())).collect(), None));
        }
        #[cfg(feature = "postgres")]
        if let Some(database_url) = &self.shared {
            return Ok(several(database_url, &self.options, self.named_schemas(), workers, stop, history));
        }
        #[cfg(not(feature = "postgres"))]
        let _ = (stop, history);
        Err(RelayError::SeveralSchemas)
    }

    /// Runs the relay until the future ends, then stops it gracefully. Returns earlier if the relay ends by itself.
    ///
    /// # Errors
    /// As for [`spawn`](Self::spawn) and [`RelayHandle::stop`].
    pub async fn run(self, shutdown: impl Future<Output = ()>) -> Result<(), RelayError> {
        self.spawn()?.run(shutdown).await
    }

    pub(crate) fn check(&self) -> Result<(), RelayError> {
        let within = |setting, value: usize, range, fits| {
            if fits { Ok(()) } else { Err(RelayError::Setting { setting, value: value.to_string(), range }) }
        };
        let Limits {
            batch_size,
            max_in_flight,
            max_in_flight_bytes,
            max_pass_duration,
            stall_timeout,
            exactly_once,
            ..
        } = self.limits;
        if exactly_once && let Some(reason) = self.at_least_once {
            return Err(RelayError::ExactlyOnce(reason));
        }
        if exactly_once && self.has_several_outboxes() {
            return Err(RelayError::ExactlyOnce("the relay has several outboxes: start a relay for each"));
        }
        let is_named = |schemas: &Vec<String>| !schemas.is_empty() && !schemas.iter().any(String::is_empty);
        within(
            "schemas",
            self.named_schemas().len(),
            "one name or more, and none empty",
            self.schemas.as_ref().is_none_or(is_named),
        )?;
        // The pass, and Kafka's answers to it, must end long before `transaction.timeout.ms`, which is a minute.
        if exactly_once && max_pass_duration > LONGEST_TRANSACTION {
            return Err(RelayError::Setting {
                setting: "max_pass_duration",
                value: format!("{max_pass_duration:?}"),
                range: "10 s at most if records are sent exactly once",
            });
        }
        let (most_workers, range) = match (self.most_workers, exactly_once) {
            (_, true) => (1, "1 if records are sent exactly once"),
            (1, _) => (1, "1 if the WAL is read"),
            (most, _) => (most, "1 to 16"),
        };
        let workers = self.number_of_workers();
        within("workers", workers, range, (1..=most_workers).contains(&workers))?;
        within("batch_size", batch_size, "1 to 100,000", (1..=100_000).contains(&batch_size))?;
        within("max_in_flight", max_in_flight, "1 to 1,000,000", (1..=1_000_000).contains(&max_in_flight))?;
        if let Some(rate) = self.max_rate.per_second()
            && !(1.0..=10_000_000.0).contains(&rate)
        {
            let value = rate.to_string();
            return Err(RelayError::Setting { setting: "max_rate", value, range: "1 to 10,000,000" });
        }
        let bytes = BATCH_BYTES..=(1 << 40);
        within(
            "max_in_flight_bytes",
            max_in_flight_bytes,
            "16 MiB to 1 TiB",
            bytes.contains(&max_in_flight_bytes),
        )?;
        if let SentRows::Keep { retention } = self.options.sent_rows
            && retention > LONGEST_RETENTION
        {
            let value = format!("{retention:?}");
            return Err(RelayError::Setting { setting: "keep_sent", value, range: "100 years at most" });
        }
        if let Some(retention) = self.options.keep_dead_letters
            && retention > LONGEST_RETENTION
        {
            let value = format!("{retention:?}");
            return Err(RelayError::Setting {
                setting: "keep_dead_letters",
                value,
                range: "100 years at most",
            });
        }
        // To prune one would release its aggregate.
        if self.options.dead_letter_policy == DeadLetterPolicy::Block {
            let range = "left out with the dead-letter policy `block`, because each dead letter holds its aggregate back until it is requeued \
                         or dropped";
            if let Some(retention) = self.options.keep_dead_letters {
                let value = format!("{retention:?}");
                return Err(RelayError::Setting { setting: "keep_dead_letters", value, range });
            }
            if let Some(rows) = self.options.keep_dead_letter_rows {
                return Err(RelayError::Setting {
                    setting: "keep_dead_letter_rows",
                    value: rows.to_string(),
                    range,
                });
            }
        }
        // The database ends the session of a pass that waits longer, as if its process were frozen. The producer may linger for
        // half of the shortest stall timeout.
        if !(Duration::from_secs(1)..=Duration::from_secs(20)).contains(&stall_timeout) {
            let value = format!("{stall_timeout:?}");
            return Err(RelayError::Setting { setting: "stall_timeout", value, range: "1 s to 20 s" });
        }
        for (setting, time) in [
            ("max_pass_duration", max_pass_duration),
            ("poll_interval", self.options.poll_interval),
            ("lag_interval", self.options.lag_interval),
            ("shutdown_timeout", self.shutdown_timeout),
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

/// Returns a source for each worker that has several outboxes, and the watch that hands these out.
#[cfg(feature = "postgres")]
fn several(
    database_url: &DatabaseUrl,
    options: &SourceOptions,
    schemas: &[String],
    workers: usize,
    stop: &Stop,
    history: &History,
) -> (Sources, Option<Work>) {
    let database = PostgresDatabase::new(database_url.clone(), options.clone()).noting(history.clone());
    let queue = Arc::new(Queue::default());
    let source = |_| Box::new(SharedSource::new(database.clone(), queue.clone())) as Box<dyn Source>;
    let sources = (0..workers).map(source).collect();
    let watch = Watch::new(database, Schemas::new(schemas.iter().cloned()), queue, stop.clone());
    (sources, Some(Box::new(move || watch.run())))
}

/// Shows the settings, and nothing of the database or the broker that may be secret.
impl fmt::Debug for Relay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Relay")
            .field("options", &self.options)
            .field("schemas", &self.schemas)
            .field("topic_naming", &self.topic_naming)
            .field("limits", &self.limits)
            .field("max_rate", &self.max_rate.per_second())
            .field("workers", &self.number_of_workers())
            .field("shutdown_timeout", &self.shutdown_timeout)
            .finish_non_exhaustive()
    }
}
