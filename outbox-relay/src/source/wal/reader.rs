//! What reads the WAL: near its end a stream, far behind it chunks. Any change of reader begins at the place up to which everything
//! has come.

use std::time::{Duration, Instant};

use diesel::pg::PgConnection;
use diesel_outbox_core::SourceError;

use super::chunks::{Chunks, FAR};
use super::decode::Message;
use super::handover::{HandedOver, Handover};
use super::options::WalOptions;
use super::position::Lsn;
use super::slot;
use super::stream::Stream;
use super::window::Window;
use crate::source::database::PostgresDatabase;
use crate::source::database_error;

pub(super) struct Reader {
    database: PostgresDatabase,
    wal: WalOptions,
    /// The number of the table outbox.
    table: u32,
    by: By,
    began: Instant,
    /// How many rows had come by then.
    began_after: u64,
    /// How long to stream at least before reading chunks again.
    stream_time: Duration,
}

enum By {
    Stream(Stream),
    Chunks(Chunks),
}

const STREAM_TIME: Duration = Duration::from_secs(5);
const LONG_STREAM_TIME: Duration = Duration::from_secs(60);
/// A transaction with this many events is streamed to its end, because a new reader starts at the beginning of the transaction.
const LARGE: u64 = 100_000;

impl Reader {
    /// Reads a WAL that ends at `end` from `start` on.
    pub(super) fn begin(
        database: &PostgresDatabase,
        wal: &WalOptions,
        table: u32,
        start: Lsn,
        end: Lsn,
    ) -> Result<Self, SourceError> {
        let by = if end.saturating_sub(start) > FAR {
            By::chunks(database, wal, table, start)?
        } else {
            By::stream(database, wal, table, start)?
        };
        Ok(Self {
            database: database.clone(),
            wal: wal.clone(),
            table,
            by,
            began: Instant::now(),
            began_after: 0,
            stream_time: STREAM_TIME,
        })
    }

    /// Returns what has come, or comes within this time. Returns `None` if more comes only from another reader: see
    /// [`go_on`](Self::go_on).
    pub(super) fn receive(&self, limit: Duration) -> Result<Option<Vec<Message>>, SourceError> {
        match self.by.handover().receive(limit) {
            Ok(HandedOver::Messages(messages)) => Ok(Some(messages)),
            Ok(HandedOver::Nothing) => Ok(Some(Vec::new())),
            Ok(HandedOver::End) if self.reads_chunks() => Ok(None),
            Ok(HandedOver::End) => {
                Err(SourceError::new("the thread that reads the write-ahead log has ended"))
            }
            Err(error) if self.reads_chunks() => {
                tracing::warn!(slot = self.wal.slot, %error, "the write-ahead log cannot be read in chunks now, so the relay streams it");
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// Lets the server forget what lies before this.
    pub(super) fn confirm(&self, lsn: Lsn) {
        self.by.handover().confirm(lsn);
    }

    /// Returns whether it reads chunks. Only then must the relay move the slot up now and then.
    pub(super) fn reads_chunks(&self) -> bool {
        matches!(self.by, By::Chunks(_))
    }

    /// Streams from here on, after chunks. All is sent up to `confirmed`.
    pub(super) fn go_on(
        &mut self,
        conn: &mut PgConnection,
        window: &Window,
        confirmed: Lsn,
    ) -> Result<(), SourceError> {
        // If it is not near the end, chunks could not be read, or were not taken in time.
        let is_near = behind(conn, window)? <= FAR;
        self.stream_time = if is_near { STREAM_TIME } else { LONG_STREAM_TIME };
        tracing::info!(slot = self.wal.slot, "the write-ahead log is streamed from here on");
        let stream = By::stream(&self.database, &self.wal, self.table, window.end())?;
        self.read_by(stream, window, confirmed);
        Ok(())
    }

    /// Reads chunks if the stream is far behind. If nothing has come from the stream yet, it is still at what any other reader
    /// would begin with too.
    pub(super) fn catch_up(
        &mut self,
        conn: &mut PgConnection,
        window: &Window,
        confirmed: Lsn,
    ) -> Result<(), SourceError> {
        let may_change = !self.reads_chunks()
            && self.began.elapsed() >= self.stream_time
            && window.next_ticket() > self.began_after
            && window.receiving() < LARGE;
        if may_change && behind(conn, window)? > FAR {
            let chunks = By::chunks(&self.database, &self.wal, self.table, window.end())?;
            self.read_by(chunks, window, confirmed);
        }
        Ok(())
    }

    fn read_by(&mut self, by: By, window: &Window, confirmed: Lsn) {
        by.handover().confirm(confirmed);
        (self.by, self.began, self.began_after) = (by, Instant::now(), window.next_ticket());
    }
}

impl By {
    fn stream(
        database: &PostgresDatabase,
        wal: &WalOptions,
        table: u32,
        start: Lsn,
    ) -> Result<Self, SourceError> {
        Stream::begin(&database.url.get()?, wal.clone(), start, table).map(Self::Stream)
    }

    fn chunks(
        database: &PostgresDatabase,
        wal: &WalOptions,
        table: u32,
        start: Lsn,
    ) -> Result<Self, SourceError> {
        tracing::info!(slot = wal.slot, "far behind: the write-ahead log is read in chunks");
        Chunks::begin(database, wal, start, table).map(Self::Chunks)
    }

    fn handover(&self) -> &Handover {
        match self {
            Self::Stream(stream) => stream.handover(),
            Self::Chunks(chunks) => chunks.handover(),
        }
    }
}

/// Returns how many bytes of the WAL have not come yet.
fn behind(conn: &mut PgConnection, window: &Window) -> Result<u64, SourceError> {
    let end = slot::end_of_wal(conn)
        .map_err(|error| database_error("looking up the end of the write-ahead log", error))?;
    Ok(end.saturating_sub(window.end()))
}
