//! When to look at the table.
//!
//! One relay leads: only it listens for emitters' notifications. A notification costs an emitter a global lock at commit, so
//! emitters notify only a relay that sleeps, which holds a lock to say so. To go to sleep, the leader takes that lock, lists the
//! transactions that may have seen it free, looks again until those have ended, and only then sleeps. The other relays sleep until
//! the leader calls for help with a backlog, or is gone, or leaves events unsent.
//!
//! Why no event is overlooked that is emitted while the leader lies down. An emitter's statement locks the table before it tries
//! the lock for sleeping, and keeps the table's lock until its transaction ends. The server locks the table that a statement inserts into
//! before it runs any part of it, so this holds for `insert_many` too, though its `SELECT` may run before its `INSERT`. The leader
//! takes the lock for sleeping before it lists who holds the table's lock. So an emitter that found the lock for sleeping free had
//! the table's lock before the list was made. Either it is on the list, or it had ended by then. If it is on the list, the leader
//! does not sleep until it is not. A transaction is visible before it releases its locks, so the look at the table that follows
//! each list sees its rows. An emitter that found the lock for sleeping held notifies. The notification comes when it commits, and
//! the leader has listened since before it lay down.
//!
//! Any role that can connect can take these locks, because emitters must. None of them is a claim: the rows of outbox_shard are. If
//! somebody takes one who is no relay, relays look at the table more often, and more than one may lead.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use diesel::connection::SimpleConnection;
use diesel::dsl::sql;
use diesel::pg::{Pg, PgConnection};
use diesel::prelude::*;
use diesel::sql_types::{Array, BigInt, Bool, Oid, Text};

use super::strangers::strangers;
use crate::source::advisory_lock::{Lock, LockShared, Unlock, UnlockShared};
use crate::source::fence::PREPARED;
use crate::source::sequence::last_number;
use crate::statement::statement;
use diesel_outbox_core::advisory_locks;

/// How long a relay without work stays awake, and how often it looks meanwhile.
const LINGER: Duration = Duration::from_millis(50);
const AWAKE_PAUSE: Duration = Duration::from_millis(2);
/// The same for a worker that was called for help. It waits for shards to become free, which takes the others a pass: they count it
/// from its call on, and leave it its part.
const HELP_LINGER: Duration = Duration::from_secs(2);
const HELP_PAUSE: Duration = Duration::from_millis(20);
/// How often a sleeping relay looks into its socket, which sends nothing: after a hundredth of the time that it has been quiet. So
/// it finds each of some rare events soon, and a long silence costs nothing.
const SHORTEST_LISTEN_PAUSE: Duration = Duration::from_millis(2);
pub(super) const LONGEST_LISTEN_PAUSE: Duration = Duration::from_millis(100);
const DOZE_PAUSE: Duration = Duration::from_millis(1);
const LONGEST_DOZE_PAUSE: Duration = Duration::from_secs(1);
/// How often the sleeping leader looks whether somebody took numbers without notifying it. It does so only if the server allows
/// prepared transactions, which may not notify.
pub(super) const NUMBER_PAUSE: Duration = Duration::from_secs(1);
/// How often a leader looks at the table while somebody else holds its lock for sleeping. Emitters hold it for a moment.
const LONGEST_DENIED_PAUSE: Duration = Duration::from_millis(250);

enum State {
    /// Looks at the table by itself, and has found nothing since then. It looks again at `look_at`, if that is set.
    Awake { since: Instant, look_at: Option<Instant> },
    /// Looks again until the transactions that may have seen it awake have ended.
    Dozing { inserting: HashSet<String>, pause: Duration, until: Instant },
    /// Looks once more, because the last of them has ended.
    LastLook,
    /// Waits for a notification, or for this time.
    Asleep { until: Instant },
    /// Cannot sleep, because somebody else holds the lock for it.
    Denied { pause: Duration, until: Instant },
}

/// What to do after a look that found nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Next {
    /// It is time to look at the table.
    Look,
    /// There is nothing to do until then, unless a notification comes.
    Wait(Instant),
    /// It has slept for as long as it may: see [`Wake::look_once`], [`Wake::sleep_on`] and [`Wake::lead_if`].
    SleptLongEnough,
}

