//! The test programs that cargo builds.

use std::fmt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

/// What is tested and built.
const WORKSPACE: [&str; 2] = ["--workspace", "--all-features"];

/// A program that runs tests.
pub(crate) struct Program {
    pub(crate) name: String,
    command: Command,
}

/// The result of a test program.
pub(crate) struct Outcome {
    pub(crate) name: String,
    pub(crate) passed: bool,
    pub(crate) took: Duration,
    output: String,
}

/// Builds all test programs with the binaries that they start, and lists them. The examples in the documentation are one more
/// program.
pub(crate) fn build() -> Vec<Program> {
    let mut binaries = cargo();
    binaries.args(["build", "--bins"]).args(WORKSPACE);
    assert!(binaries.status().expect("run cargo").success(), "the binaries could not be built");
    let mut build = cargo();
    build.args(["test", "--no-run", "--message-format=json-render-diagnostics"]).args(WORKSPACE);
    let built = build.stderr(Stdio::inherit()).output().expect("run cargo");
    assert!(built.status.success(), "the tests could not be built");
    let messages = String::from_utf8(built.stdout).expect("cargo writes UTF-8");
    let mut programs: Vec<Program> = messages.lines().filter_map(program).collect();
    let mut documentation = cargo();
    documentation.args(["test", "--doc"]).args(WORKSPACE);
    programs.push(Program { name: "documentation".to_owned(), command: documentation });
    programs
}

fn cargo() -> Command {
    Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
}

/// Returns the program that a message of cargo is about, if it is about one.
fn program(message: &str) -> Option<Program> {
    let message: Value = serde_json::from_str(message).expect("cargo writes JSON");
    if message["reason"] != "compiler-artifact" || message["profile"]["test"] != true {
        return None;
    }
    let executable = message["executable"].as_str()?;
    let manifest = PathBuf::from(message["manifest_path"].as_str()?);
    let folder = manifest.parent()?;
    let package = folder.file_name()?.to_string_lossy().into_owned();
    let target = message["target"]["name"].as_str()?;
    let kind = message["target"]["kind"][0].as_str()?;
    let name = if kind == "test" { format!("{package}/{target}") } else { format!("{package} ({kind})") };
    let mut command = Command::new(executable);
    // As cargo does.
    command.current_dir(folder).env("CARGO_MANIFEST_DIR", folder);
    Some(Program { name, command })
}

impl Program {
    /// Runs it to its end.
    pub(crate) fn run(&mut self, environment: &[(String, String)]) -> Outcome {
        let began = Instant::now();
        self.command.envs(environment.iter().map(|(name, value)| (name, value)));
        let ran = self.command.stdin(Stdio::null()).output();
        let (passed, output) = match ran {
            Ok(ran) => {
                let printed = [ran.stdout, ran.stderr].concat();
                (ran.status.success(), String::from_utf8_lossy(&printed).into_owned())
            }
            Err(error) => (false, format!("it could not be started: {error}\n")),
        };
        Outcome { name: self.name.clone(), passed, took: began.elapsed(), output }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, passed, took, output } = self;
        let tests: usize = output
            .lines()
            .filter_map(|line| {
                line.strip_prefix("test result: ")?
                    .split_once(". ")?
                    .1
                    .split(' ')
                    .next()?
                    .parse::<usize>()
                    .ok()
            })
            .sum();
        if *passed {
            write!(f, "ok      {name}: {tests} tests in {} s", took.as_secs())
        } else {
            write!(f, "FAILED  {name} after {} s\n{output}", took.as_secs())
        }
    }
}
