//! Records that Kafka never takes become dead letters, and do not stop the others. Requeued ones are sent, in their order if the later
//! events of their aggregate wait.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use diesel::prelude::*;
use diesel_outbox::{Emit, Record};
use diesel_outbox_relay::operate::{DeadLetter, Requeue};
use diesel_outbox_relay::{DeadLetterPolicy, Kafka as Broker, Relay, TopicNaming};
use outbox_tests::load::{repetitions, write};
use outbox_tests::{Kafka, ReadRecord, Tables, eventually, on_postgres_and_mariadb};

const PATIENCE: Duration = Duration::from_secs(60);

on_postgres_and_mariadb!(
    a_record_that_kafka_never_takes_becomes_a_dead_letter_and_the_rest_flows,
    a_blocked_aggregate_is_sent_in_order_once_it_is_requeued,
    a_blocked_aggregate_holds_back_records_that_were_read_already,
    dead_letters_that_are_requeued_again_and_again_under_load_are_all_sent_and_keep_nobody_waiting,
);

/// A relay whose topics all begin with this test's prefix.
fn relay(tables: &impl Tables, prefix: &str) -> Relay {
    let topics: TopicNaming = format!("{prefix}.{{aggregatetype}}").parse().unwrap();
    tables.relay().broker(Broker::new(Kafka::shared().brokers())).topic_naming(topics)
}

/// Topics with this prefix, of which the relay may write to these only.
fn allowing(prefix: &str, names: &[&str]) -> TopicNaming {
    let pattern = format!("{prefix}.{{aggregatetype}}");
    pattern.parse::<TopicNaming>().unwrap().allow(names.iter().map(|name| format!("{prefix}.{name}")))
}

fn record(aggregate: impl ToString, event_type: impl ToString) -> Record {
    Record::new("order", aggregate.to_string(), event_type.to_string()).with_payload(*b"{}")
}

fn emit(tables: &impl Tables, record: &Record) {
    tables.connect().transaction(|c| c.emit(record)).unwrap();
}

fn event_types(received: &[ReadRecord]) -> Vec<&str> {
    received.iter().map(|received| received.header("eventType").unwrap()).collect()
}

/// The event types in the order of their first arrival. If Kafka refuses a batch, other records of it may be sent again.
fn first_event_types(received: &[ReadRecord]) -> Vec<&str> {
    let mut names = event_types(received);
    let mut seen = BTreeSet::new();
    names.retain(|name| seen.insert(*name));
    names
}

fn wait_for_dead_letters(tables: &impl Tables, count: usize) -> Vec<DeadLetter> {
    eventually(&format!("{count} dead letters"), PATIENCE, || {
        Some(tables.operate().dead_letters(99).unwrap()).filter(|dead_letters| dead_letters.len() == count)
    })
}

fn a_record_that_kafka_never_takes_becomes_a_dead_letter_and_the_rest_flows(tables: &impl Tables) {
    let prefix = Kafka::shared().unique("dead");
    let broker_limit = format!("{prefix}.small");
    Kafka::shared().create_topic_with(&broker_limit, 1, &[("max.message.bytes", "1000")]);
    let relay = relay(tables, &prefix).topic_naming(allowing(&prefix, &["order", "small"])).spawn().unwrap();
    // Random bytes, so that compression cannot make it fit.
    let large: Vec<u8> = (0..2_000_000_u64).map(|n| (n.wrapping_mul(n) >> 7) as u8).collect();
    let of = |aggregate_type: &str, event_type: &str| {
        Record::new(aggregate_type, "1", event_type).with_payload(*b"{}")
    };
    let records = [
        of("order", "Before"),
        of("order", "TooLargeForTheProducer").with_payload(large.clone()),
        of("order", "After"),
        of("small", "Fits"),
        of("small", "TooLargeForTheTopic").with_payload(&large[..5_000]),
        of("small", "FitsToo"),
        of("invoice", "NotAllowed"),
        of("no topic name", "BadName"),
        of("order", "Last"),
    ];
    tables.connect().transaction(|c| c.emit_all(records)).unwrap();
    eventually("everything to be settled", PATIENCE, || (tables.unsent() == 0).then_some(()));
    let received = Kafka::shared().read_all(&format!("{prefix}.order"));
    assert_eq!(first_event_types(&received), ["Before", "After", "Last"]);
    let received = Kafka::shared().read_all(&broker_limit);
    assert_eq!(first_event_types(&received), ["Fits", "FitsToo"]);
    let reasons: BTreeMap<String, String> = wait_for_dead_letters(tables, 4)
        .into_iter()
        .map(|letter| (letter.event_type, letter.reason))
        .collect();
    for (event_type, reason) in [
        ("TooLargeForTheProducer", "message.max.bytes"),
        ("TooLargeForTheTopic", "max.message.bytes"),
        ("NotAllowed", "is not in the relay's allow-list"),
        ("BadName", "is not a name for a topic"),
    ] {
        assert!(reasons[event_type].contains(reason), "{event_type}: {}", reasons[event_type]);
    }
    relay.stop_blocking().unwrap();
}

