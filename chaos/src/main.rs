//! Runs faults under load for a while, and prints the seed, the faults with their times, and what the ledger says.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use chaos::faults::{self, Fault, Part};
use chaos::lanes::{Lane, Source};
use chaos::run::{Together, run};
use chaos::scene::Program;
use chaos::{promises, report};
use clap::Parser;
use fastrand::Rng;

/// Faults under load, and a ledger that says what must arrive
#[derive(Debug, Parser)]
#[command(name = "chaos")]
struct Arguments {
    /// How long to go on
    #[arg(long, value_name = "NUMBER", default_value = "10")]
    minutes: u64,
    /// From which the combinations follow. Default: another one each time
    #[arg(long, value_name = "NUMBER")]
    seed: Option<u64>,
    /// Only this source: PostgreSQL, MariaDB, WAL or SQLite
    #[arg(long, value_name = "SOURCE")]
    source: Option<String>,
    /// Each fault by itself instead of combinations, or only the faults whose names contain one of these
    #[arg(long, value_name = "NAME", num_args = 0..)]
    each: Option<Vec<String>>,
    /// Writes what is promised and what was measured into this page. Takes --each
    #[arg(long, value_name = "FILE", requires = "each")]
    page: Option<PathBuf>,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let seed = arguments.seed.unwrap_or_else(|| fastrand::u64(..1_000_000));
    println!("seed {seed}");
    let end = Instant::now() + Duration::from_secs(arguments.minutes * 60);
    let mut rng = Rng::with_seed(seed);
    let program = Program::outbox();
    let sources: Vec<Source> = Source::EVERY
        .into_iter()
        .filter(|source| arguments.source.as_ref().is_none_or(|name| name == source.name()))
        .collect();
    let mut lanes: Vec<(Lane, VecDeque<Together<'static>>)> = sources
        .into_iter()
        .map(|source| {
            let names = arguments.each.clone().unwrap_or_default();
            let of = faults::of(source)
                .into_iter()
                .filter(|fault| names.is_empty() || names.iter().any(|name| fault.name.contains(name)));
            (Lane::start(source), of.map(|fault| vec![fault]).collect())
        })
        .collect();
    let mut outcomes = Vec::new();
    while Instant::now() < end {
        let at = rng.usize(..lanes.len());
        let (lane, waiting) = &mut lanes[at];
        let faults = match arguments.each {
            None => combination(lane.source, &mut rng),
            Some(_) => match waiting.pop_front() {
                Some(fault) => vec![fault],
                None => {
                    lanes.swap_remove(at);
                    if lanes.is_empty() {
                        break;
                    }
                    continue;
                }
            },
        };
        let outcome = run(lane, &program, rng.u64(..), &faults);
        println!("{outcome}");
        outcomes.push(outcome);
        // A run that panics must not cost what was measured before.
        if let Some(page) = &arguments.page {
            let text = std::fs::read_to_string(page).expect("read the page");
            std::fs::write(page, report::write(&promises::write(&text), &outcomes)).expect("write the page");
        }
    }
    let failed = outcomes.iter().filter(|outcome| !outcome.is_good()).count();
    println!("seed {seed}: {failed} of {} runs failed", outcomes.len());
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Returns up to four groups of faults. In each, every fault acts on another part.
fn combination(source: Source, rng: &mut Rng) -> Vec<Together<'static>> {
    let group = |rng: &mut Rng| {
        let mut of: Vec<&'static Fault> = faults::of(source);
        of.retain(|fault| !matches!(fault.part, Part::Servers(_)));
        rng.shuffle(&mut of);
        let mut together: Together<'static> = Vec::new();
        for fault in of {
            if together.iter().all(|other| other.part != fault.part && other.is_short && fault.is_short) {
                together.push(fault);
            }
        }
        together.truncate(if rng.u8(..3) == 0 { 2 } else { 1 });
        together
    };
    (0..rng.usize(1..5)).map(|_| group(rng)).collect()
}
