//! The bytes on Kafka are the same for every relay: the polling relay, the one that reads the WAL, and a real Debezium with the
//! configuration that the binary prints. Each relays the same rows, from PostgreSQL or MariaDB.

mod golden {
    pub(crate) mod rows;
}

use std::sync::{Mutex, OnceLock};
use std::time::Duration;

use diesel::connection::SimpleConnection;
use diesel_outbox::Migrations;
use golden::rows::{AGGREGATE_TYPES, GoldenRow, generated, insert, insert_on_mariadb};
use outbox_tests::load::{migrated, relay_command, wal};
use outbox_tests::{
    BinlogDebezium, Database, Debezium, Kafka, Mariadb, MariadbDatabase, Process, ReadRecord, Signal,
    eventually,
};

const PATIENCE: Duration = Duration::from_secs(60);
const ROWS: usize = 10_000;

/// One way to Kafka: a database with the rows, and topics with a prefix of their own.
struct Way<'a> {
    name: &'static str,
    store: Store<'a>,
    prefix: String,
}

enum Store<'a> {
    Postgres(Database<'static>),
    Mariadb(&'a MariadbDatabase<'static>),
}

impl<'a> Way<'a> {
    fn new(name: &'static str, store: Store<'a>) -> Self {
        let prefix = Kafka::shared().unique(name);
        for (aggregate_type, partitions) in AGGREGATE_TYPES.iter().zip([5, 3, 1]) {
            Kafka::shared().create_topic(&format!("{prefix}.{aggregate_type}"), partitions);
        }
        Self { name, store, prefix }
    }

    fn from_table(name: &'static str) -> Self {
        Self::new(name, Store::Postgres(migrated()))
    }

    fn from_wal(name: &'static str) -> Self {
        let database = migrated();
        wal(&database, "setup");
        Self::new(name, Store::Postgres(database))
    }

    /// Several ways share a database there: one polls, and the other one reads the binlog.
    fn from_mariadb(name: &'static str, database: &'a MariadbDatabase<'static>) -> Self {
        Self::new(name, Store::Mariadb(database))
    }

    fn postgres(&self) -> &Database<'static> {
        match &self.store {
            Store::Postgres(database) => database,
            Store::Mariadb(_) => panic!("{} is on MariaDB", self.name),
        }
    }

    fn slot(&self) -> String {
        self.postgres().name().to_owned()
    }

    fn pattern(&self) -> String {
        format!("{}.{{aggregatetype}}", self.prefix)
    }

    fn relay(&self, arguments: &[&str]) -> Process {
        let url = match &self.store {
            Store::Postgres(database) => database.url(),
            Store::Mariadb(database) => database.url(),
        };
        Process::start(&relay_command(Kafka::shared().brokers(), url, &self.pattern(), arguments))
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

/// The same for every database, so that their records can be compared.
fn rows() -> &'static [GoldenRow] {
    static ROWS_OF_ALL: OnceLock<Vec<GoldenRow>> = OnceLock::new();
    ROWS_OF_ALL.get_or_init(|| generated(ROWS))
}

/// The bytes are also the same from every database. The test that ends first leaves them for the other.
#[track_caller]
fn assert_as_from_elsewhere(received: Vec<Vec<ReadRecord>>) {
    static LEFT: Mutex<Option<Vec<Vec<ReadRecord>>>> = Mutex::new(None);
    let left = LEFT.lock().unwrap().replace(received.clone());
    if let Some(left) = left {
        assert_same(&left, &received);
    }
}

fn wait_and_stop(ways: &[&Way<'_>], relays: &[Process]) {
    ways.iter().for_each(|way| way.wait_until_all_is_sent());
    for relay in relays {
        relay.signal(Signal::Terminate);
        assert!(relay.wait(PATIENCE).success());
    }
}

#[test]
fn all_relays_send_the_same_bytes() {
    let (polling, log) = (Way::from_table("polling"), Way::from_wal("log"));
    let debezium = Way::from_wal("debezium");
    let (polling_all, log_all) = (Way::from_table("polling-all"), Way::from_wal("log-all"));
    let ways = [&polling, &log, &debezium, &polling_all, &log_all];
    for way in ways {
        insert(&mut way.postgres().connect(), rows());
    }

    let relays = [
        polling.relay(&["--event-headers=false"]),
        log.relay(&["--event-headers=false", "--source", "wal", "--slot", &log.slot()]),
        polling_all.relay(&[]),
        log_all.relay(&["--source", "wal", "--slot", &log_all.slot()]),
    ];
    let connect = Debezium::as_printed(debezium.postgres(), Kafka::shared(), &debezium.pattern());
    wait_and_stop(&ways, &relays);
    connect.stop();

    let golden = debezium.received();
    assert_has_every_kind(&golden);
    assert_same(&golden, &polling.received());
    assert_same(&golden, &log.received());
    let all = polling_all.received();
    assert_same(&all, &log_all.received());
    assert_differences_are_found(&golden);
    assert_own_headers_come_last(&golden, &all);
    assert_as_from_elsewhere(golden);
    let conn = &mut debezium.postgres().connect();
    conn.batch_execute(&format!("SELECT pg_drop_replication_slot('{}')", debezium.slot())).unwrap();
}

#[test]
fn the_relay_and_debezium_send_the_same_bytes_from_mariadb() {
    send_the_same_bytes_from(Mariadb::shared());
}

#[test]
fn the_relay_and_debezium_send_the_same_bytes_from_mysql() {
    send_the_same_bytes_from(Mariadb::shared_mysql());
}

/// The relay changes the rows that it has sent, in the binlog that Debezium reads.
fn send_the_same_bytes_from(server: &'static Mariadb) {
    let database = server.database();
    Migrations::new().run(&mut database.connect()).unwrap();
    let (polling, binlog) =
        (Way::from_mariadb("polling-mysql", &database), Way::from_mariadb("binlog", &database));
    let debezium = BinlogDebezium::prepared(&database, &binlog.pattern());
    let offset = debezium.offset();
    insert_on_mariadb(&mut database.connect(), rows());
    let relay = polling.relay(&["--event-headers=false"]);
    debezium.begin(&offset);
    wait_and_stop(&[&polling, &binlog], &[relay]);
    debezium.stop();

    let golden = binlog.received();
    assert_has_every_kind(&golden);
    assert_same(&golden, &polling.received());
    assert_as_from_elsewhere(golden);
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
