//! SQLite, polled. SQLite has one writer at a time, so one relay is enough. A lock on a file beside the database keeps a second one
//! waiting, and the system releases it if its holder dies. Nothing in the database is locked while records are being published.

use std::fmt;
use std::fs::{File, TryLockError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use diesel::connection::{DefaultLoadingMode, SimpleConnection};
use diesel::prelude::*;
use diesel::sql_types::{BigInt, Binary, Bool, Integer, Nullable, Text};
use diesel::sqlite::{Sqlite, SqliteConnection};
use diesel_outbox_core::{Claimed, DeadLetterPolicy, DeadLettered, Lag, Source, SourceError};
use uuid::Uuid;

use crate::operate::Operate;
use crate::source::interval::is_due;
use crate::source::julian_day::created_at_ms;
use crate::source::promote::Promotion;
use crate::source::prune::{How, Limits, Steps};
use crate::source::row::StoredRow;
use crate::source::{BLOCKED, NO_TABLE, SentRows, SourceOptions, database_error};
use crate::statement::statement;

/// How often to look at the file's change counter.
const LOOK_PAUSE: Duration = Duration::from_millis(10);
/// How many bytes fill a batch.
const BATCH_BYTES: usize = 8 * 1024 * 1024;
/// Pruning takes at most this part of the time that the relay had for other things, and so long at once.
const PRUNE_SHARE: u32 = 2;
const LONGEST_PRUNING: Duration = Duration::from_secs(1);
/// How often a relay that stands by looks whether the other one is gone.
const STAND_BY_PAUSE: Duration = Duration::from_millis(500);

/// The outbox table of an SQLite database as a source of records.
pub struct SqliteSource {
    database_url: String,
    options: SourceOptions,
    open: Option<OpenDatabase>,
    cursor: Cursor,
    pruning: Steps,
    promotion: Promotion,
    measured: Option<Instant>,
}

struct OpenDatabase {
    conn: SqliteConnection,
    lock: File,
    owns_lock: bool,
    /// The change counter from before the last look at the table.
    version: i32,
    looked: Instant,
    /// Whether this connection has moved scheduled events into the outbox since. That does not change its own change counter.
    has_promoted: bool,
}

/// How far a pass has read.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Cursor {
    last: i64,
    /// How many of the rows that the pass has read are still unsent.
    unsettled: i64,
}

impl Cursor {
    /// Returns the number of the last row that was read.
    pub(crate) fn last(&self) -> i64 {
        self.last
    }

    /// Returns whether the pass may read on, if so many rows up to the last one are unsent. If there are more than it has read, a row was
    /// put back there.
    pub(crate) fn may_go_on(&self, unsent: i64) -> bool {
        unsent <= self.unsettled
    }

    pub(crate) fn read(&mut self, seq: i64) {
        self.last = seq;
        self.unsettled += 1;
    }

    pub(crate) fn settled(&mut self, rows: i64) {
        self.unsettled -= rows;
    }
}

/// Shows nothing of the URL.
impl fmt::Debug for SqliteSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SqliteSource").field("options", &self.options).finish_non_exhaustive()
    }
}

impl SqliteSource {
    /// Returns a source that opens this database file when it is first asked for something.
    pub fn new(database_url: impl Into<String>, options: SourceOptions) -> Self {
        Self {
            database_url: database_url.into(),
            options,
            open: None,
            cursor: Cursor::default(),
            pruning: Steps::new(PRUNE_SHARE, LONGEST_PRUNING, How::Deletes),
            promotion: Promotion::default(),
            measured: None,
        }
    }

    /// Returns whether aggregates with dead letters are held back.
    fn blocks(&self) -> bool {
        self.options.dead_letter_policy == DeadLetterPolicy::Block
    }

    fn open(&mut self) -> Result<&mut OpenDatabase, SourceError> {
        if self.open.is_none() {
            self.open = Some(OpenDatabase::new(&self.database_url)?);
        }
        self.open.as_mut().ok_or_else(|| SourceError::new("the database is not open"))
    }

