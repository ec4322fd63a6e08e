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
use diesel::pg::{Pg, PgConnection};
use diesel::prelude::*;
use diesel::sql_types::{Bool, Integer, Text};

use crate::source::advisory_lock::{Lock, LockShared, Unlock, UnlockShared};
use crate::source::bounds::{oldest_unsent, shards};
use crate::source::fence::{PREPARED, holders};
use crate::source::sequence::Sequence;
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
const LONGEST_LISTEN_PAUSE: Duration = Duration::from_millis(100);
const DOZE_PAUSE: Duration = Duration::from_millis(1);
const LONGEST_DOZE_PAUSE: Duration = Duration::from_secs(1);
const HELP_INTERVAL: Duration = Duration::from_secs(1);
/// How often the sleeping leader looks whether somebody took numbers without notifying it. It does so only if the server allows
/// prepared transactions, which may not notify.
const NUMBER_PAUSE: Duration = Duration::from_secs(1);
/// How often a leader looks at the table while somebody else holds its lock for sleeping. Emitters hold it for a moment.
const LONGEST_DENIED_PAUSE: Duration = Duration::from_millis(250);
/// How often it asks who counts as a worker and is none.
const STRANGERS_INTERVAL: Duration = Duration::from_secs(1);

enum State {
    /// Looks at the table by itself, and has found nothing since then.
    Awake { since: Instant },
    /// Looks again until the transactions that may have seen it awake have ended.
    Dozing { inserting: HashSet<String>, pause: Duration, until: Instant },
    /// Looks once more, because the last of them has ended.
    LastLook,
    /// Waits for a notification, or for this time.
    Asleep { until: Instant },
    /// Cannot sleep, because somebody else holds the lock for it.
    Denied { pause: Duration },
}

pub(super) struct Wake {
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
    workers: usize,
    /// How many of those who count as workers are none, and when that was last asked.
    strangers: usize,
    asked: Option<Instant>,
    called: Option<Instant>,
    /// Whether the server allows prepared transactions.
    may_prepare: bool,
    /// The last number that was taken before the last look at the table, and when that was asked.
    numbered: (i64, Instant),
    warned: bool,
}

impl Wake {
    pub(super) fn start(conn: &mut PgConnection, poll_interval: Duration) -> QueryResult<Self> {
        let oid = TableOid::new().get_result::<String>(conn)?;
        conn.batch_execute(&format!("LISTEN outbox_help_{oid}"))?;
        let now = Instant::now();
        let mut wake = Self {
            poll_interval,
            state: State::Awake { since: now },
            quiet_since: now,
            leads: false,
            usurped: false,
            tried_to_lead: None,
            holds_asleep: false,
            holds_working: false,
            workers: 1,
            strangers: 0,
            asked: None,
            called: None,
            may_prepare: MayPrepare::new().get_result(conn)?,
            numbered: (0, now),
            warned: false,
        };
        // It counts from the beginning, so that the workers leave it its part.
        wake.awake(conn)?;
        wake.try_to_lead(conn)?;
        Ok(wake)
    }

    pub(super) fn leads(&self) -> bool {
        self.leads
    }

    pub(super) fn workers(&self) -> usize {
        self.workers
    }

    pub(super) fn counted(&mut self, conn: &mut PgConnection, workers: usize) -> QueryResult<()> {
        if workers > 1 && self.asked.is_none_or(|asked| asked.elapsed() >= STRANGERS_INTERVAL) {
            self.asked = Some(Instant::now());
            self.strangers = Strangers::new(advisory_locks::WORKING).load::<i32>(conn)?.len();
        }
        // This worker counts even before it holds the lock by which it is counted.
        self.workers = workers.saturating_sub(self.strangers).max(1);
        Ok(())
    }

    /// Stays awake from now on: it has found work, or should look for some.
    pub(super) fn awake(&mut self, conn: &mut PgConnection) -> QueryResult<()> {
        let now = Instant::now();
        self.state = State::Awake { since: now };
        self.quiet_since = now;
        if !self.holds_working {
            self.holds_working = LockShared::new(advisory_locks::WORKING).get_result(conn)?;
        }
        if std::mem::take(&mut self.holds_asleep) {
            Unlock::new(advisory_locks::ASLEEP).get_result::<bool>(conn)?;
        }
        Ok(())
    }

