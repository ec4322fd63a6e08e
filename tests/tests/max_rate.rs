//! A relay with `max_rate` sends no more than that in a second, holds no lock while it waits, and sends everything.

use std::time::{Duration, Instant};

use diesel::prelude::*;
use diesel_outbox::{Emit, Record};
use diesel_outbox_relay::{Kafka as Broker, RelayError};
use outbox_tests::load::{migrated, new_topic, relay, stop, wal};
use outbox_tests::{Counter, Kafka, Tables, eventually, on_postgres_and_mariadb};

const PATIENCE: Duration = Duration::from_secs(60);
const RATE: u32 = 400;
const EVENTS: usize = 1_000;

fn emit(conn: &mut impl Emit) {
    let records = (0..EVENTS).map(|number| Record::new("order", (number % 50).to_string(), "Placed"));
    conn.transaction(|c| c.emit_all(records)).unwrap();
}

/// Watches a topic until it has all events. `look` is called again and again with how many it has.
fn is_filled_at_the_rate(counter: &Counter, mut look: impl FnMut(usize)) {
    eventually("the first events", PATIENCE, || (counter.count() > 0).then_some(()));
    let (began, first) = (Instant::now(), counter.count());
    eventually("all events", PATIENCE, || {
        let sent = counter.count();
        let most = first + (f64::from(RATE) * (began.elapsed().as_secs_f64() + 0.3)) as usize;
        assert!(sent <= most, "{sent} were sent, and {most} may be");
        look(sent);
        (sent >= EVENTS).then_some(())
    });
    let took = began.elapsed().as_secs_f64();
    let least = (EVENTS - first) as f64 / f64::from(RATE) - 0.3;
    assert!(took >= least, "{took} s for {} events", EVENTS - first);
}

on_postgres_and_mariadb!(a_backlog_is_sent_at_the_rate_and_no_lock_is_held_meanwhile);

fn a_backlog_is_sent_at_the_rate_and_no_lock_is_held_meanwhile(tables: &impl Tables) {
    let topic = new_topic("max-rate");
    emit(&mut tables.connect());
    let counter = Kafka::shared().counter(&topic);
    let relay = tables.relay().broker(Broker::new(Kafka::shared().brokers()));
    let relay = relay.topic_naming(topic.parse().unwrap()).workers(2).max_rate(RATE).spawn().unwrap();
    // A shard that is free is in no pass, and what was sent is settled.
    let (mut looks, mut free, mut behind) = (0, 0, 0);
    is_filled_at_the_rate(&counter, |sent| {
        looks += 1;
        free += usize::from(tables.free_shards().len() == 16);
        behind += usize::from(sent > tables.sent_ids().len() + RATE as usize / 4);
    });
    assert!(free * 2 > looks, "the shards were free at {free} of {looks} looks");
    assert!(behind * 4 < looks, "{behind} of {looks} looks found many that were sent and not settled");
    eventually("all to be settled", PATIENCE, || (tables.unsent() == 0).then_some(()));
    relay.stop_blocking().unwrap();
    assert_eq!(Kafka::shared().read_all(&topic).len(), EVENTS);
}

#[test]
fn the_binary_reads_the_wal_at_the_rate() {
    let database = migrated();
    let topic = new_topic("max-rate");
    wal(&database, "setup");
    emit(&mut database.connect());
    let counter = Kafka::shared().counter(&topic);
    let rate = RATE.to_string();
    let relay =
        relay(&database, &topic, &["--source", "wal", "--slot", database.name(), "--max-rate", &rate]);
    is_filled_at_the_rate(&counter, |_| {});
    stop(&relay);
    assert_eq!(Kafka::shared().read_all(&topic).len(), EVENTS);
}

#[test]
fn a_rate_of_nothing_is_refused() {
    let relay = migrated().relay().broker(Broker::new("127.0.0.1:1")).max_rate(0);
    assert!(matches!(relay.spawn(), Err(RelayError::Setting { setting: "max_rate", .. })));
}
