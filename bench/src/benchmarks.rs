//! The benchmarks by name.

use clap::{Command, FromArgMatches, Subcommand};

use crate::report::Report;
use crate::{
    backlog, drain, emit, exactly_once, growth, idle, latency, memory, order, overload, retention, soak,
    tenants, wal,
};

#[derive(Subcommand)]
pub(crate) enum Benchmark {
    /// How fast one relay with one worker drains a backlog, beside the bare producer and Debezium.
    Drain(drain::Drain),
    /// How long after its commit an event reaches a consumer, beside Debezium.
    Latency(latency::Latency),
    /// How much memory the relay's process takes, with small and large backlogs.
    Memory(memory::Memory),
    /// What a large backlog, a large table and an old snapshot cost, and what a bystander notices.
    Backlog(backlog::Backlog),
    /// What order costs, and how relays share the work.
    Order(order::Order),
    /// What emitting costs in a transaction, beside a plain second insert.
    Emit(emit::Emit),
    /// What relays without work ask of the database and of the processor.
    Idle(idle::Idle),
    /// The relay that reads the WAL, beside Debezium, polling and the protocol alone: speed, latency, memory, processor.
    Wal(wal::Wal),
    /// How fast one relay drains while payload, batch, workers, shards or backlog grow, one at a time; what an event costs.
    Growth(growth::Growth),
    /// Whether many writers and workers on MariaDB meet a deadlock. It runs once, whatever `--rounds` says.
    Soak(soak::Soak),
    /// Whether a relay stays as small and as fast as it was with a slow broker, odd events, many dead letters, and without any work.
    Overload(overload::Overload),
    /// One relay for the outboxes of many schemas: what they cost while idle, and what a backlog in one costs the others.
    Tenants(tenants::Tenants),
    /// What sending exactly once costs, beside the same relay that sends at least once. Only on PostgreSQL.
    ExactlyOnce(exactly_once::ExactlyOnce),
    /// Whether a table that is pruned by number keeps its size, and what pruning costs the relay and emitters. Only on PostgreSQL.
    Retention(retention::Retention),
}

impl Benchmark {
    pub(crate) fn run(&self, rounds: usize) -> Report {
        match self {
            Self::Drain(drain) => drain.run(rounds),
            Self::Latency(latency) => latency.run(rounds),
            Self::Memory(memory) => memory.run(rounds),
            Self::Backlog(backlog) => backlog.run(rounds),
            Self::Order(order) => order.run(rounds),
            Self::Emit(emit) => emit.run(rounds),
            Self::Idle(idle) => idle.run(rounds),
            Self::Wal(wal) => wal.run(rounds),
            Self::Growth(growth) => growth.run(rounds),
            Self::Soak(soak) => soak.run(),
            Self::Overload(overload) => overload.run(rounds),
            Self::Tenants(tenants) => tenants.run(rounds),
            Self::ExactlyOnce(exactly_once) => exactly_once.run(rounds),
            Self::Retention(retention) => retention.run(rounds),
        }
    }
}

/// Every benchmark with its default options on each database that it knows, under its command.
pub(crate) fn all() -> Vec<(String, Benchmark)> {
    let command = Benchmark::augment_subcommands(Command::new("bench"));
    let knows_databases =
        |each: &Command| each.get_arguments().any(|argument| argument.get_id() == "database");
    let mariadb = command.get_subcommands().filter(|each| knows_databases(each));
    let names = command.get_subcommands().map(|each| each.get_name().to_owned());
    names
        .chain(mariadb.map(|each| format!("{} --database mariadb", each.get_name())))
        .map(|name| {
            let arguments = ["bench"].into_iter().chain(name.split(' '));
            let matches = command.clone().get_matches_from(arguments);
            let benchmark = Benchmark::from_arg_matches(&matches).unwrap();
            (name, benchmark)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_benchmark_has_defaults() {
        let names: Vec<String> = all().into_iter().map(|(name, _)| name).collect();
        assert_eq!(
            names,
            [
                "drain",
                "latency",
                "memory",
                "backlog",
                "order",
                "emit",
                "idle",
                "wal",
                "growth",
                "soak",
                "overload",
                "tenants",
                "exactly-once",
                "retention",
                "drain --database mariadb",
                "latency --database mariadb",
                "backlog --database mariadb",
                "emit --database mariadb",
                "idle --database mariadb",
            ]
        );
    }
}
