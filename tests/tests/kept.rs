//! What operators do with the events that an outbox keeps: compare them with Kafka, and send them again.

#[path = "kept/replay.rs"]
mod replay;
#[path = "kept/verify.rs"]
mod verify;

use std::process::{Command, Output};
use std::time::Duration;

use diesel_outbox::{Emit, OutboxConnection, Record};
use outbox_tests::{Kafka, Process, Signal, workspace_binary};
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use uuid::Uuid;

const PATIENCE: Duration = Duration::from_secs(60);

fn outbox(arguments: &[&str]) -> Command {
    let mut command = Command::new(workspace_binary("outbox"));
    command.args(arguments).env_remove("RUST_LOG").env_remove("DATABASE_URL");
    command
}

fn ran(command: &mut Command) -> (String, String, Option<i32>) {
    let Output { status, stdout, stderr } = command.output().unwrap();
    (String::from_utf8(stdout).unwrap(), String::from_utf8(stderr).unwrap(), status.code())
}

/// An outbox, a topic for its events, and how to relay them.
struct Place<'a> {
    url: &'a str,
    topic: String,
    /// What the relay takes besides.
    relay: Vec<&'a str>,
}

impl<'a> Place<'a> {
    fn new(url: &'a str, relay: &[&'a str]) -> Self {
        let topic = Kafka::shared().unique("verify");
        Kafka::shared().create_topic(&topic, 3);
        Self { url, topic, relay: relay.to_vec() }
    }

    /// A command with what both take.
    fn command(&self, name: &str, arguments: &[&str]) -> Command {
        let common = [
            name,
            "--database-url",
            self.url,
            "--brokers",
            Kafka::shared().brokers(),
            "--topic",
            &self.topic,
        ];
        outbox(&[&common, arguments].concat())
    }

    /// Relays until Kafka has this many records.
    fn relay_until(&self, count: usize) {
        let relay = Process::start(&self.command("relay", &self.relay));
        Kafka::shared().read_at_least(&self.topic, count, PATIENCE);
        relay.signal(Signal::Terminate);
        assert!(relay.wait(PATIENCE).success(), "{}", relay.output());
    }

    fn verify(&self, arguments: &[&str]) -> (String, String, Option<i32>) {
        ran(&mut self.command("verify", arguments))
    }

    fn produce(&self, id: Uuid, key: &str) {
        let producer: BaseProducer =
            Kafka::shared().client().set("partitioner", "murmur2_random").create().unwrap();
        let headers = OwnedHeaders::new().insert(Header { key: "id", value: Some(&id.to_string()) });
        producer.send(BaseRecord::to(&self.topic).key(key).payload("{}").headers(headers)).unwrap();
        producer.flush(PATIENCE).unwrap();
    }
}

fn emit<C: OutboxConnection + Emit>(conn: &mut C, aggregate: &str, count: usize) -> Vec<Uuid> {
    let record = |n: usize| Record::new("order", aggregate, format!("Event{n}")).with_payload(*b"{}");
    conn.transaction(|c| c.emit_all((0..count).map(record))).unwrap()
}
