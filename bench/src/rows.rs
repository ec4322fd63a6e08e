//! Rows that wait in the outbox.

use std::ops::Range;

use diesel::connection::SimpleConnection;
use diesel::dsl::sql;
use diesel::prelude::*;
use diesel::sql_types::{BigInt, Bool};
use diesel_outbox::{Emit, Migrations, Record};
use diesel_outbox_core::SHARDS;
use outbox_tests::Database;

/// The events of the benchmarks: of 1,000 aggregates of one type in turn.
pub(crate) fn records(count: usize, bytes: usize) -> Vec<Record> {
    (0..count).map(|n| record(n, bytes)).collect()
}

pub(crate) const AGGREGATES: usize = 1_000;

pub(crate) fn record(n: usize, bytes: usize) -> Record {
    Record::new("order", (n % AGGREGATES).to_string(), "OrderPlaced").with_payload(vec![b'x'; bytes])
}

/// Returns whether some of the last rows are unsent. Only what was published last may be, if all has been published.
pub(crate) fn the_last_are_unsent(conn: &mut PgConnection) -> bool {
    let unsent = "SELECT EXISTS (SELECT FROM (SELECT sent_at FROM outbox ORDER BY seq DESC LIMIT 20000) AS last \
                  WHERE sent_at IS NULL)";
    sql::<Bool>(unsent).get_result(conn).unwrap()
}

/// Some of the shards, and how many of the rows that wait in them are meant.
pub(crate) struct Part {
    pub(crate) shards: Range<i16>,
    pub(crate) rows: usize,
}

impl Part {
    pub(crate) fn all(rows: usize) -> Self {
        Self { shards: 0..SHARDS, rows }
    }
}

/// Rows that are made once and copied into the outbox by the server before each round.
pub(crate) struct Template<'a> {
    pub(crate) database: &'a Database<'a>,
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
        self.settle_down();
        self.append();
    }

    /// Empties the outbox and lets this many unsent rows wait in it.
    pub(crate) fn fill(&self, rows: usize) {
        self.empty();
        self.append_many(rows);
        self.settle_down();
    }

    /// Divides the rows into this many parts, each of some of the shards.
    pub(crate) fn parts(&self, count: i16) -> Vec<Part> {
        let mut conn = self.database.connect();
        let share = SHARDS / count;
        let part = |number: i16| {
            let shards = share * number..share * (number + 1);
            let rows = format!(
                "SELECT count(*) FROM template WHERE shard >= {} AND shard < {}",
                shards.start, shards.end
            );
            let rows = sql::<BigInt>(&rows).get_result::<i64>(&mut conn).unwrap();
            Part { shards, rows: rows as usize }
        };
        (0..count).map(part).collect()
    }

    pub(crate) fn empty(&self) {
        self.execute("TRUNCATE outbox; UPDATE outbox_shard SET sent_through = 0, unmarked = 0");
    }

    pub(crate) fn append(&self) {
        self.execute(
            "INSERT INTO outbox (id, aggregatetype, aggregateid, type, payload, headers, shard) \
             SELECT id, aggregatetype, aggregateid, type, payload, headers, shard FROM template ORDER BY seq",
        );
    }

    /// Appends this many rows, which are the template's again and again under new ids, in transactions of `size`, which must
    /// divide the template's number of rows.
    pub(crate) fn append_in_transactions(&self, rows: usize, size: usize) {
        let mut conn = self.database.connect();
        conn.batch_execute("CREATE INDEX IF NOT EXISTS template_seq ON template (seq)").unwrap();
        conn.batch_execute("SET synchronous_commit = off").unwrap();
        let append = format!(
            "DO $$ DECLARE count bigint := (SELECT count(*) FROM template); BEGIN \
             FOR done IN 0..{rows} - 1 BY {size} LOOP \
             INSERT INTO outbox (id, aggregatetype, aggregateid, type, payload, headers, shard) \
             SELECT gen_random_uuid(), aggregatetype, aggregateid, type, payload, headers, shard FROM template \
             WHERE seq > done % count AND seq <= done % count + {size} ORDER BY seq; \
             COMMIT; END LOOP; END $$"
        );
        conn.batch_execute(&append).unwrap();
    }

    /// Appends this many rows, which are the template's again and again under new ids, and wakes the relay.
    pub(crate) fn append_many(&self, rows: usize) {
        self.repeat(rows, "NULL");
    }

    /// Appends rows that were sent a minute ago, and moves the lower bounds past them.
    pub(crate) fn append_sent(&self, rows: usize) {
        self.repeat(rows, "clock_timestamp() - interval '1 minute'");
        self.execute("UPDATE outbox_shard SET sent_through = (SELECT max(seq) FROM outbox)");
    }

    fn repeat(&self, rows: usize, sent_at: &str) {
        self.execute(&format!(
            "DO $$ DECLARE size bigint := (SELECT count(*) FROM template); BEGIN \
             FOR done IN 0..{rows} - 1 BY size LOOP \
             INSERT INTO outbox (id, aggregatetype, aggregateid, type, payload, headers, shard, sent_at) \
             SELECT gen_random_uuid(), aggregatetype, aggregateid, type, payload, headers, shard, {sent_at} \
             FROM template ORDER BY seq LIMIT {rows} - done; \
             END LOOP; \
             PERFORM pg_notify('outbox_' || 'outbox'::regclass::oid, ''); END $$"
        ));
    }

    /// Lets the server do now what it would do to a large table in the middle of a measurement.
    pub(crate) fn vacuum(&self) {
        self.execute("VACUUM (ANALYZE) outbox");
        self.execute("CHECKPOINT");
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
