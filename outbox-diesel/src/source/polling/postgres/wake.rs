//! When to look at the table.
//!
//! One relay leads: it alone listens for emitters' notifications. While it is awake it holds a lock that tells emitters
//! to save the notification, which would cost them a global lock at commit. Going to sleep it lets go of that lock, lists
//! the transactions that may have seen it held, looks again until those have ended, and only then sleeps. The other
//! relays sleep until the leader calls for help with a backlog, or is gone.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use diesel::connection::SimpleConnection;
use diesel::pg::{Pg, PgConnection};
use diesel::prelude::*;
use diesel::sql_types::{Bool, Integer, Text};

use super::fence::holders;
use crate::backend::postgres::locks;
use crate::statement::statement;

/// How long a relay without work stays awake, and how often it looks meanwhile.
const LINGER: Duration = Duration::from_millis(50);
const AWAKE_PAUSE: Duration = Duration::from_millis(2);
/// How often a sleeping relay looks into its socket. It sends nothing.
const LISTEN_PAUSE: Duration = Duration::from_millis(5);
const DOZE_PAUSE: Duration = Duration::from_millis(1);
const LONGEST_DOZE_PAUSE: Duration = Duration::from_secs(1);
const HELP_INTERVAL: Duration = Duration::from_secs(1);

enum State {
    /// Looks at the table by itself, since then without finding anything.
    Awake { since: Instant },
    /// Looks again until the transactions that may have seen it awake have ended.
    Dozing { inserting: HashSet<String>, pause: Duration, until: Instant },
    /// Was told to look once more after the last of them had ended.
    LastLook,
    /// Waits for a notification, or for this time.
    Asleep { until: Instant },
}

pub(super) struct Wake {
    poll_interval: Duration,
    state: State,
    leads: bool,
    holds_awake: bool,
    holds_working: bool,
    listens: bool,
    workers: usize,
    called: Option<Instant>,
}

impl Default for Wake {
    fn default() -> Self {
        Self::new(Duration::ZERO)
    }
}

impl Wake {
    pub(super) fn new(poll_interval: Duration) -> Self {
        Self {
            poll_interval,
            state: State::Awake { since: Instant::now() },
            leads: false,
            holds_awake: false,
            holds_working: false,
            listens: false,
            workers: 1,
            called: None,
        }
    }

    /// All locks were the lost connection's.
    pub(super) fn reconnected(&mut self) {
        *self = Self::new(self.poll_interval);
    }

    pub(super) fn leads(&self) -> bool {
        self.leads
    }

    pub(super) fn workers(&self) -> usize {
        self.workers
    }

    pub(super) fn counted(&mut self, workers: usize) {
        // This worker counts even before it holds the lock by which it is counted.
        self.workers = workers.max(1);
    }

    pub(super) fn found_work(&mut self, conn: &mut PgConnection) -> QueryResult<()> {
        self.state = State::Awake { since: Instant::now() };
        if !self.holds_working {
            self.holds_working = LockShared::new(locks::WORKING).get_result(conn)?;
        }
        if self.leads && !self.holds_awake {
            self.holds_awake = Lock::new(locks::AWAKE).get_result(conn)?;
        }
        Ok(())
    }

    /// Waits until it is time to look at the table again: `false` where it is not, after `limit`.
    pub(super) fn wait(&mut self, conn: &mut PgConnection, limit: Duration) -> QueryResult<bool> {
        if !self.listens {
            self.start(conn)?;
            return Ok(true);
        }
        match &mut self.state {
            State::Awake { since } if since.elapsed() < LINGER => {
                std::thread::sleep(AWAKE_PAUSE.min(limit));
                Ok(true)
            }
            State::Awake { .. } => {
                self.state = self.lie_down(conn)?;
                Ok(true)
            }
            State::Dozing { inserting, pause, until } => {
                if !listen_until(conn, *until, limit)? {
                    return Ok(false);
                }
                let (still_inserting, _) = holders(conn)?;
                inserting.retain(|transaction| still_inserting.contains(transaction));
                if inserting.is_empty() {
                    self.state = State::LastLook;
                } else {
                    *pause = (*pause * 2).min(LONGEST_DOZE_PAUSE);
                    *until = Instant::now() + *pause;
                }
                Ok(true)
            }
            State::LastLook => {
                self.state = State::Asleep { until: Instant::now() + self.poll_interval };
                self.sleep(conn, limit)
            }
            State::Asleep { .. } => self.sleep(conn, limit),
        }
    }

