//! The status page, in a real browser and by hand.

#[path = "status/actions.rs"]
mod actions;
#[path = "status/embedded.rs"]
mod embedded;
#[path = "status/guards.rs"]
mod guards;
#[path = "status/pictures.rs"]
mod pictures;
#[path = "status/seen.rs"]
mod seen;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::Command;
use std::sync::OnceLock;
use std::time::Duration;

use diesel_outbox::{Emit, OutboxConnection, Record};
use outbox_tests::{Kafka, Process, workspace_binary};

const PATIENCE: Duration = Duration::from_secs(60);
const TOKEN: &str = "the-token-of-these-tests";

/// A running relay, and the address where it serves.
struct Relay {
    process: Process,
    address: String,
}

impl Relay {
    fn start(database_url: &str, more: &[&str]) -> Self {
        Self::start_at("127.0.0.1:0", database_url, more)
    }

    fn start_at(address: &str, database_url: &str, more: &[&str]) -> Self {
        static BINARY: OnceLock<PathBuf> = OnceLock::new();
        let mut command = Command::new(BINARY.get_or_init(|| workspace_binary("outbox")));
        command.args(["relay", "--database-url", database_url, "--brokers", Kafka::shared().brokers()]);
        command.args(["--listen", address, "--lag-interval", "100ms", "--log-format", "json"]).args(more);
        command.env("OUTBOX_STATUS_TOKEN", TOKEN);
        let process = Process::start(&command);
        let line =
            process.wait_for_line("where it serves", PATIENCE, |line| line.contains("serving /metrics"));
        let line: serde_json::Value = serde_json::from_str(&line).unwrap();
        let address = line["address"].as_str().expect("an address").to_owned();
        Self { process, address }
    }

    fn url(&self) -> String {
        format!("http://{}/", self.address)
    }

    fn get(&self, path: &str) -> Answer {
        asked(&self.address, &format!("GET {path} HTTP/1.1\r\nHost: {}\r\n", self.address), "")
    }

    /// Sends the form with these fields, as a client that is no browser, or with the headers of one.
    fn post(&self, headers: &str, fields: &str) -> Answer {
        let head = format!(
            "POST /dead-letters HTTP/1.1\r\nHost: {}\r\n{headers}Content-Type: application/x-www-form-urlencoded\r\n",
            self.address
        );
        asked(&self.address, &head, fields)
    }
}

struct Answer {
    status: u16,
    head: String,
    body: String,
}

fn asked(address: &str, head: &str, body: &str) -> Answer {
    let mut stream = TcpStream::connect(address).unwrap();
    write!(stream, "{head}Connection: close\r\nContent-Length: {}\r\n\r\n{body}", body.len()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head and a body");
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status");
    Answer { status, head: head.to_lowercase(), body: body.to_owned() }
}

fn record(aggregate_type: &str, id: impl ToString, event_type: &str) -> Record {
    Record::new(aggregate_type, id.to_string(), event_type).with_payload(*b"{\"total\":12}")
}

fn emit<C: OutboxConnection>(conn: &mut C, aggregate_type: &str, count: usize) {
    let records = (0..count).map(|id| record(aggregate_type, id, "OrderPlaced"));
    conn.transaction(|c| c.emit_all(records)).unwrap();
}
