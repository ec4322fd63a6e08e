//! The broker stops, hangs and refuses, and its topic changes.

use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_executor::block_on;
use outbox_tests::eventually;
use rdkafka::admin::{AdminClient, AdminOptions, NewPartitions};
use rdkafka::client::DefaultClientContext;

use super::{EACH, Fault, NOTHING_LOST, POLLED, Part};
use crate::ledger::AGGREGATES;
use crate::scene::{PATIENCE, Scene, last};

const fn fault(name: &'static str, promise: &'static str, act: fn(&Scene<'_>)) -> Fault {
    Fault { name, part: Part::Broker, promise, on: EACH, is_short: true, act }
}

pub(super) const FAULTS: &[Fault] = &[
    fault("broker killed", NOTHING_LOST, |scene| away(scene, true)),
    fault("broker stopped", NOTHING_LOST, |scene| away(scene, false)),
    fault("broker hangs for 5 s", NOTHING_LOST, hangs),
    Fault {
        on: POLLED,
        ..fault("topic deleted and made again", "what was not acknowledged arrives, in order", deleted)
    },
    fault("partitions added", "nothing lost, in order in each partition, nothing repeated", partitions),
    fault("poison payloads", "they become dead letters; all others arrive, in order, not repeated", poison),
];

fn away(scene: &Scene<'_>, killed: bool) {
    scene.interrupted(2);
    if killed {
        scene.kafka().crash();
    } else {
        scene.kafka().stop();
    }
    last(Duration::from_millis(500));
    scene.kafka().restart();
}

fn hangs(scene: &Scene<'_>) {
    scene.interrupted(2);
    scene.kafka().pause();
    last(Duration::from_secs(5));
    scene.kafka().resume();
}

fn admin(scene: &Scene<'_>) -> AdminClient<DefaultClientContext> {
    scene.kafka().client().create().expect("an admin client")
}

fn options() -> AdminOptions {
    AdminOptions::new().operation_timeout(Some(PATIENCE))
}

/// What Kafka had acknowledged goes with the topic. So nothing is written before, until all is settled and known to be gone.
fn deleted(scene: &Scene<'_>) {
    scene.interrupted(2);
    let deleted = block_on(admin(scene).delete_topics(&[&scene.topic], &options())).expect("ask Kafka");
    deleted[0].as_ref().unwrap_or_else(|(_, error)| panic!("the topic was not deleted: {error}"));
    eventually("the topic to be gone", PATIENCE, || (scene.count() == 0).then_some(()));
    // Two passes later nothing is in flight that was sent to the old one.
    last(Duration::from_secs(5));
    let sent = "SELECT CAST(id AS char(36)) FROM outbox WHERE sent_at IS NOT NULL";
    scene.gone.lock().unwrap().extend(scene.site.texts(sent));
    scene.kafka().create_topic(&scene.topic, 6);
}

fn partitions(scene: &Scene<'_>) {
    scene.has_new_partitions.store(true, Ordering::Relaxed);
    let more = NewPartitions::new(&scene.topic, 9);
    let made = block_on(admin(scene).create_partitions(&[more], &options())).expect("ask Kafka");
    made[0].as_ref().unwrap_or_else(|(_, error)| panic!("no partitions were made: {error}"));
    last(Duration::from_secs(1));
}

/// More than a broker takes by default.
const TOO_LARGE: usize = 2 << 20;

fn poison(scene: &Scene<'_>) {
    for _ in 0..3 {
        let aggregate = scene.below(AGGREGATES as usize) as u32;
        scene.site.emit(&[aggregate], Some(TOO_LARGE));
        scene.flows(50);
    }
    scene.until("the dead letters", "SELECT COUNT(*) FROM outbox_dead_letter", 3);
}
