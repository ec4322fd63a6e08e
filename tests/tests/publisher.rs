//! The publisher by itself: every record that it reports as durable is on Kafka, whatever a broker refuses.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use diesel::prelude::*;
use diesel::sql_types::Text;
use diesel_outbox::{Emit, Migrations, Record};
use diesel_outbox_core::{Acknowledgement, Broker as _, Outcome, Publisher, Refusal};
use diesel_outbox_kafka::Kafka as Broker;
use diesel_outbox_relay::Relay;
use diesel_outbox_relay::source::wal::{WalOptions, setup};
use outbox_tests::load::migrated;
use outbox_tests::{Postgres, eventually};
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::mocking::MockCluster;
use rdkafka::producer::DefaultProducerContext;
use rdkafka::types::{RDKafkaApiKey, RDKafkaRespErr};
use rdkafka::{ClientConfig, Message, Offset, TopicPartitionList};

const PATIENCE: Duration = Duration::from_secs(30);
const STALL: Duration = Duration::from_secs(1);
const TOPIC: &str = "outbox.event.order";
/// Two aggregates whose records Java clients put into the first and the second of two partitions.
const STUCK: &str = "0";
const FLOWING: &str = "1";

type Mock = MockCluster<'static, DefaultProducerContext>;

/// A slow cluster of one broker, so that several requests are in flight at once. It accepts any first sequence number, as a
/// broker does for a producer id that it does not know.
fn slow_cluster() -> Mock {
    let cluster = MockCluster::new(1).unwrap();
    cluster.create_topic(TOPIC, 1, 1).unwrap();
    cluster.broker_round_trip_time(1, Duration::from_millis(20)).unwrap();
    cluster
}

fn publisher(cluster: &Mock) -> Box<dyn Publisher> {
    // One request for each record, so that several are in flight.
    Broker::new(cluster.bootstrap_servers()).set("batch.num.messages", "1").publisher().unwrap()
}

fn record(number: u64) -> Record {
    Record::new("order", "1", number.to_string()).with_payload(number.to_string())
}

/// Publishes these records as the pipeline does, and returns the tickets of those that became durable.
fn publish(publisher: &mut dyn Publisher, numbers: std::ops::Range<u64>) -> Vec<u64> {
    let mut durable = Vec::new();
    let mut next = numbers.start;
    eventually("all to be durable", PATIENCE, || {
        while next < numbers.end {
            match publisher.publish(next, TOPIC, &record(next)) {
                Ok(()) => next += 1,
                Err(Refusal::Full | Refusal::Behind { .. }) => break,
                Err(refusal) => panic!("{refusal:?}"),
            }
        }
        let mut acknowledgements = Vec::new();
        publisher.acknowledgements(Duration::from_millis(50), &mut acknowledgements).unwrap();
        for Acknowledgement { ticket, outcome, .. } in acknowledgements {
            assert_eq!(outcome, Outcome::Durable);
            durable.push(ticket);
        }
        (durable.len() as u64 == numbers.end - numbers.start).then_some(())
    });
    durable
}

fn client(cluster: &Mock) -> BaseConsumer {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", cluster.bootstrap_servers()).set("group.id", "outbox-tests");
    config.create().unwrap()
}

/// Returns what the topic's only partition holds.
fn stored(cluster: &Mock) -> Vec<u64> {
    let consumer = client(cluster);
    let (_, end) = consumer.fetch_watermarks(TOPIC, 0, PATIENCE).unwrap();
    let mut assignment = TopicPartitionList::new();
    assignment.add_partition_offset(TOPIC, 0, Offset::Beginning).unwrap();
    consumer.assign(&assignment).unwrap();
    let mut stored = Vec::new();
    while (stored.len() as i64) < end {
        let message = eventually("a record", PATIENCE, || consumer.poll(Duration::from_millis(100))).unwrap();
        stored.push(str::from_utf8(message.payload().unwrap()).unwrap().parse().unwrap());
    }
    stored
}

fn refuse_the_next(cluster: &Mock, error: RDKafkaRespErr) {
    cluster.request_errors(RDKafkaApiKey::Produce, &[error]);
}

#[test]
fn records_that_a_fresh_producer_reports_as_durable_are_stored_although_its_first_request_was_refused() {
    for error in [
        RDKafkaRespErr::RD_KAFKA_RESP_ERR_NOT_ENOUGH_REPLICAS,
        RDKafkaRespErr::RD_KAFKA_RESP_ERR_NOT_LEADER_FOR_PARTITION,
    ] {
        let cluster = slow_cluster();
        refuse_the_next(&cluster, error);
        let durable = publish(&mut *publisher(&cluster), 0..5);
        assert_eq!(stored(&cluster), durable, "{error:?}");
    }
}

