//! PostgreSQL, polled. The lock on a shard's row is the claim: no lease, no clock, no token. A worker that dies loses its
//! connection, and with it the lock.

mod claim;
mod fence;
mod upkeep;
mod wake;

use std::collections::HashSet;

use diesel::connection::SimpleConnection;
use diesel::pg::{Pg, PgConnection};
use diesel::prelude::*;
use diesel::sql_types::{Array, BigInt, Bool, Text};
use diesel_outbox_core::{Claimed, DeadLetterPolicy, Lag, Source, SourceError};

use self::claim::Pass;
use self::fence::Fence;
use self::upkeep::Upkeep;
use self::wake::Wake;
use super::row::{ChunkSize, StoredRow};
use super::{database_error, one_line};
use crate::source::{SentRows, SourceOptions};
use crate::statement::statement;

/// The outbox table of a PostgreSQL database as a source of records, for one worker.
///
/// Any number of these may work on one table, in any number of processes: each aggregate is worked on by one at a time.
pub struct PostgresSource {
    database_url: String,
    options: SourceOptions,
    conn: Option<PgConnection>,
    fence: Fence,
    wake: Wake,
    upkeep: Upkeep,
    chunk_size: ChunkSize,
    pass: Option<Pass>,
}

impl PostgresSource {
    /// A source that connects to this database when it is first asked for something.
    pub fn new(database_url: impl Into<String>, options: SourceOptions) -> Self {
        Self {
            database_url: database_url.into(),
            conn: None,
            fence: Fence::default(),
            wake: Wake::new(options.poll_interval),
            upkeep: Upkeep::default(),
            chunk_size: ChunkSize::new(),
            pass: None,
            options,
        }
    }

    fn connect(&mut self) -> Result<(), SourceError> {
        if self.conn.is_some() {
            return Ok(());
        }
        let mut conn =
            PgConnection::establish(&self.database_url).map_err(|error| connection_error(&error))?;
        self.prepare(&mut conn).map_err(|error| database_error("preparing the connection", error))?;
        fence::require_unbuffered_sequence(&mut conn)?;
        self.wake.reconnected();
        self.fence = Fence::default();
        self.conn = Some(conn);
        Ok(())
    }

    fn prepare(&self, conn: &mut PgConnection) -> QueryResult<()> {
        if let Some(schema) = &self.options.schema {
            diesel::dsl::sql::<Text>("SELECT set_config('search_path', quote_ident(")
                .bind::<Text, _>(schema)
                .sql("), false)")
                .get_result::<String>(conn)?;
        }
        // The timeout lets go of the shards of a process that was stopped. The plans are known to be right, whatever
        // the statistics say while the table fills and empties.
        conn.batch_execute(
            "SET application_name = 'outbox relay'; SET default_transaction_isolation = 'read committed'; \
             SET idle_in_transaction_session_timeout = '30s'; \
             SET enable_seqscan = off; SET enable_bitmapscan = off; SET enable_hashjoin = off; \
             SET enable_mergejoin = off; SET enable_sort = off; SET random_page_cost = 1; SET jit = off",
        )
    }

    fn with<T>(
        &mut self,
        doing: &str,
        work: impl FnOnce(&mut PgConnection) -> QueryResult<T>,
    ) -> Result<T, SourceError> {
        let conn = self.conn.as_mut().ok_or_else(|| SourceError::new("the claim was lost"))?;
        work(conn).map_err(|error| {
            self.conn = None;
            self.pass = None;
            database_error(doing, error)
        })
    }
}

/// Only what libpq says of a server is passed on. What it says of a URL may repeat parts of it, and so a password.
fn connection_error(error: &ConnectionError) -> SourceError {
    let message = one_line(&error.to_string());
    let of_a_server = ["connection to server", "could not translate host name", "could not connect"];
    if of_a_server.iter().any(|beginning| message.starts_with(beginning)) {
        SourceError::new(format!("cannot connect to the database: {message}"))
    } else {
        SourceError::new(
            "cannot connect to the database: the database URL is not understood \
             (postgres://user:password@host:5432/name, with % @ : / ? # in a password written as %25 %40 %3A %2F %3F %23)",
        )
    }
}

