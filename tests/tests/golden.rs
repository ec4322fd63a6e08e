//! The bytes on Kafka are the same for every relay: the polling relay, the one that reads the WAL, and a real Debezium with the
//! configuration that the binary prints. Each relays the same rows.

mod golden {
    pub(crate) mod rows;
}

use std::time::Duration;

use diesel::connection::SimpleConnection;
use golden::rows::{AGGREGATE_TYPES, generated, insert};
use outbox_tests::load::{migrated, relay, wal};
use outbox_tests::{Database, Debezium, Kafka, Process, ReadRecord, Signal, eventually};

const PATIENCE: Duration = Duration::from_secs(60);
const ROWS: usize = 10_000;

/// One way to Kafka: a database with the rows, and topics with a prefix of their own.
struct Way {
    name: &'static str,
    database: Database<'static>,
    prefix: String,
}

impl Way {
    /// Runs the relay that reads the WAL, or the one that polls.
    fn new(name: &'static str, from_wal: bool) -> Self {
        let (database, prefix) = (migrated(), Kafka::shared().unique(name));
        for (aggregate_type, partitions) in AGGREGATE_TYPES.iter().zip([5, 3, 1]) {
            Kafka::shared().create_topic(&format!("{prefix}.{aggregate_type}"), partitions);
        }
        if from_wal {
            wal(&database, "setup");
        }
        Self { name, database, prefix }
    }

    fn pattern(&self) -> String {
        format!("{}.{{aggregatetype}}", self.prefix)
    }

    fn relay(&self, arguments: &[&str]) -> Process {
        relay(&self.database, &self.pattern(), arguments)
    }

    fn topics(&self) -> Vec<String> {
        AGGREGATE_TYPES.iter().map(|aggregate_type| format!("{}.{aggregate_type}", self.prefix)).collect()
    }

    fn wait_until_all_is_sent(&self) {
        let counters: Vec<_> = self.topics().iter().map(|topic| Kafka::shared().counter(topic)).collect();
        eventually(&format!("all of {}", self.name), PATIENCE, || {
            (counters.iter().map(|counter| counter.count()).sum::<usize>() >= ROWS).then_some(())
        });
    }

    /// Returns what each topic holds: partition, offset, key, headers in their order, timestamp and value.
    fn received(&self) -> Vec<Vec<ReadRecord>> {
        self.topics().iter().map(|topic| Kafka::shared().read_all(topic)).collect()
    }
}

/// Returns the first place where two ways differ.
fn difference(one: &[Vec<ReadRecord>], other: &[Vec<ReadRecord>]) -> Option<String> {
    for ((aggregate_type, one), other) in AGGREGATE_TYPES.iter().zip(one).zip(other) {
        if let Some((one, other)) = one.iter().zip(other).find(|(one, other)| one != other) {
            return Some(format!("{aggregate_type}:\n{}\nand\n{}", shown(one), shown(other)));
        }
        if one.len() != other.len() {
            return Some(format!("{aggregate_type}: {} records and {}", one.len(), other.len()));
        }
    }
    None
}

fn shown(received: &ReadRecord) -> String {
    let text = |bytes: &[u8]| format!("{:.60}", String::from_utf8_lossy(bytes).escape_debug().to_string());
    let headers: Vec<_> = received
        .headers
        .iter()
        .map(|(name, value)| format!("{name}={}", value.as_deref().map_or("null".to_owned(), text)))
        .collect();
    format!(
        "partition {} offset {} time {:?} key {} headers [{}] payload {:?} bytes, {}",
        received.partition,
        received.offset,
        received.timestamp,
        received.key.as_deref().map_or("null".to_owned(), text),
        headers.join(", "),
        received.payload.as_ref().map(Vec::len),
        received.payload.as_deref().map_or("null".to_owned(), text),
    )
}

#[track_caller]
fn assert_same(one: &[Vec<ReadRecord>], other: &[Vec<ReadRecord>]) {
    if let Some(difference) = difference(one, other) {
        panic!("{difference}");
    }
}

