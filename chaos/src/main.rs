//! Runs faults under load for a while, and prints the seed, the faults with their times, and what the ledger says.

use std::collections::VecDeque;
use std::panic::{self, AssertUnwindSafe};
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
    let sources: Vec<Source> = Source::ALL
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
    let (mut outcomes, mut broken_off) = (Vec::new(), 0);
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
        let seed = rng.u64(..);
        match panic::catch_unwind(AssertUnwindSafe(|| run(lane, &program, seed, &faults))) {
            Ok(outcome) => {
                println!("{outcome}");
                outcomes.push(outcome);
            }
            Err(_) => {
                let names: Vec<&str> = faults.iter().flatten().map(|fault| fault.name).collect();
                println!("BROKEN OFF on {}: {}", lane.source.name(), names.join(", "));
                broken_off += 1;
                // Nobody knows in which state the servers are.
                *lane = Lane::start(lane.source);
            }
        }
        // Whatever ends this program must not cost what was measured before.
        if let Some(page) = &arguments.page {
            let text = std::fs::read_to_string(page).expect("read the page");
            std::fs::write(page, report::write(&promises::write(&text), &outcomes)).expect("write the page");
        }
    }
    let failed = outcomes.iter().filter(|outcome| !outcome.is_good()).count() + broken_off;
    println!("seed {seed}: {failed} of {} runs failed", outcomes.len() + broken_off);
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Returns up to four groups of faults. In each, every fault acts on another part and promises the same.
fn combination(source: Source, rng: &mut Rng) -> Vec<Together<'static>> {
    let other_brokers = if rng.u8(..4) == 0 { Part::Broker } else { Part::Cluster };
    let group = |rng: &mut Rng| {
        let mut of: Vec<&'static Fault> = faults::of(source);
        of.retain(|fault| fault.part != other_brokers && !matches!(fault.part, Part::Servers(_)));
        rng.shuffle(&mut of);
        let mut together: Together<'static> = Vec::new();
        for fault in of {
            let fits = |other: &&Fault| {
                other.part != fault.part && other.promise == fault.promise && other.is_short && fault.is_short
            };
            if together.iter().all(fits) {
                together.push(fault);
            }
        }
        together.truncate(if rng.u8(..3) == 0 { 2 } else { 1 });
        together
    };
    let mut groups: Vec<Together<'static>> = (0..rng.usize(1..5)).map(|_| group(rng)).collect();
    if rng.u8(..5) == 0 {
        // A run has only one kind of servers.
        let has_own = |fault: &&'static Fault| {
            matches!(fault.part, Part::Servers(_)) && !faults::is_long(fault, source)
        };
        let own: Vec<&'static Fault> = faults::of(source).into_iter().filter(has_own).collect();
        if !own.is_empty() {
            groups.insert(rng.usize(..=groups.len()), vec![own[rng.usize(..own.len())]]);
        }
    }
    groups
}
