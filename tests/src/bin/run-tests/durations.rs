//! How long each program took in the last run. A file beside cargo's output holds it.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;
use std::{env, fs};

use crate::programs::Outcome;

/// The programs that take longest and about how many seconds they take, for the first run in a new checkout.
const LONG: [(&str, u64); 9] = [
    ("tests/consumer", 72),
    ("tests/cutover", 82),
    ("tests/drain", 158),
    ("tests/memory", 105),
    ("tests/moving", 135),
    ("tests/outages", 189),
    ("tests/place", 73),
    ("tests/slot", 177),
    ("tests/wal", 196),
];

pub(crate) struct Durations {
    file: PathBuf,
    /// In milliseconds.
    known: BTreeMap<String, u128>,
}

impl Durations {
    /// Reads the durations of the last run. Before the first run only the longest are known.
    pub(crate) fn load() -> Self {
        let program = env::current_exe().expect("the path of this program");
        let file = program.with_file_name("test-durations");
        let known = fs::read_to_string(&file).unwrap_or_default();
        let measured = known.lines().filter_map(|line| {
            let (time, name) = line.split_once(' ')?;
            Some((name.to_owned(), time.parse().ok()?))
        });
        let long = LONG.map(|(name, seconds)| (name.to_owned(), Duration::from_secs(seconds).as_millis()));
        Self { known: long.into_iter().chain(measured).collect(), file }
    }

    /// An unknown program counts as one of average length.
    pub(crate) fn of(&self, name: &str) -> u128 {
        self.known.get(name).copied().unwrap_or(Duration::from_secs(40).as_millis())
    }

    /// Stores these for the next run. That works without them if they cannot be stored.
    pub(crate) fn keep(&self, outcomes: &[Outcome]) {
        let lines = outcomes.iter().map(|outcome| format!("{} {}\n", outcome.took.as_millis(), outcome.name));
        let _ = fs::write(&self.file, lines.collect::<String>());
    }
}
