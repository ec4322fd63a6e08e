//! A backlog is read on a connection of its own, ahead of the relay, while the worker's connection settles.
//!
//! Where that fails the worker's connection reads all the same, chunk by chunk.

use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::thread;

use diesel::connection::SimpleConnection;
use diesel::pg::PgConnection;
use diesel::prelude::*;
use diesel_outbox_core::SourceError;

use super::super::database_error;
use super::super::row::{Blocked, ChunkSize};
use super::database::Database;
use super::read::{Chunk, Unread};

/// Who waits for the whole table waits for the pass: the pass must not wait for them.
const LOCK_TIMEOUT: &str = "SET lock_timeout = '200ms'";

/// What a pass is to read, and all that it takes.
pub(super) struct Backlog {
    /// What the pass sees. It can be shared for as long as the pass holds its claim, and on the same server only.
    pub(super) snapshot: String,
    pub(super) unread: Unread,
    pub(super) blocked: Option<Blocked>,
    pub(super) chunk_size: ChunkSize,
    pub(super) limit: usize,
}

/// Ends, and with it the connection, when it is dropped.
pub(super) struct Ahead {
    backlogs: Sender<(Backlog, SyncSender<Chunk>)>,
}

impl Ahead {
    pub(super) fn begin(database: Database) -> std::io::Result<Self> {
        let (backlogs, received) = channel();
        let reader = move || {
            let mut conn = None;
            for (backlog, chunks) in received {
                if let Err(error) = read(&mut conn, &database, backlog, &chunks) {
                    conn = None;
                    tracing::warn!(%error, "a backlog cannot be read ahead; it is read more slowly");
                }
            }
        };
        thread::Builder::new().name("outbox-ahead".into()).spawn(reader)?;
        Ok(Self { backlogs })
    }

    /// The chunks of this backlog, the last of which says so. It is read for as long as they are received.
    pub(super) fn read(&self, backlog: Backlog) -> Receiver<Chunk> {
        // One chunk waits for the relay, in the hand of its reader.
        let (chunks, received) = sync_channel(0);
        // Where the thread has ended there are no chunks, and the worker's connection reads.
        let _ = self.backlogs.send((backlog, chunks));
        received
    }
}

fn read(
    conn: &mut Option<PgConnection>,
    database: &Database,
    backlog: Backlog,
    chunks: &SyncSender<Chunk>,
) -> Result<(), SourceError> {
    let conn = match conn {
        Some(conn) => conn,
        none => none.insert(database.connect()?),
    };
    let failed = |error| database_error("reading ahead", error);
    conn.batch_execute(LOCK_TIMEOUT).map_err(failed)?;
    conn.build_transaction()
        .repeatable_read()
        .read_only()
        .run(|conn| read_on(conn, backlog, chunks))
        .map_err(failed)
}

fn read_on(conn: &mut PgConnection, backlog: Backlog, chunks: &SyncSender<Chunk>) -> QueryResult<()> {
    let Backlog { snapshot, mut unread, blocked, mut chunk_size, limit } = backlog;
    conn.batch_execute(&format!("SET TRANSACTION SNAPSHOT '{snapshot}'"))?;
    loop {
        let chunk = unread.read(conn, &mut chunk_size, limit, blocked.as_ref())?;
        unread.go_past(&chunk);
        let exhausts = chunk.exhausts;
        if chunks.send(chunk).is_err() || exhausts {
            return Ok(());
        }
    }
}
