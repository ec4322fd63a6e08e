//! Reads the WAL in chunks over ordinary connections, for a relay that is far behind.
//!
//! On a replication connection the server makes a system call for each message, which costs more than the decoding. On an ordinary
//! connection it decodes a chunk as a whole, and sends it as fast as any result. The slot would forget a chunk with the call that
//! reads it, so the relay reads a temporary copy of the slot, which ends with its connection.
//!
//! Two connections take turns, so that one decodes while the relay publishes the other's chunk. Each copies the other's copy as it
//! is after the other's chunk. The slot itself is moved up behind them, as far as everything is acknowledged.
//!
//! What it means if an end of a channel is dropped:
//!
//! - `before`, whose other end is `done`: if `done` sends, a chunk was handed over as a whole; if it is dropped without, it was
//!   not. Whoever waits for `before` then hands over nothing and ends, so that no chunk follows one that is missing. If `before` is
//!   dropped, the reader that has it has ended, and nobody needs to know.
//! - `turns`, whose other end is `next` of the other reader: if `next` is dropped, that reader has ended, so there is no further
//!   turn, and this one ends when it has none left. If `turns` is dropped, a turn that is sent to it goes nowhere, and its `before`
//!   with it.
//! - `handed`, whose other end is in the handover: if both readers have dropped theirs, no more chunks come, and the relay goes on
//!   with a stream from where the last one ended. If the handover is dropped, the relay has ended, and what is handed over is for
//!   nobody.
//!
//! So if one reader ends for any reason, both end, and everything that was handed over lies before everything that was not.

