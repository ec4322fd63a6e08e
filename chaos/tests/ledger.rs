//! The ledger finds each kind of broken relay.

use chaos::faults;
use chaos::lanes::{Lane, Source};
use chaos::run::{Outcome, Together, run};
use chaos::scene::Program;
use outbox_tests::workspace_binary;

fn outcome(lane: &Lane, how: &str, faults: &[Together<'_>]) -> Outcome {
    let environment = vec![("BROKEN".to_owned(), how.to_owned())];
    let outcome = run(lane, &Program { path: workspace_binary("broken-relay"), environment }, 1, faults);
    println!("a relay that {how}: {outcome}");
    assert!(!outcome.is_good(), "the ledger has found nothing wrong with a relay that {how}");
    outcome
}

#[test]
fn relays_that_are_broken_on_purpose_are_found() {
    let lane = Lane::start(Source::Postgres);
    let verdict = outcome(&lane, "shares a shard", &[]).verdict;
    assert!(!verdict.reordered.is_empty(), "{verdict}");
    let verdict = outcome(&lane, "deletes by range", &[]).verdict;
    assert!(!verdict.lost.is_empty(), "{verdict}");
    let verdict = outcome(&lane, "advances a cursor past a late commit", &[]).verdict;
    assert!(!verdict.lost.is_empty() && verdict.unsent > 0, "{verdict}");
    let broker = faults::named("broker killed").unwrap();
    let verdict = outcome(&lane, "settles before the acknowledgement", &[vec![broker], vec![broker]]).verdict;
    assert!(!verdict.lost.is_empty(), "{verdict}");
}
