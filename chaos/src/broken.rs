//! A relay that is broken on purpose, to see whether the ledger finds out. It takes the arguments of `outbox relay` that the scene
//! gives, and `BROKEN` says how it is broken.

use std::env;
use std::time::Duration;

use chaos::scene::last;
use diesel::connection::SimpleConnection;
use diesel::prelude::*;
use diesel::sql_types::{BigInt, Binary, Nullable, SmallInt, Text};
use diesel_outbox_core::{Claimed, DeadLettered, Record, Source, SourceError};
use diesel_outbox_relay::source::{PostgresSource, SourceOptions};
use diesel_outbox_relay::{Kafka, Relay};

fn main() {
    tracing_subscriber::fmt().with_ansi(false).init();
    let arguments: Vec<String> = env::args().collect();
    let argument = |name: &str| {
        let at = arguments.iter().position(|argument| argument == name).unwrap_or_else(|| panic!("{name}"));
        arguments[at + 1].clone()
    };
    let url = env::var("OUTBOX_DATABASE_URL").expect("OUTBOX_DATABASE_URL");
    let how = env::var("BROKEN").expect("BROKEN");
    let source = move |options: SourceOptions| -> Box<dyn Source> {
        let conn = || PgConnection::establish(&url).expect("a connection");
        match how.as_str() {
            "shares a shard" => Box::new(SharesShards { conn: conn(), seqs: Vec::new() }),
            _ => Box::new(Broken {
                source: PostgresSource::new(url.as_str(), options),
                conn: conn(),
                how: how.clone(),
            }),
        }
    };
    let relay = Relay::from_source(source)
        .broker(Kafka::new(argument("--brokers")))
        .topic_naming(argument("--topic").parse().expect("a topic"))
        .batch_size(250)
        .max_in_flight(500)
        .max_pass_duration(Duration::from_millis(100))
        .poll_interval(Duration::from_secs(1))
        .stall_timeout(Duration::from_secs(2))
        .spawn()
        .expect("a relay");
    println!("the relay has started");
    while !relay.is_finished() {
        last(Duration::from_millis(100));
    }
}

/// The real source, with one mistake.
struct Broken {
    source: PostgresSource,
    conn: PgConnection,
    how: String,
}

impl Source for Broken {
    fn claim(&mut self) -> Result<bool, SourceError> {
        self.source.claim()
    }

    fn read(&mut self, limit: usize, records: &mut Vec<Claimed>) -> Result<bool, SourceError> {
        let more = self.source.read(limit, records)?;
        if self.how == "settles before the acknowledgement" && !records.is_empty() {
            let tickets: Vec<u64> = records.iter().map(|claimed| claimed.ticket).collect();
            self.source.settle(&tickets)?;
        }
        Ok(more)
    }

    fn settle(&mut self, tickets: &[u64]) -> Result<(), SourceError> {
        if self.how == "settles before the acknowledgement" { Ok(()) } else { self.source.settle(tickets) }
    }

    fn dead_letter(&mut self, ticket: u64, reason: &str) -> Result<DeadLettered, SourceError> {
        self.source.dead_letter(ticket, reason)
    }

    fn release(&mut self) -> Result<(), SourceError> {
        self.source.release()?;
        let statement = match self.how.as_str() {
            "deletes by range" => {
                "DELETE FROM outbox WHERE seq <= (SELECT max(seq) FROM outbox WHERE sent_at IS NOT NULL)"
            }
            "advances a cursor past a late commit" => {
                "UPDATE outbox_shard SET sent_through = coalesce((SELECT max(seq) FROM outbox WHERE sent_at IS NOT NULL), 0), \
                 passed = coalesce((SELECT max(seq) FROM outbox WHERE sent_at IS NOT NULL), 0), open = '{}', open_after = '{}'"
            }
            _ => return Ok(()),
        };
        self.conn.batch_execute(statement).map_err(|error| SourceError::new(error.to_string()))
    }

    fn abandon(&mut self) {
        self.source.abandon();
    }

    fn wait(&mut self, limit: Duration) -> Result<bool, SourceError> {
        self.source.wait(limit)
    }
}

/// A source that locks rows instead of shards, so that two relays work on the same aggregate.
struct SharesShards {
    conn: PgConnection,
    seqs: Vec<i64>,
}

#[derive(QueryableByName)]
struct Row {
    #[diesel(sql_type = BigInt)]
    seq: i64,
    #[diesel(sql_type = diesel::sql_types::Uuid)]
    id: uuid::Uuid,
    #[diesel(sql_type = Text)]
    aggregateid: String,
    #[diesel(sql_type = Nullable<Binary>)]
    payload: Option<Vec<u8>>,
    #[diesel(sql_type = SmallInt)]
    #[expect(dead_code, reason = "it is what this source should have locked")]
    shard: i16,
}

impl SharesShards {
    fn run(&mut self, sql: &str) -> Result<(), SourceError> {
        self.conn.batch_execute(sql).map_err(|error| SourceError::new(error.to_string()))
    }
}

impl Source for SharesShards {
    fn claim(&mut self) -> Result<bool, SourceError> {
        self.run("BEGIN")?;
        Ok(true)
    }

    fn read(&mut self, _: usize, records: &mut Vec<Claimed>) -> Result<bool, SourceError> {
        let rows = diesel::sql_query(
            "SELECT seq, id, aggregateid, payload, shard FROM outbox WHERE sent_at IS NULL ORDER BY seq LIMIT 5 \
             FOR UPDATE SKIP LOCKED",
        );
        let rows: Vec<Row> =
            rows.load(&mut self.conn).map_err(|error| SourceError::new(error.to_string()))?;
        for Row { seq, id, aggregateid, payload, .. } in rows {
            if self.seqs.contains(&seq) {
                continue;
            }
            self.seqs.push(seq);
            let record = Record::new("noted", aggregateid, "Noted")
                .with_id(id)
                .with_payload(payload.unwrap_or_default());
            records.push(Claimed::new(seq as u64, Ok(record)));
        }
        Ok(false)
    }

    fn settle(&mut self, tickets: &[u64]) -> Result<(), SourceError> {
        let seqs: Vec<String> = tickets.iter().map(u64::to_string).collect();
        self.run(&format!("UPDATE outbox SET sent_at = now() WHERE seq IN ({})", seqs.join(", ")))
    }

    fn dead_letter(&mut self, _: u64, reason: &str) -> Result<DeadLettered, SourceError> {
        Err(SourceError::new(reason))
    }

    fn release(&mut self) -> Result<(), SourceError> {
        self.seqs.clear();
        self.run("COMMIT")
    }

    fn abandon(&mut self) {
        self.seqs.clear();
        let _ = self.run("ROLLBACK");
    }

    fn wait(&mut self, _: Duration) -> Result<bool, SourceError> {
        last(Duration::from_millis(5));
        Ok(true)
    }
}
