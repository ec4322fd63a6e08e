//! The broker stops, hangs and refuses, and its topic changes.

use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_executor::block_on;
use outbox_tests::eventually;
use rdkafka::admin::{AdminClient, AdminOptions, AlterConfig, NewPartitions, ResourceSpecifier};
use rdkafka::client::DefaultClientContext;

use super::{Fault, NOTHING_LOST, Part, SERVED};
use crate::lanes::Source;
use crate::ledger::AGGREGATES;
use crate::run::everything;
use crate::scene::{PARTITIONS, PATIENCE, Scene, last};

const fn fault(name: &'static str, promise: &'static str, act: fn(&Scene<'_>)) -> Fault {
    Fault { name, part: Part::Broker, promise, on: SERVED, is_short: true, act }
}

const REQUEUED: &str = "what was not acknowledged becomes a dead letter, and arrives in order after a requeue if the policy is to block";

pub(super) const FAULTS: &[Fault] = &[
    fault("broker killed", NOTHING_LOST, |scene| away(scene, true)),
    fault("broker stopped", NOTHING_LOST, |scene| away(scene, false)),
    fault("broker hangs for 5 s", NOTHING_LOST, hangs),
    fault("not enough replicas for 4 s", NOTHING_LOST, replicas),
    fault("batches refused as too large", NOTHING_LOST, batches),
    fault("writing forbidden", REQUEUED, forbidden),
    fault("topic deleted and made again", REQUEUED, deleted),
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

/// Gives the topic these settings, and takes all others away.
fn set(scene: &Scene<'_>, settings: &[(&str, &str)]) {
    let topic = AlterConfig::new(ResourceSpecifier::Topic(&scene.topic));
    let topic = settings.iter().fold(topic, |topic, (name, value)| topic.set(name, value));
    let altered = block_on(admin(scene).alter_configs([&topic], &options())).expect("ask Kafka");
    altered[0].as_ref().unwrap_or_else(|(_, error)| panic!("the topic was not altered: {error}"));
}

/// The topic has one replica.
fn replicas(scene: &Scene<'_>) {
    scene.interrupted(2);
    set(scene, &[("min.insync.replicas", "2")]);
    last(Duration::from_secs(4));
    set(scene, &[]);
}

/// The topic has room for each record, but not for a batch of several. For an idempotent producer that is fatal.
fn batches(scene: &Scene<'_>) {
    scene.interrupted(4);
    set(scene, &[("max.message.bytes", "1000")]);
    eventually("a producer to fail", PATIENCE, || {
        scene.printed().iter().any(|printed| printed.contains("Fatal error: ")).then_some(())
    });
    scene.flows(300);
    set(scene, &[]);
}

fn forbidden(scene: &Scene<'_>) {
    requeued(scene, |scene| {
        scene.kafka().deny_writes(&scene.topic);
        eventually("dead letters", PATIENCE, || (scene.site.number(DEAD_LETTERS) > 0).then_some(()));
        last(Duration::from_secs(1));
        scene.kafka().allow_writes(&scene.topic);
    });
}

const DEAD_LETTERS: &str = "SELECT COUNT(*) FROM outbox_dead_letter";

/// Lets a fault act that makes dead letters of everything, and requeues them when it is over.
fn requeued(scene: &Scene<'_>, act: fn(&Scene<'_>)) {
    // An earlier fault's would block their aggregates for good.
    let earlier = scene.site.texts("SELECT CAST(id AS char(36)) FROM outbox_dead_letter");
    scene.gone.lock().unwrap().extend(earlier);
    scene.site.execute("DELETE FROM outbox_dead_letter").expect("forget the dead letters");
    scene.replace_relays(&[("OUTBOX_DEAD_LETTER_POLICY", "block".to_owned())]);
    scene.flows(50);
    scene.interrupted(4);
    act(scene);
    // What the writers emit before the relay has read a requeued event is held back, and it is slower in that than they are.
    let reads_wal = scene.lane.source == Source::Wal;
    if reads_wal {
        scene.pause_writers();
    }
    eventually("all to be sent", PATIENCE, || {
        scene.site.requeue();
        if !reads_wal {
            scene.flows(200);
        }
        // Relays that do not hold back would not wait for what was requeued.
        (scene.site.number(DEAD_LETTERS) == 0 && requeued_ones(scene) == 0).then_some(())
    });
    scene.resume_writers();
    scene.replace_relays(&[]);
}

/// Returns how many requeued events have come back in the WAL behind later ones of their aggregate, and are not sent yet.
fn requeued_ones(scene: &Scene<'_>) -> i64 {
    match scene.lane.source {
        Source::Wal => scene.site.number("SELECT COUNT(*) FROM outbox_requeued"),
        _ => 0,
    }
}

/// What Kafka has goes with the topic. So everything comes first, and while the topic is away the writers go on.
fn deleted(scene: &Scene<'_>) {
    requeued(scene, |scene| {
        scene.pause_writers();
        let come = everything(scene).expect("everything to come before the topic goes");
        let ids = come.iter().filter_map(|arrived| arrived.content.header("id").map(str::to_owned));
        scene.gone.lock().unwrap().extend(ids);
        let deleted = block_on(admin(scene).delete_topics(&[&scene.topic], &options())).expect("ask Kafka");
        deleted[0].as_ref().unwrap_or_else(|(_, error)| panic!("the topic was not deleted: {error}"));
        eventually("the topic to be gone", PATIENCE, || (scene.count() == 0).then_some(()));
        scene.resume_writers();
        eventually("dead letters", PATIENCE, || (scene.site.number(DEAD_LETTERS) > 0).then_some(()));
        last(Duration::from_secs(1));
        scene.kafka().create_topic(&scene.topic, PARTITIONS);
    });
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
