//! How long after its commit an event reaches a consumer, and what the relay's process spends on it.

mod mariadb;

use std::thread;
use std::time::{Duration, Instant};

use clap::Args;
use diesel::connection::SimpleConnection;
use diesel_outbox::{Emit, Migrations, OutboxConnection, Record};
use outbox_tests::{Database, Debezium, Kafka, eventually_ok};
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::Message;
use rdkafka::producer::{BaseProducer, DefaultProducerContext, Producer};
use rdkafka::{Offset, TopicPartitionList};

use crate::contenders::{Contender, take_turns};
use crate::cpu::Times;
use crate::paced::spent_at;
use crate::producer::{IN_FLIGHT, bare_producer, send};
use crate::relays::{outbox, relay_process, stop};
use crate::report::{Figure, Goal, Report};
use crate::rows::record;
use crate::servers::{DatabaseKind, SETTINGS, servers, start_postgres};
use crate::topics::{PARTITIONS, new_topic};

#[derive(Args)]
pub(crate) struct Latency {
    /// How long each contender is measured, in seconds.
    #[arg(long, default_value_t = 10)]
    pub(crate) seconds: u64,
    /// Bytes of payload in each event.
    #[arg(long, default_value_t = 200)]
    pub(crate) bytes: usize,
    /// The database. On MariaDB, fewer contenders take turns.
    #[arg(long, value_enum, default_value_t = DatabaseKind::Postgres)]
    pub(crate) database: DatabaseKind,
    /// PostgreSQL's major version.
    #[arg(long, default_value_t = 15)]
    pub(crate) postgres: u32,
}

/// How events are emitted.
#[derive(Clone, Copy)]
pub(crate) struct Load {
    /// How many threads emit, each with a connection of its own.
    emitters: usize,
    /// How many transactions each begins in a second.
    transactions: usize,
    /// How many events a transaction emits.
    events: usize,
}

const NAMES: [&str; 13] = [
    "relay, 500/s",
    "WAL relay, 500/s",
    "Debezium, 500/s",
    "bare producer, 500/s",
    "commit alone, 500/s",
    "relay, 20,000/s",
    "WAL relay, 20,000/s",
    "Debezium, 20,000/s",
    "relay, 1/s",
    "WAL relay, 1/s",
    "Debezium, 1/s",
    "relay, start to first record",
    "WAL relay, start to first record",
];

/// If librdkafka alone takes as much, no relay can take less.
pub(crate) const CPU_LIMIT: &str = "bare producer, 500/s: CPU";

/// The median and the 99th percentile in milliseconds, and the publishing process's CPU in percent of a core.
pub(crate) type Measured = [f64; 3];

/// The CPU of a process that nobody watched, which is not the same as no CPU.
const UNWATCHED: f64 = f64::NAN;

pub(crate) const MODERATE: Load = Load { emitters: 1, transactions: 500, events: 1 };
pub(crate) const HEAVY: Load = Load { emitters: 4, transactions: 250, events: 20 };
pub(crate) const SPREAD: Load = Load { emitters: 1, transactions: 100, events: 1 };
const SPARSE: Load = Load { emitters: 1, transactions: 1, events: 1 };

