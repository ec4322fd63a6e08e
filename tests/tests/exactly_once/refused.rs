use diesel_outbox::{Emit, Record};
use diesel_outbox_relay::{Kafka as Broker, Relay, RelayError};
use outbox_tests::{Kafka, Tables, eventually};

use super::PATIENCE;

pub(super) fn a_record_that_kafka_refuses_becomes_a_dead_letter_and_the_others_arrive_once(
    tables: &impl Tables,
) {
    use diesel::Connection;
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
    let relay = tables
        .relay()
        .broker(broker)
        .topic_naming(topic.parse().unwrap())
        .exactly_once(true)
        .spawn()
        .unwrap();
    eventually("everything to be settled", PATIENCE, || (tables.unsent() == 0).then_some(()));
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
