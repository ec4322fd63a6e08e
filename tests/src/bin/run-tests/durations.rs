//! How long each program took last, in a file beside what cargo has built.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;
use std::{env, fs};

use crate::programs::Outcome;

pub(crate) struct Durations {
    file: PathBuf,
    /// In milliseconds.
    known: BTreeMap<String, u128>,
}

impl Durations {
    /// Those of the last run. Nothing is known before the first one.
    pub(crate) fn load() -> Self {
        let program = env::current_exe().expect("the path of this program");
        let file = program.with_file_name("test-durations");
        let known = fs::read_to_string(&file).unwrap_or_default();
        let known = known.lines().filter_map(|line| {
            let (time, name) = line.split_once(' ')?;
            Some((name.to_owned(), time.parse().ok()?))
        });
        Self { known: known.collect(), file }
    }

    /// A program that is not known is taken for a long one.
    pub(crate) fn of(&self, name: &str) -> u128 {
        self.known.get(name).copied().unwrap_or(Duration::from_secs(60).as_millis())
    }

    /// Keeps these for the next run, which goes on without them if they cannot be kept.
    pub(crate) fn keep(&self, outcomes: &[Outcome]) {
        let lines = outcomes.iter().map(|outcome| format!("{} {}\n", outcome.took.as_millis(), outcome.name));
        let _ = fs::write(&self.file, lines.collect::<String>());
    }
}