/// When to look at one outbox. All of it happens in one session, which may do the same for other outboxes.
///
/// It knows nothing of looks that are going on: whoever drives it asks [`next`](Self::next) only after a look that began after the
/// last answer has found nothing.
pub(super) struct Wake {
    /// The table's oid.
    table: u32,
    /// The name of its sequence, quoted.
    sequence: String,
    poll_interval: Duration,
    state: State,
    /// When it was last awake.
    quiet_since: Instant,
    leads: bool,
    holds_asleep: bool,
    holds_working: bool,
    /// Whether it leads because somebody who is no relay holds the lock of the leader.
    usurped: bool,
    tried_to_lead: Option<Instant>,
    /// Whether the server allows prepared transactions.
    may_prepare: bool,
    /// The last number that was taken before the last look at the table, and when that was asked.
    numbered: (i64, Instant),
    warned: bool,
}

impl Wake {
    /// Begins awake, and listens to calls for help. It leads nothing yet.
    pub(super) fn start(
        conn: &mut PgConnection,
        table: u32,
        sequence: String,
        may_prepare: bool,
        poll_interval: Duration,
    ) -> QueryResult<Self> {
        conn.batch_execute(&format!("LISTEN outbox_help_{table}"))?;
        let now = Instant::now();
        let mut wake = Self {
            table,
            sequence,
            poll_interval,
            state: State::Awake { since: now, look_at: None },
            quiet_since: now,
            leads: false,
            usurped: false,
            tried_to_lead: None,
            holds_asleep: false,
            holds_working: false,
            may_prepare,
            numbered: (0, now),
            warned: false,
        };
        // It counts from the beginning, so that the workers leave it its part.
        wake.awake(conn)?;
        Ok(wake)
    }

    /// Gives up all that it holds in the session.
    pub(super) fn let_go(&mut self, conn: &mut PgConnection) -> QueryResult<()> {
        let table = self.table;
        conn.batch_execute(&format!("UNLISTEN outbox_help_{table}; UNLISTEN outbox_{table}"))?;
        if std::mem::take(&mut self.holds_working) {
            UnlockShared::new(advisory_locks::WORKING, table).get_result::<bool>(conn)?;
        }
        if std::mem::take(&mut self.holds_asleep) {
            Unlock::new(advisory_locks::ASLEEP, table).get_result::<bool>(conn)?;
        }
        if std::mem::take(&mut self.leads) && !self.usurped {
            Unlock::new(advisory_locks::LEADER, table).get_result::<bool>(conn)?;
        }
        Ok(())
    }

    pub(super) fn leads(&self) -> bool {
        self.leads
    }

    /// Stays awake from now on: it has found work, or should look for some.
    pub(super) fn awake(&mut self, conn: &mut PgConnection) -> QueryResult<()> {
        let now = Instant::now();
        self.state = State::Awake { since: now, look_at: None };
        self.quiet_since = now;
        if !self.holds_working {
            self.holds_working = LockShared::new(advisory_locks::WORKING, self.table).get_result(conn)?;
        }
        if std::mem::take(&mut self.holds_asleep) {
            Unlock::new(advisory_locks::ASLEEP, self.table).get_result::<bool>(conn)?;
        }
        Ok(())
    }

    /// Says what to do now, after a look that found nothing. `is_called` says whether a notification has come since the last answer.
    /// Without `may_linger` a leader lies down at once.
    pub(super) fn next(
        &mut self,
        conn: &mut PgConnection,
        is_called: bool,
        may_linger: bool,
    ) -> QueryResult<Next> {
        let now = Instant::now();
        match &mut self.state {
            State::Awake { look_at: Some(look_at), .. } if now < *look_at => Ok(Next::Wait(*look_at)),
            State::Awake { look_at: look_at @ Some(_), .. } => {
                *look_at = None;
                Ok(Next::Look)
            }
            State::Awake { since, look_at } => {
                let (linger, pause) =
                    if self.leads { (LINGER, AWAKE_PAUSE) } else { (HELP_LINGER, HELP_PAUSE) };
                if since.elapsed() < linger && (may_linger || !self.leads) {
                    *look_at = Some(now + pause);
                    return Ok(Next::Wait(now + pause));
                }
                self.state = self.lie_down(conn, AWAKE_PAUSE)?;
                Ok(Next::Look)
            }
            State::Dozing { until, .. } | State::Denied { until, .. } if !is_called && now < *until => {
                Ok(Next::Wait(*until))
            }
            State::Dozing { inserting, pause, until } => {
                if self.may_prepare {
                    // Read before the holders are listed: a later number changes it, and whoever took an earlier one holds the
                    // lock.
                    self.numbered = (last_number(conn, &self.sequence)?, Instant::now());
                }
                let still_inserting = inserting_into(conn, self.table)?;
                inserting.retain(|transaction| still_inserting.contains(transaction));
                inserting.extend(still_inserting.into_iter().filter(|name| name.starts_with(PREPARED)));
                if inserting.is_empty() {
                    self.state = State::LastLook;
                } else {
                    *pause = (*pause * 2).min(LONGEST_DOZE_PAUSE);
                    *until = Instant::now() + *pause;
                }
                Ok(Next::Look)
            }
            State::LastLook => {
                self.sleep_on();
                self.sleep(conn, is_called)
            }
            State::Asleep { .. } => self.sleep(conn, is_called),
            State::Denied { pause, .. } => {
                let pause = (*pause * 2).min(LONGEST_DENIED_PAUSE);
                self.state = self.lie_down(conn, pause)?;
                Ok(Next::Look)
            }
        }
    }

