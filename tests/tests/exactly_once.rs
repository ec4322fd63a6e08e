//! Each event is there exactly once, for consumers that read what is committed, whatever becomes of the relays.

#[path = "exactly_once/cli.rs"]
mod cli;
#[path = "exactly_once/from_wal.rs"]
mod from_wal;
#[path = "exactly_once/frozen.rs"]
mod frozen;
#[path = "exactly_once/killed.rs"]
mod killed;
#[path = "exactly_once/lanes.rs"]
mod lanes;
#[path = "exactly_once/outages.rs"]
mod outages;
#[path = "exactly_once/outbox.rs"]
mod outbox;
#[path = "exactly_once/partition.rs"]
mod partition;
#[path = "exactly_once/progress_topic.rs"]
mod progress_topic;
#[path = "exactly_once/refused.rs"]
mod refused;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::Command;
use std::sync::OnceLock;
use std::time::Duration;

use diesel_outbox::{Emit, OutboxConnection, Record};
use outbox_tests::load::repetitions;
use outbox_tests::{Kafka, Process, Tables, on_postgres_and_mariadb, workspace_binary};

use crate::frozen::a_relay_that_was_frozen_past_its_claim_writes_nothing_more;
use crate::killed::a_relay_that_is_killed_at_any_step_loses_nothing_and_sends_nothing_twice;
use crate::lanes::one_relay_works_and_the_next_takes_over_when_it_is_killed;
use crate::outbox::Outbox;
use crate::refused::{
    a_record_that_kafka_refuses_becomes_a_dead_letter_and_the_others_arrive_once,
    an_aggregate_is_blocked_by_its_dead_letter_and_the_others_arrive_once,
};

const PATIENCE: Duration = Duration::from_secs(60);

on_postgres_and_mariadb!(
    a_relay_that_is_killed_at_any_step_loses_nothing_and_sends_nothing_twice,
    a_relay_that_was_frozen_past_its_claim_writes_nothing_more,
    a_record_that_kafka_refuses_becomes_a_dead_letter_and_the_others_arrive_once,
    an_aggregate_is_blocked_by_its_dead_letter_and_the_others_arrive_once,
    one_relay_works_and_the_next_takes_over_when_it_is_killed,
);

/// Where a relay kills or freezes itself, such as `commit after`, and which time it gets there.
#[derive(Clone, Debug, Default)]
struct Step {
    name: String,
    occurrence: usize,
    delay_us: usize,
    freezes: bool,
    /// The database's URL, if it is another one than usual.
    url: Option<String>,
}

/// Starts a relay that sends exactly once to this topic.
fn start(outbox: &impl Outbox, topic: &str, step: &Step) -> Process {
    start_to(Kafka::shared(), outbox, topic, step)
}

fn start_to(kafka: &Kafka, outbox: &impl Outbox, topic: &str, step: &Step) -> Process {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    let mut relay = Command::new(BINARY.get_or_init(|| workspace_binary("stepping-relay")));
    relay
        .env("OUTBOX_DATABASE_URL", step.url.clone().unwrap_or_else(|| outbox.tables().relay_url()))
        .env("STEP_BROKERS", kafka.brokers())
        .env("STEP_TOPIC", topic)
        .env("STEP_NAME", &step.name)
        .env("STEP_OCCURRENCE", step.occurrence.to_string())
        .env("STEP_DELAY_US", step.delay_us.to_string())
        .env("STEP_SIGNAL", if step.freezes { "STOP" } else { "KILL" });
    if let Some(slot) = outbox.slot() {
        relay.env("STEP_SLOT", slot);
    }
    Process::start(&relay)
}

/// Emits 200 events of 50 aggregates, with numbers that are higher than those of at most 10,000 others. Returns their ids.
fn emit_more<C: OutboxConnection>(conn: &mut C) -> BTreeSet<String> {
    emit_from(conn, 10_000)
}

/// Emits 200 events of 50 aggregates, with numbers from this one on. Returns their ids.
fn emit_from<C: OutboxConnection>(conn: &mut C, first: usize) -> BTreeSet<String> {
    let record = |number: usize| Record::new("order", (number % 50).to_string(), number.to_string());
    let records: Vec<Record> = (first..first + 200).map(record).collect();
    conn.transaction(|c| c.emit_all(&records)).unwrap();
    records.iter().map(|record| record.id().to_string()).collect()
}

/// Waits until everything is settled, and checks that consumers who read what is committed get each event once and in order.
#[track_caller]
fn assert_sent_exactly_once(outbox: &impl Outbox, topic: &str, committed: &BTreeSet<String>) {
    assert_sent_exactly_once_to(Kafka::shared(), outbox, topic, committed);
}

#[track_caller]
fn assert_sent_exactly_once_to(
    kafka: &Kafka,
    outbox: &impl Outbox,
    topic: &str,
    committed: &BTreeSet<String>,
) {
    outbox.wait_until_settled();
    let received = kafka.read_at_least(topic, committed.len(), PATIENCE);
    assert_eq!(repetitions(&received, committed), 0, "events that were sent twice");
}
