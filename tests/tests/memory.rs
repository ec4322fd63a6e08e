//! A relay's memory does not grow with a jump in the size of payloads.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use diesel::connection::{Connection, SimpleConnection};
use diesel::prelude::*;
use diesel::sql_types::BigInt;
use diesel_outbox::Migrations;
use outbox_tests::load::{count, migrated, new_topic, relay_command, wal};
use outbox_tests::{Database, Folder, Kafka, Process, eventually};

const PATIENCE: Duration = Duration::from_secs(120);

/// How many events wait: first many small ones, then some of almost 1 MB, then some that are too large for Kafka.
struct Rows {
    small: usize,
    large: usize,
    refused: usize,
    refused_bytes: usize,
}

/// A backlog that takes 2.2 GB in memory.
const MANY: Rows = Rows { small: 20_000, large: 2_000, refused: 3, refused_bytes: 100_000_000 };
/// A backlog of 0.6 GB, for cases in which it takes as much on disk.
const FEWER: Rows = Rows { large: 550, refused_bytes: 20_000_000, ..MANY };

impl Rows {
    /// How many events there are with how many bytes of payload.
    fn sizes(&self) -> [(usize, usize); 3] {
        [(self.small, 10), (self.large, 950_000), (self.refused, self.refused_bytes)]
    }

    /// Emits payloads of one repeated letter by copying them from a table. They take little time and disk, but their full size
    /// in memory.
    fn insert(&self, conn: &mut PgConnection, storage: &str) {
        conn.batch_execute("CREATE TABLE kept (payload bytea)").unwrap();
        conn.batch_execute(&format!("ALTER TABLE kept ALTER payload SET STORAGE {storage}")).unwrap();
        for (rows, bytes) in self.sizes() {
            conn.batch_execute(&format!(
                "TRUNCATE kept; INSERT INTO kept VALUES (convert_to(repeat('p', {bytes}), 'UTF8')); \
                 INSERT INTO outbox (id, aggregatetype, aggregateid, type, payload, shard) \
                 SELECT gen_random_uuid(), 'order', n::text, 'Placed', payload, n % 16 \
                 FROM kept, generate_series(1, {rows}) AS n"
            ))
            .unwrap();
        }
    }

    fn insert_sqlite(&self, conn: &mut SqliteConnection) {
        for (rows, bytes) in self.sizes() {
            conn.batch_execute(&format!(
                "WITH RECURSIVE number (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM number WHERE n < {rows}) \
                 INSERT INTO outbox (id, aggregatetype, aggregateid, type, payload, shard) \
                 SELECT '01900000-0000-7000-8000-' || printf('%012d', n), 'order', n, 'Placed', zeroblob({bytes}), n % 16 \
                 FROM number"
            ))
            .unwrap();
        }
    }

    /// Waits until Kafka has all records that it accepts, and the others are dead letters.
    fn wait_until_sent(&self, relay: &Process, topic: &str, mut dead_letters: impl FnMut() -> usize) {
        let counter = Kafka::shared().counter(topic);
        eventually("all to be sent or dead letters", PATIENCE, || {
            assert!(relay.exited().is_none(), "{}", relay.output());
            (dead_letters() == self.refused && counter.count() >= self.small + self.large).then_some(())
        });
    }
}

/// A relay that cannot have more than this many megabytes of memory. Beyond the rows that it holds, it needs memory for copies
/// of the largest row: in the connection, as a row, and in a statement.
fn limited_relay(database_url: &str, topic: &str, arguments: &[&str], megabytes: usize) -> Process {
    let relay = relay_command(Kafka::shared().brokers(), database_url, topic, arguments);
    let mut command = Command::new("sh");
    command
        .args(["-c", "ulimit -d $0 && exec \"$@\"", &(megabytes * 1_024).to_string()])
        .arg(relay.get_program())
        .args(relay.get_args())
        .args(["--kafka", "compression.type=lz4"])
        .env("OUTBOX_DATABASE_URL", database_url);
    Process::start(&command)
}

#[test]
fn a_jump_in_payload_size_does_not_exhaust_the_memory_of_a_polling_relay() {
    let database = migrated();
    let conn = &mut database.connect();
    MANY.insert(conn, "EXTENDED");
    let topic = new_topic("jump");
    let relay = limited_relay(database.url(), &topic, &[], 800);
    MANY.wait_until_sent(&relay, &topic, || count(conn, "outbox_dead_letter"));
    assert_eq!(Kafka::shared().counter(&topic).count(), MANY.small + MANY.large);
}