    fn with<T>(
        &mut self,
        doing: &str,
        work: impl FnOnce(&mut SqliteConnection) -> QueryResult<T>,
    ) -> Result<T, SourceError> {
        work(&mut self.open()?.conn).map_err(|error| database_error(doing, error))
    }
}

impl OpenDatabase {
    fn new(database_url: &str) -> Result<Self, SourceError> {
        // To open it would create it, and a mistyped path would look like a database without tables.
        let is_path = !database_url.starts_with("file:") && database_url != ":memory:";
        if is_path && !std::path::Path::new(database_url.trim_start_matches("sqlite://")).exists() {
            return Err(SourceError::misconfigured(format!(
                "there is no database file `{database_url}`: correct the path, or create the file by running the migrations"
            )));
        }
        let mut conn = SqliteConnection::establish(database_url).map_err(|error| {
            SourceError::new(format!("cannot open the database: {error}")).with_source(error)
        })?;
        conn.batch_execute("PRAGMA busy_timeout = 30000")
            .map_err(|error| database_error("preparing the connection", error))?;
        let path = diesel::dsl::sql::<Text>("SELECT file FROM pragma_database_list WHERE name = 'main'")
            .get_result::<String>(&mut conn)
            .map_err(|error| database_error("looking for the database's file", error))?;
        if path.is_empty() {
            return Err(SourceError::permanent(
                "the relay needs an SQLite database in a file: one in memory belongs to its own connection alone",
            ));
        }
        if !HasTable::new()
            .get_result(&mut conn)
            .map_err(|error| database_error("looking for the outbox", error))?
        {
            return Err(SourceError::misconfigured(NO_TABLE));
        }
        let path = format!("{path}-outbox-relay");
        let lock = File::options().create(true).append(true).open(&path).map_err(|error| {
            SourceError::new(format!("cannot open the relay's lock file {path}: {error}")).with_source(error)
        })?;
        Ok(Self { conn, lock, owns_lock: false, version: 0, looked: Instant::now(), has_promoted: false })
    }

    fn own_lock(&mut self) -> Result<bool, SourceError> {
        if !self.owns_lock {
            match self.lock.try_lock() {
                Ok(()) => self.owns_lock = true,
                Err(TryLockError::WouldBlock) => {}
                Err(TryLockError::Error(error)) => {
                    return Err(SourceError::new(format!("cannot lock the relay's lock file: {error}"))
                        .with_source(error));
                }
            }
        }
        Ok(self.owns_lock)
    }

    fn version(&mut self) -> Result<i32, SourceError> {
        DataVersion::new()
            .get_result::<i32>(&mut self.conn)
            .map_err(|error| database_error("looking for changes", error))
    }
}

impl Source for SqliteSource {
    fn claim(&mut self) -> Result<bool, SourceError> {
        let open = self.open()?;
        open.looked = Instant::now();
        open.has_promoted = false;
        // Read before the table, so that no change in between is missed.
        open.version = open.version()?;
        if !open.own_lock()? {
            return Ok(false);
        }
        self.cursor = Cursor::default();
        self.with("claiming", |conn| HasUnsent::new().get_result::<bool>(conn))
    }

    fn read(&mut self, limit: usize, records: &mut Vec<Claimed>) -> Result<bool, SourceError> {
        let (cursor, blocks) = (self.cursor, self.blocks());
        let (rows, more) = self.with("reading", |conn| {
            conn.transaction(|conn| {
                // A row that somebody requeued behind the cursor comes before its aggregate's later ones: the next pass takes both.
                if !cursor.may_go_on(UnsentUpTo::new(cursor.last()).get_result(conn)?) {
                    return Ok((Vec::new(), false));
                }
                read_batch(conn, blocks, cursor.last(), limit)
            })
        })?;
        for (row, _) in &rows {
            self.cursor.read(row.seq);
        }
        for (row, is_held_back) in rows {
            let claimed = row.claimed();
            if is_held_back && claimed.record.is_ok() {
                self.dead_letter(claimed.ticket, BLOCKED)?;
            } else {
                records.push(claimed);
            }
        }
        Ok(more)
    }

