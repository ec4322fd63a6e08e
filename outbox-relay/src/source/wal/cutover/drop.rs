//! `outbox wal drop`: from the WAL to polling.

use diesel::connection::SimpleConnection;
use diesel::pg::{Pg, PgConnection};
use diesel::prelude::*;
use diesel::sql_types::{BigInt, Bool};
use diesel_outbox_core::__private::quoted_identifier;

use super::{check_publication, exclusively, forget, is_reliable, locked, lost_others, unread};
use crate::source::bounds::LOCK_SHARDS;
use crate::source::check::check_table;
use crate::source::wake;
use crate::source::wal::error::WalError;
use crate::source::wal::options::WalOptions;
use crate::source::wal::polled;
use crate::source::wal::position::Position;
use crate::source::wal::slot::{self, ReplicationSlot};
use crate::statement::statement;

/// Takes the cutover back, and drops the slot and the publication. From then on all rows are polled.
///
/// First stop the relays that read the WAL. This marks what they have sent. If the slot belongs to another database, this leaves it
/// alone, and every event that is not known to have been sent is polled.
///
/// Writers wait for a moment, as for [`setup`](super::setup()), and `lock` is the same second connection.
///
/// # Errors
/// See [`WalError`]. You can run it again.
pub fn drop(conn: &mut PgConnection, lock: &mut PgConnection, options: &WalOptions) -> Result<(), WalError> {
    exclusively(conn, lock, &options.slot, |conn| {
        check_table(conn).map_err(|error| WalError::Unusable(error.to_string()))?;
        let name = &options.slot;
        let is_named = Position::load(conn, name)?.is_some();
        let lost = lost_others(conn, options, "drop")?;
        if let (false, Some(slot)) = (is_named, lost.first()) {
            let command = options.command("drop", slot);
            return Err(WalError::OtherSlot { slot: slot.clone(), command });
        }
        let found = ReplicationSlot::find(conn, name)?;
        let is_cut_over = !polled::is_whole_table(conn)?;
        if !is_named && !is_cut_over && found.is_some() {
            return Err(WalError::NothingToDrop { slot: name.clone() });
        }
        // A slot of somebody else is left alone, and shows nothing of what was sent here.
        let slot = found.filter(|slot| is_named && slot.fits);
        check_publication(conn, name, &options.publication)?;
        if is_cut_over {
            // What comes after this is unsent, because nobody reads the WAL now. What came before is unsent if it is still in the
            // WAL. If that is not reliable, it is unsent if it is not below the shards' lower bounds.
            let (end, last) = locked(conn, |_, _, _| Ok(()))?;
            match &slot {
                Some(slot) if is_reliable(conn, slot, options)? => {
                    let mut unsent = unread::unsent_in_wal(conn, options, end)?;
                    unsent.retain(|seq| *seq <= last);
                    mark_and_poll_all(conn, name, last, &unsent)?;
                }
                _ => _ = poll_all(conn, i64::MAX, true)?,
            }
        }
        if slot.is_some() {
            slot::remove(conn, name)?;
        }
        // Only now, and all at once: if this has to run again, it could not drop what nobody owns.
        let publication = quoted_identifier(&options.publication);
        conn.transaction(|conn| {
            for named in lost.iter().chain([name]) {
                forget(conn, named)?;
            }
            conn.batch_execute(&format!("DROP PUBLICATION IF EXISTS {publication}"))
        })?;
        Ok(())
    })
}

/// Marks what was sent, up to the last number: of the rows that were read from the WAL, only those in `unsent` are unsent, and rows
/// that were polled before are marked already. If the sequence was restarted, some unsent rows have numbers among the polled ones.
fn mark_and_poll_all(conn: &mut PgConnection, slot: &str, last: i64, unsent: &[i64]) -> Result<(), WalError> {
    let sent_through = unsent.first().map_or(last, |first| first - 1);
    loop {
        let rows_wait = polled::rows_wait(conn)?;
        // Then the lower bounds stay, and everything that was read from the WAL lies behind them.
        let from = if rows_wait { sent_through.min(polled::polled_through(conn)?) } else { sent_through };
        unread::mark_others(conn, slot, from, last, unsent)?;
        if poll_all(conn, sent_through, rows_wait)? {
            return Ok(());
        }
    }
}

/// Polls the whole table again: from this number on, or from the lower bounds on if those stay. If they should not, but polled rows
/// turn out to wait, it does nothing and returns `false`.
fn poll_all(conn: &mut PgConnection, sent_through: i64, lower_bounds_stay: bool) -> QueryResult<bool> {
    conn.transaction(|conn| {
        conn.batch_execute(LOCK_SHARDS)?;
        if !lower_bounds_stay && polled::rows_wait(conn)? {
            return Ok(false);
        }
        PollAll::new(lower_bounds_stay, sent_through).execute(conn)?;
        wake(conn)?;
        Ok(true)
    })
}

statement!(
    Pg,
    /// The rows after the last polled one, up to the lower bound, are sent and not marked.
    PollAll { lower_bounds_stay: bool => Bool, sent_through: i64 => BigInt } -> BigInt,
    "UPDATE outbox_shard AS s SET sent_through = new.sent_through, polled_through = 9223372036854775807, passed = 0, open = '{}', open_after = '{}', \
     unmarked = CASE WHEN new.sent_through > s.polled_through THEN new.sent_through ELSE least(s.unmarked, new.sent_through) END, \
     unmarked_until = CASE WHEN new.sent_through > s.polled_through THEN clock_timestamp() ELSE s.unmarked_until END \
     FROM (SELECT o.shard, CASE WHEN given.lower_bounds_stay THEN least(o.sent_through, given.sent_through) ELSE given.sent_through END \
     AS sent_through FROM outbox_shard AS o, (SELECT ?::bool AS lower_bounds_stay, ?::bigint AS sent_through) AS given) AS new WHERE new.shard = s.shard"
);
