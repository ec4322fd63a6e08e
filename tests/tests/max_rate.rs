//! A relay with `max_rate` sends no more than that in a second, holds no lock while it waits, and sends everything.

use std::time::{Duration, Instant};

use diesel::prelude::*;
use diesel_outbox::{Emit, Record};
use diesel_outbox_relay::{Kafka as Broker, RelayError};
use outbox_tests::{Kafka, Tables, eventually, on_postgres_and_mariadb};

const PATIENCE: Duration = Duration::from_secs(60);
const RATE: u32 = 400;
const EVENTS: usize = 1_000;

on_postgres_and_mariadb!(a_backlog_is_sent_at_the_rate_and_no_lock_is_held_meanwhile);

fn a_backlog_is_sent_at_the_rate_and_no_lock_is_held_meanwhile(tables: &impl Tables) {
    let topic = Kafka::shared().unique("max-rate");
    Kafka::shared().create_topic(&topic, 3);
    let records = (0..EVENTS).map(|number| Record::new("order", (number % 50).to_string(), "Placed"));
    tables.connect().transaction(|c| c.emit_all(records)).unwrap();
    let counter = Kafka::shared().counter(&topic);
    let relay = tables.relay().broker(Broker::new(Kafka::shared().brokers()));
    let relay = relay.topic_naming(topic.parse().unwrap()).workers(2).max_rate(RATE).spawn().unwrap();
    eventually("the first events", PATIENCE, || (counter.count() > 0).then_some(()));
    let (began, first) = (Instant::now(), counter.count());
    // What is free is free of a pass, and what is sent is settled.
    let (mut looks, mut free, mut behind) = (0, 0, 0);
    eventually("all events", PATIENCE, || {
        let sent = counter.count();
        let most = first + (f64::from(RATE) * (began.elapsed().as_secs_f64() + 0.3)) as usize;
        assert!(sent <= most, "{sent} were sent, and {most} may be");
        looks += 1;
        free += usize::from(tables.free_shards().len() == 16);
        behind += usize::from(sent > tables.sent_ids().len() + RATE as usize / 4);
        (sent >= EVENTS).then_some(())
    });
    let took = began.elapsed();
    // The rate is reached, too, but for a machine that is busy.
    let least = (EVENTS - first) as f64 / f64::from(RATE) - 0.3;
    assert!(took.as_secs_f64() >= least, "{took:?} for {} events", EVENTS - first);
    assert!(free * 2 > looks, "the shards were free at {free} of {looks} looks");
    assert!(behind * 4 < looks, "{behind} of {looks} looks found many that were sent and not settled");
    eventually("all to be settled", PATIENCE, || (tables.unsent() == 0).then_some(()));
    relay.stop_blocking().unwrap();
    assert_eq!(Kafka::shared().read_all(&topic).len(), EVENTS);
}

#[test]
fn a_rate_of_nothing_is_refused() {
    let relay = outbox_tests::load::migrated().relay().broker(Broker::new("127.0.0.1:1")).max_rate(0);
    assert!(matches!(relay.spawn(), Err(RelayError::Setting { setting: "max_rate", .. })));
}