#[test]
fn durable_records_are_stored_although_the_first_request_after_a_stall_was_refused() {
    let cluster = slow_cluster();
    let mut publisher = publisher(&cluster);
    publish(&mut *publisher, 0..5);
    publisher.abandon();
    refuse_the_next(&cluster, RDKafkaRespErr::RD_KAFKA_RESP_ERR_NOT_ENOUGH_REPLICAS);
    publish(&mut *publisher, 5..10);
    let stored: BTreeSet<u64> = stored(&cluster).into_iter().collect();
    assert_eq!(stored, (0..10).collect());
}

/// However Kafka refuses a batch because of its size, the publisher sends the records one by one to find the one that is too
/// large.
#[test]
fn a_record_that_is_too_large_for_a_segment_is_rejected() {
    let cluster = MockCluster::new(1).unwrap();
    cluster.create_topic(TOPIC, 1, 1).unwrap();
    let mut publisher = Broker::new(cluster.bootstrap_servers()).publisher().unwrap();
    let mut refused = || {
        refuse_the_next(&cluster, RDKafkaRespErr::RD_KAFKA_RESP_ERR_RECORD_LIST_TOO_LARGE);
        publisher.publish(0, TOPIC, &record(0)).unwrap();
        let acknowledgements = eventually("an outcome", PATIENCE, || {
            let mut acknowledgements = Vec::new();
            publisher.acknowledgements(Duration::from_millis(50), &mut acknowledgements).unwrap();
            (!acknowledgements.is_empty()).then_some(acknowledgements)
        });
        publisher.abandon();
        acknowledgements.into_iter().next().unwrap().outcome
    };
    assert!(matches!(refused(), Outcome::Retry { .. }));
    let Outcome::Rejected { reason } = refused() else { panic!("it is to be sent again for ever") };
    assert!(reason.contains("segment.bytes"), "{reason}");
}

/// For example, the topic is deleted and made again, or a broker does not know it yet.
#[test]
fn a_topic_that_is_missing_for_a_moment_makes_no_dead_letters() {
    let cluster = MockCluster::new(1).unwrap();
    cluster.create_topic(TOPIC, 1, 1).unwrap();
    let broker = Broker::new(cluster.bootstrap_servers())
        .set("topic.metadata.propagation.max.ms", "1")
        .set("topic.metadata.refresh.interval.ms", "50");
    let mut publisher = broker.publisher().unwrap();
    publish(&mut *publisher, 0..1);
    cluster.topic_error(TOPIC, RDKafkaRespErr::RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART).unwrap();
    let mut tickets = 1..;
    let refusal = eventually("a refusal", PATIENCE, || {
        let refusal = publisher.publish(tickets.next()?, TOPIC, &record(0)).err();
        let mut acknowledgements = Vec::new();
        publisher.acknowledgements(Duration::from_millis(10), &mut acknowledgements).unwrap();
        let mut outcomes = acknowledgements.into_iter().map(|acknowledgement| acknowledgement.outcome);
        assert!(!outcomes.any(|outcome| matches!(outcome, Outcome::Rejected { .. })));
        refusal.filter(|refusal| !matches!(refusal, Refusal::Full | Refusal::Behind { .. }))
    });
    assert!(matches!(refusal, Refusal::Retry { .. }), "{refusal:?}");
}

#[test]
fn a_topic_that_was_missing_takes_records_as_soon_as_it_is_there() {
    let cluster = MockCluster::new(1).unwrap();
    cluster.create_topic(TOPIC, 1, 1).unwrap();
    cluster.topic_error(TOPIC, RDKafkaRespErr::RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART).unwrap();
    let mut publisher = Broker::new(cluster.bootstrap_servers()).publisher().unwrap();
    let mut tickets = 0..;
    let mut is_rejected = |publisher: &mut dyn Publisher| {
        let refusal = publisher.publish(tickets.next().unwrap(), TOPIC, &record(0)).err();
        matches!(refusal, Some(Refusal::Rejected { .. }))
    };
    eventually("a dead letter", PATIENCE, || {
        // As a relay does after a pass that got stuck.
        publisher.abandon();
        publisher.ready(Duration::from_secs(1)).unwrap();
        is_rejected(&mut *publisher).then_some(())
    });
    cluster.topic_error(TOPIC, RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR).unwrap();
    let soon = Duration::from_secs(3);
    eventually("no more dead letters", soon, || (!is_rejected(&mut *publisher)).then_some(()));
}

