//! Benchmarks on real PostgreSQL, Apache Kafka and Debezium, the contenders side by side in one run.
//!
//! `cargo run --release -p bench -- drain --check`

mod contenders;
mod drain;
mod producer;
mod report;
mod rows;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use self::report::Report;

/// Compares what the outbox does with what the machine can do, in turns, and prints medians beside their goals.
#[derive(Parser)]
struct Arguments {
    #[command(subcommand)]
    benchmark: Benchmark,
    /// How often each contender runs; they take turns.
    #[arg(long, global = true, default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..))]
    rounds: u16,
    /// Fail where a figure falls short of its goal.
    #[arg(long, global = true)]
    check: bool,
    /// Write every value to this file.
    #[arg(long, global = true, value_name = "FILE")]
    json: Option<PathBuf>,
}

#[derive(Subcommand)]
enum Benchmark {
    /// How fast one relay with one worker drains what waits, beside the bare producer and Debezium.
    Drain(drain::Drain),
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let rounds = usize::from(arguments.rounds);
    let reports: Vec<Report> = match arguments.benchmark {
        Benchmark::Drain(drain) => vec![drain.run(rounds)],
    };
    for report in &reports {
        print!("\n{report}");
    }
    if let Some(file) = arguments.json
        && let Err(error) = report::write_json(&file, &reports)
    {
        eprintln!("{} cannot be written: {error}", file.display());
        return ExitCode::FAILURE;
    }
    if arguments.check && reports.iter().any(Report::falls_short) {
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}
