//! A relay that sends exactly once, and that kills or freezes itself at a step of its work that the environment names.
//!
//! Each call that the relay makes of its source or publisher is a step before it, one after it, and one in the middle of it.

use std::env;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use diesel_outbox_core::{
    Acknowledgement, Broker, Claimed, DeadLettered, Lag, Lane, PublishError, Publisher, Record, Refusal,
    Source, SourceError,
};
use diesel_outbox_relay::source::wal::{WalOptions, WalSource};
use diesel_outbox_relay::source::{MysqlSource, PostgresSource, SourceOptions};
use diesel_outbox_relay::{Kafka, Relay, TopicNaming};
use futures_executor::block_on;
use signal_hook::low_level::raise;
use uuid::Uuid;

fn main() {
    tracing_subscriber::fmt().with_ansi(false).init();
    let variable = |name: &str| env::var(name).unwrap_or_else(|_| panic!("{name} is not set"));
    let url = variable("OUTBOX_DATABASE_URL");
    let kafka = Kafka::new(variable("STEP_BROKERS"));
    let topics: TopicNaming = variable("STEP_TOPIC").parse().expect("a pattern");
    let steps = Arc::new(Steps {
        name: env::var("STEP_NAME").unwrap_or_default(),
        occurrence: env::var("STEP_OCCURRENCE").map_or(1, |number| number.parse().expect("a number")),
        signal: if env::var("STEP_SIGNAL").is_ok_and(|signal| signal == "STOP") {
            signal_hook::consts::SIGSTOP
        } else {
            signal_hook::consts::SIGKILL
        },
        delay: Duration::from_micros(
            env::var("STEP_DELAY_US").map_or(500, |delay| delay.parse().expect("a number")),
        ),
        seen: AtomicUsize::new(0),
    });
    let of_source = steps.clone();
    let slot = env::var("STEP_SLOT").ok();
    let relay = Relay::from_source(move |options: SourceOptions| {
        let source: Box<dyn Source> = if let Some(slot) = &slot {
            Box::new(WalSource::new(url.clone(), options, WalOptions::default().slot(slot)))
        } else if url.starts_with("mysql") {
            Box::new(MysqlSource::new(url.clone(), options))
        } else {
            Box::new(PostgresSource::new(url.clone(), options))
        };
        Box::new(SteppingSource { source, steps: of_source.clone() })
    });
    let broker = move || {
        let publisher = SteppingPublisher { publisher: kafka.publisher()?, steps: steps.clone() };
        Ok(Box::new(publisher) as Box<dyn Publisher>)
    };
    let relay = relay.broker(broker).topic_naming(topics).exactly_once(true).batch_size(200);
    let relay = relay
        .transaction_size(300)
        .poll_interval(Duration::from_millis(200))
        .max_pass_duration(Duration::from_millis(100));
    block_on(relay.run(std::future::pending::<()>())).expect("a relay that goes on");
}

struct Steps {
    name: String,
    /// Which time it is reached.
    occurrence: usize,
    signal: i32,
    /// How long after the beginning of a call the middle of it is.
    delay: Duration,
    seen: AtomicUsize,
}

impl Steps {
    fn reach(self: &Arc<Self>, call: &str, when: &str) {
        if self.name.strip_suffix(when).and_then(|name| name.strip_suffix(' ')) != Some(call)
            || self.seen.fetch_add(1, Ordering::Relaxed) + 1 != self.occurrence
        {
            return;
        }
        println!("reached: {}", self.name);
        if when != "during" {
            raise(self.signal).expect("a signal to itself");
            return;
        }
        let steps = self.clone();
        thread::spawn(move || {
            thread::sleep(steps.delay);
            raise(steps.signal).expect("a signal to itself");
        });
    }

    fn around<T>(self: &Arc<Self>, call: &str, work: impl FnOnce() -> T) -> T {
        self.reach(call, "before");
        self.reach(call, "during");
        let done = work();
        self.reach(call, "after");
        done
    }
}

