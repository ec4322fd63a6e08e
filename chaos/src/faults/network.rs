//! The ways between the relays, the broker and the database.

use std::time::Duration;

use outbox_tests::Proxy;

use super::{EXACT, Fault, NOTHING_LOST, Part, SERVED};
use crate::scene::{Scene, last};

const fn broker(name: &'static str, promise: &'static str, act: fn(&Scene<'_>)) -> Fault {
    Fault { name, part: Part::Broker, promise, on: SERVED, is_short: true, act }
}

const fn database(name: &'static str, promise: &'static str, act: fn(&Scene<'_>)) -> Fault {
    Fault { name, part: Part::Database, promise, on: SERVED, is_short: true, act }
}

const DELAY: Duration = Duration::from_millis(200);
/// Longer than the relay waits for the broker.
const HELD: Duration = Duration::from_secs(4);

pub(super) const FAULTS: &[Fault] = &[
    broker("200 ms to the broker", EXACT, |scene| delayed(scene, &scene.lane.kafka_proxy)),
    broker("1 MB/s to the broker", EXACT, |scene| slow(scene, &scene.lane.kafka_proxy)),
    broker("packets to the broker lost for 4 s", NOTHING_LOST, |scene| held(scene, &scene.lane.kafka_proxy)),
    broker("connections to the broker cut", NOTHING_LOST, |scene| cut(scene, &scene.lane.kafka_proxy)),
    database("200 ms to the database", EXACT, |scene| delayed(scene, &scene.database_proxy)),
    database("1 MB/s to the database", EXACT, |scene| slow(scene, &scene.database_proxy)),
    database("packets to the database lost for 4 s", NOTHING_LOST, |scene| {
        held(scene, &scene.database_proxy)
    }),
    database("connections to the database cut", NOTHING_LOST, |scene| cut(scene, &scene.database_proxy)),
];

fn delayed(scene: &Scene<'_>, proxy: &Proxy) {
    proxy.delay(DELAY);
    scene.flows(300);
    proxy.heal();
}

fn slow(scene: &Scene<'_>, proxy: &Proxy) {
    proxy.limit(1_000_000);
    scene.flows(500);
    proxy.heal();
}

fn held(scene: &Scene<'_>, proxy: &Proxy) {
    scene.interrupted(2);
    proxy.hold();
    last(HELD);
    proxy.heal();
}

fn cut(scene: &Scene<'_>, proxy: &Proxy) {
    for _ in 0..3 {
        scene.interrupted(2);
        proxy.cut();
        last(Duration::from_millis(200));
        proxy.heal();
        scene.flows(50);
    }
}