    fn sleep(&mut self, conn: &mut PgConnection, is_called: bool) -> QueryResult<Next> {
        let State::Asleep { until } = self.state else { return Ok(Next::Look) };
        if is_called && self.leads {
            self.state = State::LastLook;
            return Ok(Next::Look);
        }
        if is_called {
            // It was called for help.
            self.awake(conn)?;
            return Ok(Next::Look);
        }
        if Instant::now() >= until {
            return Ok(Next::SleptLongEnough);
        }
        if !self.watches_numbers() {
            return Ok(Next::Wait(until));
        }
        let (_, asked) = self.numbered;
        if asked.elapsed() >= NUMBER_PAUSE {
            let last = last_number(conn, &self.sequence)?;
            if self.is_numbered(conn, last)? {
                return Ok(Next::Look);
            }
        }
        Ok(Next::Wait(until.min(self.numbered.1 + NUMBER_PAUSE)))
    }

    /// Whether it must look, while it sleeps, if transactions that may be prepared have taken numbers.
    pub(super) fn watches_numbers(&self) -> bool {
        self.may_prepare && self.leads && matches!(self.state, State::Asleep { .. })
    }

    /// Learns the last number that was taken. Returns whether that is a later one than before the last look. If so, looks until those
    /// that took it have ended.
    pub(super) fn is_numbered(&mut self, conn: &mut PgConnection, last: i64) -> QueryResult<bool> {
        let (before, _) = self.numbered;
        self.numbered = (last, Instant::now());
        if last == before {
            return Ok(false);
        }
        // The same as when it lay down: wait until those that took them have ended.
        let inserting = inserting_into(conn, self.table)?;
        self.state = State::Dozing { inserting, pause: DOZE_PAUSE, until: Instant::now() };
        Ok(true)
    }

    /// Sleeps again after this look.
    pub(super) fn look_once(&mut self) {
        self.state = State::LastLook;
    }

    /// Sleeps for another [`poll_interval`](crate::Relay::poll_interval).
    pub(super) fn sleep_on(&mut self) {
        self.state = State::Asleep { until: Instant::now() + self.poll_interval };
    }

    /// When it has slept long enough, if it sleeps.
    pub(super) fn sleeps_until(&self) -> Option<Instant> {
        match self.state {
            State::Asleep { until } => Some(until),
            _ => None,
        }
    }

    /// How long to wait before the next look for notifications.
    pub(super) fn listen_pause(&self) -> Duration {
        match self.state {
            State::Asleep { .. } if self.leads => {
                (self.quiet_since.elapsed() / 100).clamp(SHORTEST_LISTEN_PAUSE, LONGEST_LISTEN_PAUSE)
            }
            State::Asleep { .. } => LONGEST_LISTEN_PAUSE,
            State::Awake { .. } if !self.leads => HELP_PAUSE,
            _ => SHORTEST_LISTEN_PAUSE,
        }
    }

    /// Returns whether it is time to try to lead. A relay that is busy tries now and then too, because the leader may die while there
    /// is work.
    pub(super) fn is_to_try_to_lead(&self) -> bool {
        let asleep = matches!(self.state, State::Asleep { .. });
        (!self.leads || self.usurped)
            && !asleep
            && self.tried_to_lead.is_none_or(|tried| tried.elapsed() >= self.poll_interval)
    }

