//! Reads a backlog ahead of the relay on its own connection, while the worker's connection settles.
//!
//! If that fails, the worker's connection reads instead, batch by batch.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::Duration;

use diesel::connection::SimpleConnection;
use diesel::pg::PgConnection;
use diesel::prelude::*;
use diesel_outbox_core::__private::set_search_path;
use diesel_outbox_core::SourceError;

use super::batch_size::BatchSize;
use super::read::{ReadBatch, Unread};
use crate::source::database::Database;
use crate::source::database_error;
use crate::source::row::BlockedAggregates;

/// Whoever waits for a lock on the whole table waits for the pass, so the pass must not wait for them.
const LOCK_TIMEOUT: &str = "SET lock_timeout = '200ms'";

/// What a pass has still to read, and all that reading it takes.
pub(super) struct Backlog {
    /// Where the tables are, if the relay has several outboxes.
    pub(super) schema: Option<String>,
    /// What the pass sees. Another connection can share it while the pass holds its claim, and on the same server only.
    pub(super) snapshot: String,
    pub(super) unread: Unread,
    pub(super) blocked: Option<BlockedAggregates>,
    pub(super) batch_size: BatchSize,
    pub(super) limit: usize,
}

/// A thread that reads ahead. It ends, and with it the connection, when this is dropped.
pub(super) struct Ahead {
    backlogs: Sender<(Backlog, Handing)>,
}

/// The batches of a backlog. Each is read when it is asked for.
pub(super) struct Batches {
    wanted: Sender<()>,
    is_asked: bool,
    read: Receiver<ReadBatch>,
}

/// The thread's end of [`Batches`].
struct Handing {
    wanted: Receiver<()>,
    read: Sender<ReadBatch>,
}

/// How long to wait for a batch. The connection may never be made, or may hang.
const WAIT: Duration = Duration::from_secs(1);

impl Batches {
    /// Asks the thread to read the next batch.
    pub(super) fn ask(&mut self) {
        if !self.is_asked {
            // If the thread has ended, there is no next one.
            self.is_asked = self.wanted.send(()).is_ok();
        }
    }

    /// Returns the next batch; the last one says that it is the last. Returns `None` if the connection fails.
    pub(super) fn next(&mut self) -> Option<ReadBatch> {
        self.ask();
        self.is_asked = false;
        self.read.recv_timeout(WAIT).ok()
    }
}

impl Ahead {
    /// Starts the thread.
    pub(super) fn begin(database: Database) -> std::io::Result<Self> {
        let (backlogs, received) = channel();
        let reader = move || {
            let mut conn = None;
            for (backlog, handing) in received {
                if let Err(error) = read(&mut conn, &database, backlog, &handing) {
                    conn = None;
                    tracing::warn!(
                        %error,
                        "cannot read a backlog ahead, so the relay reads it more slowly; nothing is lost. If this comes again and again, \
                         correct the error, such as too few connections"
                    );
                }
            }
        };
        thread::Builder::new().name("outbox-ahead".into()).spawn(reader)?;
        Ok(Self { backlogs })
    }

    /// Returns the batches of this backlog.
    pub(super) fn read(&self, backlog: Backlog) -> Batches {
        let ((wanted, asked), (hand, read)) = (channel(), channel());
        // If the thread has ended, there are no batches, and the worker's connection reads.
        let _ = self.backlogs.send((backlog, Handing { wanted: asked, read: hand }));
        Batches { wanted, is_asked: false, read }
    }
}

fn read(
    conn: &mut Option<PgConnection>,
    database: &Database,
    backlog: Backlog,
    handing: &Handing,
) -> Result<(), SourceError> {
    let conn = match conn {
        Some(conn) => conn,
        none => none.insert(database.connect()?),
    };
    let failed = |error| database_error("reading ahead", error);
    conn.batch_execute(LOCK_TIMEOUT).map_err(failed)?;
    if let Some(schema) = &backlog.schema {
        conn.batch_execute(&set_search_path(schema)).map_err(failed)?;
    }
    conn.build_transaction()
        .repeatable_read()
        .read_only()
        .run(|conn| read_on(conn, backlog, handing))
        .map_err(failed)
}

fn read_on(conn: &mut PgConnection, backlog: Backlog, handing: &Handing) -> QueryResult<()> {
    let Backlog { snapshot, mut unread, blocked, mut batch_size, limit, .. } = backlog;
    conn.batch_execute(&format!("SET TRANSACTION SNAPSHOT '{snapshot}'"))?;
    for () in &handing.wanted {
        let batch = unread.read(conn, &mut batch_size, limit, blocked.as_ref())?;
        unread.go_past(&batch);
        if handing.read.send(batch).is_err() {
            break;
        }
    }
    Ok(())
}
