//! The ledger: what was committed. A row of it is written in the transaction that emits the event.

use std::collections::{BTreeMap, BTreeSet};

use diesel::connection::SimpleConnection;
use diesel::prelude::*;
use diesel_outbox::Record;
use uuid::Uuid;

use crate::lanes::Source;
use crate::site::Site;

/// How many aggregates there are.
pub const AGGREGATES: u32 = 200;
/// One that the writers leave alone, so that a fault may keep it locked.
pub const RESERVED: u32 = AGGREGATES - 1;

/// The tables: the ledger, and a row for each aggregate, whose lock orders the aggregate's events.
pub fn tables() -> String {
    let rows: Vec<String> = (0..AGGREGATES).map(|aggregate| format!("('{aggregate}', 0)")).collect();
    format!(
        "CREATE TABLE ledger (event char(36) PRIMARY KEY, aggregate varchar(20) NOT NULL, number bigint NOT NULL, \
         poison smallint NOT NULL); \
         CREATE TABLE aggregate (id varchar(20) PRIMARY KEY, number bigint NOT NULL); \
         INSERT INTO aggregate VALUES {}",
        rows.join(", ")
    )
}

/// Returns a new event of this aggregate. Its bytes follow from its id.
pub fn record(aggregate: u32) -> Record {
    let id = Uuid::now_v7();
    Record::new("noted", aggregate.to_string(), "Noted").with_id(id).with_payload(payload(id))
}

/// Returns the payload of the event with this id.
pub fn payload(id: Uuid) -> Vec<u8> {
    let mut payload = id.to_string().into_bytes();
    payload.resize(payload.len() + usize::from(id.as_bytes()[15]) * 2, b'x');
    payload
}

/// Notes events in the ledger. The numbers are given under the locks of their aggregates, which the transaction keeps.
pub fn note<C: SimpleConnection>(conn: &mut C, records: &[Record], is_poison: bool) -> QueryResult<()> {
    let notes: Vec<String> = records
        .iter()
        .map(|record| {
            let (id, aggregate, poison) = (record.id(), record.aggregate_id(), u8::from(is_poison));
            format!(
                "UPDATE aggregate SET number = number + 1 WHERE id = '{aggregate}'; \
                 INSERT INTO ledger SELECT '{id}', id, number, {poison} FROM aggregate WHERE id = '{aggregate}'"
            )
        })
        .collect();
    conn.batch_execute(&notes.join("; "))
}

/// Returns a statement that emits an event as a program would that knows nothing of wake-ups.
pub fn without_wakeup(aggregate: u32, source: Source) -> String {
    let record = record(aggregate);
    let (id, shard) = (record.id(), record.shard());
    let hex: String = payload(id).iter().map(|byte| format!("{byte:02x}")).collect();
    let (bytes, now) = match source {
        Source::Mariadb => (format!("X'{hex}'"), "UTC_TIMESTAMP(3)"),
        _ => (format!("'\\x{hex}'"), "clock_timestamp() AT TIME ZONE 'utc'"),
    };
    format!(
        "BEGIN; UPDATE aggregate SET number = number + 1 WHERE id = '{aggregate}'; \
         INSERT INTO ledger SELECT '{id}', id, number, 0 FROM aggregate WHERE id = '{aggregate}'; \
         INSERT INTO outbox (id, aggregatetype, aggregateid, type, payload, shard, created_at) \
         VALUES ('{id}', 'noted', '{aggregate}', 'Noted', {bytes}, {shard}, {now}); COMMIT"
    )
}

/// An event that was committed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its aggregate.
    pub aggregate: String,
    /// Its number within the aggregate.
    pub number: i64,
    /// Whether Kafka may refuse it.
    pub is_poison: bool,
}

/// What was committed, and what became of it in the database.
#[derive(Clone, Debug, Default)]
pub struct Ledger {
    /// Every committed event by its id.
    pub entries: BTreeMap<String, Entry>,
    /// The ids of the dead letters.
    pub dead_letters: BTreeSet<String>,
    /// How many rows of the outbox are unsent.
    pub unsent: usize,
}

impl Ledger {
    /// Reads it.
    pub fn read(site: &dyn Site) -> Self {
        let query = "SELECT CONCAT(event, ' ', aggregate, ' ', number, ' ', poison) FROM ledger";
        let entries = site.texts(query).into_iter().map(|line| {
            let mut words = line.split(' ').map(str::to_owned);
            let mut word = || words.next().expect("four words");
            let (id, aggregate) = (word(), word());
            let number = word().parse().expect("a number");
            (id, Entry { aggregate, number, is_poison: word() == "1" })
        });
        Self {
            entries: entries.collect(),
            dead_letters: site
                .texts("SELECT CAST(id AS char(36)) FROM outbox_dead_letter")
                .into_iter()
                .collect(),
            unsent: site.unsent(),
        }
    }
}
