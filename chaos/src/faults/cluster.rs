//! Three brokers, of which two must have a record before it is acknowledged.

use outbox_tests::Cluster;

use super::{Fault, NOTHING_LOST, Part, SERVED};
use crate::scene::{PARTITIONS, Scene};

const fn fault(name: &'static str, act: fn(&Scene<'_>)) -> Fault {
    Fault { name, part: Part::Cluster, promise: NOTHING_LOST, on: SERVED, is_short: true, act }
}

pub(super) const FAULTS: &[Fault] = &[
    fault("leaders moved between three brokers", moved),
    fault("three brokers killed one after another", killed),
];

fn cluster<'a>(scene: &Scene<'a>) -> &'a Cluster {
    scene.cluster.expect("a run with such a fault has three brokers")
}

fn moved(scene: &Scene<'_>) {
    for order in [[2, 3, 1], [3, 1, 2], [1, 2, 3]] {
        scene.interrupted(2);
        scene.kafka().lead(&scene.topic, PARTITIONS, &order);
        scene.flows(100);
    }
}

/// The two that are left go on. The next one is killed when the former has caught up.
fn killed(scene: &Scene<'_>) {
    for number in 1..=3 {
        scene.interrupted(2);
        cluster(scene).crash(number);
        scene.flows(100);
        cluster(scene).start_missing();
        cluster(scene).wait_for_replicas(&scene.topic, 3);
    }
}
