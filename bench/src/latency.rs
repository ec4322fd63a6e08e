//! How long after its commit an event reaches a consumer.

use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

use clap::Args;
use diesel::prelude::*;
use diesel_outbox::{Emit, Migrations, Record};
use diesel_outbox_relay::RelayHandle;
use outbox_tests::{Database, Debezium, Kafka};
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::Message;
use rdkafka::{Offset, TopicPartitionList};

use crate::contenders::{Contender, take_turns};
use crate::relays::relay;
use crate::report::{Figure, Goal, Report};
use crate::servers::{PARTITIONS, SETTINGS, new_topic, servers, start_postgres};

#[derive(Args)]
pub(crate) struct Latency {
    /// How long each contender is measured, in seconds.
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    /// Bytes of payload in each event.
    #[arg(long, default_value_t = 200)]
    bytes: usize,
    /// PostgreSQL's major version.
    #[arg(long, default_value_t = 15)]
    postgres: u32,
}

/// How events are emitted.
#[derive(Clone, Copy)]
struct Load {
    /// How many threads emit, each with a connection of its own.
    emitters: usize,
    /// How many transactions each begins in a second.
    transactions: usize,
    /// How many events a transaction emits.
    events: usize,
}

const MODERATE: Load = Load { emitters: 1, transactions: 500, events: 1 };
const HEAVY: Load = Load { emitters: 4, transactions: 250, events: 20 };
const SPARSE: Load = Load { emitters: 1, transactions: 1, events: 1 };

impl Latency {
    pub(crate) fn run(&self, rounds: usize) -> Report {
        let (postgres, kafka) = servers(self.postgres);
        let log_read = start_postgres(self.postgres, SETTINGS);
        let (polled, logged) = (postgres.database(), log_read.database());
        for database in [&polled, &logged] {
            Migrations::new().run(&mut database.connect()).unwrap();
        }
        let topic = new_topic(&kafka);
        let debezium = Debezium::start(&logged, &kafka, &topic, &Debezium::TUNED);
        debezium.pause();
        let relay = |load| self.relay(&polled, &kafka, load);
        let debezium = |load| {
            debezium.resume();
            let percentiles = self.measure(&logged, &kafka, &topic, load);
            debezium.pause();
            percentiles
        };
        let measured = take_turns(
            rounds,
            vec![
                Contender::new("relay, 500/s", || relay(MODERATE)),
                Contender::new("Debezium, 500/s", || debezium(MODERATE)),
                Contender::new("relay, 20,000/s", || relay(HEAVY)),
                Contender::new("Debezium, 20,000/s", || debezium(HEAVY)),
                Contender::new("relay, 1/s", || relay(SPARSE)),
            ],
        );
        let names =
            ["relay, 500/s", "Debezium, 500/s", "relay, 20,000/s", "Debezium, 20,000/s", "relay, 1/s"];
        let mut figures: Vec<Figure> = measured
            .into_iter()
            .zip(names)
            .flat_map(|([p50, p99], name)| {
                [
                    Figure::new(format!("{name}: p50"), "ms", p50),
                    Figure::new(format!("{name}: p99"), "ms", p99),
                ]
            })
            .collect();
        figures[0].goal = Some(Goal::AtMost(4.0));
        figures[1].goal = Some(Goal::AtMost(10.0));
        figures[5].goal = Some(Goal::AtMost(50.0));
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

    fn relay(&self, database: &Database<'_>, kafka: &Kafka, load: Load) -> [f64; 2] {
        let topic = new_topic(kafka);
        let handle: RelayHandle = relay(database, kafka, &topic).spawn().unwrap();
        let percentiles = self.measure(database, kafka, &topic, load);
        handle.stop_blocking().unwrap();
        percentiles
    }

    /// The median and the 99th percentile, in milliseconds, from just before the commit to the consumer's hands.
    fn measure(&self, database: &Database<'_>, kafka: &Kafka, topic: &str, load: Load) -> [f64; 2] {
        let consumer = consumer(kafka, topic);
        let began = Instant::now();
        let per_emitter = load.transactions * self.seconds as usize;
        let total = load.emitters * per_emitter * load.events;
        // What was committed when, by the number in its payload.
        let committed = Mutex::new(vec![None; load.emitters * per_emitter]);
        let mut latencies: Vec<(usize, Instant)> = Vec::with_capacity(total);
        thread::scope(|scope| {
            for emitter in 0..load.emitters {
                let committed = &committed;
                scope.spawn(move || {
                    let mut conn = database.connect();
                    for count in 0..per_emitter {
                        let due =
                            began + Duration::from_secs(1).mul_f64(count as f64 / load.transactions as f64);
                        thread::sleep(due.saturating_duration_since(Instant::now()));
                        let number = emitter * per_emitter + count;
                        let events = vec![self.event(number); load.events];
                        let mut at = None;
                        conn.transaction(|c| {
                            match events.as_slice() {
                                [event] => c.emit(event).map(drop),
                                events => c.emit_all(events).map(drop),
                            }?;
                            at = Some(Instant::now());
                            diesel::QueryResult::Ok(())
                        })
                        .unwrap();
                        committed.lock().unwrap()[number] = at;
                    }
                });
            }
            while latencies.len() < total {
                let Some(message) = consumer.poll(Duration::from_secs(60)) else {
                    panic!("{} of {total} events came", latencies.len())
                };
                let message = message.unwrap();
                let number = std::str::from_utf8(&message.payload().unwrap()[..10]).unwrap().parse().unwrap();
                latencies.push((number, Instant::now()));
            }
        });
        let committed = committed.into_inner().unwrap();
        let mut milliseconds: Vec<f64> = latencies
            .into_iter()
            .map(|(number, came)| {
                let committed: Instant = committed[number].unwrap();
                came.saturating_duration_since(committed).as_secs_f64() * 1e3
            })
            .collect();
        milliseconds.sort_by(f64::total_cmp);
        [50, 99].map(|percent| milliseconds[milliseconds.len() * percent / 100])
    }

    /// An event whose payload begins with the number.
    fn event(&self, number: usize) -> Record {
        let payload = format!("{number:010}{}", "x".repeat(self.bytes.saturating_sub(10)));
        Record::new("order", (number % crate::rows::AGGREGATES).to_string(), "OrderPlaced")
            .with_payload(payload)
    }
}

/// A consumer of all that comes to the topic from now on.
fn consumer(kafka: &Kafka, topic: &str) -> BaseConsumer {
    let consumer: BaseConsumer =
        kafka.client().set("group.id", "bench").set("enable.auto.commit", "false").create().unwrap();
    let mut partitions = TopicPartitionList::new();
    for partition in 0..PARTITIONS {
        let (_, end) = consumer.fetch_watermarks(topic, partition, Duration::from_secs(10)).unwrap();
        partitions.add_partition_offset(topic, partition, Offset::Offset(end)).unwrap();
    }
    consumer.assign(&partitions).unwrap();
    consumer
}
