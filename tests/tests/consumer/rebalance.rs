//! Partitions that are assigned and taken away.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use diesel::prelude::*;
use diesel_outbox_kafka::consumer::Received;
use outbox_tests::eventually;
use uuid::Uuid;

use super::bench::{Bench, PATIENCE, Sent, insert_effect, insert_effect_slowly};

#[test]
fn a_rebalance_in_the_middle_applies_each_effect_once_although_every_record_comes_twice() {
    rebalance_in_the_middle("cooperative-sticky");
}

#[test]
fn an_eager_rebalance_in_the_middle_also_applies_each_effect_once() {
    rebalance_in_the_middle("range");
}

fn rebalance_in_the_middle(strategy: &str) {
    let bench = Bench::new(6);
    let events: Vec<Sent> = (0..2_000).map(|n| Sent::new(&n.to_string())).collect();
    let copies = events.iter().enumerate().flat_map(|(n, event)| {
        let n = n as i32;
        // Every second copy is in another partition, so that both consumers have the record at the same time.
        [(n % 6, event), ((n + n % 2) % 6, event)]
    });
    bench.send(copies);

    let consumer = |name: &'static str| {
        let handler = move |c: &mut PgConnection, r: &Received| insert_effect_slowly(c, r, name);
        let consumer = bench.consumer().set("partition.assignment.strategy", strategy);
        consumer.on("Counted", handler).spawn().unwrap()
    };
    let handled_by = |name: &str| bench.effects().iter().filter(|effect| effect.consumer == name).count();
    let first = consumer("first");
    eventually("effects of the first consumer", PATIENCE, || (handled_by("first") >= 200).then_some(()));
    let second = consumer("second");
    eventually("effects of the second consumer", PATIENCE, || (handled_by("second") >= 200).then_some(()));
    let before = handled_by("first");
    eventually("effects of both", PATIENCE, || (handled_by("first") > before).then_some(()));
    first.stop_blocking().unwrap();
    let left = bench.effects().len();
    assert!(left < 2_000, "the first consumer was not stopped in the middle");
    bench.wait_until_all_is_committed();
    second.stop_blocking().unwrap();

    let effects: Vec<Uuid> = bench.effects().iter().map(|effect| effect.id).collect();
    assert_eq!(effects.len(), 2_000, "effects");
    assert_eq!(effects.iter().collect::<BTreeSet<_>>().len(), 2_000, "different effects");
    assert!(bench.dead_letters().is_empty());
}

#[test]
fn a_partition_that_waits_for_a_retry_can_be_taken_away_and_come_back() {
    let bench = Bench::new(2);
    bench.send([(0, &Sent::new("a")), (1, &Sent::new("b"))]);
    let broken = Arc::new(AtomicBool::new(true));
    let consumer = || {
        let tried = Arc::new(Mutex::new(Vec::new()));
        let (broken, partitions) = (Arc::clone(&broken), Arc::clone(&tried));
        let handler = move |c: &mut PgConnection, r: &Received| {
            partitions.lock().unwrap().push(r.partition());
            if broken.load(Ordering::Relaxed) { Err("not yet".into()) } else { insert_effect(c, r) }
        };
        let consumer = bench.consumer().max_attempts(u32::MAX).on("Counted", handler);
        (consumer.spawn().unwrap(), tried)
    };
    let wait_for_tries = |tried: &Mutex<Vec<i32>>, partition, count| {
        eventually("tries", PATIENCE, || {
            let tries = tried.lock().unwrap().iter().filter(|tried| **tried == partition).count();
            (tries >= count).then_some(())
        });
    };
    let (first, tried_by_first) = consumer();
    wait_for_tries(&tried_by_first, 0, 2);
    wait_for_tries(&tried_by_first, 1, 2);

    let (second, tried_by_second) = consumer();
    let lost =
        eventually("the second's tries", PATIENCE, || tried_by_second.lock().unwrap().first().copied());
    tried_by_first.lock().unwrap().clear();
    wait_for_tries(&tried_by_first, 1 - lost, 5);
    assert!(!tried_by_first.lock().unwrap().contains(&lost), "the first still tries what it has lost");

    second.stop_blocking().unwrap();
    wait_for_tries(&tried_by_first, lost, 1);
    broken.store(false, Ordering::Relaxed);
    bench.send([(0, &Sent::new("c")), (1, &Sent::new("d"))]);
    bench.wait_for_effects(4);
    bench.wait_until_all_is_committed();
    first.stop_blocking().unwrap();
    assert_eq!(bench.effects().len(), 4);
}
