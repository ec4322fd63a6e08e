//! Relays at work: embedded in this process, or as the binary `outbox`.

use std::path::PathBuf;
use std::process::Command;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use diesel_outbox_relay::{Kafka as Broker, Relay};
use outbox_tests::{Counter, Database, Kafka, Process, Signal, eventually};

use crate::rows::Template;
use crate::servers::PATIENCE;
use crate::topics::new_topic;

/// Returns a relay with default settings, to one topic.
pub(crate) fn relay(database: &Database<'_>, kafka: &Kafka, topic: &str) -> Relay {
    Relay::postgres(database.url()).broker(Broker::new(kafka.brokers())).topic_naming(topic.parse().unwrap())
}

/// The events that reached Kafka in a time that begins with the first arrival, so that no relay's start is in it.
pub(crate) struct Window {
    events: usize,
    time: Duration,
}

impl Window {
    /// Watches until this many events have come after those that were there before, but no longer than `limit`.
    pub(crate) fn watch(counter: &Counter, before: usize, events: usize, limit: Duration) -> Self {
        let first =
            eventually("the first event", PATIENCE, || Some(counter.count()).filter(|&count| count > before));
        let began = Instant::now();
        eventually("the last event", Duration::MAX, || {
            let (count, time) = (counter.count(), began.elapsed());
            (count >= before + events || time >= limit)
                .then_some(Self { events: count.saturating_sub(first), time })
        })
    }

    /// Returns the events per second of all these windows.
    pub(crate) fn speed(windows: &[Self]) -> f64 {
        let events: usize = windows.iter().map(|window| window.events).sum();
        let time: Duration = windows.iter().map(|window| window.time).sum();
        events as f64 / time.as_secs_f64()
    }
}

/// Returns the speed of one relay that drains batches. Each is appended in one transaction when the last one has reached Kafka.
pub(crate) fn drain_batches(
    template: &Template<'_>,
    kafka: &Kafka,
    options: impl FnOnce(Relay) -> Relay,
    batches: usize,
    rows: usize,
) -> f64 {
    let batch = |counter: &Counter, number| {
        template.append_many(rows);
        Window::watch(counter, number * rows, rows, PATIENCE)
    };
    let all = |counter: &Counter| (0..batches).map(|number| batch(counter, number)).collect();
    watch_relay(kafka, |topic| options(relay(template.database, kafka, topic)), all).0
}

/// Returns the speed of one relay that drains a backlog, up to so many rows and no longer than `limit`, and how many rows it has
/// sent when it has stopped.
pub(crate) fn drain_window(
    template: &Template<'_>,
    kafka: &Kafka,
    rows: usize,
    limit: Duration,
) -> (f64, usize) {
    let window = |counter: &Counter| vec![Window::watch(counter, 0, rows, limit)];
    watch_relay(kafka, |topic| relay(template.database, kafka, topic), window)
}

/// Returns the speed of a relay that sends to a new topic, and how many rows it has sent when it has stopped.
pub(crate) fn watch_relay(
    kafka: &Kafka,
    relay: impl FnOnce(&str) -> Relay,
    watch: impl FnOnce(&Counter) -> Vec<Window>,
) -> (f64, usize) {
    let topic = new_topic(kafka);
    let counter = kafka.counter(&topic);
    let relay = relay(&topic).spawn().unwrap();
    let windows = watch(&counter);
    relay.stop_blocking().unwrap();
    (Window::speed(&windows), counter.count())
}

/// Starts `outbox relay` as its users do, with these options.
pub(crate) fn relay_process(database_url: &str, kafka: &Kafka, topic: &str, options: &[&str]) -> Process {
    let mut command = Command::new(binary());
    command.env("OUTBOX_DATABASE_URL", database_url);
    command.args(["relay", "--log-format", "json", "--brokers", kafka.brokers(), "--topic", topic]);
    Process::start(command.args(options))
}

/// Runs `outbox` with these arguments to its end.
pub(crate) fn outbox(database_url: &str, arguments: &[&str]) {
    let mut command = Command::new(binary());
    let output = command.env("OUTBOX_DATABASE_URL", database_url).args(arguments).output().unwrap();
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Stops it gracefully, and waits for its end.
pub(crate) fn stop(relay: &Process) {
    relay.signal(Signal::Terminate);
    let status = relay.wait(Duration::from_secs(60));
    assert!(status.success(), "the relay ended with {status}:\n{}", relay.output());
}

/// Returns the path of the binary `outbox`, built from the present sources beside this one.
pub(crate) fn binary() -> &'static PathBuf {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    BINARY.get_or_init(|| {
        let mut build = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        build.args(["build", "--quiet", "--package", "diesel-outbox-cli", "--manifest-path"]);
        build.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/../Cargo.toml"));
        if !cfg!(debug_assertions) {
            build.arg("--release");
        }
        assert!(build.status().unwrap().success(), "cargo could not build the binary outbox");
        std::env::current_exe().unwrap().with_file_name("outbox")
    })
}
