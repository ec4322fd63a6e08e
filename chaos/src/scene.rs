//! What a fault acts on: relays, a broker and a database under load.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use fastrand::Rng;
use outbox_tests::{Counter, Kafka, Process, Proxy, Signal, eventually, workspace_binary};

use crate::lanes::{Lane, Source};
use crate::site::Site;
use crate::writers::Orders;

/// How long anything may take that must happen.
pub const PATIENCE: Duration = Duration::from_secs(90);
/// The relay's settings. They are short, so that faults of some seconds pass every time-out.
const SETTINGS: [&str; 12] = [
    "--poll-interval",
    "1s",
    "--max-pass-duration",
    "100ms",
    "--stall-timeout",
    "2s",
    "--max-in-flight",
    "500",
    "--batch-size",
    "250",
    "--shutdown-timeout",
    "10s",
];
/// How many records a relay of two workers may have published and not settled: what it has in flight, and what a pass of 100 ms
/// publishes besides.
pub const WINDOW: usize = 4_000;

/// The program that relays.
#[derive(Clone, Debug)]
pub struct Program {
    /// The file.
    pub path: PathBuf,
    /// Its variables besides the usual settings.
    pub environment: Vec<(String, String)>,
    /// How long to wait in the end for events that do not come.
    pub patience: Duration,
}

impl Program {
    /// The binary `outbox`.
    pub fn outbox() -> Self {
        Self { path: workspace_binary("outbox"), environment: Vec::new(), patience: PATIENCE / 2 }
    }
}

/// The parts of a run.
pub struct Scene<'a> {
    /// The servers.
    pub lane: &'a Lane,
    /// The database.
    pub site: &'a dyn Site,
    /// The way from the relays to the database.
    pub database_proxy: Proxy,
    /// The topic.
    pub topic: String,
    /// The orders for the writers.
    pub orders: Orders,
    /// The program that relays.
    pub program: Program,
    /// What follows from the seed.
    pub rng: Mutex<Rng>,
    /// Events that were on Kafka and that Kafka has lost.
    pub gone: Mutex<BTreeSet<String>>,
    /// Whether the topic has got more partitions.
    pub has_new_partitions: AtomicBool,
    relays: Mutex<Vec<Process>>,
    ended: Mutex<Vec<Process>>,
    interruptions: AtomicUsize,
    counter: Counter,
}

impl<'a> Scene<'a> {
    /// Begins with no relay.
    pub fn new(lane: &'a Lane, site: &'a dyn Site, program: Program, rng: Rng) -> Self {
        let topic = lane.kafka.unique("chaos");
        lane.kafka.create_topic(&topic, 6);
        let database_proxy = Proxy::open();
        database_proxy.lead_to(host_and_port(site.url()));
        Self {
            lane,
            site,
            database_proxy,
            counter: lane.kafka.counter(&topic),
            topic,
            orders: Orders::default(),
            program,
            rng: Mutex::new(rng),
            gone: Mutex::default(),
            has_new_partitions: AtomicBool::new(false),
            relays: Mutex::default(),
            ended: Mutex::default(),
            interruptions: AtomicUsize::new(0),
        }
    }

    /// Returns the broker.
    pub fn kafka(&self) -> &Kafka {
        &self.lane.kafka
    }

    /// Returns a number below this one.
    pub fn below(&self, end: usize) -> usize {
        self.rng.lock().unwrap().usize(..end)
    }

    fn relay(&self, environment: &[(&str, String)]) -> Process {
        let url = self.site.url();
        let url = url.replacen(host_and_port(url), &format!("127.0.0.1:{}", self.database_proxy.port()), 1);
        let mut command = Command::new(&self.program.path);
        command.args(["relay", "--brokers", self.kafka().brokers(), "--topic", &self.topic]).args(SETTINGS);
        match self.lane.source {
            Source::Wal => command.args(["--source", "wal", "--slot", self.site.name()]),
            _ => command.args(["--workers", "2"]),
        };
        command.env("OUTBOX_DATABASE_URL", url);
        command.envs(self.program.environment.iter().map(|(name, value)| (name, value)));
        command.envs(environment.iter().map(|(name, value)| (name, value)));
        Process::start(&command)
    }

