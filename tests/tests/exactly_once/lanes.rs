use std::time::Duration;

use outbox_tests::load::{new_topic, write};
use outbox_tests::{Process, Signal, Tables, eventually};

use super::{PATIENCE, Step, assert_sent_exactly_once, emit_more, start};

pub(super) fn one_relay_works_and_the_next_takes_over_when_it_is_killed(tables: &impl Tables) {
    let topic = new_topic("one-works");
    let mut relays: Vec<Process> = (0..3).map(|_| start(tables, &topic, &Step::default())).collect();
    let mut committed = write(&mut tables.connect(), 0, 1, 100, 5_000);
    eventually("everything to be settled", PATIENCE, || (tables.unsent() == 0).then_some(()));
    let has_worked = |relay: &Process| relay.output().contains("has taken the outbox over");
    let working: Vec<usize> = (0..3).filter(|relay| has_worked(&relays[*relay])).collect();
    assert_eq!(working.len(), 1, "relays that have worked");
    let leader = relays.remove(working[0]);
    leader.signal(Signal::Kill);
    leader.wait(PATIENCE);
    committed.extend(emit_more(&mut tables.connect()));
    eventually("another relay to take over", Duration::from_secs(20), || {
        (tables.unsent() == 0).then_some(())
    });
    // On a busy machine the other one may have helped before this one led.
    assert!(relays.iter().any(has_worked));
    assert_sent_exactly_once(tables, &topic, &committed);
}
