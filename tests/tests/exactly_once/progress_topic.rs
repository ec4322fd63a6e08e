use std::time::Duration;

use diesel::Connection;
use diesel_outbox::{Emit, Record};
use diesel_outbox_core::{Broker as _, Lane};
use diesel_outbox_relay::Kafka as Broker;
use futures_executor::block_on;
use outbox_tests::load::{migrated, new_topic};
use outbox_tests::{Kafka, Tables, eventually};
use rdkafka::admin::{AdminClient, AdminOptions, AlterConfig, ResourceSpecifier};
use rdkafka::client::DefaultClientContext;

use super::PATIENCE;

fn setting(topic: &str, name: &str) -> Option<String> {
    let admin: AdminClient<DefaultClientContext> = Kafka::shared().client().create().unwrap();
    let asked = [ResourceSpecifier::Topic(topic)];
    let described = block_on(admin.describe_configs(&asked, &AdminOptions::new())).unwrap();
    described[0].as_ref().ok()?.get(name)?.value.clone()
}

#[test]
fn the_progress_topic_is_made_compacted_and_has_the_ids_of_what_was_sent_last() {
    let (database, topic) = (migrated(), new_topic("progress"));
    let prefix = Kafka::shared().unique("own-prefix");
    let broker = Broker::new(Kafka::shared().brokers()).exactly_once_prefix(&prefix);
    let relay = database.relay().broker(broker).topic_naming(topic.parse().unwrap()).exactly_once(true);
    let relay = relay.spawn().unwrap();
    let record = Record::new("order", "1", "1");
    database.connect().transaction(|c| c.emit(&record)).unwrap();
    eventually("the event to be settled", PATIENCE, || (database.unsent() == 0).then_some(()));
    relay.stop_blocking().unwrap();
    let progress = format!("{prefix}.{}", database.label());
    assert_eq!(setting(&progress, "cleanup.policy").as_deref(), Some("compact"));
    let read = Kafka::shared().read_all(&progress);
    let value = read.last().unwrap().payload.as_deref().unwrap();
    assert!(value.ends_with(record.id().as_bytes()));
}

#[test]
fn nothing_is_sent_while_the_progress_topic_would_forget() {
    let (database, topic) = (migrated(), new_topic("forgetful"));
    let prefix = Kafka::shared().unique("forgetful");
    let progress = format!("{prefix}.{}", database.label());
    Kafka::shared().create_topic_with(&progress, 1, &[("cleanup.policy", "delete")]);
    outbox_tests::start_logging();
    let broker = Broker::new(Kafka::shared().brokers()).exactly_once_prefix(&prefix);
    let relay = database.relay().broker(broker).topic_naming(topic.parse().unwrap()).exactly_once(true);
    let relay = relay.spawn().unwrap();
    database.connect().transaction(|c| c.emit(&Record::new("order", "1", "1"))).unwrap();
    eventually("the relay to say so", PATIENCE, || {
        outbox_tests::logged(&["set `cleanup.policy=compact`", &database.label()])
    });
    assert_eq!(database.unsent(), 1);
    relay.stop_blocking().unwrap();
    assert!(Kafka::shared().read_all(&topic).is_empty());
}

/// It may have been deleted and made anew by a broker, with the broker's own settings.
#[test]
fn the_progress_topic_is_checked_each_time_that_a_relay_takes_over() {
    let prefix = Kafka::shared().unique("changed");
    let broker = Broker::new(Kafka::shared().brokers()).exactly_once_prefix(&prefix);
    let mut publisher = broker.publisher().unwrap();
    // A broker may not know the settings of a topic that was made a moment ago.
    outbox_tests::eventually_ok("the relay to take over", PATIENCE, || {
        publisher.begin(&Lane::new("shop.public"), PATIENCE)
    });
    let topic = format!("{prefix}.shop.public");
    let admin: AdminClient<DefaultClientContext> = Kafka::shared().client().create().unwrap();
    let change = AlterConfig::new(ResourceSpecifier::Topic(&topic)).set("cleanup.policy", "delete");
    block_on(admin.alter_configs(&[change], &AdminOptions::new())).unwrap()[0].as_ref().unwrap();
    publisher.abandon();
    let error = publisher.begin(&Lane::new("shop.public"), PATIENCE).expect_err("that the topic forgets");
    assert!(error.to_string().contains("set `cleanup.policy=compact`"), "{error}");
}

/// As if both were called `shop.public`, on two servers.
#[test]
fn an_outbox_of_the_same_name_elsewhere_is_refused_and_the_first_goes_on() {
    let topic = new_topic("two-origins");
    let broker =
        Broker::new(Kafka::shared().brokers()).exactly_once_prefix(Kafka::shared().unique("origins"));
    let (mut first, mut other) = (broker.publisher().unwrap(), broker.publisher().unwrap());
    let lane = |origin| Lane::new("shop.public").with_origin(Some(origin));
    outbox_tests::eventually_ok("the first to take over", PATIENCE, || {
        first.begin(&lane("server 1"), PATIENCE)
    });
    let mut send = |ticket: u64| {
        let record = Record::new("order", "1", ticket.to_string());
        assert!(first.publish(ticket, &topic, &record).is_ok());
        let mut acknowledgements = Vec::new();
        eventually("the acknowledgement", PATIENCE, || {
            first.acknowledgements(Duration::from_millis(100), &mut acknowledgements).unwrap();
            (!acknowledgements.is_empty()).then_some(())
        });
        first.commit(PATIENCE).unwrap();
        assert_eq!(first.begin(&lane("server 1"), PATIENCE).unwrap(), None);
        record.id()
    };
    send(1);
    let error = other.begin(&lane("server 2"), PATIENCE).expect_err("that it is another outbox").to_string();
    assert!(error.contains("of `server 1`") && error.contains("`server 2`"), "{error}");
    assert!(error.contains("exactly_once_prefix"), "{error}");
    let last = send(2);
    // It is the same one after a restart, and for a source that does not know its origin.
    assert_eq!(other.begin(&Lane::new("shop.public"), PATIENCE).unwrap(), Some(vec![last]));
    drop(other);
    let mut next = broker.publisher().unwrap();
    assert_eq!(next.begin(&lane("server 1"), PATIENCE).unwrap(), Some(vec![last]));
}
