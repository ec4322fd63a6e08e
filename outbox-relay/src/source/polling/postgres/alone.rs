//! A worker that has one outbox for itself: in its own session it waits for notifications, and looks after the table.

use std::time::{Duration, Instant};

use diesel::pg::{Pg, PgConnection};
use diesel::prelude::*;
use diesel::sql_types::{BigInt, Bool, Integer, Nullable, Oid};
use diesel_outbox_core::Lag;

use super::strangers::strangers;
use super::upkeep::Upkeep;
use super::wakeup::{self, Next, Wake};
use crate::source::SourceOptions;
use crate::source::advisory_lock::{Lock, try_lock};
use crate::source::bounds::{oldest_unsent, shards};
use crate::source::database::PostgresDatabase;
use crate::statement::statement;
use diesel_outbox_core::advisory_locks;

pub(super) struct Alone {
    table: u32,
    wake: Wake,
    upkeep: Upkeep,
    /// Whether only the leader works, because records are sent exactly once.
    exactly_once: bool,
    /// The oldest unsent row when this relay last looked while it stood by.
    waiting: Option<i64>,
    /// Whether this relay works instead of the leader, because that leaves the oldest row unsent.
    helps: bool,
}

/// How often a relay that stands by looks for the leader if records are sent exactly once. What a leader that died had not committed
/// keeps consumers from reading until another relay takes over.
const TAKE_OVER_INTERVAL: Duration = Duration::from_secs(2);

impl Alone {
    pub(super) fn start(conn: &mut PgConnection, table: u32, options: &SourceOptions) -> QueryResult<Self> {
        let exactly_once = options.exactly_once;
        let longest = if exactly_once { TAKE_OVER_INTERVAL } else { Duration::MAX };
        let poll_interval = options.poll_interval.min(longest);
        let may_prepare = wakeup::may_prepare(conn)?;
        let wake = Wake::start(conn, table, "outbox_seq_seq".to_owned(), may_prepare, poll_interval)?;
        let mut alone =
            Self { table, wake, upkeep: Upkeep::default(), exactly_once, waiting: None, helps: false };
        alone.try_to_lead(conn)?;
        Ok(alone)
    }

    /// Returns whether this relay calls the others to a backlog.
    pub(super) fn calls_for_help(&self) -> bool {
        self.wake.leads() && !self.exactly_once
    }

    /// Returns whether the work is the leader's. A relay that takes over fences the other one, so they must not take turns.
    pub(super) fn stands_by(&self) -> bool {
        self.exactly_once && !self.wake.leads() && !self.helps
    }

    /// Leaves the work to the leader again.
    pub(super) fn found_nothing(&mut self) {
        self.helps = false;
    }

    /// Stays awake, because there is work.
    pub(super) fn awake(&mut self, conn: &mut PgConnection) -> QueryResult<()> {
        self.wake.awake(conn)
    }

    /// Waits until it is time to look at the table again. Returns `false` if it is not time after `limit`.
    pub(super) fn wait(&mut self, conn: &mut PgConnection, limit: Duration) -> QueryResult<bool> {
        let until = Instant::now() + limit;
        let mut is_called = false;
        loop {
            let next = match self.wake.next(conn, is_called, true)? {
                Next::Look => return Ok(true),
                Next::SleptLongEnough if self.wake.leads() => {
                    self.wake.look_once();
                    return Ok(true);
                }
                Next::SleptLongEnough if self.stand_by(conn)? => return Ok(true),
                Next::SleptLongEnough => Instant::now(),
                Next::Wait(next) => next,
            };
            let now = Instant::now();
            if now >= until {
                return Ok(false);
            }
            is_called = listen(conn, next.min(until), self.wake.listen_pause())?;
        }
    }

    /// Leads if nobody does. Returns whether it is time to look at the table.
    fn stand_by(&mut self, conn: &mut PgConnection) -> QueryResult<bool> {
        let (got_lock, oldest) =
            StandBy::new(advisory_locks::LEADER, self.table).get_result::<(bool, Option<i64>)>(conn)?;
        if self.lead_if(conn, got_lock)? {
            return Ok(true);
        }
        // With a backlog a leader that works leaves something unsent too, but not the same row for long.
        let has_waited = oldest == std::mem::replace(&mut self.waiting, oldest);
        self.helps = oldest.is_some() && (has_waited || !self.exactly_once);
        if self.helps {
            self.wake.look_once()
        } else {
            self.wake.sleep_on()
        }
        Ok(self.helps)
    }

    fn try_to_lead(&mut self, conn: &mut PgConnection) -> QueryResult<()> {
        if self.wake.is_to_try_to_lead() {
            let got_lock = Lock::new(advisory_locks::LEADER, self.table).get_result(conn)?;
            self.lead_if(conn, got_lock)?;
        }
        Ok(())
    }

    fn lead_if(&mut self, conn: &mut PgConnection, got_lock: bool) -> QueryResult<bool> {
        let strangers =
            if got_lock { Vec::new() } else { strangers(conn, advisory_locks::LEADER, self.table)? };
        self.wake.lead_if(conn, got_lock, &strangers)
    }

    pub(super) fn upkeep(
        &mut self,
        conn: &mut PgConnection,
        database: &PostgresDatabase,
        was_large: bool,
    ) -> QueryResult<Option<Lag>> {
        self.try_to_lead(conn)?;
        if !self.wake.leads() {
            self.upkeep.help(conn);
            return Ok(None);
        }
        let lag = self.upkeep.run(conn, database, was_large, database.options.lag_interval)?;
        if self.upkeep.has_promoted() {
            // A session does not notify itself.
            self.wake.awake(conn)?;
        }
        Ok(lag)
    }
}

/// Waits for a notification, but no longer than this, by looking at what has arrived on the connection.
fn listen(conn: &mut PgConnection, until: Instant, pause: Duration) -> QueryResult<bool> {
    loop {
        let mut is_called = false;
        wakeup::notifications(conn, |_| is_called = true)?;
        let left = until.saturating_duration_since(Instant::now());
        if is_called || left.is_zero() {
            return Ok(is_called);
        }
        std::thread::sleep(pause.min(left));
    }
}

statement!(
    Pg,
    /// Whether this relay leads from now on, and the oldest unsent row: it does not wait for a leader that hangs.
    StandBy { leader: i32 => Integer, table: u32 => Oid } -> (Bool, Nullable<BigInt>),
    concat!(
        "SELECT ",
        try_lock!("?"),
        ", (SELECT min(oldest.seq) FROM ",
        shards!(),
        " AS s ",
        oldest_unsent!(),
        ")"
    )
);
