//! Streams the WAL over a replication connection, on its own thread, which reads ahead as far as the relay can keep up.

use std::pin::pin;
use std::sync::Arc;
use std::sync::mpsc::{SyncSender, TrySendError};
use std::task::{Context, Poll, Waker};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use bytes::Bytes;
use diesel_outbox_core::SourceError;
use pg_walstream::{PgReplicationConnection, ReplicationError, parse_keepalive_message};

use super::decode::{Decoder, Message, PROTOCOL};
use super::handover::{ENOUGH_BYTES, Handover, MOST_MESSAGES, Messages, Orders};
use super::options::WalOptions;
use super::position::Lsn;
use crate::source::database::{with_keepalives, with_parameters};
use diesel_outbox_core::__private::{one_line, quoted_identifier};

/// A stream of the WAL. It ends, and with it the connection, when this is dropped.
pub(super) struct Stream {
    handover: Handover,
    thread: Option<JoinHandle<()>>,
}

/// How often the server hears that all is well if there is nothing new to confirm.
const HEARTBEAT: Duration = Duration::from_secs(5);
/// The server answers each time. If it has not answered for this long, it is gone.
const SILENCE: Duration = Duration::from_secs(30);
/// How long to try to confirm the last position.
const LAST_WORDS: Duration = Duration::from_secs(2);
const SHORTEST_CONFIRM_INTERVAL: Duration = Duration::from_millis(1);
/// How often to look whether there is room.
const FULL_PAUSE: Duration = Duration::from_millis(1);
/// The server waits this long for the heartbeat of a process that is frozen.
const SETTINGS: [&str; 2] = ["SET application_name = 'outbox relay'", "SET wal_sender_timeout = '30s'"];

impl Stream {
    pub(super) fn begin(
        database_url: &str,
        options: WalOptions,
        start: Lsn,
        table: u32,
    ) -> Result<Self, SourceError> {
        let (handed, orders, handover) = Handover::new();
        let url = with_keepalives(&with_parameters(database_url, &["replication=database"]));
        let reader = StreamReader::new(url, options, start, table, handed, orders);
        let failed = |error: std::io::Error| {
            SourceError::new(format!("cannot start to read the write-ahead log: {error}")).with_source(error)
        };
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_io()
            .enable_time()
            .build()
            .map_err(failed)?;
        let thread = thread::Builder::new()
            .name("outbox-wal".into())
            .spawn(move || runtime.block_on(reader.run()))
            .map_err(failed)?;
        Ok(Self { handover, thread: Some(thread) })
    }

    pub(super) fn handover(&self) -> &Handover {
        &self.handover
    }
}

impl Drop for Stream {
    /// Ends the thread, which first confirms the last position to the server.
    fn drop(&mut self) {
        self.handover.end();
        if let Some(thread) = self.thread.take() {
            // If it panicked, the relay noticed when it tried to receive something.
            let _ = thread.join();
        }
    }
}

pub(super) struct StreamReader {
    url: String,
    options: WalOptions,
    /// It begins no earlier than here.
    start: Lsn,
    decoder: Decoder,
    handed: SyncSender<Messages>,
    orders: Arc<Orders>,
    in_transaction: bool,
    /// Up to where something was received.
    end: Lsn,
    /// When something last came.
    heard: Instant,
    /// What was last confirmed to the server, and when.
    last_confirmed: (Lsn, Instant),
    /// Whether the server waits for an answer.
    is_asked: bool,
}

impl StreamReader {
    pub(super) fn new(
        url: String,
        options: WalOptions,
        start: Lsn,
        table: u32,
        handed: SyncSender<Messages>,
        orders: Arc<Orders>,
    ) -> Self {
        Self {
            url,
            options: WalOptions {
                confirm_interval: options.confirm_interval.max(SHORTEST_CONFIRM_INTERVAL),
                ..options
            },
            start,
            decoder: Decoder::new(table),
            handed,
            orders,
            in_transaction: false,
            end: start,
            heard: Instant::now(),
            last_confirmed: (0, Instant::now()),
            is_asked: false,
        }
    }

    async fn run(mut self) {
        // The library logs each confirmation.
        let _silence = tracing::subscriber::set_default(tracing::subscriber::NoSubscriber::default());
        if let Err(error) = self.read().await {
            // Nobody waits for it if the relay has ended.
            let _ = self.handed.send(Err(error));
        }
    }