#[test]
fn all_relays_send_the_same_bytes() {
    let polling = Way::new("polling", false);
    let log = Way::new("log", true);
    let debezium = Way::new("debezium", true);
    let (polling_all, log_all) = (Way::new("polling-all", false), Way::new("log-all", true));
    let ways = [&polling, &log, &debezium, &polling_all, &log_all];
    let rows = generated(ROWS);
    for way in ways {
        insert(&mut way.database.connect(), &rows);
    }

    let slot = |way: &Way| way.database.name().to_owned();
    let relays = [
        polling.relay(&["--event-headers=false"]),
        log.relay(&["--event-headers=false", "--source", "wal", "--slot", &slot(&log)]),
        polling_all.relay(&[]),
        log_all.relay(&["--source", "wal", "--slot", &slot(&log_all)]),
    ];
    let connect = Debezium::as_printed(&debezium.database, Kafka::shared(), &debezium.pattern());
    ways.iter().for_each(|way| way.wait_until_all_is_sent());
    connect.stop();
    for relay in &relays {
        relay.signal(Signal::Terminate);
        assert!(relay.wait(PATIENCE).success());
    }

    let golden = debezium.received();
    assert_has_every_kind(&golden);
    assert_same(&golden, &polling.received());
    assert_same(&golden, &log.received());
    let all = polling_all.received();
    assert_same(&all, &log_all.received());
    assert_differences_are_found(&golden);
    assert_own_headers_come_last(&golden, &all);
    let conn = &mut debezium.database.connect();
    conn.batch_execute(&format!("SELECT pg_drop_replication_slot('{}')", debezium.database.name())).unwrap();
}

fn assert_has_every_kind(golden: &[Vec<ReadRecord>]) {
    let sizes: Vec<Option<usize>> =
        golden.iter().flatten().map(|received| received.payload.as_ref().map(Vec::len)).collect();
    assert_eq!(sizes.len(), ROWS);
    let large = sizes.iter().filter(|size| size.is_some_and(|size| size >= 900_000)).count();
    assert!(large == 3 && sizes.contains(&None) && sizes.contains(&Some(0)), "{large} are large");
}

/// With an event's own headers, a record is the same except for those. They come after the two that Debezium sends.
fn assert_own_headers_come_last(without: &[Vec<ReadRecord>], with: &[Vec<ReadRecord>]) {
    let mut own = 0;
    let with: Vec<Vec<ReadRecord>> = with.to_vec();
    let cut: Vec<Vec<ReadRecord>> = with
        .into_iter()
        .map(|mut topic| {
            for received in &mut topic {
                own += received.headers.drain(2..).count();
            }
            topic
        })
        .collect();
    assert_same(without, &cut);
    assert!(own > ROWS, "{own} own headers");
}

/// The comparison itself must notice differences.
fn assert_differences_are_found(golden: &[Vec<ReadRecord>]) {
    let changes: [fn(&mut ReadRecord); 7] = [
        |received| received.payload.as_mut().unwrap()[0] ^= 1,
        |received| received.payload = None,
        |received| received.headers.reverse(),
        |received| received.headers[1].1.as_mut().unwrap().push(b' '),
        |received| received.key.as_mut().unwrap().push(b' '),
        |received| received.timestamp = received.timestamp.map(|timestamp| timestamp + 1),
        |received| received.partition += 1,
    ];
    for (number, change) in changes.iter().enumerate() {
        let mut changed = golden.to_vec();
        let is_full = |received: &&mut ReadRecord| received.payload.as_ref().is_some_and(|p| !p.is_empty());
        change(changed[number % 3].iter_mut().filter(is_full).last().unwrap());
        assert!(difference(golden, &changed).is_some(), "change {number} was not found");
    }
    let mut swapped = golden.to_vec();
    swapped[0].swap(0, 1);
    assert!(difference(golden, &swapped).is_some(), "another order was not found");
}
