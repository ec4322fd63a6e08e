//! Reports and the machine that they come from, in the form in which a file keeps them.

use std::fs::{self, File};
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use diesel_outbox_core::__private::panic_message;
use serde::{Deserialize, Serialize};

use crate::machine::Machine;
use crate::report::Report;

#[derive(Serialize, Deserialize)]
pub(crate) struct Measured {
    pub(crate) machine: Machine,
    pub(crate) reports: Vec<Report>,
    #[serde(default)]
    pub(crate) unfinished: Vec<Unfinished>,
}

/// A benchmark that panicked.
#[derive(Serialize, Deserialize)]
pub(crate) struct Unfinished {
    pub(crate) benchmark: String,
    pub(crate) reason: String,
}

impl Measured {
    pub(crate) fn new(machine: Machine) -> Self {
        Self { machine, reports: Vec::new(), unfinished: Vec::new() }
    }

    /// Keeps the benchmark's report, or notes that it did not finish.
    pub(crate) fn add(&mut self, benchmark: String, run: impl FnOnce() -> Report) {
        // Servers end with their benchmark, also when it panics, so that the next finds nothing of it.
        match catch_unwind(AssertUnwindSafe(run)) {
            Ok(report) => self.reports.push(report),
            Err(panic) => {
                self.unfinished.push(Unfinished { benchmark, reason: panic_message(&*panic).to_owned() })
            }
        }
    }

    pub(crate) fn fails(&self, check: bool) -> bool {
        !self.unfinished.is_empty() || check && self.reports.iter().any(Report::falls_short)
    }

    pub(crate) fn read(file: &Path) -> Result<Self, String> {
        let text = fs::read_to_string(file).map_err(|error| format!("{}: {error}", file.display()))?;
        serde_json::from_str(&text).map_err(|error| format!("{}: {error}", file.display()))
    }

    pub(crate) fn write(&self, file: &Path) -> Result<(), String> {
        let written = File::create(file)
            .and_then(|open| serde_json::to_writer_pretty(open, self).map_err(io::Error::from));
        written.map_err(|error| format!("{} cannot be written: {error}", file.display()))
    }

    fn knows(&self, benchmark: &str) -> bool {
        self.reports.iter().any(|report| report.benchmark == benchmark)
            || self.unfinished.iter().any(|each| each.benchmark == benchmark)
    }
}

/// Returns only the last run of each benchmark, with the runs of one machine on one day together.
pub(crate) fn latest(all: Vec<Measured>) -> Vec<Measured> {
    let mut latest: Vec<Measured> = Vec::new();
    for new in all {
        for old in &mut latest {
            old.reports.retain(|report| !new.knows(&report.benchmark));
            old.unfinished.retain(|unfinished| !new.knows(&unfinished.benchmark));
        }
        match latest.iter_mut().find(|old| old.machine == new.machine) {
            Some(same) => {
                same.reports.extend(new.reports);
                same.unfinished.extend(new.unfinished);
            }
            None => latest.push(new),
        }
    }
    latest.retain(|each| !each.reports.is_empty() || !each.unfinished.is_empty());
    latest
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::Figure;

    fn report(benchmark: &str, value: f64) -> Report {
        let figures = vec![Figure::new("a", "ms", vec![value]).at_most(1.0)];
        Report { benchmark: benchmark.into(), conditions: "some".into(), figures }
    }

    #[test]
    fn a_panic_loses_no_other_benchmark() {
        let mut measured = Measured::new(Machine::here());
        measured.add("x".into(), || report("x", 0.5));
        measured.add("y".into(), || panic!("no {}", "server"));
        measured.add("z".into(), || report("z", 2.0));
        assert_eq!(measured.reports.iter().map(|each| &*each.benchmark).collect::<Vec<_>>(), ["x", "z"]);
        assert_eq!(measured.unfinished[0].reason, "no server");
        assert!(measured.fails(false));
    }

    #[test]
    fn the_last_run_of_each_benchmark_counts() {
        let [mut first, mut second] = [Measured::new(Machine::here()), Measured::new(Machine::here())];
        (first.reports, second.reports) = (vec![report("x", 2.0), report("y", 0.5)], vec![report("x", 1.0)]);
        let json = serde_json::to_string(&second).unwrap();
        let latest = latest(vec![first, serde_json::from_str(&json).unwrap()]);
        let values = latest[0].reports.iter().map(|each| (&*each.benchmark, each.figures[0].median()));
        assert_eq!((latest.len(), values.collect::<Vec<_>>()), (1, vec![("y", 0.5), ("x", 1.0)]));
        assert!(!latest[0].fails(true));
    }
}
