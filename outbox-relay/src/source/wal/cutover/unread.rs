//! What nobody has read of the WAL when its slot is dropped: the rows in it are unsent, and the others were sent.

use std::time::{Duration, Instant};

use diesel::connection::{LoadConnection, SimpleConnection};
use diesel::pg::{Pg, PgConnection, PgRowByRowLoadingMode};
use diesel::prelude::*;
use diesel::row::{Field, Row};
use diesel::sql_types::{Array, BigInt, Bool, SmallInt};
use diesel_outbox_core::SourceError;

use crate::source::interval::is_due;
use crate::source::wal::decode::{self, Decoder};
use crate::source::wal::error::WalError;
use crate::source::wal::options::WalOptions;
use crate::source::wal::position::{Lsn, Position};
use crate::source::wal::window::Window;
use crate::source::wal::{changes, slot};
use crate::statement::statement;
use diesel_outbox_core::__private::one_line;

/// How many messages to read at once, so that the server keeps no more than that, and a person sees progress.
const CHANGES: i32 = 300_000;
/// How many rows to look at in one transaction.
const ROWS: i64 = 20_000;
const REPORT_INTERVAL: Duration = Duration::from_secs(2);

/// The index along `seq` is right, whatever the statistics say of a table that was just filled.
const ROWS_SETTINGS: &str =
    "SET LOCAL enable_seqscan = off; SET LOCAL enable_bitmapscan = off; SET LOCAL enable_sort = off";

/// Returns the numbers of the rows that the WAL has up to this end and that were not sent, in their order. It reads a temporary
/// copy of the slot, which itself stays where it is, so that this can run again.
pub(super) fn unsent_in_wal(
    conn: &mut PgConnection,
    options: &WalOptions,
    end: Lsn,
) -> Result<Vec<i64>, WalError> {
    let slot = &options.slot;
    let events = MayBeUnsent::new().get_result::<i64>(conn)?;
    tracing::info!(slot, events, "these events may be unsent: looking for them in the write-ahead log");
    let position = Position::load(conn, slot)?.unwrap_or_default();
    slot::move_up(conn, slot, position.start)?;
    let mut search = UnsentSearch {
        decoder: Decoder::new(decode::table(conn)?),
        window: Window::after(position),
        unsent: Vec::new(),
        reported: Some(Instant::now()),
    };
    match slot::copy(conn, slot, "drop") {
        Ok(copy) => {
            let read = search.read_in_parts(conn, options, &copy, end);
            let dropped = slot::remove(conn, &copy);
            read?;
            dropped?;
        }
        Err(error) => {
            tracing::warn!(
                slot,
                error = one_line(&error.to_string()),
                "the slot could not be copied, so the write-ahead log is read in one piece, and no progress is reported: a copy \
                 needs a free replication slot (max_replication_slots)"
            );
            let all = changes::peek(slot, end, &options.publication);
            search.take(LoadConnection::<PgRowByRowLoadingMode>::load(conn, all)?)?;
        }
    }
    let mut unsent = search.unsent;
    unsent.sort_unstable();
    unsent.dedup();
    tracing::info!(slot, unsent = unsent.len(), "the write-ahead log has been read: these events are unsent");
    Ok(unsent)
}

/// A search for unsent events in the WAL.
struct UnsentSearch {
    decoder: Decoder,
    window: Window,
    unsent: Vec<i64>,
    reported: Option<Instant>,
}

impl UnsentSearch {
    fn read_in_parts(
        &mut self,
        conn: &mut PgConnection,
        options: &WalOptions,
        copy: &str,
        end: Lsn,
    ) -> Result<(), WalError> {
        loop {
            let part = changes::get(copy, end, CHANGES, &options.publication);
            let taken = self.take(LoadConnection::<PgRowByRowLoadingMode>::load(conn, part)?)?;
            // A part ends only at the end of a transaction.
            if taken < CHANGES as usize {
                return Ok(());
            }
            if is_due(&mut self.reported, REPORT_INTERVAL) {
                tracing::info!(
                    slot = options.slot,
                    found = self.unsent.len(),
                    "still looking for unsent events"
                );
            }
        }
    }