use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::mpsc::{Receiver, Sender, SyncSender, TrySendError, channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use bytes::Bytes;
use diesel::connection::LoadConnection;
use diesel::pg::{Pg, PgConnection, PgRowByRowLoadingMode};
use diesel::prelude::*;
use diesel::row::{Field, Row};
use diesel::sql_types::{Array, BigInt, Bool, Integer, Text};
use diesel_outbox_core::SourceError;

use super::changes;
use super::decode::{Decoder, Message};
use super::handover::{ENOUGH_BYTES, HandedOver, Handover, MOST_MESSAGES, Messages, Orders};
use super::options::WalOptions;
use super::position::Lsn;
use super::slot::{self, move_up};
use crate::source::database::PostgresDatabase;
use crate::source::database_error;
use crate::statement::statement;
use diesel_outbox_core::__private::one_line;

/// If it has this many bytes of the WAL to read, a relay is far behind. It leaves the last `NEAR` bytes to the stream.
pub(super) const FAR: u64 = 64 << 20;
const NEAR: u64 = 16 << 20;

/// A chunk ends after this many messages, of which a transaction has two besides its events, or after this many bytes of the WAL,
/// which may have nothing of the outbox. It contains the transaction in which it ends as a whole.
const CHANGES: i32 = 300_000;
const BYTES: u64 = 256 << 20;

/// While the relay takes a chunk, the server keeps a snapshot. If the relay has not taken the chunk within this time, it leaves it
/// to the stream.
const TAKEN_WITHIN: Duration = Duration::from_secs(20);
const FULL_PAUSE: Duration = Duration::from_millis(1);

/// A drop cancels what the readers wait for, again and again, because it may just have ended and something else begun.
const CANCEL_INTERVAL: Duration = Duration::from_millis(50);
/// If the server does not answer for so long, the drop leaves the readers to themselves.
const ENDED_WITHIN: Duration = Duration::from_secs(5);

/// The two readers. They end when what is left is short enough for the stream, and when this is dropped.
pub(super) struct Chunks {
    handover: Handover,
    database: PostgresDatabase,
    threads: Vec<(JoinHandle<()>, Arc<ServerProcess>)>,
}

/// The number of a connection's process on the server, or zero.
type ServerProcess = AtomicI32;

impl Chunks {
    /// Reads from this place on.
    pub(super) fn begin(
        database: &PostgresDatabase,
        options: &WalOptions,
        start: Lsn,
        table: u32,
    ) -> Result<Self, SourceError> {
        let (handed, orders, handover) = Handover::new();
        let ((first, turns_of_first), (second, turns_of_second)) = (channel(), channel());
        // Their other ends are here.
        let (done, before) = channel();
        let _ = done.send(());
        let _ = first.send(Turn { slot: options.slot.clone(), start: Some(start), before });
        let mut threads = Vec::new();
        for (name, turns, next) in [("a", turns_of_first, second), ("b", turns_of_second, first)] {
            let reader = ChunkReader {
                name,
                database: database.clone(),
                options: options.clone(),
                table,
                handed: handed.clone(),
                orders: orders.clone(),
                turns,
                next,
                copies: 0,
                session: Arc::default(),
            };
            let session = reader.session.clone();
            let thread = thread::Builder::new()
                .name("outbox-wal".into())
                .spawn(move || reader.run())
                .map_err(|error| {
                    SourceError::new(format!("cannot start to read the write-ahead log: {error}"))
                        .with_source(error)
                })?;
            threads.push((thread, session));
        }
        Ok(Self { handover, database: database.clone(), threads })
    }

    pub(super) fn handover(&self) -> &Handover {
        &self.handover
    }
}

impl Drop for Chunks {
    /// Ends the readers. Otherwise the server would keep decoding after the relay has ended, with the slot or a copy of it.
    fn drop(&mut self) {
        self.handover.cancel();
        let (began, mut conn) = (Instant::now(), None);
        while self.threads.iter().any(|(thread, _)| !thread.is_finished()) {
            if began.elapsed() >= ENDED_WITHIN {
                tracing::warn!(
                    "the server has not ended the sessions that read chunks of the write-ahead log: they may hold the slot for a while"
                );
                return;
            }
            // If nothing more can come, they are about to end.
            if matches!(self.handover.receive(Duration::ZERO), Ok(HandedOver::End)) {
                thread::sleep(FULL_PAUSE);
                continue;
            }
            let sessions = self.threads.iter().filter(|(thread, _)| !thread.is_finished());
            let sessions = sessions.map(|(_, session)| session.load(Ordering::Relaxed)).collect();
            if conn.is_none() {
                conn = self.database.connect().ok();
            }
            if let Some(canceling) = &mut conn
                && Cancel::new(sessions).execute(canceling).is_err()
            {
                conn = None;
            }
            // What they hand over meanwhile is for nobody.
            let _ = self.handover.receive(CANCEL_INTERVAL);
        }
        for (thread, _) in self.threads.drain(..) {
            // If it panicked, the relay noticed when it tried to receive something.
            let _ = thread.join();
        }
    }
}

/// An order to read the next chunk.
struct Turn {
    /// The slot to copy.
    slot: String,
    /// Where the copy should begin, if not where the slot is.
    start: Option<Lsn>,
    /// Receives something once the chunk before was handed over.
    before: Receiver<()>,
}

struct ChunkReader {
    name: &'static str,
    database: PostgresDatabase,
    options: WalOptions,
    table: u32,
    handed: SyncSender<Messages>,
    orders: Arc<Orders>,
    turns: Receiver<Turn>,
    next: Sender<Turn>,
    copies: usize,
    session: Arc<ServerProcess>,
}

impl ChunkReader {
    fn run(mut self) {
        if let Err(error) = self.take_turns() {
            // Nobody waits for it if the relay has ended.
            let _ = self.handed.send(Err(error));
        }
    }

    fn take_turns(&mut self) -> Result<(), SourceError> {
        let mut conn = self.database.connect()?;
        let pid = slot::session_pid(&mut conn);
        self.session.store(
            pid.map_err(|error| database_error("reading a chunk of the write-ahead log", error))?,
            Ordering::Relaxed,
        );
        while let Ok(turn) = self.turns.recv() {
            if self.orders.ends.is_cancelled() {
                break;
            }
            if !self.take_turn(&mut conn, turn)? {
                break;
            }
        }
        Ok(())
    }

    /// Reads a chunk and hands it over. Returns whether there should be another.
    fn take_turn(&mut self, conn: &mut PgConnection, turn: Turn) -> Result<bool, SourceError> {
        self.move_slot(conn);
        let copy = match self.copy(conn, &turn) {
            Ok(copy) => copy,
            Err(_) if self.orders.ends.is_cancelled() => return Ok(false),
            Err(error) => {
                tracing::warn!(
                    slot = self.options.slot,
                    error = one_line(&error.to_string()),
                    "the slot could not be copied, so the relay only streams the write-ahead log, which is slower: to read in chunks it \
                     needs two free replication slots (max_replication_slots)"
                );
                return Ok(false);
            }
        };
        let failed = |error| database_error("reading a chunk of the write-ahead log", error);
        let (begin, behind) = Left::new(copy.clone()).get_result::<(i64, i64)>(conn).map_err(failed)?;
        let begin = begin.unsigned_abs();
        if behind.unsigned_abs() < NEAR {
            let is_next = turn.before.recv().is_ok();
            if is_next {
                self.hand_over(vec![Message::End(begin)], Instant::now());
            }
            return Ok(false);
        }
        let changes = changes::get(&copy, begin + BYTES, CHANGES, &self.options.publication);
        // This returns when the chunk has been decoded, and the copy has moved.
        let changes = LoadConnection::<PgRowByRowLoadingMode>::load(conn, changes).map_err(failed)?;
        let (done, before) = channel();
        // The module says what it means if this fails, or `done`.
        let _ = self.next.send(Turn { slot: copy, start: None, before });
        if turn.before.recv().is_err() || !self.hand_all_over(begin, changes)? {
            return Ok(false);
        }
        let _ = done.send(());
        Ok(true)
    }

    /// Copies the slot, in place of the copy that this connection had.
    fn copy(&mut self, conn: &mut PgConnection, turn: &Turn) -> QueryResult<String> {
        DropOwn::new().execute(conn)?;
        self.copies += 1;
        let copy = slot::copy(conn, &turn.slot, &format!("{}_{}", self.name, self.copies))?;
        if let Some(start) = turn.start {
            move_up(conn, &copy, start)?;
        }
        Ok(copy)
    }

    /// Hands over what begins at this place. Returns whether the relay took all of it in time.
    fn hand_all_over<'a, R: Row<'a, Pg>>(
        &self,
        begin: Lsn,
        changes: impl Iterator<Item = QueryResult<R>>,
    ) -> Result<bool, SourceError> {
        let mut decoder = Decoder::new(self.table);
        // The chunks before may have had nothing of the outbox.
        let (mut messages, mut bytes, since) = (vec![Message::End(begin)], 0, Instant::now());
        for change in changes {
            let change =
                change.map_err(|error| database_error("reading a chunk of the write-ahead log", error))?;
            let change =
                change.get(0).and_then(|field| Some(Bytes::copy_from_slice(field.value()?.as_bytes())));
            let Some(change) = change else { continue };
            bytes += change.len();
            messages.extend(decoder.decode(change)?);
            if messages.len() >= MOST_MESSAGES || bytes >= ENOUGH_BYTES {
                bytes = 0;
                if !self.hand_over(std::mem::take(&mut messages), since) {
                    return Ok(false);
                }
            }
        }
        Ok(self.hand_over(messages, since))
    }

    /// Waits until there is room, and hands the messages over. Returns whether the relay took them in time.
    fn hand_over(&self, messages: Vec<Message>, since: Instant) -> bool {
        let mut messages = Ok(messages);
        while let Err(TrySendError::Full(full)) = self.handed.try_send(messages) {
            if self.orders.ends.is_cancelled() || since.elapsed() >= TAKEN_WITHIN {
                return false;
            }
            messages = full;
            thread::sleep(FULL_PAUSE);
        }
        !self.orders.ends.is_cancelled()
    }

    /// Moves the slot up, so that the server need not keep what was sent. If it fails, because the stream has not yet released the
    /// slot, the next turn does it. An error drops the copies that a connection has, so this runs when nobody needs this one's any
    /// more. Only the reader whose turn it is can do it.
    fn move_slot(&self, conn: &mut PgConnection) {
        let confirmed = self.orders.confirmed();
        if let Err(error) = move_up(conn, &self.options.slot, confirmed) {
            tracing::debug!(slot = self.options.slot, %error, "the slot was not moved up");
        }
    }
}

statement!(
    Pg,
    Cancel { sessions: Vec<i32> => Array<Integer> } -> Bool,
    "SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE pid = ANY (?) AND usename = current_user"
);

statement!(
    Pg,
    /// Drops the copies that this connection has.
    DropOwn {} -> Bool,
    "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots \
     WHERE temporary AND active_pid = pg_backend_pid()"
);

statement!(
    Pg,
    /// The position from which a slot is read, and how many bytes of the WAL follow it.
    Left { slot: String => Text } -> (BigInt, BigInt),
    "SELECT (confirmed_flush_lsn - '0/0')::bigint, greatest(pg_current_wal_flush_lsn() - confirmed_flush_lsn, 0)::bigint \
     FROM pg_replication_slots WHERE slot_name = ?"
);
