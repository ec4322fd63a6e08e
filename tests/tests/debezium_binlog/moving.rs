//! A live system moves between polling and Debezium, and goes on after the binlog was purged.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use diesel::connection::SimpleConnection;
use diesel_outbox_relay::mysql::prelude::Queryable;
use diesel_outbox_relay::mysql::{Conn, Row};
use diesel_outbox_relay::operate::Operate;
use outbox_tests::load::{new_topic, relay_command, repetitions, stop, write_until};
use outbox_tests::{BinlogDebezium, Kafka, Mariadb, MariadbDatabase, Process, eventually};

use super::{PATIENCE, emit, event_types, migrated, migrated_on, named};

const WRITERS: usize = 2;
/// How long a writer waits between two transactions.
const PACE: Duration = Duration::from_millis(10);
/// How many events must arrive between two moves.
const BETWEEN: usize = 4_000;

fn relay(database: &MariadbDatabase<'_>, topic: &str) -> Process {
    Process::start(&relay_command(Kafka::shared().brokers(), database.url(), topic, &[]))
}

/// What is not sent then was committed after the offset, or at least its transaction had not ended.
fn wait_until_sent_before(database: &MariadbDatabase<'_>, moment: Instant) {
    let mut conn = Conn::new(database.url()).unwrap();
    eventually("what was committed before to be sent", PATIENCE, || {
        let lag = conn.lag().unwrap();
        (lag.oldest < moment.elapsed()).then_some(())
    });
}

/// Everything that Debezium has sent for certain is marked, as the documentation says.
fn mark(database: &MariadbDatabase<'_>, debezium: &BinlogDebezium<'_>) {
    let sql = "SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED; \
               UPDATE outbox SET sent_at = UTC_TIMESTAMP(3) WHERE sent_at IS NULL";
    database.connect().batch_execute(sql).unwrap();
    let offset: serde_json::Value = serde_json::from_str(&debezium.offset()).unwrap();
    let offset = &offset["offsets"][0]["offset"];
    let place = |offset: &serde_json::Value| {
        (offset["file"].as_str().unwrap_or_default().to_owned(), offset["pos"].as_u64())
    };
    eventually("Debezium to be past it", PATIENCE, || {
        (place(&debezium.connect().offset(database.name())) >= place(offset)).then_some(())
    });
}

#[test]
fn a_live_outbox_moves_from_polling_to_debezium_and_back() {
    let database = migrated();
    let topic = new_topic("moving");
    let counter = Kafka::shared().counter(&topic);
    let wait_for_more = || {
        let target = counter.count() + BETWEEN;
        eventually("more events", PATIENCE, || (counter.count() >= target).then_some(()));
    };
    let connect = BinlogDebezium::start_connect(&database);
    let debezium = BinlogDebezium::prepared(&database, &topic).on(&connect);
    let ends = AtomicBool::new(false);
    let committed = std::thread::scope(|scope| {
        let writers: Vec<_> = (0..WRITERS)
            .map(|writer| {
                let mut conn = database.connect();
                let is_to_end = || {
                    std::thread::sleep(PACE);
                    ends.load(Ordering::Relaxed)
                };
                scope.spawn(move || write_until(&mut conn, writer, WRITERS, 1_000, usize::MAX, is_to_end))
            })
            .collect();
        let _ends = Ends(&ends);

        let polling = relay(&database, &topic);
        wait_for_more();
        let offset = debezium.offset();
        wait_until_sent_before(&database, Instant::now());
        stop(&polling);
        debezium.begin(&offset);
        wait_for_more();

        // After a crash it continues where it had stored its offset last.
        connect.crash();
        connect.continue_with(database.name(), debezium.connector());
        wait_for_more();

        mark(&database, &debezium);
        debezium.stop();
        let polling = relay(&database, &topic);
        wait_for_more();

        ends.store(true, Ordering::Relaxed);
        let committed: BTreeSet<String> =
            writers.into_iter().flat_map(|writer| writer.join().unwrap()).collect();
        wait_until_sent_before(&database, Instant::now());
        stop(&polling);
        committed
    });
    let received = Kafka::shared().read_all(&topic);
    let repeated = repetitions(&received, &committed);
    println!("{} events, {repeated} repeated", committed.len());
}

/// Ends the writers even if the test fails.
struct Ends<'a>(&'a AtomicBool);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn on_mariadb_a_connector_whose_place_was_purged_fails_and_a_relay_fills_the_gap() {
    a_connector_whose_place_was_purged_fails_and_a_relay_fills_the_gap(&Mariadb::start());
}

#[test]
fn on_mysql_a_connector_whose_place_was_purged_fails_and_a_relay_fills_the_gap() {
    a_connector_whose_place_was_purged_fails_and_a_relay_fills_the_gap(&Mariadb::start_mysql());
}

fn a_connector_whose_place_was_purged_fails_and_a_relay_fills_the_gap(server: &Mariadb) {
    let database = migrated_on(server);
    let topic = Kafka::shared().unique("purged");
    // The configuration as printed, except for the interval at which the offset of an idle connector moves.
    let debezium = BinlogDebezium::prepared(&database, &topic).with("heartbeat.interval.ms", "200");
    debezium.begin(&debezium.offset());
    emit(&database, &[named("Before")]);
    Kafka::shared().read_at_least(&topic, 1, PATIENCE);
    mark(&database, &debezium);
    debezium.stop();
    emit(&database, &[named("Purged")]);
    let conn = &mut database.connect();
    // Diesel prepares its statements, and MySQL does not describe what this one returns.
    let mut lists = Conn::new(database.url()).unwrap();
    let mut files =
        || lists.query_map("SHOW BINARY LOGS", |row: Row| row.get::<String, _>(0).unwrap()).unwrap();
    conn.batch_execute("FLUSH BINARY LOGS").unwrap();
    let last = files().pop().unwrap();
    // The server keeps what it is still about to send to the connector that has stopped.
    eventually("the binlog to be purged", PATIENCE, || {
        conn.batch_execute(&format!("PURGE BINARY LOGS TO '{last}'")).unwrap();
        (files()[0] == last).then_some(())
    });
    let name = database.name();
    let connect = debezium.connect();
    connect.request("PUT", &format!("/connectors/{name}/resume"), "");
    let why = connect.wait_until_failed(name);
    assert!(why.contains("purged") || why.contains("no longer available on the server"), "{why}");

    debezium.stop();
    let offset = debezium.offset();
    let polling = relay(&database, &topic);
    Kafka::shared().read_at_least(&topic, 2, PATIENCE);
    wait_until_sent_before(&database, Instant::now());
    stop(&polling);
    connect.request("PATCH", &format!("/connectors/{name}/offsets"), &offset);
    debezium.resume();
    emit(&database, &[named("After")]);
    let received = Kafka::shared().read_at_least(&topic, 3, PATIENCE);
    assert_eq!(event_types(&received), ["Before", "Purged", "After"]);
}
