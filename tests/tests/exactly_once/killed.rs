use std::collections::BTreeMap;
use std::env;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use outbox_tests::load::{new_topic, write_until};
use outbox_tests::{Process, Signal, Tables};

use super::outbox::Outbox;
use super::{PATIENCE, Step, assert_sent_exactly_once, start};

/// The steps in an order in which one kill makes the work of the next, such as settling what was committed.
const STEPS: &[&str] = &[
    "commit after",
    "settle_committed before",
    "settle_committed after",
    "release before",
    "claim after",
    "commit during",
    "begin before",
    "begin during",
    "begin after",
    "release during",
    "read after",
    "publish before",
    "publish after",
    "publish during",
    "commit before",
    "commit_ahead before",
    "commit_ahead during",
    "commit during",
    "settle_committed during",
    "acknowledgements after",
    "settle before",
    "settle during",
    "settle after",
    "commit_ahead after",
    "commit during",
    "release before",
    "release after",
    "read before",
];

/// How long a relay may take to come to its step. If it does not, it is killed wherever it is.
const LONGEST: Duration = Duration::from_secs(3);
/// The same for one that stood by until the last one was killed.
const LONGEST_STANDBY: Duration = Duration::from_secs(5);
/// How often a relay stands by when another one is killed: each time after so many.
const STANDS_BY: usize = 3;

/// How many relays are killed. `OUTBOX_TEST_KILLS=1000` is for a long run by hand, which takes a second for each.
fn kills() -> usize {
    env::var("OUTBOX_TEST_KILLS").map_or(STEPS.len(), |kills| kills.parse().expect("a number"))
}

/// Starts the relay that is to be killed then. Returns it and its step.
fn start_for(outbox: &impl Outbox, topic: &str, kill: usize) -> (Process, String) {
    let (round, name) = (kill / STEPS.len(), STEPS[kill % STEPS.len()]);
    // A relay comes to these once, or seldom.
    let is_seldom = name.starts_with("settle_committed") || name.starts_with("commit_ahead");
    let step = Step {
        name: name.to_owned(),
        occurrence: if is_seldom { 1 } else { 1 + (kill + round) % 3 },
        delay_us: 200 + (kill * 7_919) % 12_000,
        ..Step::default()
    };
    (start(outbox, topic, &step), step.name)
}

pub(super) fn a_relay_that_is_killed_at_any_step_loses_nothing_and_sends_nothing_twice(outbox: &impl Outbox) {
    let tables = outbox.tables();
    let topic = new_topic("killed-at-a-step");
    let is_over = AtomicBool::new(false);
    let (mut killed, mut conn) = (BTreeMap::<String, usize>::new(), tables.connect());
    let committed = std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            write_until(&mut conn, 0, 1, 100, usize::MAX, || {
                std::thread::sleep(Duration::from_millis(50));
                is_over.load(Ordering::Relaxed)
            })
        });
        let mut standby = None;
        for kill in 0..kills() {
            let longest = if standby.is_some() { LONGEST_STANDBY } else { LONGEST };
            let (relay, step) = standby.take().unwrap_or_else(|| start_for(outbox, &topic, kill));
            let stands_by = kill % STANDS_BY == STANDS_BY - 1;
            let began = Instant::now();
            while relay.exited().is_none() && began.elapsed() < longest {
                std::thread::sleep(Duration::from_millis(2));
                // Any earlier, it would have the outbox first.
                if stands_by && standby.is_none() && relay.output().contains("has taken the outbox over") {
                    standby = Some(start_for(outbox, &topic, kill + 1));
                }
            }
            let reached = relay.output().contains("reached: ");
            relay.signal(Signal::Kill);
            relay.wait(PATIENCE);
            *killed.entry(if reached { step } else { "anywhere".to_owned() }).or_default() += 1;
        }
        drop(standby);
        is_over.store(true, Ordering::Relaxed);
        writer.join().unwrap()
    });
    println!("{} events; killed at: {killed:?}", committed.len());
    let _relay = start(outbox, &topic, &Step::default());
    assert_sent_exactly_once(outbox, &topic, &committed);
    let anywhere = killed.get("anywhere").copied().unwrap_or_default();
    // On a busy machine some are too late.
    assert!(anywhere * 2 <= kills(), "too few relays came to their steps: {killed:?}");
}
