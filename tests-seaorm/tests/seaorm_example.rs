//! The example's service as a process: an order that it has confirmed reaches Kafka, whenever the service stops.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::process::Command;
use std::time::Duration;

use outbox_tests::{Kafka, Process, Signal, workspace_binary};
use outbox_tests_seaorm::Ground;
use serde_json::{Value, json};

const PATIENCE: Duration = Duration::from_secs(60);

fn start(ground: &Ground, brokers: &str) -> Process {
    let mut command = Command::new(workspace_binary("orders-seaorm"));
    command.env("DATABASE_URL", ground.url()).env("BROKERS", brokers).env("LISTEN", "127.0.0.1:0");
    Process::start(&command)
}

fn address(service: &Process) -> String {
    let line = service.wait_for_line("its address", PATIENCE, |line| line.contains("listening on "));
    line.split_whitespace().next_back().unwrap().to_owned()
}

/// Places an order, and returns the status and the body of the answer.
fn place(address: &str, customer: &str, total_cents: i64) -> io::Result<(u16, Value)> {
    let body = json!({ "customer": customer, "total_cents": total_cents }).to_string();
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    write!(
        stream,
        "POST /orders HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\nContent-Type: application/json\r\n\
         Content-Length: {}\r\n\r\n{body}",
        body.len()
    )?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").ok_or(io::ErrorKind::UnexpectedEof)?;
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
    Ok((status.ok_or(io::ErrorKind::InvalidData)?, serde_json::from_str(body).unwrap_or(Value::Null)))
}

fn stop(service: &Process) {
    service.signal(Signal::Terminate);
    assert!(service.wait(PATIENCE).success(), "{}", service.output());
    assert!(service.lines().last().unwrap().ends_with("stopped"), "{}", service.output());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_confirmed_order_reaches_kafka_also_if_the_service_is_killed_meanwhile() {
    let ground = Ground::empty_postgres().await;
    // A broker of its own, because the service's topic has a fixed name.
    let kafka = Kafka::start();
    let service = start(&ground, kafka.brokers());
    let first = address(&service);
    let mut placed = Vec::new();
    for number in 1..=20 {
        let (status, order) = place(&first, &format!("customer {number}"), number).unwrap();
        assert_eq!((status, &order["total_cents"]), (201, &json!(number)));
        placed.push(order["id"].as_str().unwrap().to_owned());
    }
    service.signal(Signal::Kill);
    service.wait(PATIENCE);
    let service = start(&ground, kafka.brokers());
    let (status, order) = place(&address(&service), "customer 21", 21).unwrap();
    assert_eq!(status, 201);
    placed.push(order["id"].as_str().unwrap().to_owned());

    let records = kafka.read_at_least("outbox.event.order", placed.len(), PATIENCE);
    stop(&service);
    let mut keys: Vec<_> = records.iter().map(|record| record.key_text().unwrap().to_owned()).collect();
    keys.sort();
    // After the crash the relay may send again what it had not noted as sent.
    keys.dedup();
    placed.sort();
    assert_eq!(keys, placed);
    let last: Value = serde_json::from_str(
        records.iter().find(|record| record.key_text() == order["id"].as_str()).unwrap().text().unwrap(),
    )
    .unwrap();
    assert_eq!(last, json!({ "order_id": order["id"], "customer": "customer 21", "total_cents": 21 }));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_order_that_the_database_refuses_emits_nothing() {
    let ground = Ground::empty_postgres().await;
    let service = start(&ground, "127.0.0.1:1");
    assert_eq!(place(&address(&service), "Ada", 0).unwrap().0, 422);
    assert_eq!((ground.count("orders").await, ground.count("outbox").await), (0, 0));
    stop(&service);
}
