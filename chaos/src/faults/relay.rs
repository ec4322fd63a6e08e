//! Relays that die, freeze, and come and go.

use std::time::Duration;

use outbox_tests::Signal;

use super::{EXACT, Fault, NOTHING_LOST, POLLED, Part, SERVED};
use crate::lanes::Source;
use crate::scene::{PATIENCE, Scene, last};

const fn fault(name: &'static str, promise: &'static str, act: fn(&Scene<'_>)) -> Fault {
    Fault { name, part: Part::Relay, promise, on: SERVED, is_short: true, act }
}

pub(super) const FAULTS: &[Fault] = &[
    fault("relay dies after reading", NOTHING_LOST, |scene| dies(scene, "after_reading")),
    fault("relay dies after sending", NOTHING_LOST, |scene| dies(scene, "after_sending")),
    fault("relay dies after the acknowledgement", NOTHING_LOST, |scene| dies(scene, "after_acknowledgement")),
    fault("relay dies while settling", NOTHING_LOST, |scene| dies(scene, "while_settling")),
    fault("relay killed", NOTHING_LOST, killed),
    fault("relay frozen for 3 s", NOTHING_LOST, |scene| frozen(scene, Duration::from_secs(3))),
    Fault {
        is_short: false,
        ..fault("relay frozen for 50 s", NOTHING_LOST, |scene| frozen(scene, Duration::from_secs(50)))
    },
    fault("relay stopped by SIGTERM", EXACT, stopped),
    Fault {
        part: Part::Broker,
        ..fault("relay stopped while Kafka is down", NOTHING_LOST, stopped_without_kafka)
    },
    Fault { on: POLLED, ..fault("10 relays join and leave", EXACT, |scene| join_and_leave(scene, 10)) },
    Fault { is_short: false, ..fault("50 relays join and leave", EXACT, |scene| join_and_leave(scene, 50)) },
];

/// First nobody else relays, so that the one that dies has all the work.
fn dies(scene: &Scene<'_>, point: &str) {
    scene.stop_relays();
    for _ in 0..2 {
        scene.relay_that_dies(point);
    }
    scene.start_relay();
    scene.start_relay();
}

fn killed(scene: &Scene<'_>) {
    for _ in 0..3 {
        let relay = scene.take_relay();
        scene.interrupted(1);
        relay.signal(Signal::Kill);
        relay.wait(PATIENCE);
        scene.keep(relay);
        scene.start_relay();
        scene.flows(50);
    }
}

fn frozen(scene: &Scene<'_>, time: Duration) {
    // If the WAL is read, only one of them is active.
    let frozen = if scene.lane.source == Source::Wal { 2 } else { 1 };
    let relays: Vec<_> = (0..frozen).map(|_| scene.take_relay()).collect();
    scene.interrupted(frozen);
    relays.iter().for_each(|relay| relay.signal(Signal::Stop));
    last(time);
    relays.iter().for_each(|relay| relay.signal(Signal::Continue));
    relays.into_iter().for_each(|relay| scene.put_back(relay));
}

fn stopped(scene: &Scene<'_>) {
    for _ in 0..2 {
        let relay = scene.take_relay();
        assert!(scene.stop(relay), "the relay failed");
        scene.start_relay();
        scene.flows(50);
    }
}

fn stopped_without_kafka(scene: &Scene<'_>) {
    let relay = scene.take_relay();
    scene.kafka().crash();
    scene.interrupted(2);
    scene.stop(relay);
    scene.kafka().restart();
    scene.start_relay();
}

fn join_and_leave(scene: &Scene<'_>, relays: usize) {
    let before = scene.relays();
    (0..relays).for_each(|_| scene.start_relay());
    scene.flows(50);
    while scene.relays() > before {
        let relay = scene.take_relay();
        assert!(scene.stop(relay), "the relay failed");
    }
}
