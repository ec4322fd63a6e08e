//! Reads a backlog ahead, in the snapshot of the pass.

use diesel::connection::SimpleConnection;
use diesel::pg::PgConnection;
use diesel::prelude::*;
use diesel_outbox_core::__private::set_search_path;

use super::batch_size::BatchSize;
use super::read::{ReadBatch, Unread};
use crate::source::database::PostgresDatabase;
use crate::source::database_error;
use crate::source::polling::prefetch::{self, Handing};

/// Whoever waits for a lock on the whole table waits for the pass, so the pass must not wait for them.
const LOCK_TIMEOUT: &str = "SET lock_timeout = '200ms'";

/// What a pass has still to read, and all that reading it takes.
pub(super) struct Backlog {
    /// Where the tables are, if the relay has several outboxes.
    pub(super) schema: Option<String>,
    /// What the pass sees. Another connection can share it while the pass holds its claim, and on the same server only.
    pub(super) snapshot: String,
    pub(super) unread: Unread,
    pub(super) blocks: bool,
    pub(super) batch_size: BatchSize,
    pub(super) limit: usize,
}

type Ahead = prefetch::Ahead<Backlog, ReadBatch>;
pub(super) type ReadAhead = prefetch::ReadAhead<Backlog, ReadBatch>;

/// Starts a thread that reads ahead on a connection of its own.
pub(super) fn begin(database: PostgresDatabase) -> std::io::Result<Ahead> {
    let mut connected = None;
    Ahead::begin(move |backlog, handing| {
        let mut conn = match connected.take() {
            Some(conn) => conn,
            None => database.connect()?,
        };
        read(&mut conn, backlog, handing).map_err(|error| database_error("reading ahead", error))?;
        connected = Some(conn);
        Ok(())
    })
}

fn read(conn: &mut PgConnection, backlog: Backlog, handing: &Handing<ReadBatch>) -> QueryResult<()> {
    conn.batch_execute(LOCK_TIMEOUT)?;
    if let Some(schema) = &backlog.schema {
        conn.batch_execute(&set_search_path(schema))?;
    }
    conn.build_transaction().repeatable_read().read_only().run(|conn| read_on(conn, backlog, handing))
}

fn read_on(conn: &mut PgConnection, backlog: Backlog, handing: &Handing<ReadBatch>) -> QueryResult<()> {
    let Backlog { snapshot, mut unread, blocks, mut batch_size, limit, .. } = backlog;
    conn.batch_execute(&format!("SET TRANSACTION SNAPSHOT '{snapshot}'"))?;
    while handing.wants() {
        let batch = unread.read(conn, &mut batch_size, limit, blocks)?;
        unread.go_past(&batch.given);
        handing.hand(batch);
    }
    Ok(())
}
