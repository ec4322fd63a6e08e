//! How far the relay is behind.

use std::collections::VecDeque;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use diesel::pg::PgConnection;
use diesel::prelude::*;
use diesel_outbox_core::{Lag, WalLag};

use super::options::WalOptions;
use super::position::Lsn;
use super::slot::{self, ReplicationSlot};
use super::window::Window;
use crate::operate::count_dead_letters;
use crate::source::writers::Writers;

/// Measures the lag, and warns of what grows.
#[derive(Default)]
pub(super) struct LagWatch {
    writers: Writers,
    /// Where the WAL ended, and when.
    ends: VecDeque<(Lsn, Instant)>,
    warned: bool,
}

impl LagWatch {
    pub(super) fn look(
        &mut self,
        conn: &mut PgConnection,
        options: &WalOptions,
        window: &Window,
    ) -> QueryResult<Lag> {
        let (unsent, oldest) = window.unsettled();
        let oldest = oldest.and_then(|insert| insert.row(0).ok()).map(|row| age(row.created_at_ms));
        let mut lag = Lag::default();
        lag.unsent = unsent as u64;
        lag.oldest = oldest.unwrap_or_default();
        lag.wal = Some(self.look_at_slot(conn, options, window.confirmed())?);
        lag.oldest_writer = self.writers.look(conn)?;
        count_dead_letters(conn, &mut lag)?;
        Ok(lag)
    }

    fn look_at_slot(
        &mut self,
        conn: &mut PgConnection,
        options: &WalOptions,
        confirmed: Lsn,
    ) -> QueryResult<WalLag> {
        let (end, now) = (slot::end_of_wal(conn)?, Instant::now());
        let slot = ReplicationSlot::find(conn, &options.slot)?;
        let confirmed = confirmed.max(slot.as_ref().map_or(0, |slot| slot.confirmed));
        self.ends.push_back((end, now));
        while self.ends.get(1).is_some_and(|(end, _)| *end <= confirmed) {
            self.ends.pop_front();
        }
        let since = self.ends.front().filter(|(then, _)| *then < end && confirmed < end);
        let (status, retained) = slot.map_or(("lost".to_owned(), 0), |slot| (slot.status, slot.retained));
        let too_much = retained >= options.slot_size_warning || matches!(&*status, "unreserved" | "lost");
        if too_much && !self.warned {
            tracing::warn!(
                slot = options.slot,
                retained,
                status,
                "the slot retains much of the write-ahead log, `slot_size_warning` or more, or is about to be lost: fix what keeps \
                 the relay from sending before the slot is lost, because a new slot means that events may be sent again"
            );
        }
        self.warned = too_much;
        let mut lag = WalLag::default();
        lag.bytes = end.saturating_sub(confirmed);
        lag.time = Some(since.map_or(Duration::ZERO, |(_, then)| now.duration_since(*then)));
        lag.retained_bytes = retained;
        lag.status = status;
        Ok(lag)
    }
}

/// Returns the age of something that was made at this time, in milliseconds since 1970.
fn age(created_at_ms: i64) -> Duration {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    now.saturating_sub(Duration::from_millis(created_at_ms.unsigned_abs()))
}
