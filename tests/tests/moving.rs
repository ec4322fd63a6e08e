//! A live system moves between polling, the WAL and Debezium while services write. Nothing is lost, each aggregate keeps its
//! order, and the test counts what is sent twice.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use diesel::connection::SimpleConnection;
use diesel::prelude::*;
use diesel::sql_types::Text;
use diesel_outbox_relay::operate::Operate;
use outbox_tests::load::{count, migrated, new_topic, relay, repetitions, stop, wal, write_until};
use outbox_tests::{Counter, Database, Debezium, Kafka, ReadRecord, eventually};

const PATIENCE: Duration = Duration::from_secs(120);
const WRITERS: usize = 2;
/// How long a writer waits between two transactions.
const PACE: Duration = Duration::from_millis(10);
/// How many events must arrive between two moves.
const BETWEEN: usize = 20_000;

/// Debezium confirms a transaction only with the next one, and sends one that was stopped in the middle again as a whole.
const FEW_TRANSACTIONS: usize = 200;

/// A topic, and what it held when each way of relaying began.
struct Watched {
    topic: String,
    counter: Counter,
    begun: Vec<(&'static str, BTreeMap<i32, i64>)>,
}

impl Watched {
    fn new() -> Self {
        let topic = new_topic("moving");
        let counter = Kafka::shared().counter(&topic);
        Self { topic, counter, begun: Vec::new() }
    }

    /// Notes where the topic ends. Nobody may send at this moment.
    fn begins(&mut self, way: &'static str) {
        let mut ends = BTreeMap::new();
        for received in Kafka::shared().read_all(&self.topic) {
            ends.insert(received.partition, received.offset + 1);
        }
        self.begun.push((way, ends));
    }

    fn wait_for_more(&self) {
        let target = self.counter.count() + BETWEEN;
        eventually("more events", PATIENCE, || (self.counter.count() >= target).then_some(()));
    }

    /// How many records this way sent before the next one began.
    fn sent_by(&self, way: &str) -> usize {
        let place = self.begun.iter().position(|(begun, _)| *begun == way).unwrap();
        let until = |place: usize| self.begun[place].1.values().sum::<i64>();
        (until(place + 1) - until(place)) as usize
    }

    /// How many records each way has repeated, in the order of the ways.
    fn repeated(&self, received: &[ReadRecord]) -> Vec<(&'static str, usize)> {
        let mut seen = BTreeSet::new();
        let mut counts: Vec<_> = self.begun.iter().map(|(way, _)| (*way, 0)).collect();
        for received in received {
            let began = |ends: &BTreeMap<i32, i64>| {
                ends.get(&received.partition).copied().unwrap_or_default() <= received.offset
            };
            let way = self.begun.iter().rposition(|(_, ends)| began(ends)).unwrap_or_default();
            counts[way].1 += usize::from(!seen.insert(received.header("id").unwrap().to_owned()));
        }
        counts
    }
}

/// The polling relay must send everything from before the setup before anybody reads the WAL.
fn wait_until_nothing_is_polled(conn: &mut PgConnection) {
    eventually("nothing to be polled", PATIENCE, || (conn.lag().unwrap().unsent == 0).then_some(()));
}

/// The slot's confirmed position.
fn confirmed(database: &Database<'_>) -> String {
    let sql =
        "(SELECT confirmed_flush_lsn::text FROM pg_replication_slots WHERE slot_name = current_database())";
    diesel::select(diesel::dsl::sql::<Text>(sql)).get_result(&mut database.connect()).unwrap()
}

/// Waits until the slot has moved so far that it cannot be read from this position any more, as after a longer time.
fn wait_until_the_wal_is_gone(database: &Database<'_>, place: &str) {
    let conn = &mut database.connect();
    conn.batch_execute("CHECKPOINT").unwrap();
    let gone =
        format!("pg_replication_slots WHERE slot_name = current_database() AND restart_lsn > '{place}'");
    eventually("the slot to move on", PATIENCE, || (count(conn, &gone) == 1).then_some(()));
}

/// Moves the slot to where a relay has sent its events. The relay may have stopped before it could confirm that.
fn tell_the_slot(database: &Database<'_>) {
    database
        .connect()
        .batch_execute(
            "SELECT pg_replication_slot_advance(s.slot_name, o.start_lsn) FROM outbox_slot AS o \
             JOIN pg_replication_slots AS s ON s.slot_name = o.slot WHERE o.start_lsn > s.confirmed_flush_lsn",
        )
        .unwrap();
}

#[test]
fn a_live_outbox_moves_from_polling_to_debezium_and_the_wal_and_back() {
    let database = migrated();
    let conn = &mut database.connect();
    let mut watched = Watched::new();
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

        watched.begins("polling");
        let polling = relay(&database, &watched.topic, &[]);
        watched.wait_for_more();

        wal(&database, "setup");
        wait_until_nothing_is_polled(conn);
        stop(&polling);
        watched.begins("Debezium");
        let debezium = Debezium::as_printed(&database, Kafka::shared(), &watched.topic);
        watched.wait_for_more();

        debezium.stop();
        watched.begins("log");
        let place = confirmed(&database);
        let log = relay(&database, &watched.topic, &["--source", "wal", "--slot", database.name()]);
        watched.wait_for_more();
        wait_until_the_wal_is_gone(&database, &place);

        stop(&log);
        tell_the_slot(&database);
        watched.begins("Debezium again");
        debezium.restart();
        watched.wait_for_more();

        debezium.crash();
        watched.begins("Debezium after a crash");
        debezium.restart();
        watched.wait_for_more();

        debezium.stop();
        wal(&database, "drop");
        watched.begins("polling again");
        let polling = relay(&database, &watched.topic, &[]);
        watched.wait_for_more();

        ends.store(true, Ordering::Relaxed);
        let committed: BTreeSet<String> =
            writers.into_iter().flat_map(|writer| writer.join().unwrap()).collect();
        eventually("everything to be polled", PATIENCE, || (conn.lag().unwrap().unsent == 0).then_some(()));
        stop(&polling);
        committed
    });
    let received = Kafka::shared().read_all(&watched.topic);
    let repeated = watched.repeated(&received);
    println!("{} events, repeated: {repeated:?}", committed.len());
    assert_eq!(repetitions(&received, &committed), repeated.iter().map(|(_, count)| count).sum::<usize>());
    for (way, count) in repeated {
        let limit = match way {
            "polling" | "Debezium" => 0,
            // Everything that Debezium had sent since it last stored its offsets.
            "Debezium after a crash" => watched.sent_by("Debezium again"),
            _ => FEW_TRANSACTIONS,
        };
        assert!(count <= limit, "{way} sent {count} events again");
    }
}

/// Ends the writers even if the test fails.
struct Ends<'a>(&'a AtomicBool);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