    fn sleep(&mut self, conn: &mut PgConnection, limit: Duration) -> QueryResult<bool> {
        let State::Asleep { until } = self.state else { return Ok(true) };
        if !listen_until(conn, until, limit)? {
            return Ok(false);
        }
        if !self.leads {
            self.try_to_lead(conn)?;
        }
        self.state = State::LastLook;
        Ok(true)
    }

    fn start(&mut self, conn: &mut PgConnection) -> QueryResult<()> {
        let oid = TableOid::new().get_result::<String>(conn)?;
        conn.batch_execute(&format!("LISTEN outbox_help_{oid}"))?;
        self.listens = true;
        self.try_to_lead(conn)
    }

    fn try_to_lead(&mut self, conn: &mut PgConnection) -> QueryResult<()> {
        self.leads = Lock::new(locks::LEADER).get_result(conn)?;
        if self.leads {
            let oid = TableOid::new().get_result::<String>(conn)?;
            conn.batch_execute(&format!("LISTEN outbox_{oid}"))?;
            self.holds_awake = Lock::new(locks::AWAKE).get_result(conn)?;
            self.state = State::Awake { since: Instant::now() };
        }
        Ok(())
    }

    fn lie_down(&mut self, conn: &mut PgConnection) -> QueryResult<State> {
        if std::mem::take(&mut self.holds_working) {
            UnlockShared::new(locks::WORKING).get_result::<bool>(conn)?;
        }
        if !self.leads {
            return Ok(State::Asleep { until: Instant::now() + self.poll_interval });
        }
        if std::mem::take(&mut self.holds_awake) {
            Unlock::new(locks::AWAKE).get_result::<bool>(conn)?;
        }
        let (inserting, _) = holders(conn)?;
        Ok(State::Dozing { inserting, pause: DOZE_PAUSE, until: Instant::now() })
    }

    /// Whether the other relays are to be woken for a backlog now.
    pub(super) fn may_call_for_help(&mut self) -> bool {
        let due = self.leads && self.called.is_none_or(|called| called.elapsed() >= HELP_INTERVAL);
        if due {
            self.called = Some(Instant::now());
        }
        due
    }
}

/// Wakes the relays that stand by, when the open transaction commits.
pub(super) fn call_for_help(conn: &mut PgConnection) -> QueryResult<()> {
    CallForHelp::new().execute(conn).map(drop)
}

/// Waits for a notification or until then, but no longer than `limit`: `false` where neither has come.
fn listen_until(conn: &mut PgConnection, until: Instant, limit: Duration) -> QueryResult<bool> {
    let left = until.saturating_duration_since(Instant::now());
    Ok(listen(conn, limit.min(left))? || Instant::now() >= until)
}

/// Waits for a notification by looking for what has arrived on the connection.
fn listen(conn: &mut PgConnection, limit: Duration) -> QueryResult<bool> {
    let until = Instant::now() + limit;
    loop {
        let mut notified = false;
        for notification in conn.notifications_iter() {
            notification?;
            notified = true;
        }
        let left = until.saturating_duration_since(Instant::now());
        if notified || left.is_zero() {
            return Ok(notified);
        }
        std::thread::sleep(LISTEN_PAUSE.min(left));
    }
}

statement!(Pg, TableOid {} -> Text, "SELECT 'outbox'::regclass::oid::text");
statement!(Pg, CallForHelp {} -> Bool, "SELECT pg_notify('outbox_help_' || 'outbox'::regclass::oid, '')");
statement!(
    Pg,
    Lock { key: i32 => Integer } -> Bool,
    "SELECT pg_try_advisory_lock(?, 'outbox'::regclass::oid::int4)"
);
statement!(
    Pg,
    LockShared { key: i32 => Integer } -> Bool,
    "SELECT pg_try_advisory_lock_shared(?, 'outbox'::regclass::oid::int4)"
);
statement!(
    Pg,
    Unlock { key: i32 => Integer } -> Bool,
    "SELECT pg_advisory_unlock(?, 'outbox'::regclass::oid::int4)"
);
statement!(
    Pg,
    UnlockShared { key: i32 => Integer } -> Bool,
    "SELECT pg_advisory_unlock_shared(?, 'outbox'::regclass::oid::int4)"
);
