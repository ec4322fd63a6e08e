//! Servers that run on a Java virtual machine.

use std::fmt::Display;
use std::fs;
use std::path::Path;
use std::process::Command;

/// Options for a short-lived process, which gains more from a quick start than from the best code.
pub(crate) const QUICK: [&str; 5] =
    ["-Xms256m", "-Xmx512m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Xshare:auto"];
/// Options for a process that is measured: the garbage collector of Apache Kafka's own scripts, and all compilers.
pub(crate) const FAST: [&str; 5] = [
    "-Xms256m",
    "-Xmx1g",
    "-XX:+UseG1GC",
    "-XX:MaxGCPauseMillis=20",
    "-XX:InitiatingHeapOccupancyPercent=35",
];

/// Returns `java` with options and a class path. The caller adds the main class and its arguments.
pub(crate) fn command(options: &[&str], classes: &str) -> Command {
    let mut java = Command::new("java");
    java.args(options).args(["-cp", classes]);
    java
}

/// Formats properties as in a file.
pub(crate) fn properties<K: Display, V: Display>(properties: &[(K, V)]) -> String {
    properties.iter().map(|(key, value)| format!("{key}={value}\n")).collect()
}

/// Writes a file of properties.
pub(crate) fn write_properties<K: Display, V: Display>(file: &Path, own: &[(K, V)]) {
    fs::write(file, properties(own)).expect("write the properties");
}
