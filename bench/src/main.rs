//! Benchmarks on real PostgreSQL, Apache Kafka and Debezium, the contenders side by side in one run.
//!
//! `cargo run --release -p bench -- drain --check`

mod backlog;
mod contenders;
mod drain;
mod emit;
mod idle;
mod latency;
mod memory;
mod order;
mod producer;
mod relays;
mod report;
mod rows;
mod servers;

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
    /// How long after its commit an event reaches a consumer, beside Debezium.
    Latency(latency::Latency),
    /// How much memory the relay's process takes, whatever waits.
    Memory(memory::Memory),
    /// What a large backlog, a large table and an old snapshot cost, and what a bystander notices.
    Backlog(backlog::Backlog),
    /// What order costs, and how relays share the work.
    Order(order::Order),
    /// What emitting costs in a transaction, beside a plain second insert.
    Emit(emit::Emit),
    /// What relays without work ask of the database and of the processor.
    Idle(idle::Idle),
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let rounds = usize::from(arguments.rounds);
    let reports: Vec<Report> = match arguments.benchmark {
        Benchmark::Drain(drain) => vec![drain.run(rounds)],
        Benchmark::Latency(latency) => vec![latency.run(rounds)],
        Benchmark::Memory(memory) => vec![memory.run(rounds)],
        Benchmark::Backlog(backlog) => vec![backlog.run(rounds)],
        Benchmark::Order(order) => vec![order.run(rounds)],
        Benchmark::Emit(emit) => vec![emit.run(rounds)],
        Benchmark::Idle(idle) => vec![idle.run(rounds)],
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
