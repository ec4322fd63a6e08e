use std::time::{Duration, Instant};

use clap::Args;
use diesel::connection::SimpleConnection;
use diesel::prelude::*;
use diesel_outbox::{Emit, Migrations, Record};
use diesel_outbox_relay::{Kafka as Broker, Limits, Relay, Topics};
use outbox_tests::{Database, Kafka, Postgres};
use rdkafka::ClientConfig;
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, DefaultProducerContext, Producer};

use crate::report::Series;

const AGGREGATES: usize = 1_000;
const PARTITIONS: i32 = 6;

#[derive(Args)]
pub(crate) struct Drain {
    /// How many rows wait in the outbox at the beginning of each round.
    #[arg(long, default_value_t = 400_000)]
    rows: usize,
    /// Bytes of payload in each.
    #[arg(long, default_value_t = 200)]
    bytes: usize,
    /// How often each contender runs; they take turns.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Workers of the relay.
    #[arg(long, default_value_t = 1)]
    workers: usize,
    /// PostgreSQL's major version.
    #[arg(long, default_value_t = 15)]
    postgres: u32,
    /// How long the relay goes on before it commits, in milliseconds.
    #[arg(long, default_value_t = 500)]
    pass_ms: u64,
}

impl Drain {
    pub(crate) fn run(&self) {
        let postgres =
            Postgres::start_with(self.postgres, &[("shared_buffers", "1GB"), ("max_wal_size", "8GB")]);
        let kafka = Kafka::start();
        let database = postgres.database();
        let records = self.records();
        self.fill_template(&database, &records);
        let mut series =
            [Series::new("bare producer"), Series::new("relay, sent_at kept"), Series::new("relay, delete")];
        // The first round warms up caches and the broker, and is not counted.
        for round in 0..=self.rounds {
            let speeds = [
                self.speed(|| self.produce(&kafka, &records)),
                self.relay(&database, &kafka, |relay| relay),
                self.relay(&database, &kafka, Relay::delete_sent),
            ];
            println!(
                "{} {:>9.0} {:>9.0} {:>9.0} events/s",
                if round == 0 { "warm-up ".to_owned() } else { format!("round {round} ") },
                speeds[0],
                speeds[1],
                speeds[2]
            );
            if round > 0 {
                series.iter_mut().zip(speeds).for_each(|(series, speed)| series.values.push(speed));
            }
        }
        println!();
        for (position, contender) in series.iter().enumerate() {
            contender.print("events/s", (position > 0).then(|| &series[0]));
        }
    }

    fn speed(&self, work: impl FnOnce()) -> f64 {
        let began = Instant::now();
        work();
        self.rows as f64 / began.elapsed().as_secs_f64()
    }

    fn records(&self) -> Vec<Record> {
        (0..self.rows)
            .map(|n| {
                Record::new("order", (n % AGGREGATES).to_string(), "OrderPlaced")
                    .with_payload(vec![b'x'; self.bytes])
            })
            .collect()
    }

    /// The rows are made once and copied for each round by the server.
    fn fill_template(&self, database: &Database<'_>, records: &[Record]) {
        let mut conn = database.connect();
        Migrations::new().run(&mut conn).unwrap();
        conn.transaction(|c| {
            c.emit_all(records)?;
            c.batch_execute("CREATE TABLE template AS SELECT * FROM outbox")
        })
        .unwrap();
    }

    fn relay(&self, database: &Database<'_>, kafka: &Kafka, options: impl FnOnce(Relay) -> Relay) -> f64 {
        database
            .connect()
            .batch_execute(
                "TRUNCATE outbox; UPDATE outbox_shard SET low = 0; \
                 INSERT INTO outbox (id, aggregatetype, aggregateid, type, payload, headers, shard) \
                 SELECT id, aggregatetype, aggregateid, type, payload, headers, shard FROM template ORDER BY seq; \
                 ANALYZE outbox; CHECKPOINT",
            )
            .unwrap();
        let topic = new_topic(kafka);
        let counter = kafka.counter(&topic);
        let mut limits = Limits::default();
        limits.pass_time = Duration::from_millis(self.pass_ms);
        let relay = Relay::postgres(database.url())
            .publisher(Broker::new(kafka.brokers()))
            .topics(Topics::pattern(&topic).unwrap())
            .workers(self.workers)
            .limits(limits);
        let began = Instant::now();
        let handle = options(relay).spawn().unwrap();
        while counter.count() < self.rows {
            std::thread::sleep(Duration::from_millis(10));
        }
        handle.stop_blocking().unwrap();
        self.rows as f64 / began.elapsed().as_secs_f64()
    }

    fn produce(&self, kafka: &Kafka, records: &[Record]) {
        let topic = new_topic(kafka);
        let mut config = ClientConfig::new();
        for (name, value) in [
            ("bootstrap.servers", kafka.brokers()),
            ("enable.idempotence", "true"),
            ("acks", "all"),
            ("partitioner", "murmur2_random"),
            ("linger.ms", "1"),
            ("queue.buffering.max.messages", "100000"),
        ] {
            config.set(name, value);
        }
        let producer: BaseProducer<DefaultProducerContext> = config.create().unwrap();
        for record in records {
            let id = record.id().to_string();
            let headers = OwnedHeaders::new_with_capacity(2)
                .insert(Header { key: "id", value: Some(&id) })
                .insert(Header { key: "eventType", value: Some(record.event_type()) });
            let mut message = BaseRecord::<str, [u8]>::to(&topic).key(record.aggregate_id()).headers(headers);
            message.payload = record.payload();
            while let Err((_, refused)) = producer.send(message) {
                message = refused;
                producer.poll(Duration::from_millis(1));
            }
            producer.poll(Duration::ZERO);
        }
        producer.flush(Duration::from_secs(60)).unwrap();
        assert_eq!(kafka.counter(&topic).count(), self.rows);
    }
}

fn new_topic(kafka: &Kafka) -> String {
    let topic = kafka.unique("drain");
    kafka.create_topic(&topic, PARTITIONS);
    topic
}
