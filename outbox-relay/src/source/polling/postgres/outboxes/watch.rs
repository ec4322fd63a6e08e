//! Watches several outboxes in one session: finds them, leads and sleeps for each of them, and hands out those that need a look.
//!
//! What `wakeup.rs` says of one session that does both holds for two as well. The watch holds the lock for sleeping and lists who
//! inserts; a worker's look begins after the watch has handed the outbox out, which is after that list. The watch goes on only when
//! the worker reports that this look has found nothing. A notification that comes meanwhile is remembered until then.
//!
//! If the session is lost, so are its locks. Then emitters notify nobody. The next session begins awake, with a look at each outbox.

mod measure;

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use diesel::connection::SimpleConnection;
use diesel::pg::PgConnection;
use diesel::prelude::*;
use diesel_outbox_core::__private::Stop;
use diesel_outbox_core::SourceError;

use self::measure::Measuring;
use super::SHORT_LOCK_TIMEOUT;
use super::outbox::Outbox;
use super::queue::{News, Queue};
use super::room_for_locks;
use super::schemas::{Found, Schemas};
use super::survey::{self, AT_ONCE, LastNumbers, Seen};
use super::watched::{Place, Watched};
use crate::backoff::Backoff;
use crate::metrics::{self, Metrics};
use crate::source::advisory_lock::LockThoseFree;
use crate::source::database::PostgresDatabase;
use crate::source::database_error;
use crate::source::interval::{has_passed, is_due};
use crate::source::polling::postgres::strangers::strangers_of;
use crate::source::polling::postgres::wakeup::{self, LONGEST_LISTEN_PAUSE, NUMBER_PAUSE, Next, Wake};
use crate::source::pooler::OwnProcess;
use crate::source::promote::DueSchemas;
use diesel_outbox_core::advisory_locks;

/// How often it asks for the numbers of all outboxes, so that none needs to ask by itself.
const NUMBERS_INTERVAL: Duration = NUMBER_PAUSE.saturating_sub(Duration::from_millis(250));
/// How soon an outbox is looked after because something may have expired, after another was.
const PRUNE_PAUSE: Duration = Duration::from_millis(200);
/// How often it looks whether a scheduled event is due somewhere.
const DUE_INTERVAL: Duration = Duration::from_secs(1);
/// How often it looks which outboxes are there, at most, because one has failed.
const FIND_AGAIN: Duration = Duration::from_secs(1);
/// How soon it notices that it should stop.
const SLICE: Duration = Duration::from_millis(50);

pub(crate) struct Watch {
    database: PostgresDatabase,
    schemas: Schemas,
    queue: Arc<Queue>,
    stop: Stop,
    backoff: Backoff,
    /// Whether the last session has failed.
    has_failed: bool,
    /// By the oids of their tables.
    outboxes: BTreeMap<u32, Watched>,
    /// The named schemas that have no outbox.
    missing: BTreeSet<String>,
    /// Whether no schema matches.
    has_none: bool,
}

/// One session, and when it last did what it does now and then.
struct Session {
    conn: PgConnection,
    process: OwnProcess,
    may_prepare: bool,
    found: Option<Instant>,
    measured: Option<Instant>,
    /// Set while it measures.
    measuring: Option<Measuring>,
    numbered: Option<Instant>,
    pruned: Option<Instant>,
    due: DueSchemas,
    looked_for_due: Option<Instant>,
    /// The transactions that may have inserted, at the last measuring.
    writers: HashSet<(u32, String)>,
}

impl Watch {
    pub(crate) fn new(database: PostgresDatabase, schemas: Schemas, queue: Arc<Queue>, stop: Stop) -> Self {
        let (outboxes, missing) = (BTreeMap::new(), BTreeSet::new());
        Self {
            database,
            schemas,
            queue,
            stop,
            backoff: Backoff::new(),
            has_failed: false,
            outboxes,
            missing,
            has_none: false,
        }
    }