fn a_blocked_aggregate_is_sent_in_order_once_it_is_requeued(tables: &impl Tables) {
    let prefix = Kafka::shared().unique("blocked");
    let blocking = |allowed: &str| {
        relay(tables, &prefix)
            .topic_naming(allowing(&prefix, &[allowed]))
            .dead_letter_policy(DeadLetterPolicy::Block)
            .spawn()
            .unwrap()
    };
    let first = blocking("other");
    emit(tables, &record(1, "1"));
    wait_for_dead_letters(tables, 1);
    first.stop_blocking().unwrap();
    // The topic is allowed by now, but the aggregate stays blocked.
    let second = blocking("order");
    emit(tables, &record(1, "2"));
    emit(tables, &record(2, "other aggregate"));
    let topic = format!("{prefix}.order");
    assert_eq!(event_types(&Kafka::shared().read_at_least(&topic, 1, PATIENCE)), ["other aggregate"]);
    wait_for_dead_letters(tables, 2);
    assert_eq!(tables.operate().requeue(&Requeue::All).unwrap(), 2);
    emit(tables, &record(1, "3"));
    let received = Kafka::shared().read_at_least(&topic, 4, PATIENCE);
    let of_first: Vec<ReadRecord> = received.into_iter().filter(|r| r.key_text() == Some("1")).collect();
    assert_eq!(event_types(&of_first), ["1", "2", "3"]);
    second.stop_blocking().unwrap();
}

/// Records that were read together with the one that blocks their aggregate are held back too.
fn a_blocked_aggregate_holds_back_records_that_were_read_already(tables: &impl Tables) {
    let prefix = Kafka::shared().unique("batch");
    let relay = relay(tables, &prefix).dead_letter_policy(DeadLetterPolicy::Block).spawn().unwrap();
    let large = record(1, "TooLarge").with_payload(vec![b'x'; 2_000_000]);
    let records = [record(1, "Before"), large, record(1, "After"), record(2, "Other")];
    tables.connect().transaction(|c| c.emit_all(records)).unwrap();
    let received = Kafka::shared().read_at_least(&format!("{prefix}.order"), 2, PATIENCE);
    let mut names = event_types(&received);
    names.sort_unstable();
    assert_eq!(names, ["Before", "Other"]);
    assert_eq!(wait_for_dead_letters(tables, 2)[1].event_type, "After");
    relay.stop_blocking().unwrap();
}

/// At first the relay may not write to the topic of some events, so that they become dead letters again each time.
fn dead_letters_that_are_requeued_again_and_again_under_load_are_all_sent_and_keep_nobody_waiting(
    tables: &impl Tables,
) {
    const REFUSED: usize = 40;
    const ROUNDS: usize = 5;
    let prefix = Kafka::shared().unique("requeued");
    let start =
        |names: &[&str]| relay(tables, &prefix).topic_naming(allowing(&prefix, names)).spawn().unwrap();
    let relay = start(&["order"]);
    let refused = (0..REFUSED).map(|n| Record::new("refused", (n % 4).to_string(), n.to_string()));
    tables.connect().transaction(|c| c.emit_all(refused)).unwrap();
    let committed = std::thread::scope(|scope| {
        let writer = scope.spawn(|| write(&mut tables.connect(), 0, 1, 50, 10_000));
        let mut round = 0;
        while round < ROUNDS || !writer.is_finished() {
            wait_for_dead_letters(tables, REFUSED);
            assert_eq!(tables.operate().requeue(&Requeue::All).unwrap(), REFUSED);
            round += 1;
        }
        writer.join().unwrap()
    });
    wait_for_dead_letters(tables, REFUSED);
    eventually("the others to be sent", PATIENCE, || (tables.unsent() == 0).then_some(()));
    relay.stop_blocking().unwrap();
    assert_eq!(repetitions(&Kafka::shared().read_all(&format!("{prefix}.order")), &committed), 0);

    let relay = start(&["order", "refused"]);
    assert_eq!(tables.operate().requeue(&Requeue::All).unwrap(), REFUSED);
    let received = Kafka::shared().read_at_least(&format!("{prefix}.refused"), REFUSED, PATIENCE);
    for aggregate in 0..4 {
        let of: Vec<usize> = received
            .iter()
            .filter(|record| record.key_text() == Some(&aggregate.to_string()))
            .map(|record| record.header("eventType").unwrap().parse().unwrap())
            .collect();
        assert_eq!(of, (aggregate..REFUSED).step_by(4).collect::<Vec<_>>());
    }
    relay.stop_blocking().unwrap();
}