impl Latency {
    pub(crate) fn run(&self, rounds: usize) -> Report {
        if self.database == DatabaseKind::Mariadb {
            return self.run_on_mariadb(rounds);
        }
        let (postgres, kafka) = servers(self.postgres);
        let wal_server = start_postgres(self.postgres, SETTINGS);
        let (polled, unread) = (postgres.database(), postgres.database());
        let (streamed, for_debezium) = (wal_server.database(), wal_server.database());
        for database in [&polled, &unread, &streamed, &for_debezium] {
            Migrations::new().run(&mut database.connect()).unwrap();
        }
        outbox(streamed.url(), &["wal", "setup", "--slot", streamed.name()]);
        let topic = new_topic(&kafka);
        let debezium = Debezium::start(&for_debezium, &kafka, &topic, &Debezium::TUNED);
        debezium.pause();
        let relay = |load| self.through(&polled, &kafka, load, &[]);
        let wal_relay = |load| self.through(&streamed, &kafka, load, &wal_options(&streamed));
        let through_debezium = |load| self.through_debezium(&debezium, &for_debezium, &kafka, &topic, load);
        let measured = take_turns(
            rounds,
            vec![
                Contender::new(NAMES[0], || relay(MODERATE)),
                Contender::new(NAMES[1], || wal_relay(MODERATE)),
                Contender::new(NAMES[2], || through_debezium(MODERATE)),
                Contender::new(NAMES[3], || self.through_kafka_alone(&kafka, MODERATE)),
                Contender::new(NAMES[4], || self.commits(emitter(&unread), MODERATE)),
                Contender::new(NAMES[5], || relay(HEAVY)),
                Contender::new(NAMES[6], || wal_relay(HEAVY)),
                Contender::new(NAMES[7], || through_debezium(HEAVY)),
                Contender::new(NAMES[8], || relay(SPARSE)),
                Contender::new(NAMES[9], || wal_relay(SPARSE)),
                Contender::new(NAMES[10], || through_debezium(SPARSE)),
                Contender::new(NAMES[11], || self.first(&polled, &kafka, &[])),
                Contender::new(NAMES[12], || self.first(&streamed, &kafka, &wal_options(&streamed))),
            ],
        );
        let mut figures = Vec::new();
        for (measured, name) in measured.into_iter().zip(NAMES) {
            if name.ends_with("first record") {
                let [first, ..] = measured;
                figures.push(Figure::new(name, "ms", first).at_most(250.0));
            } else {
                figures.extend(figures_of(name, measured));
            }
        }
        for figure in &mut figures {
            figure.goal = match figure.name.as_str() {
                "relay, 500/s: p50" => Some(Goal::AtMost(1.5)),
                "relay, 500/s: p99" => Some(Goal::AtMost(4.0)),
                "WAL relay, 500/s: p50" => Some(Goal::AtMost(0.8)),
                "WAL relay, 500/s: p99" => Some(Goal::AtMost(3.0)),
                "relay, 500/s: CPU" | "WAL relay, 500/s: CPU" => {
                    figure.limit = Some(CPU_LIMIT.to_owned());
                    Some(Goal::AtMost(3.0))
                }
                CPU_LIMIT => Some(Goal::AtLeast(3.0)),
                "relay, 20,000/s: p99" => Some(Goal::AtMost(50.0)),
                _ => None,
            };
        }
        Report {
            benchmark: "latency".into(),
            conditions: format!(
                "commit to consumer, {} bytes of payload, {} s each; 500/s: one event a transaction; 20,000/s: four \
                 emitters, 20 events a transaction; PostgreSQL {}",
                self.bytes, self.seconds, self.postgres
            ),
            figures,
        }
    }

    /// Measures a relay's process that publishes to a new topic.
    pub(crate) fn through(
        &self,
        database: &Database<'_>,
        kafka: &Kafka,
        load: Load,
        options: &[&str],
    ) -> Measured {
        self.through_process(database.url(), kafka, load, options, &|| emitter(database))
    }

    fn through_process<'a>(
        &self,
        database_url: &str,
        kafka: &Kafka,
        load: Load,
        options: &[&str],
        emitter: &(dyn Fn() -> Emitter<'a> + Sync),
    ) -> Measured {
        let topic = new_topic(kafka);
        let process = relay_process(database_url, kafka, &topic, options);
        let measured = self.measure(kafka, &topic, load, Some((process.id(), "outbox")), emitter);
        stop(&process);
        measured
    }

    /// Returns how long a relay's process takes from its start until a waiting event has reached Kafka, in milliseconds. An earlier
    /// process reads what other contenders have written to the same WAL. After the checkpoint nobody reads that again.
    fn first(&self, database: &Database<'_>, kafka: &Kafka, options: &[&str]) -> Measured {
        database.connect().batch_execute("CHECKPOINT").unwrap();
        self.start(database, kafka, options);
        [self.start(database, kafka, options), 0.0, 0.0]
    }

    fn start(&self, database: &Database<'_>, kafka: &Kafka, options: &[&str]) -> f64 {
        let topic = new_topic(kafka);
        let consumer = consumer(kafka, &topic);
        emitter(database)(&[self.event(0)]);
        let began = Instant::now();
        let process = relay_process(database.url(), kafka, &topic, options);
        await_event(&consumer);
        let first = began.elapsed().as_secs_f64() * 1e3;
        stop(&process);
        first
    }