    /// Watches until it should stop. Returns an error then if an operator must correct something that is not relayed meanwhile.
    pub(crate) fn run(mut self) -> Result<(), SourceError> {
        while !self.stop.is_set() {
            let watched = self.begin().and_then(|mut session| self.watch(&mut session));
            for watched in self.outboxes.values_mut() {
                watched.lose();
            }
            if let Err(error) = watched {
                self.has_failed = true;
                let wait = self.backoff.next();
                Metrics::new().failed("database", &error, error.is_misconfigured(), wait);
                self.pause(wait);
                if self.stop.is_set() && error.is_misconfigured() {
                    return Err(error);
                }
            }
        }
        let of_outboxes = || self.outboxes.values().find_map(|watched| watched.outbox.uncorrected());
        self.missing.first().map(|schema| missing(schema)).or_else(of_outboxes).map_or(Ok(()), Err)
    }

    fn pause(&self, time: Duration) {
        let until = Instant::now() + time;
        while !self.stop.is_set() && Instant::now() < until {
            std::thread::sleep(SLICE.min(time));
        }
    }

    /// Connects, and begins awake for all outboxes that are known.
    fn begin(&mut self) -> Result<Session, SourceError> {
        let mut conn = self.database.connect_to_own_session()?;
        let failed = |error| database_error("preparing to watch the outboxes", error);
        let process = OwnProcess::of(&mut conn).map_err(failed)?;
        conn.batch_execute(SHORT_LOCK_TIMEOUT).map_err(failed)?;
        let may_prepare = wakeup::may_prepare(&mut conn).map_err(failed)?;
        let mut session = Session {
            conn,
            process,
            may_prepare,
            found: None,
            // Workers have better things to do first.
            measured: Some(Instant::now()),
            measuring: None,
            numbered: None,
            pruned: None,
            due: DueSchemas::default(),
            looked_for_due: None,
            writers: HashSet::new(),
        };
        let poll_interval = self.database.options.poll_interval;
        for watched in self.outboxes.values_mut() {
            session.begin(watched, &self.queue, poll_interval).map_err(failed)?;
        }
        Ok(session)
    }

    /// Watches until it should stop, or the session fails.
    fn watch(&mut self, session: &mut Session) -> Result<(), SourceError> {
        let failed = |error| database_error("watching the outboxes", error);
        let interval = self.database.options.poll_interval;
        while !self.stop.is_set() {
            if let Some(problem) = session.process.look(&mut session.conn, interval).map_err(failed)? {
                return Err(problem);
            }
            self.round(session).map_err(failed)?;
            self.backoff.begin_anew();
            if std::mem::take(&mut self.has_failed) {
                metrics::recovered("database");
            }
        }
        Ok(())
    }

    fn round(&mut self, session: &mut Session) -> QueryResult<()> {
        if is_due(&mut session.found, self.database.options.poll_interval) {
            self.find(session)?;
        }
        self.lead(session)?;
        self.notifications(session)?;
        if session.may_prepare && is_due(&mut session.numbered, NUMBERS_INTERVAL) {
            self.numbers(session)?;
        }
        if self.step(session)? {
            self.wake_or_sleep_on(session)?;
        }
        self.measure(session)?;
        self.prune(session);
        if is_due(&mut session.looked_for_due, DUE_INTERVAL) {
            self.promote(session);
        }
        let pause = self.pause_until_next(session);
        self.hear(session, pause)
    }

    /// Looks which outboxes are there: takes on new ones, and lets go of those that are gone.
    fn find(&mut self, session: &mut Session) -> QueryResult<()> {
        let (mut found, missing_now) = self.schemas.find(&mut session.conn)?;
        session.due.find(&mut session.conn, found.iter().map(|found| found.table).collect())?;
        for found in &mut found {
            found.name = self.database.options.name_of(&found.name).into();
        }
        let is_there = |watched: &Watched| found.iter().any(|found| watched.outbox.is(found));
        let gone: Vec<u32> =
            self.outboxes.iter().filter(|(_, watched)| !is_there(watched)).map(|(table, _)| *table).collect();
        for mut watched in gone.iter().filter_map(|table| self.outboxes.remove(table)) {
            watched.outbox.let_go();
            tracing::info!(outbox = &**watched.outbox.name(), "the outbox is gone: the relay lets go of it");
            if let Some(wake) = &mut watched.wake {
                wake.let_go(&mut session.conn)?;
            }
        }
        let new: Vec<Found> =
            found.into_iter().filter(|found| !self.outboxes.contains_key(&found.table)).collect();
        if let Some(first) = new.first() {
            tracing::info!(outboxes = new.len(), first = &*first.name, "the relay takes on outboxes");
            room_for_locks::warn(&mut session.conn, self.outboxes.len() + new.len())?;
        }
        for found in new {
            let (table, watched) = (found.table, Watched::new(&self.database, found));
            let watched = self.outboxes.entry(table).or_insert(watched);
            session.begin(watched, &self.queue, self.database.options.poll_interval)?;
        }
        for schema in &missing_now {
            if !self.missing.contains(schema) {
                let metrics = Metrics::new();
                metrics.name(Some(&self.database.options.name_of(schema)));
                metrics.failed("database", &missing(schema), true, self.database.options.poll_interval);
            }
        }
        self.missing = missing_now.into_iter().collect();
        let has_none = self.outboxes.is_empty() && self.missing.is_empty();
        if has_none && !self.has_none {
            tracing::warn!("no schema that matches has an outbox: the relay waits for one");
        }
        self.has_none = has_none;
        Ok(())
    }

