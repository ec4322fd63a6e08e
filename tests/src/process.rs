//! Runs a program that ends with the test process.

use std::env;
use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Mutex;
use std::time::Duration;

use crate::scratch::{Folder, scratch};
use crate::wait::eventually;

/// A signal that a process can receive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Signal {
    /// Asks it to end (SIGTERM).
    Terminate,
    /// Interrupts it, as the keyboard does (SIGINT).
    Interrupt,
    /// Asks it to quit at once (SIGQUIT).
    Quit,
    /// Kills it (SIGKILL).
    Kill,
    /// Freezes it (SIGSTOP).
    Stop,
    /// Resumes it (SIGCONT).
    Continue,
}

impl Signal {
    fn name(self) -> &'static str {
        match self {
            Self::Terminate => "TERM",
            Self::Interrupt => "INT",
            Self::Quit => "QUIT",
            Self::Kill => "KILL",
            Self::Stop => "STOP",
            Self::Continue => "CONT",
        }
    }
}

/// A running program in a process group of its own. It ends when this is dropped, or else with the test process.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Mutex<Child>,
    id: u32,
    note: PathBuf,
    log: PathBuf,
    end: Signal,
    _folder: Option<Folder>,
}

impl Process {
    /// Starts `command`, and keeps what it prints to standard output and standard error for [`Process::lines`].
    ///
    /// This uses the command's arguments, environment and folder, but not the streams that were set on it.
    pub fn start(command: &Command) -> Self {
        let folder = Folder::new("process");
        let log = folder.path().join("log");
        let mut process = Self::start_logging(command, &log, Signal::Kill);
        process._folder = Some(folder);
        process
    }

    /// Starts `command` with its output appended to the file `log`. `end` is the signal that ends it cleanly.
    pub(crate) fn start_logging(command: &Command, log: &Path, end: Signal) -> Self {
        // The process notes its id before it becomes the program, so that none can escape the leash.
        const NOTE_AND_RUN: &str = r#"echo "$0" > "$1/$$" && shift && exec "$@""#;
        let running = scratch().running();
        let output = File::options().create(true).append(true).open(log).expect("open the log");
        let mut shell = Command::new("sh");
        shell
            .args(["-c", NOTE_AND_RUN, end.name()])
            .arg(&running)
            .arg(command.get_program())
            .args(command.get_args())
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(output.try_clone().expect("share the log"))
            .stderr(output);
        for (key, value) in command.get_envs() {
            match value {
                Some(value) => shell.env(key, value),
                None => shell.env_remove(key),
            };
        }
        if let Some(folder) = command.get_current_dir() {
            shell.current_dir(folder);
        }
        let name = Path::new(command.get_program()).file_name().unwrap_or_default();
        let child = shell.spawn().expect("start a shell");
        let id = child.id();
        Self {
            name: name.to_string_lossy().into_owned(),
            child: Mutex::new(child),
            id,
            note: running.join(id.to_string()),
            log: log.to_owned(),
            end,
            _folder: None,
        }
    }

    /// Returns the id of the process.
    pub fn id(&self) -> u32 {
        self.id
    }

    /// Returns the memory that it occupies in KiB, if the system reports it (Linux does).
    pub fn resident_kb(&self) -> Option<u64> {
        self.status_kb("VmRSS:")
    }

    /// Returns the most memory that it has occupied so far in KiB, if the system reports it (Linux does).
    pub fn peak_resident_kb(&self) -> Option<u64> {
        self.status_kb("VmHWM:")
    }

    /// Returns the processor time of all its threads so far, including those that have ended, if the system reports it (Linux
    /// does).
    pub fn processor_time(&self) -> Option<Duration> {
        const TICKS: u64 = 100; // a second
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.id)).ok()?;
        let after_name = stat.rsplit(')').next()?.split_whitespace();
        let user_and_system = after_name.skip(11).take(2).map(str::parse::<u64>); // see `man 5 proc`
        Some(Duration::from_millis(user_and_system.sum::<Result<u64, _>>().ok()? * 1_000 / TICKS))
    }

    fn status_kb(&self, name: &str) -> Option<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.id)).ok()?;
        let line = status.lines().find_map(|line| line.strip_prefix(name))?; // VmRSS:    1234 kB
        line.split_whitespace().next()?.parse().ok()
    }

    /// Sends `signal` to the process and to those that it started. Does nothing if the process has ended.
    pub fn signal(&self, signal: Signal) {
        if self.exited().is_none() {
            let kill = format!("kill -s {} -- -{}", signal.name(), self.id);
            // The result is not checked, because the process may end before the signal arrives.
            let _ = Command::new("sh").args(["-c", &kill]).stderr(Stdio::null()).status();
        }
    }

    /// Returns how it ended, if it has.
    pub fn exited(&self) -> Option<ExitStatus> {
        let status = self.child.lock().unwrap().try_wait().expect("ask for the exit status");
        if status.is_some() {
            let _ = fs::remove_file(&self.note);
        }
        status
    }

    /// Waits for it to end by itself.
    #[track_caller]
    pub fn wait(&self, within: Duration) -> ExitStatus {
        eventually(&format!("{} to end", self.name), within, || self.exited())
    }

    /// Returns everything that it has printed.
    pub fn output(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    /// Returns the complete lines that it has printed.
    pub fn lines(&self) -> Vec<String> {
        let output = self.output();
        let whole = output.rfind('\n').map_or(0, |end| end + 1);
        output[..whole].lines().map(str::to_owned).collect()
    }

    /// Waits until it has printed a line that `matches`, and returns that line.
    #[track_caller]
    pub fn wait_for_line(&self, what: &str, within: Duration, matches: impl Fn(&str) -> bool) -> String {
        let line = || self.lines().into_iter().find(|line| matches(line));
        let found = eventually(&format!("{} to print {what} or to end", self.name), within, || {
            let ended = self.exited();
            line().map(Ok).or(ended.map(Err))
        });
        found.unwrap_or_else(|status| {
            panic!(
                "{} ended with {status} before it printed {what}; it printed:\n{}",
                self.name,
                self.output()
            )
        })
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.signal(self.end);
        self.signal(Signal::Continue);
        let child = self.child.get_mut().unwrap();
        for _ in 0..500 {
            if !matches!(child.try_wait(), Ok(None)) {
                break;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        let _ = child.kill();
        let _ = child.wait();
        let _ = fs::remove_file(&self.note);
    }
}

/// Builds the binary `name` of this workspace in the profile of the running test, and returns its path.
///
/// `OUTBOX_TEST_BUILD` has further arguments for cargo. Give the ones with which the tests were built, so that nothing is built
/// twice.
pub fn workspace_binary(name: &str) -> PathBuf {
    let program = env::current_exe().expect("the path of this program");
    let folder = program.parent().expect("a folder");
    let profile_folder =
        if folder.ends_with("deps") { folder.parent().expect("its profile's folder") } else { folder };
    let mut build = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    // Cargo has set these for the test. A build script that reads them, such as ring's, would run again, and again at the next test.
    for (variable, _) in env::vars_os() {
        let is_of_the_test =
            |name: &str| name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_");
        if variable.to_str().is_some_and(is_of_the_test) {
            build.env_remove(variable);
        }
    }
    build.args(["build", "--quiet", "--bin", name]).current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."));
    build.args(env::var("OUTBOX_TEST_BUILD").unwrap_or_default().split_whitespace());
    if !cfg!(debug_assertions) {
        build.arg("--release");
    }
    let status = build.status().expect("run cargo");
    assert!(status.success(), "cargo could not build the binary {name}");
    profile_folder.join(name)
}
