//! Batches that the consumer's client cannot read. The consumer skips none, and an error names each.

use outbox_tests::{Kafka, Packing, Postgres, eventually, logged, start_logging};
use rdkafka::mocking::MockCluster;

use super::bench::{Bench, PATIENCE, Sent, insert_effect, raw};

#[test]
fn records_that_are_compressed_with_zstd_are_handled() {
    let bench = Bench::new(1);
    let records = ["one", "two"].map(|body| raw(&Sent::new(body)));
    bench.kafka.produce_packed(&bench.topic, 0, &records, Packing::Zstd);
    bench.send([(0, &Sent::new("three"))]);
    let consumer = bench.consumer().on("Counted", insert_effect).spawn().unwrap();
    bench.wait_for_effects(3);
    consumer.stop_blocking().unwrap();
    assert_eq!(bench.bodies(), ["one", "two", "three"]);
}

#[test]
fn a_batch_that_cannot_be_read_holds_up_its_partition_and_is_named_while_others_flow() {
    start_logging();
    let cluster = MockCluster::new(1).unwrap();
    let kafka = Kafka::at(&cluster.bootstrap_servers());
    let topic = kafka.unique("unreadable");
    cluster.create_topic(&topic, 3, 1).unwrap();
    let bench = Bench::of(&kafka, Postgres::shared(), topic, 3);
    for (partition, packing) in [(0, Packing::Unknown), (1, Packing::Broken), (2, Packing::Plain)] {
        kafka.produce_raw(&bench.topic, partition, &[raw(&Sent::new("before"))]);
        kafka.produce_packed(&bench.topic, partition, &[raw(&Sent::new("unreadable?"))], packing);
        kafka.produce_raw(&bench.topic, partition, &[raw(&Sent::new("after"))]);
    }
    let consumer = bench.consumer().set("statistics.interval.ms", "500");
    let consumer = consumer.on("Counted", insert_effect).spawn().unwrap();
    for partition in [0, 1] {
        let place = format!("topic=\"{}\" partition={partition} offset=1", bench.topic);
        let named = eventually("the batch to be named", PATIENCE, || logged(&[&place]));
        assert!(named.contains("ERROR") && named.contains("feature `zstd`"), "{named}");
        assert!(named.contains("--reset-offsets") && named.contains("NotImplemented"), "{named}");
    }
    let other = format!("topic=\"{}\" partition=2 offset", bench.topic);
    assert_eq!(logged(&[&other]), None, "a partition that flows is named");
    bench.wait_for_effects(5);
    assert!(!consumer.is_finished());
    consumer.stop_blocking().unwrap();
    assert_eq!(bench.bodies().len(), 5, "what lies behind was handled");
    assert_eq!(bench.committed(), [1, 1, 3]);
}
