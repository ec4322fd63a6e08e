//! What a fault acts on: relays, a broker and a database under load.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use fastrand::Rng;
use outbox_tests::{Cluster, Counter, Kafka, Process, Proxy, Signal, eventually, workspace_binary};

use crate::lanes::{Lane, Source};
use crate::ledger::Ledger;
use crate::servers::DatabaseServers;
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
/// How many partitions the topic has in the beginning.
pub const PARTITIONS: i32 = 6;
/// How many writers there are.
pub const WRITERS: usize = 4;
/// How many relays there usually are.
pub const RELAYS: usize = 2;
/// How many workers a relay that polls a server has.
const WORKERS: usize = 2;
/// How many records a worker may have published and not settled: 500 in flight, and a batch of 250 that was acknowledged in the same pass.
const WINDOW: usize = 750;
/// How many it sends from the WAL in the time for which the server may not know that they were settled.
const UNCONFIRMED: usize = 500;

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
    /// The servers of its database.
    pub servers: &'a DatabaseServers,
    /// The database.
    pub site: &'a dyn Site,
    /// The way from the relays to the database.
    pub database_proxy: Proxy,
    /// The three brokers, if a fault acts on them.
    pub cluster: Option<&'a Cluster>,
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
    /// Events whose transactions were undone after they had been committed.
    pub undone: Mutex<BTreeSet<String>>,
    /// Whether the topic has got more partitions.
    pub has_new_partitions: AtomicBool,
    relays: Mutex<Vec<Process>>,
    ended: Mutex<Vec<Process>>,
    interruptions: AtomicUsize,
    counter: Counter,
}

impl<'a> Scene<'a> {
    /// Begins with no relay.
    pub fn new(
        lane: &'a Lane,
        servers: &'a DatabaseServers,
        site: &'a dyn Site,
        cluster: Option<&'a Cluster>,
        program: Program,
        rng: Rng,
    ) -> Self {
        let topic = lane.kafka.unique("chaos");
        let kafka = cluster.map_or(&lane.kafka, Cluster::kafka);
        match cluster {
            None => kafka.create_topic(&topic, PARTITIONS),
            Some(cluster) => {
                cluster.create_topic(&topic, PARTITIONS as usize);
                cluster.wait_for_replicas(&topic, 3);
            }
        }
        let database_proxy = Proxy::open();
        database_proxy.lead_to(host_and_port(site.url()).unwrap_or_default());
        Self {
            lane,
            servers,
            site,
            database_proxy,
            counter: kafka.counter(&topic),
            cluster,
            topic,
            orders: Orders::default(),
            program,
            rng: Mutex::new(rng),
            gone: Mutex::default(),
            undone: Mutex::default(),
            has_new_partitions: AtomicBool::new(false),
            relays: Mutex::default(),
            ended: Mutex::default(),
            interruptions: AtomicUsize::new(0),
        }
    }

    /// Lets the writers pause, and waits until none of their transactions is open.
    #[track_caller]
    pub fn pause_writers(&self) {
        self.orders.pause.store(true, Ordering::Relaxed);
        let rests = || (self.orders.resting.load(Ordering::Relaxed) == WRITERS).then_some(());
        eventually("the writers to pause", PATIENCE, rests);
        if matches!(self.lane.source, Source::Postgres | Source::Wal) {
            let prepared = "SELECT count(*) FROM pg_prepared_xacts WHERE database = current_database()";
            self.until("what was prepared to end", prepared, 0);
        }
    }

    /// Lets the writers go on.
    pub fn resume_writers(&self) {
        self.orders.pause.store(false, Ordering::Relaxed);
    }

    /// Returns the broker, or the three.
    pub fn kafka(&self) -> &Kafka {
        self.cluster.map_or(&self.lane.kafka, Cluster::kafka)
    }

    /// Returns a number below this one.
    pub fn below(&self, end: usize) -> usize {
        self.rng.lock().unwrap().usize(..end)
    }

    fn relay(&self, environment: &[(&str, String)]) -> Process {
        let url = self.site.relay_url();
        let url = match host_and_port(&url) {
            Some(address) => url.replacen(address, &format!("127.0.0.1:{}", self.database_proxy.port()), 1),
            None => url,
        };
        let mut command = Command::new(&self.program.path);
        command.args(["relay", "--brokers", self.kafka().brokers(), "--topic", &self.topic]).args(SETTINGS);
        match self.lane.source {
            Source::Wal => command.args(["--source", "wal", "--slot", self.site.name()]),
            Source::Sqlite => &mut command,
            _ => command.args(["--workers", &WORKERS.to_string()]),
        };
        command.env("OUTBOX_DATABASE_URL", url);
        command.envs(self.program.environment.iter().map(|(name, value)| (name, value)));
        command.envs(environment.iter().map(|(name, value)| (name, value)));
        Process::start(&command)
    }