#[test]
fn a_jump_in_payload_size_does_not_exhaust_the_memory_of_a_relay_on_sqlite() {
    let folder = Folder::new("jump");
    let path = folder.path().join("outbox.db");
    let path = path.to_str().unwrap();
    let conn = &mut SqliteConnection::establish(path).unwrap();
    Migrations::new().run(conn).unwrap();
    conn.batch_execute("PRAGMA synchronous = OFF; PRAGMA busy_timeout = 60000").unwrap();
    FEWER.insert_sqlite(conn);
    let topic = new_topic("jump-sqlite");
    let relay = limited_relay(path, &topic, &[], 350);
    let dead_letters = diesel::dsl::sql::<BigInt>("SELECT count(*) FROM outbox_dead_letter");
    FEWER.wait_until_sent(&relay, &topic, || {
        dead_letters.clone().get_result::<i64>(conn).unwrap().unsigned_abs() as usize
    });
}

#[test]
fn a_jump_in_payload_size_does_not_exhaust_the_memory_of_a_relay_on_the_wal() {
    does_not_exhaust_a_relay_on_the_wal("jump-log", &MANY, "EXTENDED", 1_400);
}

/// Payloads of one letter take so little WAL that the relay would stream them, so they are stored uncompressed.
#[test]
fn a_jump_in_payload_size_does_not_exhaust_the_memory_of_a_relay_that_reads_batches() {
    let relay = does_not_exhaust_a_relay_on_the_wal("jump-chunks", &FEWER, "EXTERNAL", 350);
    assert!(relay.output().contains("in chunks"), "{}", relay.output());
}

fn does_not_exhaust_a_relay_on_the_wal(topic: &str, rows: &Rows, storage: &str, megabytes: usize) -> Process {
    let database = migrated();
    let conn = &mut database.connect();
    wal(&database, "setup");
    if storage == "EXTERNAL" {
        conn.batch_execute("ALTER TABLE outbox ALTER payload SET STORAGE EXTERNAL").unwrap();
    }
    rows.insert(conn, storage);
    let topic = new_topic(topic);
    let slot = ["--source", "wal", "--slot", database.name()];
    let relay = limited_relay(database.url(), &topic, &slot, megabytes);
    rows.wait_until_sent(&relay, &topic, || count(conn, "outbox_dead_letter"));
    relay
}

/// A proxy that counts the bytes that the server sends.
struct Way {
    url: String,
    said: Arc<AtomicU64>,
}

impl Way {
    fn to(database: &Database<'_>) -> Self {
        let server = database.url().rsplit_once('@').unwrap().1.split_once('/').unwrap().0.to_owned();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let way = Self { url: database.url().replace(&server, &address), said: Arc::default() };
        let said = way.said.clone();
        thread::spawn(move || {
            for client in listener.incoming() {
                let (mut client, mut server) = (client.unwrap(), TcpStream::connect(&server).unwrap());
                let (mut from_client, mut to_server) =
                    (client.try_clone().unwrap(), server.try_clone().unwrap());
                let said = said.clone();
                thread::spawn(move || {
                    let _ = io::copy(&mut from_client, &mut to_server);
                    let _ = to_server.shutdown(Shutdown::Both);
                });
                thread::spawn(move || {
                    let mut buffer = vec![0; 1 << 16];
                    while let Ok(count @ 1..) = server.read(&mut buffer) {
                        said.fetch_add(count as u64, Ordering::Relaxed);
                        if client.write_all(&buffer[..count]).is_err() {
                            break;
                        }
                    }
                    let _ = client.shutdown(Shutdown::Both);
                });
            }
        });
        way
    }
}

#[test]
fn a_polling_relay_loads_a_payload_that_kafka_refuses_only_once() {
    is_loaded_once(&migrated(), "once", &[]);
}

#[test]
fn a_relay_on_the_wal_loads_a_payload_that_kafka_refuses_only_once() {
    let database = migrated();
    wal(&database, "setup");
    is_loaded_once(&database, "once-log", &["--source", "wal", "--slot", database.name()]);
}

fn is_loaded_once(database: &Database<'_>, topic: &str, arguments: &[&str]) {
    const ROWS: Rows = Rows { small: 1_000, large: 0, refused: 3, refused_bytes: 20_000_000 };
    let conn = &mut database.connect();
    ROWS.insert(conn, "EXTENDED");
    let (topic, way) = (new_topic(topic), Way::to(database));
    let relay = limited_relay(&way.url, &topic, arguments, 1_000);
    ROWS.wait_until_sent(&relay, &topic, || count(conn, "outbox_dead_letter"));
    let said = way.said.load(Ordering::Relaxed) as f64;
    let ratio = said / (ROWS.refused * ROWS.refused_bytes) as f64;
    assert!((1.0..1.3).contains(&ratio), "{ratio:.2} times the payloads came over the connection");
}