    /// Leads if it has got the lock of the leader, or if those who hold it may not work on the table; else does not, perhaps because a
    /// stranger is gone since and another relay leads. Returns whether it leads.
    pub(super) fn lead_if(
        &mut self,
        conn: &mut PgConnection,
        got_lock: bool,
        strangers: &[i32],
    ) -> QueryResult<bool> {
        self.tried_to_lead = Some(Instant::now());
        self.usurped = !got_lock && !strangers.is_empty();
        self.warn(strangers);
        let leads = got_lock || self.usurped;
        if leads != std::mem::replace(&mut self.leads, leads) {
            let listen = if leads { "LISTEN" } else { "UNLISTEN" };
            conn.batch_execute(&format!("{listen} outbox_{}", self.table))?;
            self.awake(conn)?;
        }
        Ok(leads)
    }

    /// Warns of those who hold a lock of the outbox and are no relays.
    fn warn(&mut self, strangers: &[i32]) {
        if !strangers.is_empty() && !std::mem::replace(&mut self.warned, true) {
            tracing::warn!(
                pids = ?strangers,
                "sessions whose role may not update outbox_shard hold advisory locks of the outbox: relays still send, but \
                 look at the table more often; find out whose those sessions are, and end them"
            );
        }
    }

    /// Prepares to sleep. `pause` is how long to look at the table by itself if somebody else holds the lock.
    fn lie_down(&mut self, conn: &mut PgConnection, pause: Duration) -> QueryResult<State> {
        if std::mem::take(&mut self.holds_working) {
            UnlockShared::new(advisory_locks::WORKING, self.table).get_result::<bool>(conn)?;
        }
        if !self.leads {
            return Ok(State::Asleep { until: Instant::now() + self.poll_interval });
        }
        self.holds_asleep =
            self.holds_asleep || Lock::new(advisory_locks::ASLEEP, self.table).get_result(conn)?;
        if !self.holds_asleep {
            if pause == LONGEST_DENIED_PAUSE {
                let strangers = strangers(conn, advisory_locks::ASLEEP, self.table)?;
                self.warn(&strangers);
            }
            return Ok(State::Denied { pause, until: Instant::now() + pause });
        }
        let inserting = inserting_into(conn, self.table)?;
        Ok(State::Dozing { inserting, pause: DOZE_PAUSE, until: Instant::now() })
    }
}

/// Returns the other open transactions that may have inserted into this table.
fn inserting_into(conn: &mut PgConnection, table: u32) -> QueryResult<HashSet<String>> {
    Ok(inserting_into_any(conn, vec![table])?.into_iter().map(|(_, transaction)| transaction).collect())
}

/// Returns the same for several tables, each transaction beside the table's oid.
pub(super) fn inserting_into_any(
    conn: &mut PgConnection,
    tables: Vec<u32>,
) -> QueryResult<HashSet<(u32, String)>> {
    Ok(Inserting::new(tables).load::<(u32, String)>(conn)?.into_iter().collect())
}

fn last_number(conn: &mut PgConnection, sequence: &str) -> QueryResult<i64> {
    sql::<BigInt>(&format!(concat!("SELECT ", last_number!(), " FROM {}"), sequence)).get_result(conn)
}

/// Wakes the relays that stand by, when the open transaction commits.
pub(super) fn call_for_help(conn: &mut PgConnection) -> QueryResult<()> {
    CallForHelp::new().execute(conn).map(drop)
}

/// Looks at what has arrived on the connection. Calls `notified` with the channel of each notification.
pub(super) fn notifications(conn: &mut PgConnection, mut notified: impl FnMut(&str)) -> QueryResult<()> {
    for notification in conn.notifications_iter() {
        notified(&notification?.channel);
    }
    Ok(())
}

/// Whether the server allows prepared transactions.
pub(super) fn may_prepare(conn: &mut PgConnection) -> QueryResult<bool> {
    MayPrepare::new().get_result(conn)
}

statement!(Pg, MayPrepare {} -> Bool, "SELECT current_setting('max_prepared_transactions')::int > 0");
statement!(Pg, CallForHelp {} -> Bool, "SELECT pg_notify('outbox_help_' || 'outbox'::regclass::oid::text, '')");

statement!(
    Pg,
    Inserting { tables: Vec<u32> => Array<Oid> } -> (Oid, Text),
    "SELECT relation, virtualtransaction FROM pg_locks WHERE locktype = 'relation' \
     AND database = (SELECT oid FROM pg_database WHERE datname = current_database()) AND relation = ANY (?) \
     AND mode = 'RowExclusiveLock' AND pid IS DISTINCT FROM pg_backend_pid()"
);
