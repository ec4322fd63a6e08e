//! Rows that wait in the outbox.

use diesel::connection::SimpleConnection;
use diesel::prelude::*;
use diesel_outbox::{Emit, Migrations, Record};
use outbox_tests::Database;

/// The events of the benchmarks: of 1,000 aggregates of one type in turn.
pub(crate) fn records(count: usize, bytes: usize) -> Vec<Record> {
    (0..count).map(|n| record(n, bytes)).collect()
}

pub(crate) fn record(n: usize, bytes: usize) -> Record {
    const AGGREGATES: usize = 1_000;
    Record::new("order", (n % AGGREGATES).to_string(), "OrderPlaced").with_payload(vec![b'x'; bytes])
}

/// Rows that are made once and copied into the outbox by the server before each round.
pub(crate) struct Template<'a> {
    database: &'a Database<'a>,
}

impl<'a> Template<'a> {
    /// Makes the tables of a new database, and the rows.
    pub(crate) fn new(database: &'a Database<'a>, records: &[Record]) -> Self {
        let mut conn = database.connect();
        Migrations::new().run(&mut conn).unwrap();
        conn.transaction(|c| {
            c.emit_all(records)?;
            c.batch_execute("CREATE TABLE template AS SELECT * FROM outbox ORDER BY seq")
        })
        .unwrap();
        Self { database }
    }

    /// Empties the outbox and fills it with the rows, unsent, in one transaction.
    pub(crate) fn refill(&self) {
        self.empty();
        self.append();
        self.settle_down();
    }

    pub(crate) fn empty(&self) {
        self.execute("TRUNCATE outbox; UPDATE outbox_shard SET low = 0");
    }

    pub(crate) fn append(&self) {
        self.execute(
            "INSERT INTO outbox (id, aggregatetype, aggregateid, type, payload, headers, shard) \
             SELECT id, aggregatetype, aggregateid, type, payload, headers, shard FROM template ORDER BY seq",
        );
    }

    /// Lets the server do now what it would do in the middle of a measurement.
    pub(crate) fn settle_down(&self) {
        self.execute("ANALYZE outbox");
        self.execute("CHECKPOINT");
    }

    fn execute(&self, sql: &str) {
        self.database.connect().batch_execute(sql).unwrap();
    }
}