    fn settle(&mut self, tickets: &[u64]) -> Result<(), SourceError> {
        let numbers: Vec<String> = tickets.iter().map(u64::to_string).collect();
        let seqs = format!("[{}]", numbers.join(","));
        let delete = self.options.sent_rows == SentRows::Delete;
        let settled = self.with("settling", |conn| {
            if delete { Delete::new(seqs).execute(conn) } else { MarkSent::new(seqs).execute(conn) }
        })?;
        self.cursor.settled(settled as i64);
        Ok(())
    }

    fn dead_letter(&mut self, ticket: u64, reason: &str) -> Result<DeadLettered, SourceError> {
        let seq = ticket as i64;
        let moved = self.with("moving a record to the dead letters", |conn| {
            conn.immediate_transaction(|conn| {
                let moved = MoveToDeadLetters::new(reason.to_owned(), seq)
                    .get_result::<(String, String)>(conn)
                    .optional()?;
                Delete::new(format!("[{seq}]")).execute(conn)?;
                Ok(moved)
            })
        })?;
        self.cursor.settled(1);
        let (aggregate_type, id) = moved.unwrap_or_default();
        Ok(DeadLettered::new(id, aggregate_type).holding_back(self.blocks()))
    }

    fn release(&mut self) -> Result<(), SourceError> {
        Ok(())
    }

    fn abandon(&mut self) {
        // What was settled was committed at once, so there is nothing to take back. A new connection starts afresh.
        if let Some(open) = &mut self.open
            && open.version().is_err()
        {
            self.open = None;
        }
    }

    fn wait(&mut self, limit: Duration) -> Result<bool, SourceError> {
        let poll_interval = self.options.poll_interval;
        let open = self.open()?;
        let until = Instant::now() + limit;
        loop {
            // One that stands by does not need changes: it looks whether the other one is gone.
            let due = open.looked.elapsed() >= if open.owns_lock { poll_interval } else { STAND_BY_PAUSE };
            if due || open.has_promoted || (open.owns_lock && open.version()? != open.version) {
                return Ok(true);
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(false);
            }
            std::thread::sleep(LOOK_PAUSE.min(left));
        }
    }

    fn outbox(&self) -> Option<&str> {
        Some(&self.database_url)
    }

    fn upkeep(&mut self) -> Result<Option<Lag>, SourceError> {
        // The claim that follows takes the lock.
        if !self.open()?.owns_lock {
            return Ok(None);
        }
        if let Some(open) = &mut self.open {
            open.has_promoted |= self.promotion.run(&mut open.conn, true);
        }
        if let Some(open) = &mut self.open {
            self.pruning.run(&mut open.conn, Limits::of(&self.options));
        }
        if !is_due(&mut self.measured, self.options.lag_interval) {
            return Ok(None);
        }
        let mut lag = self.with("measuring the lag", |conn| conn.lag())?;
        if let Some(open) = &mut self.open {
            let measured = self.promotion.measure(&mut open.conn, &mut lag);
            measured.map_err(|error| database_error("measuring what is scheduled", error))?;
        }
        Ok(Some(lag))
    }
}