impl Source for PostgresSource {
    fn claim(&mut self) -> Result<bool, SourceError> {
        self.connect()?;
        let Self { fence, wake, options, .. } = self;
        let (mut fence, workers) = (std::mem::take(fence), wake.workers());
        let block = options.dead_letter_policy == DeadLetterPolicy::Block;
        let claimed = self.with("claiming", |conn| {
            let workers = fence.advance(conn)?.unwrap_or(workers);
            let pass = Pass::begin(conn, workers, fence.safe(), block)?;
            Ok((workers, pass))
        });
        self.fence = fence;
        let (workers, pass) = claimed?;
        self.wake.counted(workers);
        let found = pass.is_some();
        self.pass = pass;
        if found {
            let mut wake = std::mem::take(&mut self.wake);
            let woken = self.with("waking", |conn| wake.found_work(conn));
            self.wake = wake;
            woken?;
        }
        Ok(found)
    }

    fn read(&mut self, limit: usize, records: &mut Vec<Claimed>) -> Result<(), SourceError> {
        let Some(mut pass) = self.pass.take() else { return Ok(()) };
        let limit = self.chunk_size.rows(limit);
        let rows = self.with("reading", |conn| pass.read(conn, limit))?;
        self.chunk_size.learn(rows.len(), rows.iter().map(StoredRow::bytes).sum());
        let mut blocked = Vec::new();
        for row in rows {
            if pass.blocks(&row) {
                blocked.push(row.seq);
            } else {
                records.push(row.claimed());
            }
        }
        self.pass = Some(pass);
        for seq in blocked {
            self.dead_letter(seq.unsigned_abs(), super::BLOCKED)?;
        }
        Ok(())
    }

    fn settle(&mut self, tickets: &[u64]) -> Result<(), SourceError> {
        let mut seqs: Vec<i64> = tickets.iter().map(|&ticket| ticket as i64).collect();
        seqs.sort_unstable();
        let delete = self.options.sent_rows == SentRows::Delete;
        let settled = self.with("settling", |conn| {
            if delete { Delete::new(seqs).execute(conn) } else { MarkSent::new(seqs).execute(conn) }
        })?;
        if let Some(pass) = &mut self.pass {
            pass.settled(settled);
        }
        Ok(())
    }

    fn dead_letter(&mut self, ticket: u64, reason: &str) -> Result<(), SourceError> {
        let aggregates = self.with("moving a record to the dead letters", |conn| {
            Bury::new(ticket as i64, reason.to_owned()).load::<(String, String)>(conn)
        })?;
        if let Some(pass) = &mut self.pass {
            pass.settled(1);
            pass.block(aggregates);
        }
        Ok(())
    }

    fn release(&mut self) -> Result<(), SourceError> {
        let Some(pass) = self.pass.take() else { return Ok(()) };
        let backlog = pass.has_more() && self.wake.may_call_for_help();
        self.with("releasing", |conn| pass.end(conn, backlog))
    }

    fn abandon(&mut self) {
        if self.pass.take().is_some()
            && let Some(conn) = &mut self.conn
            && Pass::roll_back(conn).is_err()
        {
            self.conn = None;
        }
    }

    fn wait(&mut self, limit: std::time::Duration) -> Result<bool, SourceError> {
        self.connect()?;
        let mut wake = std::mem::take(&mut self.wake);
        let woken = self.with("waiting", |conn| wake.wait(conn, limit));
        self.wake = wake;
        woken
    }

    fn upkeep(&mut self) -> Result<Option<Lag>, SourceError> {
        if !self.wake.leads() {
            return Ok(None);
        }
        let mut upkeep = std::mem::take(&mut self.upkeep);
        let options = self.options.clone();
        let lag = self.with("pruning", |conn| upkeep.run(conn, &options));
        self.upkeep = upkeep;
        lag
    }
}

statement!(
    Pg,
    /// Marks rows as sent. No index reads sent_at, so that these are heap-only updates.
    MarkSent { seqs: Vec<i64> => Array<BigInt> } -> Bool,
    "UPDATE outbox SET sent_at = statement_timestamp() WHERE seq = ANY (?)"
);

statement!(
    Pg,
    Delete { seqs: Vec<i64> => Array<BigInt> } -> Bool,
    "DELETE FROM outbox WHERE seq = ANY (?)"
);

statement!(
    Pg,
    /// Moves a row to the dead letters and tells its aggregate.
    Bury { seq: i64 => BigInt, reason: String => Text } -> (Text, Text),
    "WITH gone AS (DELETE FROM outbox WHERE seq = ? RETURNING *) \
     INSERT INTO outbox_dead_letter \
     (seq, id, aggregatetype, aggregateid, type, payload, headers, shard, created_at, reason) \
     SELECT seq, id, aggregatetype, aggregateid, type, payload, headers, shard, created_at, ? FROM gone \
     RETURNING aggregatetype, aggregateid"
);

/// The aggregates, by type and id, whose records are held back.
type Blocked = HashSet<(String, String)>;