    /// Tries to lead in outboxes that perhaps nobody leads, if it is time to try.
    fn lead(&mut self, session: &mut Session) -> QueryResult<()> {
        let to_try = |watched: &Watched| watched.wake.as_ref().is_some_and(Wake::is_to_try_to_lead);
        let tables: Vec<u32> =
            self.outboxes.iter().filter(|(_, watched)| to_try(watched)).map(|(table, _)| *table).collect();
        self.try_to_lead(session, tables)
    }

    fn try_to_lead(&mut self, session: &mut Session, tables: Vec<u32>) -> QueryResult<()> {
        if tables.is_empty() {
            return Ok(());
        }
        let conn = &mut session.conn;
        let got: HashSet<u32> =
            LockThoseFree::new(tables.clone(), advisory_locks::LEADER).load(conn)?.into_iter().collect();
        let others: Vec<u32> = tables.iter().copied().filter(|table| !got.contains(table)).collect();
        let mut strangers: BTreeMap<u32, Vec<i32>> = BTreeMap::new();
        if !others.is_empty() {
            for (table, pid) in strangers_of(conn, advisory_locks::LEADER, others)? {
                strangers.entry(table).or_default().push(pid);
            }
        }
        for table in tables {
            let strangers = strangers.get(&table).map_or(&[][..], Vec::as_slice);
            if let Some(Watched { outbox, wake: Some(wake), .. }) = self.outboxes.get_mut(&table) {
                outbox.lead(wake.lead_if(conn, got.contains(&table), strangers)?);
            }
        }
        Ok(())
    }

    /// Remembers who was called. The channels are named after the tables' oids.
    fn notifications(&mut self, session: &mut Session) -> QueryResult<()> {
        let outboxes = &mut self.outboxes;
        wakeup::notifications(&mut session.conn, |channel| {
            let table = channel.rsplit('_').next().and_then(|table| table.parse().ok());
            if let Some(watched) = table.and_then(|table: u32| outboxes.get_mut(&table)) {
                watched.is_called = true;
            }
        })
    }

    /// Looks for numbers that prepared transactions may have taken without a notification.
    fn numbers(&mut self, session: &mut Session) -> QueryResult<()> {
        let watches = |watched: &&Watched| {
            watched.wake.as_ref().is_some_and(Wake::watches_numbers) && !watched.outbox.has_failed()
        };
        let outboxes: Vec<&Outbox> =
            self.outboxes.values().filter(watches).map(|watched| &*watched.outbox).collect();
        let LastNumbers { read, failed } = survey::last_numbers(&mut session.conn, &outboxes);
        for (table, error) in failed {
            if let Some(watched) = self.outboxes.get_mut(&table) {
                put_off_if_failed(&mut session.conn, watched, Err(error))?;
            }
        }
        for (table, last) in read {
            if let Some(watched) = self.outboxes.get_mut(&table)
                && let Some(wake) = &mut watched.wake
                && wake.is_numbered(&mut session.conn, last)?
                && matches!(watched.place, Place::Waits(_))
            {
                watched.hand_out(&self.queue);
            }
        }
        Ok(())
    }

