//! Benchmarks on real PostgreSQL, Apache Kafka and Debezium, the contenders side by side in one run.
//!
//! `cargo run --release -p bench -- drain --check`, or `all` for all of them and `bench/RESULTS.md`.

mod backlog;
mod bare;
mod benchmarks;
mod contenders;
mod cpu;
mod drain;
mod emit;
mod exactly_once;
mod growth;
mod idle;
mod latency;
mod machine;
mod mariadb;
mod measured;
mod memory;
mod order;
mod overload;
mod paced;
mod producer;
mod relays;
mod report;
mod results;
mod retention;
mod rows;
mod servers;
mod soak;
mod tenants;
mod topics;
mod wal;

use std::error::Error;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{CommandFactory, Parser, Subcommand};

use self::benchmarks::Benchmark;
use self::machine::Machine;
use self::measured::Measured;

/// Compares the outbox with what the machine can do, in turns, and prints medians beside their goals.
#[derive(Parser)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
    /// How often each contender runs; they take turns.
    #[arg(long, global = true, default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..))]
    rounds: u16,
    /// Fail if a figure falls short of its goal.
    #[arg(long, global = true)]
    check: bool,
    /// Write every value to this file.
    #[arg(long, global = true, value_name = "FILE")]
    json: Option<PathBuf>,
}

#[derive(Subcommand)]
enum Command {
    #[command(flatten)]
    One(Benchmark),
    /// Drains with the bare libraries in a process of its own, whose memory is measured.
    #[command(hide = true)]
    Bare(bare::Bare),
    /// Sends single records in a process of its own, whose processor time is measured.
    #[command(hide = true)]
    Paced(paced::Paced),
    /// Every benchmark with its default options, one after the other; writes bench/RESULTS.md and its plots.
    All,
    /// Writes bench/RESULTS.md and its plots from files that --json has written. If a benchmark is in several, the last counts.
    Results {
        #[arg(required = true, value_name = "FILE")]
        files: Vec<PathBuf>,
    },
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let check = arguments.check;
    match run(arguments) {
        Ok(measured) if measured.iter().any(|each| each.fails(check)) => ExitCode::FAILURE,
        Ok(_) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: Arguments) -> Result<Vec<Measured>, Box<dyn Error>> {
    if let Command::Bare(bare) = arguments.command {
        bare.run()
    }
    if let Command::Paced(paced) = arguments.command {
        println!("{}", paced.run());
        return Ok(Vec::new());
    }
    let rounds = usize::from(arguments.rounds);
    let mut measured = Measured::new(Machine::here());
    let save = |measured: &mut Measured| {
        measured.machine.postgres = servers::postgres_versions();
        arguments.json.as_ref().map_or(Ok(()), |file| measured.write(file))
    };
    match arguments.command {
        Command::One(benchmark) => {
            measured.reports.push(benchmark.run(rounds));
            print!("\n{}", measured.reports[0]);
            save(&mut measured)?;
        }
        Command::All => {
            // What is saved after each survives whatever happens to the next.
            for (name, benchmark) in benchmarks::all() {
                measured.add(name, || benchmark.run(rounds));
                save(&mut measured)?;
            }
            measured.reports.iter().for_each(|report| print!("\n{report}"));
            results::write(std::slice::from_ref(&measured))?;
        }
        Command::Bare(_) | Command::Paced(_) => {}
        Command::Results { .. } if arguments.json.is_some() => {
            let error = "results reads files that --json has written, and writes none";
            Arguments::command().error(ErrorKind::ArgumentConflict, error).exit()
        }
        Command::Results { files } => {
            let all = files.iter().map(|file| Measured::read(file)).collect::<Result<_, _>>()?;
            let latest = measured::latest(all);
            results::write(&latest)?;
            return Ok(latest);
        }
    }
    Ok(vec![measured])
}