    /// Starts a relay.
    pub fn start_relay(&self) {
        let relay = self.relay(&[]);
        self.relays.lock().unwrap().push(relay);
    }

    /// Starts a relay that dies at a named point, and waits until it has died there.
    pub fn relay_that_dies(&self, point: &str) {
        let time = 1 + self.below(20);
        let relay = self.relay(&[("OUTBOX_CRASH_AT", format!("{point}:{time}"))]);
        self.interrupted(1);
        relay.wait(PATIENCE);
        self.ended.lock().unwrap().push(relay);
    }

    /// Removes a relay at random.
    pub fn take_relay(&self) -> Process {
        let mut relays = self.relays.lock().unwrap();
        let at = self.below(relays.len());
        relays.swap_remove(at)
    }

    /// Puts a relay back that goes on.
    pub fn put_back(&self, relay: Process) {
        self.relays.lock().unwrap().push(relay);
    }

    /// Keeps what a relay has printed that has ended.
    pub fn keep(&self, relay: Process) {
        self.ended.lock().unwrap().push(relay);
    }

    /// Returns how many relays there are.
    pub fn relays(&self) -> usize {
        self.relays.lock().unwrap().len()
    }

    /// Asks a relay to end, and waits until it has. Returns whether it reported success.
    #[track_caller]
    pub fn stop(&self, relay: Process) -> bool {
        relay.wait_for_line("that it has started", PATIENCE, |line| line.contains("the relay has started"));
        relay.signal(Signal::Terminate);
        let status = relay.wait(PATIENCE);
        self.ended.lock().unwrap().push(relay);
        status.success()
    }

    /// Asks all relays to end, and waits until they have. Returns whether all reported success.
    #[track_caller]
    pub fn stop_relays(&self) -> bool {
        let relays = std::mem::take(&mut *self.relays.lock().unwrap());
        for relay in &relays {
            relay.wait_for_line("that it has started", PATIENCE, |line| {
                line.contains("the relay has started")
            });
            relay.signal(Signal::Terminate);
        }
        // A second signal would end them at once.
        let ended = relays.iter().filter(|relay| relay.wait(PATIENCE).success()).count() == relays.len();
        self.ended.lock().unwrap().extend(relays);
        ended
    }

    /// Notes that so many relays could not settle what they had published.
    pub fn interrupted(&self, relays: usize) {
        self.interruptions.fetch_add(relays, Ordering::Relaxed);
    }

    /// Returns how many times relays were interrupted.
    pub fn interruptions(&self) -> usize {
        self.interruptions.load(Ordering::Relaxed)
    }

    /// Returns how many records the topic holds.
    pub fn count(&self) -> usize {
        self.counter.count()
    }

    /// Waits until so many further records have come, and returns how long that took.
    #[track_caller]
    pub fn flows(&self, records: usize) -> Duration {
        let (began, before) = (Instant::now(), self.count());
        eventually(&format!("{records} more records"), PATIENCE, || {
            (self.count() >= before + records).then_some(())
        });
        began.elapsed()
    }

    /// Waits until a number that the database selects is this one.
    #[track_caller]
    pub fn until(&self, what: &str, query: &str, number: i64) {
        eventually(what, PATIENCE, || (self.site.number(query) == number).then_some(()));
    }

    /// Returns what each relay has printed.
    pub fn printed(&self) -> Vec<String> {
        let relays = [&self.ended, &self.relays];
        relays
            .iter()
            .flat_map(|relays| relays.lock().unwrap().iter().map(Process::output).collect::<Vec<_>>())
            .collect()
    }
}

fn host_and_port(url: &str) -> &str {
    let (_, rest) = url.rsplit_once('@').expect("a user in the URL");
    rest.split_once('/').map_or(rest, |(address, _)| address)
}

/// Lets time pass in which the fault lasts.
pub fn last(time: Duration) {
    std::thread::sleep(time);
}
