//! What the figures come from: the machine, and the versions of what ran on it.

use std::fs;
use std::process::Command;
use std::thread::available_parallelism;

use outbox_tests::artifacts::{DEBEZIUM, KAFKA};
use serde::{Deserialize, Serialize};

/// A fact that cannot be found out is left out.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Machine {
    pub(crate) date: Option<String>,
    processor: Option<String>,
    cores: Option<usize>,
    memory: Option<String>,
    system: Option<String>,
    kernel: Option<String>,
    /// As many as there were versions.
    pub(crate) postgres: Vec<String>,
    kafka: String,
    debezium: String,
    java: Option<String>,
    librdkafka: String,
    rustc: Option<String>,
    commit: Option<String>,
}

impl Machine {
    /// This machine now, without the PostgreSQL that is yet to be started.
    pub(crate) fn here() -> Self {
        Self {
            date: first_line("date", &["-u", "+%F"]),
            processor: after("/proc/cpuinfo", "model name", ':'),
            cores: available_parallelism().ok().map(usize::from),
            memory: after("/proc/meminfo", "MemTotal", ':').and_then(|kib| gibibytes(&kib)),
            system: after("/etc/os-release", "PRETTY_NAME", '=')
                .map(|name| name.trim_matches('"').to_owned()),
            kernel: fs::read_to_string("/proc/sys/kernel/osrelease")
                .ok()
                .and_then(|text| text.trim().split('-').next().map(str::to_owned)),
            postgres: Vec::new(),
            kafka: KAFKA.to_owned(),
            debezium: DEBEZIUM.to_owned(),
            java: first_line("java", &["--version"]),
            librdkafka: rdkafka::util::get_rdkafka_version().1,
            rustc: first_line("rustc", &["--version"]),
            commit: first_line(
                "git",
                &["-C", env!("CARGO_MANIFEST_DIR"), "describe", "--always", "--dirty", "--exclude=*"],
            ),
        }
    }

    /// Each fact under its name.
    pub(crate) fn facts(&self) -> Vec<(&'static str, String)> {
        let postgres = (!self.postgres.is_empty()).then(|| self.postgres.join(", "));
        let facts = [
            ("Date", self.date.clone()),
            ("Processor", self.processor.clone()),
            ("Cores", self.cores.map(|cores| cores.to_string())),
            ("Memory", self.memory.clone()),
            ("System", self.system.clone()),
            ("Kernel", self.kernel.clone()),
            ("PostgreSQL", postgres),
            ("Apache Kafka", Some(self.kafka.clone())),
            ("Debezium", Some(self.debezium.clone())),
            ("Java", self.java.clone()),
            ("librdkafka", Some(self.librdkafka.clone())),
            ("Rust", self.rustc.clone()),
            ("Commit", self.commit.clone()),
        ];
        facts.into_iter().filter_map(|(name, fact)| Some((name, fact?))).collect()
    }
}

/// Returns the first line that a command prints, if it succeeds.
fn first_line(program: &str, arguments: &[&str]) -> Option<String> {
    let output =
        Command::new(program).args(arguments).output().ok().filter(|output| output.status.success())?;
    String::from_utf8_lossy(&output.stdout).lines().next().map(|line| line.trim().to_owned())
}

/// Returns what follows a name and the separator in the first such line of a file.
fn after(file: &str, name: &str, separator: char) -> Option<String> {
    let text = fs::read_to_string(file).ok()?;
    let mut pairs = text.lines().filter_map(|line| line.split_once(separator));
    pairs.find(|(key, _)| key.trim() == name).map(|(_, value)| value.trim().to_owned())
}

/// Converts `24684096 kB`, the kernel's spelling, which means kibibytes.
fn gibibytes(kibibytes: &str) -> Option<String> {
    let kibibytes: f64 = kibibytes.split(' ').next()?.parse().ok()?;
    Some(format!("{:.1} GiB", kibibytes / 1_048_576.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_reported_in_gibibytes() {
        assert_eq!(gibibytes("24684096 kB").as_deref(), Some("23.5 GiB"));
        assert_eq!(gibibytes("much"), None);
    }
}
