//! About the least that draining a table can take: libpq and librdkafka, through Diesel and rdkafka, with nothing around them. One
//! connection and one transaction, no claim, no dead letters, and no order if something fails. No row ever becomes
//! a record: bytes go from one library to the other.

use std::ops::Range;
use std::process::Command;
use std::sync::Mutex;
use std::sync::mpsc::{Receiver, Sender, SyncSender, TryRecvError, TrySendError, channel, sync_channel};
use std::thread;
use std::time::Duration;

use clap::Args;
use diesel::connection::{DefaultLoadingMode, LoadConnection, SimpleConnection};
use diesel::pg::Pg;
use diesel::prelude::*;
use diesel::query_builder::{AstPass, Query, QueryFragment, QueryId};
use diesel::row::{Field, Row};
use diesel::sql_types::Bool;
use outbox_tests::{Database, Kafka, Process};
use rdkafka::ClientContext;
use rdkafka::message::{DeliveryResult, Header, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer, ProducerContext};
use uuid::Uuid;

use crate::producer::{IN_FLIGHT, bare_producer};
use crate::rows::Part;

const CHUNK: usize = 2_000;

/// A statement that is sent as it stands; its rows are read as bytes.
#[derive(QueryId)]
struct Raw(String);

impl QueryFragment<Pg> for Raw {
    fn walk_ast<'b>(&'b self, mut out: AstPass<'_, 'b, Pg>) -> QueryResult<()> {
        out.unsafe_to_cache_prepared();
        out.push_sql(&self.0);
        Ok(())
    }
}

impl Query for Raw {
    type SqlType = Bool;
}

impl RunQueryDsl<PgConnection> for Raw {}

/// The columns of some rows, one after the other, and where each ends.
#[derive(Default)]
struct Chunk {
    bytes: Vec<u8>,
    ends: Vec<usize>,
}

/// 1 January 2000, from which PostgreSQL counts microseconds.
const POSTGRES_EPOCH_MS: i64 = 946_684_800_000;

const COLUMNS: usize = 9;

impl Chunk {
    fn places(&self) -> Vec<usize> {
        self.ends.chunks_exact(COLUMNS).map(|ends| place(&self.bytes[ends[0]..ends[1]])).collect()
    }
}

fn place(bytes: &[u8]) -> usize {
    bytes.iter().fold(0, |place, byte| place << 8 | usize::from(*byte))
}

#[derive(Default)]
struct Deliveries(Mutex<Vec<usize>>);

impl ClientContext for Deliveries {}

impl ProducerContext for Deliveries {
    type DeliveryOpaque = usize;

    fn delivery(&self, delivery: &DeliveryResult<'_>, place: usize) {
        assert!(delivery.is_ok());
        self.0.lock().unwrap().push(place);
    }
}

/// What becomes of the rows that were acknowledged.
pub(crate) const MARK: &str = "UPDATE outbox SET sent_at = now()";
pub(crate) const DELETE: &str = "DELETE FROM outbox";

/// Drains each part with a connection and a producer of its own, until one of the statements above has settled the last row.
pub(crate) fn drain(database: &Database<'_>, kafka: &Kafka, topic: &str, settling: &str, parts: &[Part]) {
    drain_from(
        database.url(),
        &|context| bare_producer(kafka.brokers(), context, IN_FLIGHT),
        topic,
        settling,
        parts,
    );
}

fn drain_from(
    database_url: &str,
    producer: &(dyn Fn(Deliveries) -> BaseProducer<Deliveries> + Sync),
    topic: &str,
    settling: &str,
    parts: &[Part],
) {
    thread::scope(|scope| {
        for part in parts {
            let (chunks, read) = sync_channel(2);
            let (settle, acknowledged) = channel();
            scope.spawn(move || work_on_table(database_url, part, settling, chunks, &acknowledged));
            scope.spawn(move || {
                produce(&producer(Deliveries::default()), topic, part.rows, &read, &settle);
            });
        }
    });
}

const DATABASE_URL: &str = "OUTBOX_DATABASE_URL";

/// A process of its own that drains, and then waits to be ended.
#[derive(Args)]
pub(crate) struct Bare {
    #[arg(long)]
    brokers: String,
    #[arg(long)]
    topic: String,
    #[arg(long)]
    rows: usize,
    /// How many records may be unacknowledged at once.
    #[arg(long)]
    max_in_flight: usize,
}

impl Bare {
    pub(crate) fn start(
        database: &Database<'_>,
        kafka: &Kafka,
        topic: &str,
        rows: usize,
        max_in_flight: usize,
    ) -> Process {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.env(DATABASE_URL, database.url());
        command.args(["bare", "--brokers", kafka.brokers(), "--topic", topic]);
        command.args(["--rows", &rows.to_string()]);
        Process::start(command.args(["--max-in-flight", &max_in_flight.to_string()]))
    }

    pub(crate) fn run(&self) -> ! {
        let producer = |context| bare_producer(&self.brokers, context, self.max_in_flight);
        drain_from(
            &std::env::var(DATABASE_URL).unwrap(),
            &producer,
            &self.topic,
            MARK,
            &[Part::all(self.rows)],
        );
        loop {
            thread::park();
        }
    }
}

/// Reads all rows on one connection and settles them on another, with no Kafka in between.
pub(crate) fn drain_without_kafka(database: &Database<'_>, settling: &str) {
    let (read, places) = sync_channel(2);
    thread::scope(|scope| {
        scope.spawn(move || {
            let mut reader = BareReader::begin(database.url(), &Part::all(usize::MAX));
            loop {
                let places = reader.read().places();
                if places.is_empty() || read.send(places).is_err() {
                    return;
                }
            }
        });
        let mut conn = BareReader::begin(database.url(), &Part::all(0)).conn;
        for places in places {
            settle(&mut conn, settling, &places);
        }
        conn.batch_execute("COMMIT").unwrap();
    });
}

