//! The ledger finds each kind of broken relay.

use std::time::Duration;

use chaos::faults::{self, Fault, Part};
use chaos::lanes::{Lane, Source};
use chaos::run::{Together, run};
use chaos::scene::Program;
use chaos::verdict::Verdict;
use outbox_tests::workspace_binary;

const MORE_LOAD: Fault = Fault {
    name: "more load",
    part: Part::Relay,
    promise: "",
    on: &Source::SERVED,
    is_short: true,
    act: |scene| {
        scene.flows(1_500);
    },
};

#[track_caller]
fn verdict(lane: &Lane, how: &str, faults: &[Together<'_>]) -> Verdict {
    let environment = vec![("BROKEN".to_owned(), how.to_owned())];
    let path = workspace_binary("broken-relay");
    let outcome = run(lane, &Program { path, environment, patience: Duration::from_secs(4) }, 1, faults);
    println!("a relay that {how}: {outcome}");
    outcome.verdict
}

#[test]
fn relays_that_are_broken_on_purpose_are_found() {
    let lane = Lane::start(Source::Postgres);
    let more = || vec![&MORE_LOAD];
    let found = verdict(&lane, "is as it should be", &[more()]);
    assert!(found.is_good(), "{found}");
    let found = verdict(&lane, "shares a shard", &[more()]);
    assert!(!found.reordered.is_empty(), "{found}");
    let found = verdict(&lane, "deletes by range", &[more()]);
    assert!(!found.lost.is_empty(), "{found}");
    let found = verdict(&lane, "advances a cursor past a late commit", &[more()]);
    assert!(!found.lost.is_empty() && found.unsent > 0, "{found}");
    let broker = faults::named("broker killed").expect("a fault");
    let found = verdict(&lane, "settles before the acknowledgement", &[vec![broker], vec![broker]]);
    assert!(!found.lost.is_empty(), "{found}");
}
