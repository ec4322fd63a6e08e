//! Every fault that is short, on each source, one after the other under load. `scripts/chaos` has longer ones, and combinations.

use std::thread;

use chaos::faults::{self, Fault, Part};
use chaos::lanes::{Lane, Source};
use chaos::run::{Outcome, Together, run};
use chaos::scene::Program;

const SEED: u64 = 1;

/// Returns the faults of each run: those after which nothing may be repeated, and the others.
fn runs(source: Source) -> Vec<Vec<Together<'static>>> {
    let short = |belongs: &dyn Fn(&Fault) -> bool| -> Vec<Together<'static>> {
        let of = faults::of(source).into_iter().filter(|fault| fault.is_short && belongs(fault));
        of.map(|fault| vec![fault]).collect()
    };
    let mut runs = vec![
        short(&|fault| fault.is_exact()),
        short(&|fault| !fault.is_exact() && fault.part != Part::Cluster),
    ];
    // Three brokers are dear, and all that they have in common with a source is the producer.
    if source == Source::Wal {
        runs.push(short(&|fault| fault.part == Part::Cluster));
    }
    runs
}

#[test]
fn every_committed_event_arrives_once_and_in_order_whatever_fails_meanwhile() {
    let program = Program::outbox();
    let outcomes: Vec<Outcome> = thread::scope(|scope| {
        let lanes = Source::SERVED.map(|source| {
            let program = &program;
            scope.spawn(move || {
                let lane = Lane::start(source);
                let outcomes = runs(source).into_iter().map(|faults| {
                    let outcome = run(&lane, program, SEED, &faults);
                    println!("{outcome}");
                    outcome
                });
                outcomes.collect::<Vec<_>>()
            })
        });
        let outcomes = lanes
            .into_iter()
            .map(|lane| lane.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
        outcomes.flatten().collect()
    });
    let failed: Vec<String> =
        outcomes.iter().filter(|outcome| !outcome.is_good()).map(Outcome::to_string).collect();
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}
