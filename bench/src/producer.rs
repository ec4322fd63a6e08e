//! The bare producer: what Kafka can take from this machine, sent from memory with the relay's guarantees.

use std::time::{Duration, Instant};

use diesel_outbox::Record;
use outbox_tests::Kafka;
use rdkafka::ClientConfig;
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, DefaultProducerContext, Producer, ProducerContext};

use crate::servers::PATIENCE;
use crate::topics::new_topic;

/// Sends the records as the relay would, and returns the events per second until the last is durable.
pub(crate) fn produce(kafka: &Kafka, records: &[Record]) -> f64 {
    let topic = new_topic(kafka);
    let speed = produce_to(kafka, records.iter().map(|record| (&*topic, record)));
    assert_eq!(kafka.counter(&topic).count(), records.len());
    speed
}

/// Sends each record to its topic, and returns the events per second until the last is durable.
pub(crate) fn produce_to<'r>(
    kafka: &Kafka,
    records: impl ExactSizeIterator<Item = (&'r str, &'r Record)>,
) -> f64 {
    let (count, began) = (records.len(), Instant::now());
    let producer = bare_producer(kafka.brokers(), DefaultProducerContext, IN_FLIGHT);
    for (topic, record) in records {
        send(&producer, topic, record);
    }
    producer.flush(PATIENCE).unwrap();
    count as f64 / began.elapsed().as_secs_f64()
}

/// Does the same in transactions of so many records, one after the other, and returns the events per second until the last is committed.
pub(crate) fn produce_in_transactions(kafka: &Kafka, records: &[Record], size: usize) -> f64 {
    let topic = new_topic(kafka);
    let began = Instant::now();
    let mut config = config(kafka.brokers(), IN_FLIGHT);
    // librdkafka refuses its being 0 in a transaction.
    config.remove("message.timeout.ms");
    let producer: BaseProducer = config.set("transactional.id", &topic).create().unwrap();
    let patience = Duration::from_secs(60);
    producer.init_transactions(patience).unwrap();
    for records in records.chunks(size) {
        producer.begin_transaction().unwrap();
        for record in records {
            send(&producer, &topic, record);
        }
        producer.commit_transaction(patience).unwrap();
    }
    let seconds = began.elapsed().as_secs_f64();
    // The markers that end a transaction have offsets of their own.
    assert!(kafka.counter(&topic).count() >= records.len());
    records.len() as f64 / seconds
}

/// Sends a record as the relay would, but for its timestamp.
pub(crate) fn send<C: ProducerContext<DeliveryOpaque = ()>>(
    producer: &BaseProducer<C>,
    topic: &str,
    record: &Record,
) {
    let id = record.id().to_string();
    let headers = OwnedHeaders::new_with_capacity(2)
        .insert(Header { key: "id", value: Some(&id) })
        .insert(Header { key: "eventType", value: Some(record.event_type()) });
    let mut message = BaseRecord::<str, [u8]>::to(topic).key(record.aggregate_id()).headers(headers);
    message.payload = record.payload();
    while let Err((_, refused)) = producer.send(message) {
        message = refused;
        producer.poll(Duration::from_millis(1));
    }
    producer.poll(Duration::ZERO);
}

/// How many records the relay's producer holds.
pub(crate) const IN_FLIGHT: usize = 100_000;

/// Returns a producer with the relay's settings, which holds up to so many records.
pub(crate) fn bare_producer<C: ProducerContext>(
    brokers: &str,
    context: C,
    max_in_flight: usize,
) -> BaseProducer<C> {
    config(brokers, max_in_flight).create_with_context(context).unwrap()
}

fn config(brokers: &str, max_in_flight: usize) -> ClientConfig {
    let mut config = ClientConfig::new();
    for (name, value) in [
        ("bootstrap.servers", brokers),
        ("enable.idempotence", "true"),
        ("acks", "all"),
        ("enable.gapless.guarantee", "true"),
        ("partitioner", "murmur2_random"),
        ("message.timeout.ms", "0"),
        ("linger.ms", "0"),
        ("queue.buffering.max.messages", &max_in_flight.to_string()),
        ("queue.buffering.max.kbytes", "65536"),
    ] {
        config.set(name, value);
    }
    config
}