    /// Starts a relay.
    pub fn start_relay(&self) {
        self.start_relay_with(&[]);
    }

    /// Starts a relay with further variables. Returns the id of its process.
    pub fn start_relay_with(&self, environment: &[(&str, String)]) -> u32 {
        let relay = self.relay(environment);
        let id = relay.id();
        self.relays.lock().unwrap().push(relay);
        id
    }

    /// Replaces the relays, which end as they are asked to, by two with further variables.
    #[track_caller]
    pub fn replace_relays(&self, environment: &[(&str, String)]) {
        assert!(self.stop_relays(), "a relay failed:\n{}", self.printed().join("\n"));
        for _ in 0..2 {
            self.start_relay_with(environment);
        }
    }

    /// Starts as many relays as usual.
    pub fn start_relays(&self) {
        (0..RELAYS).for_each(|_| self.start_relay());
    }

    /// Kills all relays.
    pub fn kill_relays(&self) {
        for relay in std::mem::take(&mut *self.relays.lock().unwrap()) {
            self.interrupted(1);
            relay.signal(Signal::Kill);
            relay.wait(PATIENCE);
            self.keep(relay);
        }
    }

    /// Waits until every relay has ended by itself and has said why. Returns what they printed.
    pub fn relays_end(&self) -> Vec<String> {
        let relays = std::mem::take(&mut *self.relays.lock().unwrap());
        let printed = relays.iter().map(|relay| {
            relay.wait(PATIENCE);
            relay.output()
        });
        let printed = printed.collect();
        self.ended.lock().unwrap().extend(relays);
        printed
    }

    /// Starts a relay that dies at a named point, and waits until it has died there.
    pub fn relay_that_dies(&self, point: &str) {
        let time = 1 + self.below(20);
        let relay = self.relay(&[("OUTBOX_CRASH_AT", format!("{point}:{time}"))]);
        self.interrupted(1);
        relay.wait(PATIENCE);
        self.ended.lock().unwrap().push(relay);
    }

    /// Removes a relay at random. Waits until there is one, because another fault may have taken all.
    #[track_caller]
    pub fn take_relay(&self) -> Process {
        eventually("a relay", PATIENCE, || {
            let mut relays = self.relays.lock().unwrap();
            let at = (!relays.is_empty()).then(|| self.below(relays.len()))?;
            Some(relays.swap_remove(at))
        })
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

    /// Lets relays and writers find the server that has taken over.
    pub fn move_over(&self) {
        self.site.move_over();
        self.database_proxy.lead_to(host_and_port(self.site.url()).expect("a server"));
        self.database_proxy.cut();
        self.database_proxy.heal();
    }

    /// Looks at the server that was left, which nobody else finds any longer, for events that the one that has taken over does not have.
    pub fn note_undone(&self) {
        let first = self.servers.first();
        let had = first.restart_and_ask(self.site.name(), "SELECT CAST(event AS char(36)) FROM ledger");
        first.stop();
        let has = Ledger::read(self.site).entries;
        self.undone.lock().unwrap().extend(had.into_iter().filter(|event| !has.contains_key(event)));
    }

    /// Notes that so many relays could not settle what they had published. If only one relay works at a time, all at once count as one.
    pub fn interrupted(&self, relays: usize) {
        let working = match self.lane.source {
            Source::Wal | Source::Sqlite => relays.div_ceil(RELAYS),
            _ => relays,
        };
        self.interruptions.fetch_add(working, Ordering::Relaxed);
    }

    /// Returns how many records may be repeated because of an interruption.
    pub fn window(&self) -> usize {
        match self.lane.source {
            Source::Wal => WINDOW + UNCONFIRMED,
            Source::Sqlite => WINDOW,
            _ => WORKERS * WINDOW,
        }
    }

    /// Returns how many times relays were interrupted.
    pub fn interruptions(&self) -> usize {
        self.interruptions.load(Ordering::Relaxed)
    }

    /// Returns the offset that each partition's next record gets.
    pub fn ends(&self) -> BTreeMap<i32, i64> {
        self.counter.ends()
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

/// Returns nothing for the path of a file.
fn host_and_port(url: &str) -> Option<&str> {
    let (_, rest) = url.rsplit_once('@')?;
    Some(rest.split_once('/').map_or(rest, |(address, _)| address))
}

/// Lets time pass in which the fault lasts.
pub fn last(time: Duration) {
    std::thread::sleep(time);
}