    /// Hands out what needs a look by now. Returns whether others have slept long enough.
    fn step(&mut self, session: &mut Session) -> QueryResult<bool> {
        let poll_interval = self.database.options.poll_interval;
        let mut slept_long_enough = false;
        for watched in self.outboxes.values_mut() {
            let now = Instant::now();
            match watched.place {
                Place::PutOff(until) if now >= until => watched.hand_out(&self.queue),
                Place::Waits(until) if now >= until || watched.is_called => {
                    let Some(wake) = &mut watched.wake else {
                        session.begin(watched, &self.queue, poll_interval)?;
                        continue;
                    };
                    let is_called = std::mem::take(&mut watched.is_called);
                    // If others wait for a worker, it has better things to do than to look whether more has come.
                    let next = match wake.next(&mut session.conn, is_called, !self.queue.has_waiting()) {
                        Ok(next) => next,
                        Err(error) => {
                            put_off_if_failed(&mut session.conn, watched, Err(error))?;
                            continue;
                        }
                    };
                    watched.went_well();
                    match next {
                        Next::Look => watched.hand_out(&self.queue),
                        Next::Wait(until) => watched.place = Place::Waits(until),
                        Next::SleptLongEnough => slept_long_enough = true,
                    }
                }
                _ => {}
            }
        }
        Ok(slept_long_enough)
    }

    /// Wakes those that have slept long enough and have something unsent. If another process leads, tries to lead: it does not wait
    /// for a leader that hangs.
    fn wake_or_sleep_on(&mut self, session: &mut Session) -> QueryResult<()> {
        // Those that would wake soon are looked at together with these, and from now on always. If there are many, the next round goes on
        // with the others, because this one hears no notifications meanwhile.
        let soon = Instant::now() + self.database.options.poll_interval / 8;
        let mut meant: Vec<(Instant, u32)> = Vec::new();
        for (table, watched) in &self.outboxes {
            if let (Place::Waits(_), Some(wake)) = (watched.place, &watched.wake)
                && let Some(until) = wake.sleeps_until()
                && until <= soon
            {
                meant.push((until, *table));
            }
        }
        meant.sort_unstable();
        let tables: Vec<u32> = meant.into_iter().map(|(_, table)| table).take(AT_ONCE).collect();
        let is_led = |table: &u32| self.outboxes.get(table).is_some_and(|watched| watched.outbox.is_led());
        let followed: Vec<u32> = tables.iter().copied().filter(|table| !is_led(table)).collect();
        self.try_to_lead(session, followed)?;
        let seen = self.survey(session, &tables);
        for table in tables {
            let Some(watched) = self.outboxes.get_mut(&table) else { continue };
            let needs_a_look = match seen.get(&table) {
                Some(seen) => seen.is_unsent || !watched.outbox.goes_on(seen.sequence),
                // It cannot be seen from afar.
                None => true,
            };
            let Some(wake) = &mut watched.wake else { continue };
            // One that leads since a moment ago is awake.
            if needs_a_look || wake.sleeps_until().is_none() {
                if wake.sleeps_until().is_some() {
                    wake.look_once();
                }
                watched.hand_out(&self.queue);
            } else {
                wake.sleep_on();
                watched.place = wake.sleeps_until().map_or(watched.place, Place::Waits);
            }
        }
        Ok(())
    }

    /// Looks at outboxes from afar. Leaves out those that cannot be seen: a worker finds out why.
    fn survey(&self, session: &mut Session, tables: &[u32]) -> BTreeMap<u32, Seen> {
        let outboxes = tables.iter().filter_map(|table| self.outboxes.get(table));
        let outboxes: Vec<&Outbox> =
            outboxes.map(|watched| &*watched.outbox).filter(|outbox| !outbox.has_failed()).collect();
        survey::survey(&mut session.conn, &outboxes)
    }

    /// Lets a worker prune the outbox that was looked after longest ago and is due, unless another is being pruned.
    fn prune(&mut self, session: &mut Session) {
        if self.database.is_pruned.load(Ordering::Relaxed) || !is_due(&mut session.pruned, PRUNE_PAUSE) {
            return;
        }
        let due = self.outboxes.values_mut().filter(|watched| {
            watched.outbox.is_led() && has_passed(watched.looked_after, watched.outbox.prune_pause())
        });
        if let Some(watched) = due.min_by_key(|watched| watched.looked_after) {
            watched.let_look_after(&self.queue);
        }
    }