    /// Waits until it is time to look at the table again. Returns `false` if it is not time after `limit`.
    pub(super) fn wait(&mut self, conn: &mut PgConnection, limit: Duration) -> QueryResult<bool> {
        match &mut self.state {
            State::Awake { since } => {
                let (linger, pause) =
                    if self.leads { (LINGER, AWAKE_PAUSE) } else { (HELP_LINGER, HELP_PAUSE) };
                if since.elapsed() < linger {
                    std::thread::sleep(pause.min(limit));
                } else {
                    self.state = self.lie_down(conn, AWAKE_PAUSE)?;
                }
                Ok(true)
            }
            State::Dozing { inserting, pause, until } => {
                if !listen_until(conn, *until, limit, SHORTEST_LISTEN_PAUSE)? {
                    return Ok(false);
                }
                if self.may_prepare {
                    // Read before the holders are listed: a later number changes it, and whoever took an earlier one holds the
                    // lock.
                    self.numbered = (Sequence::load(conn)?.last, Instant::now());
                }
                let (still_inserting, _) = holders(conn)?;
                inserting.retain(|transaction| still_inserting.contains(transaction));
                inserting.extend(still_inserting.into_iter().filter(|name| name.starts_with(PREPARED)));
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
            State::Denied { pause } => {
                let pause = *pause;
                if !listen_until(conn, Instant::now() + pause, limit, SHORTEST_LISTEN_PAUSE)? {
                    return Ok(false);
                }
                self.state = self.lie_down(conn, (pause * 2).min(LONGEST_DENIED_PAUSE))?;
                Ok(true)
            }
        }
    }

    fn sleep(&mut self, conn: &mut PgConnection, limit: Duration) -> QueryResult<bool> {
        let State::Asleep { until } = self.state else { return Ok(true) };
        if !listen_until(conn, until, limit, self.listen_pause())? {
            return self.is_numbered(conn);
        }
        if self.leads {
            self.state = State::LastLook;
        } else if Instant::now() < until {
            // It was called for help.
            self.awake(conn)?;
        } else {
            let (leads, unsent) = StandBy::new(advisory_locks::LEADER).get_result::<(bool, bool)>(conn)?;
            self.tried_to_lead = Some(Instant::now());
            if leads || self.may_usurp(conn)? {
                self.lead(conn)?;
            } else if unsent {
                self.state = State::LastLook;
            } else {
                self.state = State::Asleep { until: Instant::now() + self.poll_interval };
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Returns whether transactions that may be prepared took numbers while the leader slept.
    fn is_numbered(&mut self, conn: &mut PgConnection) -> QueryResult<bool> {
        let (last, asked) = self.numbered;
        if !self.leads || !self.may_prepare || asked.elapsed() < NUMBER_PAUSE {
            return Ok(false);
        }
        self.numbered = (Sequence::load(conn)?.last, Instant::now());
        if self.numbered.0 == last {
            return Ok(false);
        }
        // The same as when it lay down: wait until those that took them have ended.
        let (inserting, _) = holders(conn)?;
        self.state = State::Dozing { inserting, pause: DOZE_PAUSE, until: Instant::now() };
        Ok(true)
    }

    /// Returns whether somebody who may not work on the table holds the lock of the leader.
    fn may_usurp(&mut self, conn: &mut PgConnection) -> QueryResult<bool> {
        let strangers = Strangers::new(advisory_locks::LEADER).load::<i32>(conn)?;
        self.usurped = !strangers.is_empty();
        self.warn(&strangers);
        Ok(self.usurped)
    }

    fn warn(&mut self, strangers: &[i32]) {
        if !strangers.is_empty() && !std::mem::replace(&mut self.warned, true) {
            tracing::warn!(
                pids = ?strangers,
                "sessions whose role may not update outbox_shard hold advisory locks of the outbox: relays still send, but \
                 look at the table more often; find out whose those sessions are, and end them"
            );
        }
    }

    fn listen_pause(&self) -> Duration {
        if self.leads {
            (self.quiet_since.elapsed() / 100).clamp(SHORTEST_LISTEN_PAUSE, LONGEST_LISTEN_PAUSE)
        } else {
            LONGEST_LISTEN_PAUSE
        }
    }

    /// Leads if nobody does. A busy worker calls this now and then, because the leader may die while there is work.
    pub(super) fn try_to_lead(&mut self, conn: &mut PgConnection) -> QueryResult<()> {
        let asleep = matches!(self.state, State::Asleep { .. });
        if (self.leads && !self.usurped)
            || asleep
            || self.tried_to_lead.is_some_and(|tried| tried.elapsed() < self.poll_interval)
        {
            return Ok(());
        }
        self.tried_to_lead = Some(Instant::now());
        if Lock::new(advisory_locks::LEADER).get_result(conn)? {
            self.usurped = false;
            self.lead(conn)
        } else if self.may_usurp(conn)? {
            self.lead(conn)
        } else {
            self.follow(conn)
        }
    }

    fn lead(&mut self, conn: &mut PgConnection) -> QueryResult<()> {
        if std::mem::replace(&mut self.leads, true) {
            return Ok(());
        }
        let oid = TableOid::new().get_result::<String>(conn)?;
        conn.batch_execute(&format!("LISTEN outbox_{oid}"))?;
        self.awake(conn)
    }

    /// Stops leading, because another relay leads, perhaps since a stranger is gone.
    fn follow(&mut self, conn: &mut PgConnection) -> QueryResult<()> {
        if !std::mem::take(&mut self.leads) {
            return Ok(());
        }
        let oid = TableOid::new().get_result::<String>(conn)?;
        conn.batch_execute(&format!("UNLISTEN outbox_{oid}"))?;
        self.awake(conn)
    }

    /// Prepares to sleep. `pause` is how long to look at the table by itself if somebody else holds the lock.
    fn lie_down(&mut self, conn: &mut PgConnection, pause: Duration) -> QueryResult<State> {
        if std::mem::take(&mut self.holds_working) {
            UnlockShared::new(advisory_locks::WORKING).get_result::<bool>(conn)?;
        }
        if !self.leads {
            return Ok(State::Asleep { until: Instant::now() + self.poll_interval });
        }
        self.holds_asleep = self.holds_asleep || Lock::new(advisory_locks::ASLEEP).get_result(conn)?;
        if !self.holds_asleep {
            if pause == LONGEST_DENIED_PAUSE {
                let strangers = Strangers::new(advisory_locks::ASLEEP).load::<i32>(conn)?;
                self.warn(&strangers);
            }
            return Ok(State::Denied { pause });
        }
        let (inserting, _) = holders(conn)?;
        Ok(State::Dozing { inserting, pause: DOZE_PAUSE, until: Instant::now() })
    }

    /// Returns whether it is time to wake the other relays for a backlog.
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

/// Waits for a notification or until `until`, but no longer than `limit`. Returns `false` if neither has come.
fn listen_until(
    conn: &mut PgConnection,
    until: Instant,
    limit: Duration,
    pause: Duration,
) -> QueryResult<bool> {
    let left = until.saturating_duration_since(Instant::now());
    Ok(listen(conn, limit.min(left), pause)? || Instant::now() >= until)
}

/// Waits for a notification by looking at what has arrived on the connection.
fn listen(conn: &mut PgConnection, limit: Duration, pause: Duration) -> QueryResult<bool> {
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
        std::thread::sleep(pause.min(left));
    }
}

statement!(Pg, TableOid {} -> Text, "SELECT 'outbox'::regclass::oid::text");
statement!(Pg, MayPrepare {} -> Bool, "SELECT current_setting('max_prepared_transactions')::int > 0");
statement!(
    Pg,
    /// The processes that hold this lock and whose role may not do what a relay does.
    Strangers { key: i32 => Integer } -> Integer,
    "SELECT l.pid FROM pg_locks AS l JOIN pg_stat_activity AS a ON a.pid = l.pid WHERE l.locktype = 'advisory' AND l.granted \
     AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database()) AND l.classid = ?::oid \
     AND l.objid = 'outbox'::regclass::oid AND l.objsubid = 2 \
     AND NOT coalesce(has_table_privilege(a.usesysid, 'outbox_shard'::regclass, 'UPDATE'), false)"
);
statement!(Pg, CallForHelp {} -> Bool, "SELECT pg_notify('outbox_help_' || 'outbox'::regclass::oid, '')");
statement!(
    Pg,
    /// Whether this relay leads from now on, and whether something is unsent: it does not wait for a leader that hangs.
    StandBy { leader: i32 => Integer } -> (Bool, Bool),
    concat!(
        "SELECT pg_try_advisory_lock(?, 'outbox'::regclass::oid::int4), EXISTS (SELECT FROM ",
        shards!(),
        " AS s ",
        oldest_unsent!(),
        ")"
    )
);