struct SteppingSource {
    source: Box<dyn Source>,
    steps: Arc<Steps>,
}

impl Source for SteppingSource {
    fn claim(&mut self) -> Result<bool, SourceError> {
        let claimed = self.source.claim()?;
        if claimed {
            self.steps.reach("claim", "after");
        }
        Ok(claimed)
    }

    fn read(&mut self, limit: usize, records: &mut Vec<Claimed>) -> Result<bool, SourceError> {
        self.steps.around("read", || self.source.read(limit, records))
    }

    fn read_ahead(&mut self, limit: usize) -> Result<(), SourceError> {
        self.steps.around("read_ahead", || self.source.read_ahead(limit))
    }

    fn settle(&mut self, tickets: &[u64]) -> Result<(), SourceError> {
        self.steps.around("settle", || self.source.settle(tickets))
    }

    fn settle_committed(&mut self, ids: &[Uuid]) -> Result<(), SourceError> {
        println!("took over {} records", ids.len());
        self.steps.around("settle_committed", || self.source.settle_committed(ids))
    }

    fn settles_in_order(&self) -> bool {
        self.source.settles_in_order()
    }

    fn dead_letter(&mut self, ticket: u64, reason: &str) -> Result<DeadLettered, SourceError> {
        self.steps.around("dead_letter", || self.source.dead_letter(ticket, reason))
    }

    fn release(&mut self) -> Result<(), SourceError> {
        self.steps.around("release", || self.source.release())
    }

    fn abandon(&mut self) {
        self.source.abandon();
    }

    fn undoable_passes(&self) -> usize {
        self.source.undoable_passes()
    }

    fn lingers(&self) -> bool {
        self.source.lingers()
    }

    fn is_awaited(&self) -> bool {
        self.source.is_awaited()
    }

    fn put_off(&mut self, error: Option<&SourceError>) -> Option<Duration> {
        self.source.put_off(error)
    }

    fn wait(&mut self, limit: Duration) -> Result<bool, SourceError> {
        self.source.wait(limit)
    }

    fn outbox(&self) -> Option<&str> {
        self.source.outbox()
    }

    fn origin(&self) -> Option<&str> {
        self.source.origin()
    }

    fn upkeep(&mut self) -> Result<Option<Lag>, SourceError> {
        self.source.upkeep()
    }
}

struct SteppingPublisher {
    publisher: Box<dyn Publisher>,
    steps: Arc<Steps>,
}

impl Publisher for SteppingPublisher {
    fn publish(&mut self, ticket: u64, topic: &str, record: &Record) -> Result<(), Refusal> {
        self.steps.around("publish", || self.publisher.publish(ticket, topic, record))
    }

    fn acknowledgements(
        &mut self,
        wait: Duration,
        acknowledgements: &mut Vec<Acknowledgement>,
    ) -> Result<(), PublishError> {
        let known = acknowledgements.len();
        self.publisher.acknowledgements(wait, acknowledgements)?;
        if acknowledgements.len() > known {
            self.steps.reach("acknowledgements", "after");
        }
        Ok(())
    }

    fn abandon(&mut self) {
        self.publisher.abandon();
    }

    fn ready(&mut self, wait: Duration) -> Result<(), PublishError> {
        self.publisher.ready(wait)
    }

    fn begin(&mut self, lane: &Lane<'_>, wait: Duration) -> Result<Option<Vec<Uuid>>, PublishError> {
        self.steps.around("begin", || self.publisher.begin(lane, wait))
    }

    fn commit_ahead(&mut self, wait: Duration) -> Result<(), PublishError> {
        self.steps.around("commit_ahead", || self.publisher.commit_ahead(wait))
    }

    fn commit(&mut self, wait: Duration) -> Result<(), PublishError> {
        self.steps.around("commit", || self.publisher.commit(wait))
    }
}
