//! Faults under load, on real servers, and a ledger that says what must arrive on Kafka.
//!
//! - [`writers`] emit in transactions that also write each event to the [`ledger`]: its id, its aggregate and its number there.
//! - A [`fault`](faults) acts on a [`Scene`](scene::Scene): relay processes, a broker and a database.
//! - A [`reader`] that shares no code with the relay's client reads the topic to its end.
//! - A [`verdict`] compares the two.

#![expect(missing_debug_implementations, reason = "what runs here prints what it finds")]

pub mod faults;
pub mod lanes;
pub mod ledger;
pub mod promises;
pub mod reader;
pub mod report;
pub mod run;
pub mod scene;
pub mod servers;
pub mod site;
pub mod sqlite;
pub mod verdict;
pub mod writers;