    async fn read(&mut self) -> Result<(), SourceError> {
        let ends = self.orders.ends.clone();
        let Some(started) = ends.run_until_cancelled(self.start()).await else { return Ok(()) };
        let mut conn = started?;
        self.heard = Instant::now();
        while !ends.is_cancelled() {
            let next = tokio::time::timeout(self.options.confirm_interval, conn.get_copy_data_async(&ends));
            let mut messages = Vec::new();
            let first = next.await;
            if ends.is_cancelled() {
                break;
            }
            if let Ok(first) = first {
                self.heard = Instant::now();
                let mut bytes = self.add(first.map_err(lost)?, &mut messages)?;
                while messages.len() < MOST_MESSAGES
                    && bytes < ENOUGH_BYTES
                    && let Poll::Ready(next) =
                        pin!(conn.get_copy_data_async(&ends)).poll(&mut Context::from_waker(Waker::noop()))
                {
                    bytes += self.add(next.map_err(lost)?, &mut messages)?;
                }
            }
            if !messages.is_empty() {
                self.hand_over(&mut conn, messages).await?;
            }
            self.confirm(&mut conn, false).await?;
            if self.heard.elapsed() > SILENCE {
                return Err(SourceError::new(format!(
                    "the server has fallen silent: nothing came on the replication connection for {SILENCE:?}"
                )));
            }
        }
        // The table knows the position too, so an error does not matter.
        let _ = tokio::time::timeout(LAST_WORDS, self.confirm(&mut conn, true)).await;
        Ok(())
    }

    async fn start(&self) -> Result<PgReplicationConnection, SourceError> {
        let WalOptions { slot, publication, .. } = &self.options;
        let mut conn = PgReplicationConnection::connect_async(&self.url).await.map_err(not_connected)?;
        for setting in SETTINGS {
            conn.exec_async(setting).await.map_err(not_connected)?;
        }
        let publication = quoted_identifier(publication);
        let options = [
            ("proto_version", PROTOCOL.to_string()),
            ("publication_names", publication),
            ("binary", "true".to_owned()),
        ];
        let options: Vec<(&str, &str)> =
            options.iter().map(|(name, value)| (*name, value.as_str())).collect();
        conn.start_replication_async(slot, self.start, &options).await.map_err(|error| {
            let message = one_line(&error.to_string());
            SourceError::new(format!(
                "the slot `{slot}` cannot be read: {message}. The relay tries again, and sends nothing until then, while the slot retains \
                 the WAL: do what the server's message asks for, or stop what else reads the slot"
            ))
            .with_source(error)
        })?;
        Ok(conn)
    }

    /// Adds the messages in this, and returns its size.
    pub(super) fn add(&mut self, data: Bytes, messages: &mut Vec<Message>) -> Result<usize, SourceError> {
        let size = data.len();
        match data.first() {
            Some(b'w') if size >= WAL_HEADER => {
                let message = self.decoder.decode(data.slice(WAL_HEADER..))?;
                match message {
                    Some(Message::Begin(_)) => self.in_transaction = true,
                    Some(Message::End(lsn)) => (self.in_transaction, self.end) = (false, self.end.max(lsn)),
                    _ => {}
                }
                messages.extend(message);
            }
            Some(b'k') => {
                let keepalive = parse_keepalive_message(&data).map_err(lost)?;
                self.is_asked |= keepalive.reply_requested;
                // In the middle of a transaction, the keepalive says nothing of what has come.
                if !self.in_transaction && keepalive.wal_end > self.end {
                    self.end = keepalive.wal_end;
                    messages.push(Message::End(keepalive.wal_end));
                }
            }
            _ => return Err(SourceError::new("the server sent something other than its write-ahead log")),
        }
        Ok(size)
    }

    /// Waits until there is room, or the source has ended.
    async fn hand_over(
        &mut self,
        conn: &mut PgReplicationConnection,
        messages: Vec<Message>,
    ) -> Result<(), SourceError> {
        let mut messages = Ok(messages);
        while let Err(TrySendError::Full(full)) = self.handed.try_send(messages) {
            if self.orders.ends.is_cancelled() {
                break;
            }
            messages = full;
            tokio::time::sleep(FULL_PAUSE).await;
            self.confirm(conn, false).await?;
            // The thread did not listen to the server.
            self.heard = Instant::now();
        }
        Ok(())
    }

    /// Reports to the server up to where it may forget, if that is due.
    async fn confirm(
        &mut self,
        conn: &mut PgReplicationConnection,
        at_once: bool,
    ) -> Result<(), SourceError> {
        let confirmed = self.orders.confirmed();
        let (last, when) = self.last_confirmed;
        let interval = if confirmed == last { HEARTBEAT } else { self.options.confirm_interval };
        if at_once || std::mem::take(&mut self.is_asked) || when.elapsed() >= interval {
            self.last_confirmed = (confirmed, Instant::now());
            conn.send_standby_status_update(self.end, confirmed, confirmed, confirmed == last)
                .await
                .map_err(lost)?;
        }
        Ok(())
    }
}

/// Two positions and a time precede each message.
const WAL_HEADER: usize = 25;

fn lost(error: ReplicationError) -> SourceError {
    let message = one_line(&error.to_string());
    SourceError::new(format!(
        "the replication connection was lost: {message}. The relay connects again; if this comes again and again, find out what ends \
         the connection. What was in flight may be sent again"
    ))
    .with_source(error)
}

fn not_connected(error: ReplicationError) -> SourceError {
    let message = one_line(&error.to_string());
    SourceError::new(format!("cannot connect for replication: {message} (the role needs REPLICATION)"))
        .with_source(error)
}
