use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use diesel::pg::PgConnection;
use diesel::prelude::*;
use diesel_outbox_core::__private::quoted_identifier;
use diesel_outbox_core::{Lag, SourceError};

use super::schemas::Found;
use crate::backoff::Backoff;
use crate::metrics;
use crate::source::database::PostgresDatabase;
use crate::source::polling::postgres::upkeep::Upkeep;
use crate::source::sequence::Sequence;

/// One of several outboxes: what does not depend on a session, for the watch and the worker that has it in hand.
pub(in super::super) struct Outbox {
    /// How to connect for it alone.
    database: PostgresDatabase,
    found: Found,
    /// Whether this process leads there.
    is_led: AtomicBool,
    /// Whether it was let go of, because its table is not there any more.
    is_gone: AtomicBool,
    /// Whether this process has set the metrics of its lag.
    has_metrics: AtomicBool,
    /// Whether a worker should measure the lag, and look whether something has expired.
    needs_upkeep: AtomicBool,
    /// How soon after a worker has looked after it another look is due, in milliseconds, because something may have expired.
    prune_pause: AtomicU64,
    /// Whether a pass has begun since a look found nothing.
    has_work: AtomicBool,
    /// For the one worker that has it in hand.
    upkeep: Mutex<Upkeep>,
    failure: Mutex<Failure>,
    /// How far its sequence was when one of the sessions last looked. A sequence that is set back may have come past what some session
    /// remembers, and not past what another does.
    seen: Mutex<Option<Sequence>>,
    /// Whether a look from afar found that it had not gone on from there, and no worker has checked the table since.
    was_set_back: AtomicBool,
    /// Changes if what sessions know of the table may be wrong by now.
    generation: AtomicU64,
}

struct Failure {
    backoff: Backoff,
    /// Whether its last look or pass failed.
    is_present: bool,
    /// What an operator must correct.
    uncorrected: Option<String>,
}

impl Outbox {
    pub(super) fn new(database: &PostgresDatabase, found: Found) -> Self {
        Self {
            database: database.of_schema(&found.schema, &found.name),
            found,
            is_led: AtomicBool::new(false),
            is_gone: AtomicBool::new(false),
            has_metrics: AtomicBool::new(false),
            needs_upkeep: AtomicBool::new(false),
            prune_pause: AtomicU64::new(0),
            has_work: AtomicBool::new(false),
            upkeep: Mutex::default(),
            seen: Mutex::default(),
            was_set_back: AtomicBool::new(false),
            generation: AtomicU64::new(0),
            failure: Mutex::new(Failure { backoff: Backoff::new(), is_present: false, uncorrected: None }),
        }
    }

    pub(in super::super) fn schema(&self) -> &str {
        &self.found.schema
    }

    /// The table's oid.
    pub(in super::super) fn table(&self) -> u32 {
        self.found.table
    }

    /// The name of its sequence, quoted.
    pub(super) fn sequence(&self) -> String {
        format!("{}.outbox_seq_seq", quoted_identifier(self.schema()))
    }

    /// The database and the schema.
    pub(super) fn name(&self) -> &Arc<str> {
        &self.found.name
    }

    pub(super) fn is(&self, found: &Found) -> bool {
        self.found == *found
    }

    pub(in super::super) fn is_led(&self) -> bool {
        self.is_led.load(Ordering::Relaxed)
    }

    pub(super) fn lead(&self, leads: bool) {
        self.is_led.store(leads, Ordering::Relaxed);
    }

    pub(super) fn is_gone(&self) -> bool {
        self.is_gone.load(Ordering::SeqCst)
    }

    /// Lets go of it. Its metrics must not say for ever what they said last.
    pub(super) fn let_go(&self) {
        self.is_gone.store(true, Ordering::SeqCst);
        self.lead(false);
        if self.has_metrics.load(Ordering::SeqCst) {
            self.report_no_lag();
        }
    }

    /// Reports its lag.
    pub(super) fn report_lag(&self, lag: Lag) {
        self.has_metrics.store(true, Ordering::SeqCst);
        metrics::lag_of(self.name(), lag, self.database.history.as_ref());
        // The watch may have let go of it meanwhile.
        if self.is_gone() {
            self.report_no_lag();
        }
    }

    /// Reports that it has no lag.
    pub(super) fn report_no_lag(&self) {
        self.has_metrics.store(true, Ordering::SeqCst);
        metrics::no_lag_of(self.name(), self.database.history.as_ref());
    }