    /// Lets workers move scheduled events that are due.
    fn promote(&mut self, session: &mut Session) {
        let led = self.outboxes.iter().filter(|(_, watched)| watched.outbox.is_led());
        let outboxes: Vec<(u32, &str)> =
            led.map(|(table, watched)| (*table, watched.outbox.schema())).collect();
        let due = session.due.due(&mut session.conn, &outboxes, AT_ONCE);
        for table in due {
            if let Some(watched) = self.outboxes.get_mut(&table) {
                watched.let_look_after(&self.queue);
            }
        }
    }

    /// Waits for news, but no longer than this.
    fn hear(&mut self, session: &mut Session, pause: Duration) -> QueryResult<()> {
        let news = self.queue.news(pause);
        for table in self.take_back(news, &mut session.found) {
            if let Some(watched) = self.outboxes.get_mut(&table) {
                let awake = watched.awake(&mut session.conn);
                put_off_if_failed(&mut session.conn, watched, awake)?;
            }
        }
        Ok(())
    }

    /// Takes back all outboxes that come, before anything is asked of the database: if the session has failed, the next one must have
    /// them all. Returns those that stay awake.
    fn take_back(&mut self, news: Vec<(Arc<Outbox>, News)>, found: &mut Option<Instant>) -> Vec<u32> {
        let mut awake = Vec::new();
        for (outbox, news) in news {
            let table = outbox.table();
            // It may have been let go of, and another taken on in its place.
            let watched = self.outboxes.get_mut(&table);
            let Some(watched) = watched.filter(|watched| Arc::ptr_eq(&watched.outbox, &outbox)) else {
                continue;
            };
            match news {
                News::HasWork => awake.push(table),
                News::FoundNothing { after_work } => {
                    watched.place = Place::Waits(Instant::now());
                    awake.extend(after_work.then_some(table));
                }
                News::PutOff(time) => {
                    watched.place = Place::PutOff(Instant::now() + time);
                    // Perhaps it is gone.
                    if has_passed(*found, FIND_AGAIN) {
                        *found = None;
                    }
                }
            }
        }
        awake
    }

    /// Returns how long to wait for news at most.
    fn pause_until_next(&self, session: &Session) -> Duration {
        if session.measuring.is_some() {
            return Duration::ZERO;
        }
        let options = &self.database.options;
        let mut pause = LONGEST_LISTEN_PAUSE;
        let now = Instant::now();
        for watched in self.outboxes.values() {
            let (Place::Waits(until) | Place::PutOff(until)) = watched.place else { continue };
            pause = pause.min(until.saturating_duration_since(now));
            if let Some(wake) = &watched.wake {
                pause = pause.min(wake.listen_pause());
            }
        }
        let due = |since: Option<Instant>, interval: Duration| {
            since.map_or(Duration::ZERO, |since| interval.saturating_sub(since.elapsed()))
        };
        pause.min(due(session.found, options.poll_interval)).min(due(session.measured, options.lag_interval))
    }
}

impl Session {
    /// Begins to watch an outbox, or puts it off.
    fn begin(&mut self, watched: &mut Watched, queue: &Queue, poll_interval: Duration) -> QueryResult<()> {
        let begun = watched.begin(&mut self.conn, self.may_prepare, queue, poll_interval);
        put_off_if_failed(&mut self.conn, watched, begun)
    }
}

/// If this has failed, lets a worker find out what is wrong with the outbox. Fails if it is the session that has failed.
fn put_off_if_failed(
    conn: &mut PgConnection,
    watched: &mut Watched,
    done: QueryResult<()>,
) -> QueryResult<()> {
    if let Err(error) = done {
        conn.batch_execute("SELECT")?;
        watched.put_off(&error);
    }
    Ok(())
}

fn missing(schema: &str) -> SourceError {
    SourceError::misconfigured(format!(
        "the schema `{schema}` has no table `outbox`: run the migrations there (`outbox migrate --schema {schema}`, or \
         `Migrations::new().schema(..).run(..)`), or correct the name"
    ))
}

#[cfg(test)]
mod tests;
