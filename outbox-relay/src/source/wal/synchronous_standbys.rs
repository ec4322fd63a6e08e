//! The server's synchronous standbys. The server lets the relay read a transaction before they have it, and a failover undoes a
//! transaction that they never got. So the relay holds its events back until they have it. The relay itself must not be one of
//! them, because commits would wait for it. Relays that stand by are something else: see `standby_relay.rs`.

use std::thread;
use std::time::{Duration, Instant};

use diesel::pg::{Pg, PgConnection};
use diesel::prelude::*;
use diesel::sql_types::{Array, BigInt, Bool, Text};
use diesel_outbox_core::SourceError;

use super::options::WalOptions;
use super::position::{Lsn, shown};
use crate::source::database_error;
use crate::statement::statement;

/// The relay's name as a standby.
const OWN_NAME: &str = "outbox relay";

const PAUSE: Duration = Duration::from_millis(1);
const LONGEST_PAUSE: Duration = Duration::from_millis(20);
/// How long standbys may take before the relay warns, and how long a dead letter waits for them.
const PATIENCE: Duration = Duration::from_secs(10);

/// The setting `synchronous_standby_names`: how many of those that it names must have what is committed.
#[derive(Debug, Default, PartialEq, Eq)]
struct Names {
    needed: usize,
    includes_relay: bool,
}

impl Names {
    /// Reads `a, b`, `1 (a, b)`, `FIRST 1 (a, b)` and `ANY 1 (a, b)`, in upper or lower case. The server has checked the setting.
    fn of(setting: &str) -> Self {
        let (head, list) = match setting.split_once('(') {
            Some((head, list)) if !head.contains('"') => (head, list.trim_end().trim_end_matches(')')),
            _ => ("1", setting),
        };
        let digits: String = head.chars().filter(char::is_ascii_digit).collect();
        let mut names =
            list.split(',').map(|name| name.trim().trim_matches('"')).filter(|name| !name.is_empty());
        let needed = if list.trim().is_empty() { 0 } else { digits.parse().unwrap_or(1) };
        Self { needed, includes_relay: names.any(|name| name == "*" || name.eq_ignore_ascii_case(OWN_NAME)) }
    }
}

/// What is held back for the synchronous standbys.
#[derive(Debug, Default)]
pub(super) struct SynchronousStandbys {
    /// How many of them must have an event's transaction. Zero if nothing is held back.
    needed: usize,
    /// Rows with a lower ticket are no longer held back.
    released: u64,
    /// Rows with a lower ticket are released when the standbys have the WAL up to this place.
    next: Option<(u64, Lsn)>,
    looked: Option<Instant>,
    pause: Duration,
    /// Since when something is held back.
    since: Option<Instant>,
    warned: bool,
}

impl SynchronousStandbys {
    /// Looks for them. Warns, with what to do, if the relay cannot wait for them properly.
    pub(super) fn begin(conn: &mut PgConnection, options: &WalOptions) -> Result<Self, SourceError> {
        let mut standbys = Self::default();
        let found = standbys.look_again(conn, options, 0)?;
        if found.names.needed == 0 {
            return Ok(standbys);
        }
        if found.version >= 170_000 && found.slots.is_empty() {
            tracing::warn!(
                slot = options.slot,
                "synchronous_standby_names is set and synchronized_standby_slots is not: after a failover the copy of the \
                 slot may be ahead of the new server; set synchronized_standby_slots to the slots of the standbys"
            );
        }
        if !found.is_visible && found.slots.is_empty() {
            tracing::warn!(
                slot = options.slot,
                "the relay cannot see how far the synchronous standbys are: it may send an event whose transaction a \
                 failover undoes; run GRANT pg_read_all_stats TO {}",
                found.role
            );
        }
        Ok(standbys)
    }

    /// Looks whether they are still the same. If the relay begins to wait for some, rows from the ticket `next` on are held back.
    pub(super) fn look_again(
        &mut self,
        conn: &mut PgConnection,
        options: &WalOptions,
        next: u64,
    ) -> Result<Found, SourceError> {
        let found = Found::look(conn, options)?;
        let needed = if found.is_visible { found.names.needed } else { 0 };
        if self.needed == 0 {
            self.released = next;
        }
        self.needed = needed;
        Ok(found)
    }

    /// Returns the ticket from which on rows must not be given.
    pub(super) fn released(&self) -> u64 {
        if self.needed == 0 { u64::MAX } else { self.released }
    }

    /// Returns whether the row with the ticket `next` may be given, now or within this time. `received` is how many rows have come.
    pub(super) fn let_go(
        &mut self,
        conn: &mut PgConnection,
        (next, received): (u64, u64),
        limit: Duration,
    ) -> Result<bool, SourceError> {
        let until = Instant::now() + limit;
        while next >= self.released() {
            let pause =
                self.looked.map_or(Duration::ZERO, |looked| self.pause.saturating_sub(looked.elapsed()));
            if !pause.is_zero() {
                if Instant::now() + pause > until {
                    thread::sleep(until.saturating_duration_since(Instant::now()));
                    return Ok(false);
                }
                thread::sleep(pause);
            }
            self.look(conn, received)?;
        }
        Ok(true)
    }

