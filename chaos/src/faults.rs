//! The faults by name: where each applies, what is promised, and how it begins and ends.

mod broker;
mod broker_disk;
mod clock;
mod cluster;
mod database;
mod disk;
mod failover;
mod memory;
mod network;
mod relay;
mod restore;

use crate::lanes::Source;
use crate::scene::Scene;
use crate::servers::Own;

/// What a fault acts on. Two faults that act on the same part are not combined at the same time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Part {
    /// The relay processes.
    Relay,
    /// The broker and its topic.
    Broker,
    /// Three brokers, of which at least two must have a record. A run with such a fault has no other broker.
    Cluster,
    /// The database.
    Database,
    /// Database servers that the fault needs for itself. It is not combined with others.
    Servers(Own),
}

/// A fault.
#[derive(Debug)]
pub struct Fault {
    /// Its name.
    pub name: &'static str,
    /// What it acts on.
    pub part: Part,
    /// What is promised.
    pub promise: &'static str,
    /// Where it applies.
    pub on: &'static [Source],
    /// Whether it is short enough for each run of the tests.
    pub is_short: bool,
    /// Begins and ends it. When this returns, events can flow again.
    pub act: fn(&Scene<'_>),
}

impl Fault {
    /// Returns whether nothing may be repeated.
    pub fn is_exact(&self) -> bool {
        self.promise == EXACT
    }
}

const POLLED: &[Source] = &[Source::Postgres, Source::Mariadb];
const POSTGRES: &[Source] = &[Source::Postgres, Source::Wal];
const SERVED: &[Source] = &Source::SERVED;
const ALL: &[Source] = &Source::ALL;
const SQLITE: &[Source] = &[Source::Sqlite];
const MARIADB: &[Source] = &[Source::Mariadb];

const NOTHING_LOST: &str = "nothing lost, in order; at most what was in flight is repeated";
const EXACT: &str = "nothing lost, in order, nothing repeated";

/// Returns all faults.
pub fn all() -> Vec<&'static Fault> {
    let of_relays = [relay::FAULTS, clock::FAULTS, memory::FAULTS];
    let of_brokers = [broker::FAULTS, broker_disk::FAULTS, cluster::FAULTS];
    let of_databases = [database::FAULTS, disk::FAULTS, failover::FAULTS, restore::FAULTS];
    of_relays.into_iter().chain(of_brokers).chain(of_databases).chain([network::FAULTS]).flatten().collect()
}

/// Returns the faults of a source.
pub fn of(source: Source) -> Vec<&'static Fault> {
    all().into_iter().filter(|fault| applies(fault, source)).collect()
}

/// Returns whether a fault can act on this source. SQLite has no server, but its relays and its broker fail like others.
pub fn applies(fault: &Fault, source: Source) -> bool {
    match (source, fault.part) {
        (Source::Sqlite, Part::Relay | Part::Broker) => fault.on == SERVED,
        _ => fault.on.contains(&source),
    }
}

/// Returns whether a run with this fault alone takes longer than a minute, because a standby takes so long until it keeps a new slot.
pub fn is_long(fault: &Fault, source: Source) -> bool {
    source == Source::Wal && matches!(fault.part, Part::Servers(Own::Standby { .. }))
}

/// Returns the fault of this name.
pub fn named(name: &str) -> Option<&'static Fault> {
    all().into_iter().find(|fault| fault.name == name)
}