    /// Takes these messages, and returns how many there were.
    fn take<'a, R: Row<'a, Pg>>(
        &mut self,
        changes: impl Iterator<Item = QueryResult<R>>,
    ) -> Result<usize, WalError> {
        let not_understood = |error: SourceError| WalError::Unusable(error.to_string());
        let mut taken = 0;
        for change in changes {
            taken += 1;
            let change =
                change?.get(0).and_then(|field| field.value().map(|value| value.as_bytes().to_vec()));
            let Some(change) = change else { continue };
            if let Some(message) = self.decoder.decode(change.into()).map_err(not_understood)? {
                self.window.receive(message);
            }
            while let Some(row) = self.window.give().map_err(not_understood)? {
                self.window.settle(row.ticket);
                self.unsent.push(row.seq);
            }
        }
        Ok(taken)
    }
}

/// Marks as sent the rows after `from` up to `last` that were read from the WAL, except for the unsent ones. What it has marked is
/// right whatever happens next, so it works in parts and can run again.
pub(super) fn mark_others(
    conn: &mut PgConnection,
    slot: &str,
    from: i64,
    last: i64,
    unsent: &[i64],
) -> Result<(), WalError> {
    let (mut cursor, mut looked_at, mut reported) = ((from, i16::MAX), 0, Some(Instant::now()));
    // Numbers come in order, so each is counted once.
    let (mut present, mut counted) = (0, None);
    loop {
        let rows = conn.transaction(|conn| {
            conn.batch_execute(ROWS_SETTINGS)?;
            let rows = Rows::new(cursor.0, cursor.1, last, ROWS).load::<(i64, i16, bool)>(conn)?;
            let mut sent = Vec::new();
            for (seq, _, is_marked) in &rows {
                if unsent.binary_search(seq).is_ok() {
                    present += usize::from(counted.replace(*seq) != Some(*seq));
                } else if !is_marked {
                    sent.push(*seq);
                }
            }
            if let (Some(first), Some(last)) = (sent.first(), sent.last()) {
                MarkSent::new(*first, *last, sent.clone()).execute(conn)?;
            }
            QueryResult::Ok(rows)
        })?;
        looked_at += rows.len();
        match rows.last() {
            Some((seq, shard, _)) if rows.len() as i64 == ROWS => cursor = (*seq, *shard),
            _ => break,
        }
        if is_due(&mut reported, REPORT_INTERVAL) {
            tracing::info!(slot, looked_at, "still marking sent events");
        }
    }
    if present < unsent.len() {
        return Err(WalError::OnlyInWal { count: unsent.len() - present });
    }
    Ok(())
}

statement!(
    Pg,
    /// How many events may be unsent at most: those after what is known to be sent.
    MayBeUnsent {} -> BigInt,
    "SELECT count(*) FROM outbox WHERE sent_at IS NULL \
     AND seq > (SELECT min(greatest(sent_through, polled_through)) FROM outbox_shard)"
);

statement!(
    Pg,
    Rows {
        after: i64 => BigInt,
        shard: i16 => SmallInt,
        last: i64 => BigInt,
        limit: i64 => BigInt
    } -> (BigInt, SmallInt, Bool),
    "SELECT seq, shard, sent_at IS NOT NULL FROM outbox WHERE (seq, shard) > (?, ?) AND seq <= ? \
     ORDER BY seq, shard LIMIT ?"
);

statement!(
    Pg,
    /// Leaves out the rows that are polled, which are marked already if they were sent.
    MarkSent { first: i64 => BigInt, last: i64 => BigInt, seqs: Vec<i64> => Array<BigInt> } -> BigInt,
    "UPDATE outbox AS o SET sent_at = now() FROM outbox_shard AS s WHERE o.seq >= ? AND o.seq <= ? \
     AND o.seq = ANY (?) AND o.sent_at IS NULL AND s.shard = o.shard AND NOT (o.seq > s.sent_through AND o.seq <= s.polled_through)"
);
