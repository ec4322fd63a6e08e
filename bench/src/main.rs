//! Benchmarks on real PostgreSQL and real Apache Kafka, the contenders side by side in one run.
//!
//! `cargo run --release -p bench -- drain`

mod drain;
mod report;

use clap::{Parser, Subcommand};

/// Compares what the relay does with what the machine can do, interleaved, and prints medians.
#[derive(Parser)]
struct Arguments {
    #[command(subcommand)]
    benchmark: Benchmark,
}

#[derive(Subcommand)]
enum Benchmark {
    /// How fast one relay with one worker drains a backlog, beside the bare producer sending the same from memory.
    Drain(drain::Drain),
}

fn main() {
    match Arguments::parse().benchmark {
        Benchmark::Drain(drain) => drain.run(),
    }
}
