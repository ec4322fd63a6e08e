//! Every short fault once, under load, on each source: the ledger finds nothing.

use chaos::faults;
use chaos::lanes::{Lane, Source};
use chaos::run::run;
use chaos::scene::Program;

#[track_caller]
fn each(source: Source) {
    let lane = Lane::start(source);
    let program = Program::outbox();
    let mut failed = Vec::new();
    let short: Vec<_> = faults::of(source).into_iter().filter(|fault| fault.is_short).collect();
    // Several in one run, one after the other, because to begin and to end a run takes time.
    for (seed, faults) in short.chunks(4).enumerate() {
        let faults: Vec<_> = faults.iter().map(|fault| vec![*fault]).collect();
        let outcome = run(&lane, &program, seed as u64, &faults);
        println!("{outcome}");
        if !outcome.is_good() {
            failed.push(outcome.to_string());
        }
    }
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}

#[test]
fn faults_cost_nothing_that_is_promised_on_postgres() {
    each(Source::Postgres);
}

#[test]
fn faults_cost_nothing_that_is_promised_on_mariadb() {
    each(Source::Mariadb);
}

#[test]
fn faults_cost_nothing_that_is_promised_on_the_wal() {
    each(Source::Wal);
}
