use diesel_outbox::{Emit, Record};
use diesel_outbox_core::{Broker as _, DeadLetterPolicy, Lane, Refusal};
use diesel_outbox_relay::{Kafka as Broker, Relay, RelayError};
use outbox_tests::{Kafka, Tables};

use super::outbox::Outbox;

pub(super) fn a_record_that_kafka_refuses_becomes_a_dead_letter_and_the_others_arrive_once(
    outbox: &impl Outbox,
) {
    use diesel::Connection;
    let tables = outbox.tables();
    let topic = Kafka::shared().unique("refused");
    Kafka::shared().create_topic_with(&topic, 3, &[("max.message.bytes", "20000")]);
    let records: Vec<Record> = (0..300)
        .map(|number| {
            let size = if number == 70 || number == 200 { 50_000 } else { 100 };
            Record::new("order", (number % 10).to_string(), number.to_string()).with_payload(vec![b'x'; size])
        })
        .collect();
    tables.connect().transaction(|c| c.emit_all(&records)).unwrap();
    let broker = Broker::new(Kafka::shared().brokers());
    let relay = outbox
        .relay()
        .broker(broker)
        .topic_naming(topic.parse().unwrap())
        .exactly_once(true)
        .spawn()
        .unwrap();
    outbox.wait_until_settled();
    relay.stop_blocking().unwrap();
    assert_eq!(tables.count("outbox_dead_letter"), 2);
    let received = Kafka::shared().read_all(&topic);
    for aggregate in 0..10 {
        let of_it = |number: &usize| number % 10 == aggregate && *number != 70 && *number != 200;
        let expected: Vec<String> = (0..300).filter(of_it).map(|number| number.to_string()).collect();
        let aggregate = aggregate.to_string();
        let arrived: Vec<&str> = received
            .iter()
            .filter(|received| received.key_text() == Some(&aggregate))
            .map(|received| received.header("eventType").unwrap())
            .collect();
        assert_eq!(arrived, expected, "{aggregate}");
    }
}

pub(super) fn an_aggregate_is_blocked_by_its_dead_letter_and_the_others_arrive_once(outbox: &impl Outbox) {
    use diesel::Connection;
    let topic = Kafka::shared().unique("blocked");
    Kafka::shared().create_topic_with(&topic, 3, &[("max.message.bytes", "20000")]);
    let records: Vec<Record> = (0..100)
        .map(|number| {
            let size = if number == 43 { 50_000 } else { 100 };
            Record::new("order", (number % 10).to_string(), number.to_string()).with_payload(vec![b'x'; size])
        })
        .collect();
    outbox.tables().connect().transaction(|c| c.emit_all(&records)).unwrap();
    let relay = outbox
        .relay()
        .broker(Broker::new(Kafka::shared().brokers()))
        .topic_naming(topic.parse().unwrap())
        .dead_letter_policy(DeadLetterPolicy::Block)
        .exactly_once(true)
        .spawn()
        .unwrap();
    outbox.wait_until_settled();
    relay.stop_blocking().unwrap();
    assert_eq!(outbox.tables().count("outbox_dead_letter"), 6);
    let mut received: Vec<usize> = Kafka::shared()
        .read_all(&topic)
        .iter()
        .map(|received| received.header("eventType").unwrap().parse().unwrap())
        .collect();
    received.sort_unstable();
    let expected: Vec<usize> = (0..100).filter(|number| number % 10 != 3 || *number < 43).collect();
    assert_eq!(received, expected);
}

#[test]
fn a_relay_that_cannot_send_exactly_once_does_not_start() {
    let refusal = |relay: Relay| {
        relay
            .broker(Broker::new("localhost:1"))
            .exactly_once(true)
            .spawn()
            .expect_err("a refusal")
            .to_string()
    };
    let several = refusal(Relay::postgres("postgres://localhost:1/x").schemas(["a", "b"]));
    assert!(several.contains("several outboxes"), "{several}");
    let workers = refusal(Relay::postgres("postgres://localhost:1/x").workers(2));
    assert!(workers.contains("1 if records are sent exactly once"), "{workers}");
    let sqlite = refusal(Relay::sqlite("x.db"));
    assert!(sqlite.contains("SQLite"), "{sqlite}");
    let pass = refusal(
        Relay::postgres("postgres://localhost:1/x").max_pass_duration(std::time::Duration::from_secs(11)),
    );
    assert!(pass.contains("max_pass_duration"), "{pass}");
    let prefix = Relay::postgres("postgres://localhost:1/x")
        .broker(Broker::new("localhost:1").exactly_once_prefix("a b"))
        .exactly_once(true)
        .spawn();
    assert!(matches!(prefix, Err(RelayError::Broker(_))));
}

/// The other relay may have sent the record: what Kafka takes may have changed in the meantime.
#[test]
fn a_refusal_counts_only_if_no_other_relay_has_taken_over() {
    let prefix = Kafka::shared().unique("refusal");
    let broker = Broker::new(Kafka::shared().brokers()).exactly_once_prefix(prefix);
    let wait = std::time::Duration::from_secs(20);
    let too_large = Record::new("order", "1", "1").with_payload(vec![0; 2_000_000]);
    let (mut first, mut next) = (broker.publisher().unwrap(), broker.publisher().unwrap());
    // A broker may not know the settings of a topic that was made a moment ago.
    outbox_tests::eventually_ok("the first to take over", wait, || {
        first.begin(&Lane::new("shop.public"), wait)
    });
    assert!(matches!(first.publish(1, "refusal", &too_large), Err(Refusal::Rejected { .. })));
    first.commit(wait).unwrap();
    assert!(matches!(first.publish(2, "refusal", &too_large), Err(Refusal::Rejected { .. })));
    next.begin(&Lane::new("shop.public"), wait).unwrap();
    first.commit(wait).expect_err("that another one has taken over");
}