    fn look(&mut self, conn: &mut PgConnection, received: u64) -> Result<(), SourceError> {
        let reached = Reached::look(conn, self.needed)?;
        self.looked = Some(Instant::now());
        // What was received lies before the end of what is on the disk here.
        let (tickets, end) = *self.next.get_or_insert((received, reached.end));
        if reached.standbys.is_some_and(|standbys| standbys >= end) {
            if self.warned {
                tracing::info!("the synchronous standbys have caught up");
            }
            self.released = tickets;
            (self.next, self.since, self.warned, self.pause) = (None, None, false, PAUSE);
            return Ok(());
        }
        self.pause = (self.pause * 5 / 4).clamp(PAUSE, LONGEST_PAUSE);
        let since = *self.since.get_or_insert_with(Instant::now);
        if since.elapsed() >= PATIENCE && !self.warned {
            self.warned = true;
            tracing::warn!(
                awaited = shown(end),
                confirmed = reached.standbys.map_or_else(|| "nothing".to_owned(), shown),
                "events are held back, because the synchronous standbys do not have their transactions; commits wait for them too"
            );
        }
        Ok(())
    }

    /// Waits until they have everything that is committed by now, if the relay waits for them.
    pub(super) fn wait(&self, conn: &mut PgConnection, options: &WalOptions) -> Result<(), SourceError> {
        if self.needed == 0 {
            return Ok(());
        }
        let (began, end) = (Instant::now(), Reached::look(conn, self.needed)?.end);
        loop {
            // This also notices if they are others now, or none.
            let needed = Found::look(conn, options)?.names.needed;
            if needed == 0 || Reached::look(conn, needed)?.standbys.is_some_and(|standbys| standbys >= end) {
                return Ok(());
            }
            if began.elapsed() >= PATIENCE {
                return Err(SourceError::new(format!(
                    "a dead letter was written, but the synchronous standbys did not have it within {PATIENCE:?}: bring them back, or \
                     take one out of synchronous_standby_names and run SELECT pg_reload_conf()"
                )));
            }
            thread::sleep(PAUSE);
        }
    }

    /// Returns whether the relay sees how far they are, so that it waits for them itself. Otherwise its commits must wait.
    pub(super) fn are_seen(&self) -> bool {
        self.needed > 0
    }
}

/// What a look at the server finds.
pub(super) struct Found {
    names: Names,
    version: i64,
    /// The setting `synchronized_standby_slots`.
    slots: String,
    is_visible: bool,
    role: String,
}

impl Found {
    /// Returns an error if commits wait for the relay, or would.
    pub(super) fn look(conn: &mut PgConnection, options: &WalOptions) -> Result<Self, SourceError> {
        type StandbysRow = (String, i64, String, bool, String, bool);
        let (setting, version, slots, is_visible, role, is_standby) = Look::new(options.slot.clone())
            .get_result::<StandbysRow>(conn)
            .map_err(|error| database_error("looking for synchronous standbys", error))?;
        let names = Names::of(&setting);
        if is_standby || names.includes_relay {
            return Err(SourceError::permanent(format!(
                "synchronous_standby_names is `{setting}`, so commits wait for this relay as for a standby, and its own commits \
                 for itself: set it to the names of the standbys (their application_name), without `*` and `{OWN_NAME}`, and \
                 run SELECT pg_reload_conf(). Nothing is lost meanwhile, but commits may wait until then"
            )));
        }
        Ok(Self { names, version, slots, is_visible, role })
    }
}

/// How far the standbys are.
struct Reached {
    /// Up to where the WAL is on the disk here.
    end: Lsn,
    /// Up to where as many standbys as are needed have the WAL.
    standbys: Option<Lsn>,
}

impl Reached {
    fn look(conn: &mut PgConnection, needed: usize) -> Result<Self, SourceError> {
        let (end, standbys) = Flushed::new()
            .get_result::<(i64, Vec<i64>)>(conn)
            .map_err(|error| database_error("looking how far the synchronous standbys are", error))?;
        // By priority, as many count as are needed. Of a quorum, the others may be behind.
        let standbys =
            needed.checked_sub(1).and_then(|last| standbys.get(last)).map(|lsn| lsn.unsigned_abs());
        Ok(Self { end: end.unsigned_abs(), standbys })
    }
}

statement!(
    Pg,
    Look { slot: String => Text } -> (Text, BigInt, Text, Bool, Text, Bool),
    "SELECT current_setting('synchronous_standby_names'), current_setting('server_version_num')::bigint, \
     coalesce(current_setting('synchronized_standby_slots', true), ''), pg_catalog.pg_has_role('pg_read_all_stats', 'USAGE'), \
     pg_catalog.quote_ident(current_user), EXISTS (SELECT FROM pg_replication_slots AS s JOIN pg_stat_replication AS r \
     ON r.pid = s.active_pid WHERE s.slot_name = ? AND r.sync_priority > 0)"
);

statement!(
    Pg,
    Flushed {} -> (BigInt, Array<BigInt>),
    "SELECT (pg_current_wal_flush_lsn() - '0/0')::bigint, ARRAY(SELECT (flush_lsn - '0/0')::bigint FROM pg_stat_replication \
     WHERE sync_state IN ('sync', 'quorum') AND flush_lsn IS NOT NULL ORDER BY flush_lsn DESC)"
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_setting_says_how_many_are_needed_and_whether_the_relay_is_among_them() {
        for (setting, needed, includes_relay) in [
            ("", 0, false),
            ("a, \"b c\"", 1, false),
            ("FIRST 2 (a, b, c)", 2, false),
            ("any 3 (a,b,c,d)", 3, false),
            ("2(a, b)", 2, false),
            ("*", 1, true),
            ("ANY 2 (a, \"Outbox Relay\")", 2, true),
            ("FIRST 1 (\"*\")", 1, true),
        ] {
            assert_eq!(Names::of(setting), Names { needed, includes_relay }, "{setting}");
        }
    }
}
