//! The whole path in one process: a shop takes orders, a relay sends their events to Kafka, and billing writes one
//! invoice for each. `cargo run -p quickstart` prints each step, and fails if a step goes wrong.

use std::error::Error;
use std::path::Path;
use std::process::ExitCode;
use std::sync::mpsc::{self, Receiver};
use std::time::Duration;

use diesel::connection::SimpleConnection;
use diesel::prelude::*;
use diesel::result::Error::RollbackTransaction;
use diesel_outbox::{Emit, InboxEvent, Migrations, OutboxEvent};
use diesel_outbox_kafka::consumer::Consumer;
use diesel_outbox_relay::{Kafka, Relay, RelayHandle};
use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::mocking::MockCluster;
use serde::{Deserialize, Serialize};
use tracing_subscriber::filter::LevelFilter;

type Outcome<T = ()> = Result<T, Box<dyn Error + Send + Sync>>;

const TOPIC: &str = "outbox.event.order";
const DEADLINE: Duration = Duration::from_secs(30);

diesel::table! {
    orders (id) { id -> BigInt, total_cents -> BigInt, paid -> Bool, }
}
diesel::table! {
    invoices (id) { id -> BigInt, order_id -> BigInt, total_cents -> BigInt, }
}

#[derive(Serialize, Deserialize, OutboxEvent, InboxEvent)]
#[outbox(aggregate = "order", id(order_id))]
enum OrderEvent {
    OrderPlaced { order_id: i64, total_cents: i64 },
    OrderPaid { order_id: i64 },
}

fn main() -> ExitCode {
    tracing_subscriber::fmt().with_max_level(LevelFilter::WARN).with_writer(std::io::stderr).init();
    let folder = std::env::temp_dir().join(format!("outbox-quickstart-{}", std::process::id()));
    let outcome = std::fs::create_dir(&folder).map_err(Into::into).and_then(|()| run(&folder));
    let _ = std::fs::remove_dir_all(&folder);
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("The quickstart failed: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(folder: &Path) -> Outcome {
    let [shop_db, billing_db] = ["shop.db", "billing.db"].map(|name| folder.join(name).display().to_string());
    let shop = &mut create(&shop_db, "orders (id INTEGER PRIMARY KEY, total_cents BIGINT, paid BOOLEAN)")?;
    let billing =
        &mut create(&billing_db, "invoices (id INTEGER PRIMARY KEY, order_id BIGINT, total_cents BIGINT)")?;
    let cluster = MockCluster::new(1)?;
    cluster.create_topic(TOPIC, 1, 1)?;
    let brokers = cluster.bootstrap_servers();
    println!("1. A shop and its billing each have an SQLite database, and Kafka runs in this process.");

    shop.transaction(|c| place_order(c, 1, 4_200))?;
    println!("2. The shop placed order 1: the order and its event were committed together.");

    let rolled_back = shop.transaction(|c| {
        place_order(c, 2, 9_900)?;
        Err::<(), _>(RollbackTransaction)
    });
    check(rolled_back == Err(RollbackTransaction) && unsent(shop)? == 1, "only order 1 has an event")?;
    println!("3. It placed order 2 and rolled back: neither order 2 nor its event exists.");

    let relay = start_relay(&shop_db, &brokers)?;
    let (handled, billing_handled) = mpsc::channel();
    let consumer = Consumer::<SqliteConnection>::new(&brokers, "billing")
        .database_url(&billing_db)
        .topics([TOPIC])
        .on_event(move |c, event| {
            let event = match event {
                OrderEvent::OrderPlaced { order_id, total_cents } => {
                    diesel::insert_into(invoices::table)
                        .values((invoices::order_id.eq(order_id), invoices::total_cents.eq(total_cents)))
                        .execute(c)?;
                    format!("OrderPlaced of order {order_id}")
                }
                OrderEvent::OrderPaid { order_id } => format!("OrderPaid of order {order_id}"),
            };
            Ok(handled.send(event)?)
        })
        .spawn()?;
    wait_for("OrderPlaced of order 1", &billing_handled)?;
    println!("4. The relay sent OrderPlaced of order 1 to Kafka, and billing wrote an invoice for it.");

    relay.stop_blocking()?;
    check(unsent(shop)? == 0, "the relay has marked the event as sent")?;
    shop.batch_execute("UPDATE outbox SET sent_at = NULL")?;
    let relay = start_relay(&shop_db, &brokers)?;
    println!("5. The relay lost its mark that the event was sent, as in a crash, so it sends it again.");

    shop.transaction(|c| {
        diesel::update(orders::table.find(1)).set(orders::paid.eq(true)).execute(c)?;
        c.emit(&OrderEvent::OrderPaid { order_id: 1 })
    })?;
    wait_for("OrderPaid of order 1", &billing_handled)?;
    println!("6. Order 1 was paid, and billing received OrderPaid after both copies of OrderPlaced.");

    consumer.stop_blocking()?;
    relay.stop_blocking()?;
    check(unsent(shop)? == 0, "every event was sent")?;
    let reader: BaseConsumer = ClientConfig::new().set("bootstrap.servers", &brokers).create()?;
    check(reader.fetch_watermarks(TOPIC, 0, DEADLINE)? == (0, 3), "Kafka has three records")?;
    let invoices: Vec<(i64, i64)> =
        invoices::table.select((invoices::order_id, invoices::total_cents)).load(billing)?;
    check(invoices == [(1, 4_200)], "billing has exactly one invoice, for order 1")?;
    println!(
        "7. Kafka has 3 records, but billing has 1 invoice, because its inbox recognised the second copy."
    );
    Ok(())
}

fn place_order(c: &mut SqliteConnection, id: i64, total_cents: i64) -> QueryResult<()> {
    diesel::insert_into(orders::table)
        .values((orders::id.eq(id), orders::total_cents.eq(total_cents), orders::paid.eq(false)))
        .execute(c)?;
    c.emit(&OrderEvent::OrderPlaced { order_id: id, total_cents })?;
    Ok(())
}

fn start_relay(database: &str, brokers: &str) -> Outcome<RelayHandle> {
    Ok(Relay::sqlite(database).broker(Kafka::new(brokers)).spawn()?)
}

fn create(database: &str, table: &str) -> Outcome<SqliteConnection> {
    let mut conn = SqliteConnection::establish(database)?;
    conn.batch_execute(&format!("PRAGMA busy_timeout = 5000; CREATE TABLE {table}"))?;
    Migrations::new().run(&mut conn)?;
    Ok(conn)
}

fn unsent(conn: &mut SqliteConnection) -> QueryResult<i64> {
    diesel::dsl::sql::<diesel::sql_types::BigInt>("SELECT count(*) FROM outbox WHERE sent_at IS NULL")
        .get_result(conn)
}

fn wait_for(event: &str, handled: &Receiver<String>) -> Outcome {
    let found = handled.recv_timeout(DEADLINE).unwrap_or_else(|_| format!("nothing within {DEADLINE:?}"));
    check(found == event, &format!("billing handles {event} next, but it handled {found}"))
}

fn check(holds: bool, expected: &str) -> Outcome {
    if holds { Ok(()) } else { Err(format!("expected: {expected}").into()) }
}