#[test]
fn a_partition_without_a_leader_does_not_stop_the_others() {
    let cluster = MockCluster::new(1).unwrap();
    cluster.create_topic(TOPIC, 2, 1).unwrap();
    cluster.partition_leader(TOPIC, 0, None).unwrap();
    let stuck = |number: i32| Record::new("order", STUCK, number.to_string()).with_payload("{}");
    let flowing = |number: i32| Record::new("order", FLOWING, number.to_string()).with_payload("{}");
    let database = Postgres::shared().database();
    Migrations::new().run(&mut database.connect()).unwrap();
    let records: Vec<Record> = (0..10).map(stuck).chain((0..100).map(flowing)).collect();
    database.connect().transaction(|c| c.emit_all(&records)).unwrap();

    let relay = Relay::postgres(database.url()).broker(Broker::new(cluster.bootstrap_servers())).spawn();
    let unsent = || -> Vec<String> {
        diesel::dsl::sql::<Text>("SELECT DISTINCT aggregateid FROM outbox WHERE sent_at IS NULL")
            .get_results(&mut database.connect())
            .unwrap()
    };
    eventually("the other partition's records to be sent", PATIENCE, || (unsent() == [STUCK]).then_some(()));
    cluster.partition_leader(TOPIC, 0, Some(1)).unwrap();
    eventually("all to be sent", PATIENCE, || unsent().is_empty().then_some(()));
    relay.unwrap().stop_blocking().unwrap();
}

/// A relay gives up pass after pass meanwhile.
#[test]
fn a_partition_without_a_leader_does_not_stop_what_is_emitted_later_for_the_others() {
    let polled = migrated();
    let read = migrated();
    let wal = WalOptions::default().slot(read.name());
    setup(&mut read.connect(), &mut read.connect(), &wal).unwrap();
    let of_wal = Relay::postgres_wal(read.url(), wal);
    for (database, relay) in [(&polled, Relay::postgres(polled.url())), (&read, of_wal)] {
        let cluster = MockCluster::new(1).unwrap();
        cluster.create_topic(TOPIC, 2, 1).unwrap();
        cluster.partition_leader(TOPIC, 0, None).unwrap();
        let emit = |aggregate: &str| {
            let record = Record::new("order", aggregate, "OrderPlaced").with_payload("{}");
            database.connect().transaction(|c| c.emit(&record)).unwrap();
        };
        emit(STUCK);
        let relay =
            relay.broker(Broker::new(cluster.bootstrap_servers())).stall_timeout(STALL).spawn().unwrap();
        let (consumer, began) = (client(&cluster), Instant::now());
        let mut flowed = 0;
        while began.elapsed() < STALL * 5 {
            emit(FLOWING);
            flowed += 1;
            eventually("a record of the other partition", PATIENCE, || {
                (consumer.fetch_watermarks(TOPIC, 1, PATIENCE).unwrap().1 >= flowed).then_some(())
            });
        }
        cluster.partition_leader(TOPIC, 0, Some(1)).unwrap();
        // A client that has seen a partition without a leader may not ask again for long.
        eventually("the record that was stuck", PATIENCE, || {
            let end = client(&cluster).fetch_watermarks(TOPIC, 0, PATIENCE).map_or(0, |(_, end)| end);
            (end >= 1).then_some(())
        });
        relay.stop_blocking().unwrap();
    }
}

#[test]
fn nothing_of_an_abandoned_producer_is_sent_afterwards() {
    let cluster = slow_cluster();
    let broker = Broker::new(cluster.bootstrap_servers()).set("linger.ms", "300");
    let mut publisher = broker.publisher().unwrap();
    publisher.publish(0, TOPIC, &record(0)).unwrap();
    publisher.abandon();
    // If the first record had been sent, it would be before this one.
    assert_eq!(publish(&mut *publisher, 1..2), [1]);
    assert_eq!(stored(&cluster), [1]);
}

#[test]
fn settings_that_would_break_a_guarantee_are_refused_at_the_start() {
    let refusal = |broker: Broker| broker.publisher().err().unwrap().to_string();
    let broker = || Broker::new("localhost:1");
    assert_eq!(
        refusal(broker().set("delivery.timeout.ms", "120000")),
        "the Kafka property `delivery.timeout.ms` is refused: a record that times out in the producer leaves a gap in \
         its aggregate's order: leave it out, and set the relay's `stall_timeout` to how long Kafka may be silent"
    );
    assert!(refusal(broker().set("acks", "1")).contains("`acks` is refused"));
    assert!(refusal(Broker::new(",")).contains("`bootstrap.servers` is refused: `,` has a comma"));
    assert!(broker().set("acks", "-1").set("enable.idempotence", "TRUE").publisher().is_ok());
}
