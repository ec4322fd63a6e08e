use std::time::{Duration, Instant};

use outbox_tests::load::{new_topic, write};
use outbox_tests::{Process, Signal, Tables};

use super::outbox::Outbox;
use super::{PATIENCE, Step, assert_sent_exactly_once, emit_more, start};

pub(super) fn one_relay_works_and_the_next_takes_over_when_it_is_killed(outbox: &impl Outbox) {
    let tables = outbox.tables();
    let topic = new_topic("one-works");
    let mut relays: Vec<Process> = (0..3).map(|_| start(outbox, &topic, &Step::default())).collect();
    let mut committed = write(&mut tables.connect(), 0, 1, 100, 5_000);
    outbox.wait_until_settled();
    let has_worked = |relay: &Process| relay.output().contains("has taken the outbox over");
    let working: Vec<usize> = (0..3).filter(|relay| has_worked(&relays[*relay])).collect();
    assert_eq!(working.len(), 1, "relays that have worked");
    let leader = relays.remove(working[0]);
    leader.signal(Signal::Kill);
    leader.wait(PATIENCE);
    let killed = Instant::now();
    committed.extend(emit_more(&mut tables.connect()));
    outbox.wait_until_settled();
    let took = killed.elapsed();
    println!("another relay took over and settled everything within {took:.1?}");
    assert!(took < Duration::from_secs(20), "taking over took {took:?}");
    // On a busy machine the other one may have helped before this one led.
    assert!(relays.iter().any(has_worked));
    assert_sent_exactly_once(outbox, &topic, &committed);
}
