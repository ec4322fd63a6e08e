//! The example's two services as processes. Every order gets one invoice, although the service that takes orders is killed
//! while it works.

use std::collections::BTreeSet;
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{LazyLock, Mutex};
use std::thread;
use std::time::Duration;

use diesel::dsl::sql;
use diesel::prelude::*;
use diesel::sql_types;
use outbox_tests::{Database, Kafka, Postgres, Process, Signal, eventually, eventually_ok, workspace_binary};
use serde_json::{Value, json};
use uuid::Uuid;

const PATIENCE: Duration = Duration::from_secs(60);
const COUNT: usize = 50;

/// An order's id, customer and total, and whether it is paid.
type OrderRow = (Uuid, String, i64, bool);

fn orders(conn: &mut PgConnection) -> Vec<OrderRow> {
    rows(conn, "SELECT id, customer, total_cents, paid FROM orders ORDER BY id")
}

fn invoices(conn: &mut PgConnection) -> Vec<OrderRow> {
    rows(conn, "SELECT order_id, customer, total_cents, paid FROM invoice ORDER BY order_id")
}

fn rows(conn: &mut PgConnection, query: &str) -> Vec<OrderRow> {
    sql::<(sql_types::Uuid, sql_types::Text, sql_types::BigInt, sql_types::Bool)>(query).load(conn).unwrap()
}

static ORDERS: LazyLock<PathBuf> = LazyLock::new(|| workspace_binary("orders"));
static BILLING: LazyLock<PathBuf> = LazyLock::new(|| workspace_binary("billing"));

fn start(binary: &Path, database: &Database<'_>, brokers: &str) -> Process {
    let mut command = Command::new(binary);
    command.env("DATABASE_URL", database.url()).env("BROKERS", brokers).env("LISTEN", "127.0.0.1:0");
    Process::start(&command)
}

fn address(orders: &Process) -> String {
    let line = orders.wait_for_line("its address", PATIENCE, |line| line.contains("listening on "));
    line.split_whitespace().next_back().unwrap().to_owned()
}

/// The status and the body of the answer, or why there was none.
fn request(address: &str, method: &str, path: &str, body: &str) -> io::Result<(u16, String)> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    write!(
        stream,
        "{method} {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\nContent-Type: application/json\r\n\
         Content-Length: {}\r\n\r\n{body}",
        body.len()
    )?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").ok_or(io::ErrorKind::UnexpectedEof)?;
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
    Ok((status.ok_or(io::ErrorKind::InvalidData)?, body.to_owned()))
}

/// Places orders, at the address that the service has at the time, until one is confirmed.
fn place(number: usize, address: &Mutex<String>) -> Uuid {
    let order = json!({ "customer": format!("customer {number}"), "total_cents": 100 + number }).to_string();
    eventually_ok("an order to be confirmed", PATIENCE, || {
        let address = address.lock().unwrap().clone();
        let (status, body) =
            request(&address, "POST", "/orders", &order).map_err(|error| error.to_string())?;
        assert_eq!(status, 201, "{body}");
        let placed: Value = serde_json::from_str(&body).map_err(|error| error.to_string())?;
        placed["id"].as_str().and_then(|id| id.parse().ok()).ok_or("an order without an id".to_owned())
    })
}

#[test]
fn every_order_has_one_invoice_although_the_service_was_killed() {
    let (shop, office) = (Postgres::shared().database(), Postgres::shared().database());
    // A broker of its own, because the services' topic has a fixed name.
    let kafka = Kafka::start();
    let billing = start(&BILLING, &office, kafka.brokers());
    billing.wait_for_line("that it is ready", PATIENCE, |line| line.contains("the consumer has started"));
    let mut office = office.connect();
    let first = start(&ORDERS, &shop, kafka.brokers());
    let current_address = Mutex::new(address(&first));
    let confirmed = Mutex::new(BTreeSet::from([place(0, &current_address)]));
    eventually("the first invoice", PATIENCE, || (invoices(&mut office).len() == 1).then_some(()));

    let second = thread::scope(|scope| {
        scope.spawn(|| {
            for number in 1..COUNT {
                let id = place(number, &current_address);
                confirmed.lock().unwrap().insert(id);
            }
        });
        eventually("half of the orders", PATIENCE, || {
            (confirmed.lock().unwrap().len() >= COUNT / 2).then_some(())
        });
        first.signal(Signal::Kill);
        let second = start(&ORDERS, &shop, kafka.brokers());
        *current_address.lock().unwrap() = address(&second);
        second
    });
    let address = current_address.into_inner().unwrap();

    // An order whose confirmation was lost with the process counts too.
    let placed = orders(&mut shop.connect());
    let confirmed = confirmed.into_inner().unwrap();
    assert_eq!(confirmed.len(), COUNT);
    assert!(confirmed.is_subset(&placed.iter().map(|(id, ..)| *id).collect()));
    for (id, ..) in &placed {
        let (status, body) = request(&address, "POST", &format!("/orders/{id}/pay"), "").unwrap();
        assert_eq!(status, 200, "{body}");
        // Paying again makes no second payment.
        assert_eq!(request(&address, "POST", &format!("/orders/{id}/pay"), "").unwrap(), (200, body.clone()));
        assert_eq!(request(&address, "GET", &format!("/orders/{id}"), "").unwrap(), (200, body));
    }
    let expected = orders(&mut shop.connect());
    assert!(expected.iter().all(|(.., paid)| *paid));

    eventually_ok("every invoice to be paid", PATIENCE, || {
        let paid = invoices(&mut office).iter().filter(|(.., paid)| *paid).count();
        if paid < expected.len() { Err(format!("{paid} of {} are", expected.len())) } else { Ok(()) }
    });
    for service in [&second, &billing] {
        service.signal(Signal::Terminate);
        assert!(service.wait(PATIENCE).success(), "{}", service.output());
        assert!(service.lines().last().unwrap().ends_with("stopped"), "{}", service.output());
    }
    assert_eq!(invoices(&mut office), expected);
}

#[test]
fn a_request_that_cannot_be_fulfilled_gets_an_error_and_emits_nothing() {
    let shop = Postgres::shared().database();
    let nowhere = "127.0.0.1:1";
    let service = start(&ORDERS, &shop, nowhere);
    let address = address(&service);
    let unknown = format!("/orders/{}", Uuid::now_v7());
    assert_eq!(request(&address, "GET", &unknown, "").unwrap().0, 404);
    assert_eq!(request(&address, "POST", &format!("{unknown}/pay"), "").unwrap().0, 404);
    let free = json!({ "customer": "customer 1", "total_cents": 0 }).to_string();
    assert_eq!(request(&address, "POST", "/orders", &free).unwrap().0, 422);
    let conn = &mut shop.connect();
    assert_eq!(orders(conn), []);
    let events = sql::<sql_types::BigInt>("SELECT count(*) FROM outbox");
    assert_eq!(events.get_result::<i64>(conn).unwrap(), 0);
}
