//! Where a server runs, and how it is started and stopped there.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{self, Command};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;
use std::{env, net};

use crate::process::{Process, Signal};
use crate::scratch::Folder;
use crate::wait::{eventually_ok, unless_late};

const START: Duration = Duration::from_secs(180);
const STOP: Duration = Duration::from_secs(60);

/// A place that runs a server.
pub(crate) trait Host: Send + Sync {
    fn start(&self);
    /// Stops the server as its operator would, and waits until it is gone.
    fn stop(&self);
    /// Crashes the server, and waits until it is gone.
    fn crash(&self);
    fn pause(&self);
    fn resume(&self);
    /// Returns why the server will never be ready, as soon as that is known.
    fn failure(&self) -> Option<String>;
}

/// Waits until `ready` succeeds or the server fails.
#[track_caller]
pub(crate) fn wait_until_ready<T>(
    host: &dyn Host,
    what: &str,
    mut ready: impl FnMut() -> Result<T, String>,
) -> T {
    let outcome = eventually_ok(&format!("{what} to be ready"), START, || match host.failure() {
        Some(failure) => Ok(Err(failure)),
        None => ready().map(Ok),
    });
    outcome.unwrap_or_else(|failure| panic!("{what} did not start: {failure}"))
}

/// A process of this machine.
pub(crate) struct Local {
    command: Command,
    stop: Signal,
    crash: Signal,
    process: Mutex<Option<Process>>,
    folder: Folder,
}

impl Local {
    /// Returns a server that `command` runs with its data in `folder`. The signals stop and crash it.
    pub(crate) fn new(command: Command, folder: Folder, stop: Signal, crash: Signal) -> Self {
        Self { command, stop, crash, process: Mutex::new(None), folder }
    }

    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Returns the id of its process while it runs.
    pub(crate) fn id(&self) -> Option<u32> {
        self.process.lock().unwrap().as_ref().map(Process::id)
    }

    /// Returns the memory that it occupies in KiB while it runs, if the system reports it.
    pub(crate) fn resident_kb(&self) -> Option<u64> {
        self.process.lock().unwrap().as_ref()?.resident_kb()
    }

    /// Returns the last lines that it has printed.
    pub(crate) fn log_end(&self) -> String {
        let log = fs::read_to_string(self.log()).unwrap_or_default();
        let lines: Vec<_> = log.lines().collect();
        format!("its log ends with\n{}", lines[lines.len().saturating_sub(20)..].join("\n"))
    }

    fn log(&self) -> PathBuf {
        self.folder.path().join("log")
    }

    /// A process that does not end by itself is killed, as a supervisor would do.
    fn end(&self, signal: Signal) {
        let Some(process) = self.process.lock().unwrap().take() else { return };
        process.signal(signal);
        process.signal(Signal::Continue);
        if unless_late(STOP, || process.exited()).is_none() {
            eprintln!("a server did not end by itself within {STOP:?}; {}", self.log_end());
            process.signal(Signal::Kill);
            process.wait(STOP);
        }
    }

    fn signal(&self, signal: Signal) {
        if let Some(process) = &*self.process.lock().unwrap() {
            process.signal(signal);
        }
    }
}

impl Host for Local {
    fn start(&self) {
        let process = Process::start_logging(&self.command, &self.log(), self.crash);
        assert!(self.process.lock().unwrap().replace(process).is_none(), "the server was running already");
    }

    fn stop(&self) {
        self.end(self.stop);
    }

    fn crash(&self) {
        self.end(self.crash);
    }

    fn pause(&self) {
        self.signal(Signal::Stop);
    }

    fn resume(&self) {
        self.signal(Signal::Continue);
    }

    fn failure(&self) -> Option<String> {
        let status = self.process.lock().unwrap().as_ref()?.exited()?;
        Some(format!("{status}; {}", self.log_end()))
    }
}

/// A server that ran before the tests, and that they must not stop.
pub(crate) struct Elsewhere {
    pub(crate) variable: &'static str,
}

impl Elsewhere {
    fn refuse(&self) -> ! {
        panic!("the server in {} is shared; a test that stops a server must start its own", self.variable)
    }
}

impl Host for Elsewhere {
    fn start(&self) {}

    fn stop(&self) {
        self.refuse()
    }

    fn crash(&self) {
        self.refuse()
    }

    fn pause(&self) {
        self.refuse()
    }

    fn resume(&self) {
        self.refuse()
    }

    fn failure(&self) -> Option<String> {
        None
    }
}

/// Returns a port on which nothing listens, outside the range of ports for outgoing connections. No other test process takes it as
/// long as this one runs: a server may take seconds until it listens.
pub(crate) fn free_port() -> u16 {
    static TRIED: AtomicU32 = AtomicU32::new(0);
    let (first, count) = (20_000, 12_000);
    let start = process::id() * 16; // so that test processes side by side look in different places
    (0..count)
        .map(|_| (first + (start + TRIED.fetch_add(1, Ordering::Relaxed)) % count) as u16)
        .find(|port| reserve(*port) && net::TcpListener::bind((net::Ipv4Addr::LOCALHOST, *port)).is_ok())
        .expect("a free port")
}

/// Returns whether this process has the port for itself among all test processes. The system frees it when the process ends. Files of
/// another user's tests reserve nothing.
fn reserve(port: u16) -> bool {
    static RESERVED: Mutex<Vec<File>> = Mutex::new(Vec::new());
    let folder = env::temp_dir().join("outbox-tests-ports");
    let _ = fs::create_dir(&folder);
    let Ok(file) = File::create(folder.join(port.to_string())) else { return true };
    let reserved = file.try_lock().is_ok();
    if reserved {
        RESERVED.lock().unwrap().push(file);
    }
    reserved
}