    /// Measures Debezium, which is frozen before and after.
    pub(crate) fn through_debezium(
        &self,
        debezium: &Debezium<'_>,
        database: &Database<'_>,
        kafka: &Kafka,
        topic: &str,
        load: Load,
    ) -> Measured {
        debezium.resume();
        let process = debezium.id().map(|id| (id, "java"));
        let measured = self.measure(kafka, topic, load, process, &|| emitter(database));
        debezium.pause();
        measured
    }

    /// Measures a producer alone.
    pub(crate) fn through_kafka_alone(&self, kafka: &Kafka, load: Load) -> Measured {
        let topic = &new_topic(kafka);
        let [p50, p99, _] = self.measure(kafka, topic, load, None, &|| sender(kafka, topic));
        let rate = load.emitters * load.transactions * load.events;
        [p50, p99, spent_at(kafka, rate as u32, self.seconds, self.bytes)]
    }

    /// Measures from just before the commit until the consumer has the event. The process has this number and name.
    pub(crate) fn measure<'a>(
        &self,
        kafka: &Kafka,
        topic: &str,
        load: Load,
        process: Option<(u32, &str)>,
        emitter: &(dyn Fn() -> Emitter<'a> + Sync),
    ) -> Measured {
        let consumer = consumer(kafka, topic);
        // A process that has just started, or was frozen, is awake once the first event has come.
        emitter()(&[self.event(0)]);
        await_event(&consumer);
        let mut times = Times::default();
        let mut nanoseconds = || {
            let (id, program) = process?;
            times.look(id, program).then(|| times.total())
        };
        let (began, spent_before) = (Instant::now(), nanoseconds());
        let per_emitter = load.transactions * self.seconds as usize;
        let total = load.emitters * per_emitter * load.events;
        let mut came: Vec<(usize, Instant)> = Vec::with_capacity(total);
        // When each event was committed, by the number in its payload.
        let committed: Vec<Instant> = thread::scope(|scope| {
            let emitters: Vec<_> = (0..load.emitters)
                .map(|number| scope.spawn(move || self.emit(load, number * per_emitter, emitter())))
                .collect();
            while came.len() < total {
                came.push((await_event(&consumer), Instant::now()));
            }
            let emitted = emitters.into_iter().flat_map(|emitter| emitter.join().unwrap());
            emitted.map(|(committing, _)| committing).collect()
        });
        let cpu = match (spent_before, nanoseconds()) {
            (Some(before), Some(after)) => {
                (after - before) as f64 / 1e9 / began.elapsed().as_secs_f64() * 100.0
            }
            _ => UNWATCHED,
        };
        let times = came.into_iter().map(|(number, came)| came.saturating_duration_since(committed[number]));
        let [p50, p99] = percentiles(times);
        [p50, p99, cpu]
    }

    /// Measures the database's own part of the latency: how long the commits take.
    fn commits(&self, emitter: Emitter<'_>, load: Load) -> Measured {
        let emitted = self.emit(load, 0, emitter);
        let [p50, p99] =
            percentiles(emitted.into_iter().map(|(committing, committed)| committed - committing));
        [p50, p99, UNWATCHED]
    }

    /// Emits for so long, and returns the time just before and just after each commit.
    fn emit(&self, load: Load, first: usize, mut emit: Emitter<'_>) -> Vec<(Instant, Instant)> {
        let began = Instant::now();
        (0..load.transactions * self.seconds as usize)
            .map(|count| {
                let due = began + Duration::from_secs(1).mul_f64(count as f64 / load.transactions as f64);
                thread::sleep(due.saturating_duration_since(Instant::now()));
                let committing = emit(&vec![self.event(first + count); load.events]);
                (committing, Instant::now())
            })
            .collect()
    }

    /// An event whose payload begins with the number.
    fn event(&self, number: usize) -> Record {
        let payload = format!("{number:010}{}", "x".repeat(self.bytes.saturating_sub(10)));
        Record::new("order", (number % crate::rows::AGGREGATES).to_string(), "OrderPlaced")
            .with_payload(payload)
    }
}

