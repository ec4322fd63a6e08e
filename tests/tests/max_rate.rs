//! A relay with `max_rate` sends no more than that in a second, holds no lock while it waits, and sends everything.

use std::time::{Duration, Instant};

use diesel_outbox::{Emit, Record};
use diesel_outbox_relay::{Kafka as Broker, RelayError};
use outbox_tests::load::{migrated, new_topic, relay, stop, wal};
use outbox_tests::{Counter, Kafka, Tables, eventually, on_postgres_and_mariadb};

const PATIENCE: Duration = Duration::from_secs(60);
const RATE: u32 = 400;
const EVENTS: usize = 1_000;
/// For how many seconds a busy machine may hold back what is counted, so that more comes at once.
const SLACK: f64 = 1.0;

fn emit(conn: &mut impl Emit, events: usize) {
    let records = (0..events).map(|number| Record::new("order", (number % 50).to_string(), "Placed"));
    conn.transaction(|c| c.emit_all(records)).unwrap();
}

/// Watches a topic until it has all events.
fn is_filled_at_the_rate(counter: &Counter) {
    eventually("the first events", PATIENCE, || (counter.count() > 0).then_some(()));
    let (began, first) = (Instant::now(), counter.count());
    eventually("all events", PATIENCE, || {
        let sent = counter.count();
        let most = first + (f64::from(RATE) * (began.elapsed().as_secs_f64() + SLACK)) as usize;
        assert!(sent <= most, "{sent} were sent, and {most} may be");
        (sent >= EVENTS).then_some(())
    });
    let took = began.elapsed().as_secs_f64();
    let least = (EVENTS - first) as f64 / f64::from(RATE) - SLACK;
    assert!(took >= least, "{took} s for {} events", EVENTS - first);
}

on_postgres_and_mariadb!(
    a_backlog_is_sent_at_the_rate_by_all_workers_together,
    a_relay_that_waits_for_its_rate_holds_no_lock_and_has_settled_what_it_has_sent,
);

fn a_backlog_is_sent_at_the_rate_by_all_workers_together(tables: &impl Tables) {
    let topic = new_topic("max-rate");
    emit(&mut tables.connect(), EVENTS);
    let counter = Kafka::shared().counter(&topic);
    let relay = tables.relay().broker(Broker::new(Kafka::shared().brokers()));
    let relay = relay.topic_naming(topic.parse().unwrap()).workers(2).max_rate(RATE).spawn().unwrap();
    is_filled_at_the_rate(&counter);
    eventually("all to be settled", PATIENCE, || (tables.unsent() == 0).then_some(()));
    relay.stop_blocking().unwrap();
    assert_eq!(Kafka::shared().read_all(&topic).len(), EVENTS);
}

/// The relay waits a quarter of a second for each event.
fn a_relay_that_waits_for_its_rate_holds_no_lock_and_has_settled_what_it_has_sent(tables: &impl Tables) {
    const EVENTS: usize = 12;
    let topic = new_topic("max-rate");
    emit(&mut tables.connect(), EVENTS);
    let counter = Kafka::shared().counter(&topic);
    let relay = tables.relay().broker(Broker::new(Kafka::shared().brokers()));
    // A look of this test may hide shards from it.
    let relay = relay.topic_naming(topic.parse().unwrap()).poll_interval(Duration::from_millis(50));
    let relay = relay.max_rate(4).spawn().unwrap();
    eventually("the first event", PATIENCE, || (counter.count() > 0).then_some(()));
    let (mut looks, mut free) = (0, 0);
    eventually("all events", PATIENCE, || {
        let sent = counter.count();
        looks += 1;
        // Whatever pass has sent those has ended.
        if tables.free_shards().len() == 16 {
            free += 1;
            assert!(tables.sent_ids().len() >= sent, "{sent} events were sent, and not all are settled");
        }
        (sent >= EVENTS).then_some(())
    });
    relay.stop_blocking().unwrap();
    assert!(free * 3 > looks, "the shards were free at {free} of {looks} looks");
}

#[test]
fn the_binary_reads_the_wal_at_the_rate() {
    let database = migrated();
    let topic = new_topic("max-rate");
    wal(&database, "setup");
    emit(&mut database.connect(), EVENTS);
    let counter = Kafka::shared().counter(&topic);
    let rate = RATE.to_string();
    let relay =
        relay(&database, &topic, &["--source", "wal", "--slot", database.name(), "--max-rate", &rate]);
    is_filled_at_the_rate(&counter);
    stop(&relay);
    assert_eq!(Kafka::shared().read_all(&topic).len(), EVENTS);
}

#[test]
fn a_rate_of_nothing_is_refused() {
    let relay = migrated().relay().broker(Broker::new("127.0.0.1:1")).max_rate(0);
    assert!(matches!(relay.spawn(), Err(RelayError::Setting { setting: "max_rate", .. })));
}