/// Returns the next rows, up to this many, and whether there may be more. It loads them one by one until the batch is full, so that
/// a batch exceeds its bytes by one row at most, whatever the sizes.
/// Returns each row with whether it is held back, and whether there are more.
fn read_batch(
    conn: &mut SqliteConnection,
    blocks: bool,
    cursor: i64,
    limit: usize,
) -> QueryResult<(Vec<(StoredRow, bool)>, bool)> {
    let (mut rows, mut bytes) = (Vec::new(), 0);
    for row in Read::new(blocks, cursor, limit as i64).load_iter::<SqliteRow, DefaultLoadingMode>(conn)? {
        let (row, is_held_back) = stored(row?);
        bytes += row.bytes();
        rows.push((row, is_held_back));
        if bytes >= BATCH_BYTES {
            return Ok((rows, true));
        }
    }
    let more = rows.len() == limit;
    Ok((rows, more))
}

type SqliteRow = (i64, String, String, String, String, Option<Vec<u8>>, Option<String>, i64, bool);

fn stored(row: SqliteRow) -> (StoredRow, bool) {
    let (seq, id, aggregate_type, aggregate_id, event_type, payload, headers, created_at_ms, held_back) = row;
    let id = Uuid::parse_str(&id).map_err(|_| format!("the column `id` holds {id:?}, which is not a UUID"));
    let row = StoredRow {
        ticket: seq.unsigned_abs(),
        seq,
        id,
        aggregate_type: aggregate_type.into(),
        aggregate_id: aggregate_id.into(),
        event_type: event_type.into(),
        payload: payload.map(Bytes::from),
        headers: headers.map(Bytes::from),
        created_at_ms,
    };
    (row, held_back)
}

statement!(Sqlite, DataVersion {} -> Integer, "PRAGMA data_version");

statement!(
    Sqlite,
    HasTable {} -> Bool,
    "SELECT EXISTS (SELECT 1 FROM sqlite_schema WHERE name = 'outbox')"
);

statement!(
    Sqlite,
    HasUnsent {} -> Bool,
    "SELECT EXISTS (SELECT 1 FROM outbox WHERE sent_at IS NULL)"
);

statement!(
    Sqlite,
    /// A row is held back if it comes after a dead letter of its aggregate. One that comes before may still have to be sent: it was on its way
    /// when the later one was refused. That looks at one entry of an index, so that many dead letters of other aggregates cost nothing.
    Read { blocks: bool => Bool, cursor: i64 => BigInt, limit: i64 => BigInt }
        -> (BigInt, Text, Text, Text, Text, Nullable<Binary>, Nullable<Text>, BigInt, Bool),
    concat!(
        "SELECT seq, id, aggregatetype, aggregateid, type, payload, headers, ",
        created_at_ms!(),
        ", ? AND EXISTS (SELECT 1 FROM outbox_dead_letter AS d WHERE d.aggregateid = o.aggregateid AND d.aggregatetype = o.aggregatetype \
         AND d.seq < o.seq) FROM outbox AS o WHERE sent_at IS NULL AND seq > ? ORDER BY seq LIMIT ?"
    )
);

statement!(
    Sqlite,
    UnsentUpTo { cursor: i64 => BigInt } -> BigInt,
    "SELECT count(*) FROM outbox WHERE sent_at IS NULL AND seq <= ?"
);

statement!(
    Sqlite,
    MarkSent { seqs: String => Text } -> Bool,
    "UPDATE outbox SET sent_at = strftime('%Y-%m-%dT%H:%M:%fZ', 'now') \
     WHERE seq IN (SELECT value FROM json_each(?))"
);

statement!(
    Sqlite,
    Delete { seqs: String => Text } -> Bool,
    "DELETE FROM outbox WHERE seq IN (SELECT value FROM json_each(?))"
);

statement!(
    Sqlite,
    MoveToDeadLetters { reason: String => Text, seq: i64 => BigInt } -> (Text, Text),
    "INSERT INTO outbox_dead_letter \
     (seq, id, aggregatetype, aggregateid, type, payload, headers, shard, created_at, reason) \
     SELECT seq, id, aggregatetype, aggregateid, type, payload, headers, shard, created_at, ? \
     FROM outbox WHERE seq = ? RETURNING aggregatetype, id"
);