/// Returns the figures of one contender, with the CPU only if a process was watched.
pub(crate) fn figures_of(name: &str, [p50, p99, cpu]: [Vec<f64>; 3]) -> Vec<Figure> {
    let is_watched = !cpu.iter().any(|cpu| cpu.is_nan());
    let cpu = is_watched.then(|| Figure::new(format!("{name}: CPU"), "% of a core", cpu));
    [("p50", p50), ("p99", p99)]
        .map(|(what, values)| Figure::new(format!("{name}: {what}"), "ms", values))
        .into_iter()
        .chain(cpu)
        .collect()
}

/// Returns the options of a relay that reads the WAL by the database's slot.
pub(crate) fn wal_options<'a>(database: &'a Database<'_>) -> [&'a str; 4] {
    ["--source", "wal", "--slot", database.name()]
}

/// Emits these events in one transaction, and returns when it began to commit.
pub(crate) type Emitter<'a> = Box<dyn FnMut(&[Record]) -> Instant + 'a>;

pub(crate) fn emitter<'a>(database: &Database<'_>) -> Emitter<'a> {
    emitter_on(database.connect())
}

fn emitter_on<'a>(mut conn: impl OutboxConnection + 'a) -> Emitter<'a> {
    Box::new(move |events| {
        let mut committing = None;
        let emitted = conn.transaction(|c| {
            match events {
                [event] => c.emit(event).map(drop),
                events => c.emit_all(events).map(drop),
            }?;
            committing = Some(Instant::now());
            diesel::QueryResult::Ok(())
        });
        emitted.unwrap();
        committing.unwrap()
    })
}

/// Sends them to Kafka at once, without a database.
fn sender<'a>(kafka: &Kafka, topic: &'a str) -> Emitter<'a> {
    let producer = FlushOnDrop(bare_producer(kafka.brokers(), DefaultProducerContext, IN_FLIGHT));
    // It connects when it is first used.
    send(&producer.0, &new_topic(kafka), &record(0, 0));
    producer.0.flush(Duration::from_secs(60)).unwrap();
    Box::new(move |events| {
        let FlushOnDrop(producer) = &producer;
        let sending = Instant::now();
        for event in events {
            send(producer, topic, event);
        }
        sending
    })
}

struct FlushOnDrop(BaseProducer);

impl Drop for FlushOnDrop {
    fn drop(&mut self) {
        self.0.flush(Duration::from_secs(60)).unwrap();
    }
}

/// Waits for the next event and returns its number. It skips records that have none.
fn await_event(consumer: &BaseConsumer) -> usize {
    loop {
        let message = consumer.poll(Duration::from_secs(60)).expect("an event").unwrap();
        let number =
            message.payload().and_then(|payload| str::from_utf8(payload.get(..10)?).ok()?.parse().ok());
        if let Some(number) = number {
            return number;
        }
    }
}

/// The median and the 99th percentile, in milliseconds.
pub(crate) fn percentiles(durations: impl Iterator<Item = Duration>) -> [f64; 2] {
    let mut durations: Vec<Duration> = durations.collect();
    durations.sort();
    [50, 99].map(|percent| durations[durations.len() * percent / 100].as_secs_f64() * 1e3)
}

/// A consumer of all that comes to the topic from now on.
fn consumer(kafka: &Kafka, topic: &str) -> BaseConsumer {
    let consumer: BaseConsumer =
        kafka.client().set("group.id", "bench").set("enable.auto.commit", "false").create().unwrap();
    let mut partitions = TopicPartitionList::new();
    for partition in 0..PARTITIONS {
        // On a busy machine, not all partitions of a new topic have a leader at once.
        let (_, end) = eventually_ok("the partition's end", Duration::from_secs(30), || {
            consumer.fetch_watermarks(topic, partition, Duration::from_secs(10))
        });
        partitions.add_partition_offset(topic, partition, Offset::Offset(end)).unwrap();
    }
    consumer.assign(&partitions).unwrap();
    consumer
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_processor_time_of_zero_is_a_figure_and_one_that_nobody_watched_is_none() {
        let names = |cpu| -> Vec<String> {
            let figures = figures_of("relay", [vec![1.0], vec![2.0], vec![cpu]]);
            figures.into_iter().map(|figure| figure.name).collect()
        };
        assert_eq!(names(0.0), ["relay: p50", "relay: p99", "relay: CPU"]);
        assert_eq!(names(UNWATCHED), ["relay: p50", "relay: p99"]);
    }
}