    pub(super) fn needs_upkeep(&self) -> bool {
        self.is_led() && self.needs_upkeep.load(Ordering::Relaxed)
    }

    pub(super) fn set_needs_upkeep(&self, needs_upkeep: bool) {
        self.needs_upkeep.store(needs_upkeep, Ordering::Relaxed);
    }

    pub(super) fn prune_pause(&self) -> Duration {
        Duration::from_millis(self.prune_pause.load(Ordering::Relaxed))
    }

    /// Notes whether there was work. Returns whether there was some before.
    pub(super) fn set_has_work(&self, has_work: bool) -> bool {
        self.has_work.swap(has_work, Ordering::Relaxed)
    }

    fn failure(&self) -> MutexGuard<'_, Failure> {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns whether its last look or pass failed.
    pub(super) fn has_failed(&self) -> bool {
        self.failure().is_present
    }

    /// Notes a failure, with the error if it was the database's, and returns how long to wait before the next look.
    pub(super) fn put_off(&self, error: Option<&SourceError>) -> Duration {
        if error.is_some() {
            // The session that has failed forgets what it knew. Perhaps it has begun to correct the sequence.
            self.begin_generation();
        }
        let mut failure = self.failure();
        failure.is_present = true;
        failure.uncorrected = error.filter(|error| error.is_misconfigured()).map(ToString::to_string);
        failure.backoff.next()
    }

    /// Returns what an operator must correct.
    pub(super) fn uncorrected(&self) -> Option<SourceError> {
        let failure = self.failure();
        let problem = failure.uncorrected.as_ref()?;
        Some(SourceError::misconfigured(format!("the outbox {} is not relayed: {problem}", self.name())))
    }

    /// Notes that a look or a pass went well. Returns whether the last one had failed.
    pub(super) fn went_well(&self) -> bool {
        let mut failure = self.failure();
        failure.backoff.begin_anew();
        failure.uncorrected = None;
        std::mem::take(&mut failure.is_present)
    }

    fn locked_seen(&self) -> MutexGuard<'_, Option<Sequence>> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns how far its sequence was at the last look.
    pub(in super::super) fn seen(&self) -> Option<Sequence> {
        *self.locked_seen()
    }

    /// Notes how far the sequence is. Does not forget how far it was if it has not gone on from there: a worker must check the table.
    pub(in super::super) fn see(&self, sequence: Sequence) {
        let mut seen = self.locked_seen();
        if seen.is_none_or(|before| sequence.goes_on_from(before)) {
            *seen = Some(sequence);
        }
    }

    /// Returns whether its sequence has gone on from where it was. If it has not, a worker must check the table.
    pub(super) fn goes_on(&self, sequence: Sequence) -> bool {
        let goes_on = self.seen().is_none_or(|before| sequence.goes_on_from(before));
        if !goes_on {
            self.was_set_back.store(true, Ordering::SeqCst);
        }
        goes_on
    }

    /// Returns whether its sequence was seen to be set back since this was last asked.
    pub(in super::super) fn take_set_back(&self) -> bool {
        self.was_set_back.swap(false, Ordering::SeqCst)
    }

    /// Notes how far the sequence is, after the table was checked. If it was set back or replaced, other sessions must check the table
    /// too: they know up to which numbers nothing can appear any more, and that is true of the old numbers only.
    pub(in super::super) fn checked(&self, sequence: Sequence) {
        let before = self.locked_seen().replace(sequence);
        if before.is_some_and(|before| !sequence.goes_on_from(before)) {
            self.begin_generation();
        }
    }

    fn begin_generation(&self) {
        self.generation.fetch_add(1, Ordering::Relaxed);
    }

    /// Returns a number that changes if sessions must check the table again.
    pub(in super::super) fn generation(&self) -> u64 {
        self.generation.load(Ordering::Relaxed)
    }

    /// Measures the lag and prunes, if that is due.
    pub(in super::super) fn upkeep(
        &self,
        conn: &mut PgConnection,
        was_large: bool,
    ) -> QueryResult<Option<Lag>> {
        // The survey says each interval that it is due. The interval is shorter here, so that none is left out by a hair.
        let lag_interval = self.database.options.lag_interval / 2;
        let mut upkeep = self.upkeep.lock().unwrap_or_else(PoisonError::into_inner);
        let lag = upkeep.run(conn, &self.database, was_large, lag_interval);
        let pause = u64::try_from(upkeep.prune_pause(&self.database).as_millis()).unwrap_or(u64::MAX);
        self.prune_pause.store(pause, Ordering::Relaxed);
        lag
    }
}