/// Reads ahead, and settles what was acknowledged.
fn work_on_table(
    database_url: &str,
    part: &Part,
    settling: &str,
    chunks: SyncSender<Chunk>,
    acknowledged: &Receiver<Vec<usize>>,
) {
    let mut reader = BareReader::begin(database_url, part);
    let mut chunks = Some(chunks);
    let mut ready = None;
    loop {
        match acknowledged.try_recv() {
            Ok(places) => settle(&mut reader.conn, settling, &places),
            Err(TryRecvError::Disconnected) => break,
            Err(TryRecvError::Empty) => match (&chunks, ready.take()) {
                (Some(sender), None) => {
                    let chunk = reader.read();
                    if chunk.ends.is_empty() {
                        chunks = None;
                    } else if let Err(TrySendError::Full(chunk)) = sender.try_send(chunk) {
                        ready = Some(chunk);
                    }
                }
                (Some(sender), Some(chunk)) => {
                    if let Err(TrySendError::Full(chunk)) = sender.try_send(chunk) {
                        ready = Some(chunk);
                        thread::sleep(Duration::from_micros(200));
                    }
                }
                (None, _) => match acknowledged.recv() {
                    Ok(places) => settle(&mut reader.conn, settling, &places),
                    Err(_) => break,
                },
            },
        }
    }
    reader.conn.batch_execute("COMMIT").unwrap();
}

/// A connection in a transaction, and how far it has read.
struct BareReader {
    conn: PgConnection,
    shards: Range<i16>,
    last: i64,
    /// How many rows are still to be read.
    left: usize,
}

impl BareReader {
    /// Reads unsent rows of this part.
    fn begin(database_url: &str, part: &Part) -> Self {
        let mut conn = PgConnection::establish(database_url).unwrap();
        conn.batch_execute(
            "SET enable_seqscan = off; SET enable_bitmapscan = off; SET enable_sort = off; SET jit = off; \
             SET synchronous_commit = off; BEGIN",
        )
        .unwrap();
        Self { conn, shards: part.shards.clone(), last: 0, left: part.rows }
    }

    fn read(&mut self) -> Chunk {
        let mut chunk = Chunk::default();
        let read = Raw(format!(
            "SELECT seq, ctid, id, aggregatetype, aggregateid, type, payload, headers::text, created_at FROM outbox \
             WHERE shard >= {} AND shard < {} AND sent_at IS NULL AND seq > {} ORDER BY seq LIMIT {}",
            self.shards.start,
            self.shards.end,
            self.last,
            CHUNK.min(self.left)
        ));
        for row in LoadConnection::<DefaultLoadingMode>::load(&mut self.conn, read).unwrap() {
            let row = row.unwrap();
            for column in 0..COLUMNS {
                if let Some(value) = Row::get(&row, column).unwrap().value() {
                    if column == 0 {
                        self.last = i64::from_be_bytes(value.as_bytes().try_into().unwrap());
                    }
                    chunk.bytes.extend_from_slice(value.as_bytes());
                }
                chunk.ends.push(chunk.bytes.len());
            }
        }
        self.left -= chunk.ends.len() / COLUMNS;
        chunk
    }
}

fn settle(conn: &mut PgConnection, settling: &str, places: &[usize]) {
    let places: Vec<String> =
        places.iter().map(|place| format!("\"({},{})\"", place >> 16, place & 0xffff)).collect();
    Raw(format!("{settling} WHERE ctid = ANY ('{{{}}}')", places.join(","))).execute(conn).unwrap();
}

fn produce(
    producer: &BaseProducer<Deliveries>,
    topic: &str,
    rows: usize,
    read: &Receiver<Chunk>,
    settle: &Sender<Vec<usize>>,
) {
    let (mut settled, mut unsettled) = (0, Vec::new());
    let mut acknowledge = |producer: &BaseProducer<Deliveries>, wait| {
        producer.poll(wait);
        unsettled.append(&mut producer.context().0.lock().unwrap());
        settled += if unsettled.len() >= CHUNK || settled + unsettled.len() == rows {
            let places = std::mem::take(&mut unsettled);
            let count = places.len();
            settle.send(places).unwrap();
            count
        } else {
            0
        };
        settled
    };
    for chunk in read {
        let mut begin = 0;
        for ends in chunk.ends.chunks_exact(COLUMNS) {
            let [_, place, id, _, key, event_type, payload, _, created_at] = std::array::from_fn(|column| {
                let value = &chunk.bytes[begin..ends[column]];
                begin = ends[column];
                value
            });
            let place = self::place(place);
            let mut text = [0; 36];
            let id: &str = Uuid::from_slice(id).unwrap().as_hyphenated().encode_lower(&mut text);
            let headers = OwnedHeaders::new_with_capacity(2)
                .insert(Header { key: "id", value: Some(id.as_bytes()) })
                .insert(Header { key: "eventType", value: Some(event_type) });
            let mut message =
                BaseRecord::with_opaque_to(topic, place).key(key).payload(payload).headers(headers);
            let microseconds = i64::from_be_bytes(created_at.try_into().unwrap());
            message.timestamp = Some(microseconds / 1_000 + POSTGRES_EPOCH_MS);
            while let Err((_, refused)) = producer.send(message) {
                message = refused;
                acknowledge(producer, Duration::from_millis(1));
            }
        }
        acknowledge(producer, Duration::ZERO);
    }
    while acknowledge(producer, Duration::from_millis(1)) < rows {}
}
