//! The pipeline between a database and a broker that fail at random. A seed always makes the same history.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, Mutex};
use std::time::{Duration, Instant};

use diesel_outbox_core::wire::TopicNaming;
use diesel_outbox_core::{
    Acknowledgement, Claimed, DeadLettered, Outcome, PublishError, Publisher, Record, Refusal, Source,
    SourceError,
};

use crate::max_rate::MaxRate;
use crate::metrics::Metrics;

use super::{BATCH_BYTES, Limits, PassError, Passed, Pipeline, size};

const RECORDS: u64 = 400;
const AGGREGATES: u64 = 7;

/// Xorshift. A library's generator could change the histories with its version.
#[derive(Clone)]
pub(crate) struct Chance(Arc<Mutex<u64>>);

impl Chance {
    pub(crate) fn new(seed: u64) -> Self {
        Self(Arc::new(Mutex::new(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)))
    }

    pub(crate) fn below(&self, limit: u64) -> u64 {
        let mut state = self.0.lock().unwrap();
        *state ^= *state << 13;
        *state ^= *state >> 7;
        *state ^= *state << 17;
        *state % limit
    }

    pub(crate) fn one_in(&self, number: u64) -> bool {
        self.below(number) == 0
    }
}

/// A clock in milliseconds, which moves on whenever somebody looks at it.
#[derive(Clone, Default)]
struct Clock(Arc<AtomicU64>);

impl Clock {
    fn advance(&self, milliseconds: u64) -> u64 {
        self.0.fetch_add(milliseconds, Ordering::Relaxed) + milliseconds
    }
}

/// Returns a small record, a larger one, or one that is larger than a batch.
fn record(ticket: u64) -> Record {
    static RECORDS: LazyLock<[Record; 4]> = LazyLock::new(|| {
        let sized = |bytes| Record::new("order", "1", "OrderPlaced").with_payload(vec![0; bytes]);
        [100, 1 << 20, 6 << 20, 20 << 20].map(sized)
    });
    let size = match ticket {
        _ if ticket.is_multiple_of(53) => 3,
        _ if ticket.is_multiple_of(5) => 2,
        _ if ticket.is_multiple_of(3) => 1,
        _ => 0,
    };
    RECORDS[size].clone()
}

/// The sizes of the records that the relay holds: read, read ahead, or with the broker.
#[derive(Clone)]
struct Held {
    sizes: Arc<Mutex<BTreeMap<u64, usize>>>,
    limit: usize,
}

impl Held {
    fn add(&self, records: &[Claimed]) {
        let mut sizes = self.sizes.lock().unwrap();
        sizes.extend(records.iter().map(|claimed| (claimed.ticket, size(claimed))));
        let largest = sizes.values().max().copied().unwrap_or_default();
        let sum: usize = sizes.values().sum();
        assert!(sum - largest <= self.limit, "{sum} bytes are held, and the largest record has {largest}");
    }

    fn let_go(&self, ticket: u64) {
        self.sizes.lock().unwrap().remove(&ticket);
    }

    fn let_all_go(&self) {
        self.sizes.lock().unwrap().clear();
    }
}

/// What is true throughout a history, and does not happen by chance.
#[derive(Clone, Copy, Default)]
struct Habits {
    /// Claiming and reading take longer than a pass may, and than the broker may be silent.
    slow_database: bool,
    /// The producer takes nothing more once it has a record that the broker will refuse.
    fails_early: bool,
}

/// A table of records with the tickets 1 to `RECORDS`. They are committed little by little: those of an aggregate in their order,
/// those of different aggregates in any order. Settling becomes durable with the release.
struct SimulatedTable {
    chance: Chance,
    clock: Clock,
    habits: Habits,
    committed: BTreeSet<u64>,
    settled: BTreeSet<u64>,
    dead: BTreeMap<u64, String>,
    /// Settled or dead in this pass, and not committed.
    pending: Vec<(u64, Option<String>)>,
    /// Read in this pass.
    given: BTreeSet<u64>,
    /// The next batch, if it has been read ahead, and whether there may be more.
    ahead: Option<(Vec<Claimed>, bool)>,
    held: Held,
    claimed: bool,
}

impl SimulatedTable {
    fn takes_time(&self) {
        if self.habits.slow_database {
            self.clock.advance(1_000);
        }
    }

    fn may_fail(&mut self) -> Result<(), SourceError> {
        if self.chance.one_in(60) {
            self.claimed = false;
            self.pending.clear();
            return Err(SourceError::new("the database failed by chance"));
        }
        Ok(())
    }

    fn commit_some(&mut self) {
        for _ in 0..self.chance.below(8) {
            let aggregate = self.chance.below(AGGREGATES);
            let its = (1..=RECORDS).filter(|ticket| ticket % AGGREGATES == aggregate);
            self.committed.extend(its.into_iter().find(|ticket| !self.committed.contains(ticket)));
        }
    }

    /// Returns this many records at most, and up to the byte limit, unless the first one is larger.
    fn next_batch(&mut self, limit: usize) -> (Vec<Claimed>, bool) {
        let unsent = self.committed.difference(&self.given).filter(|ticket| self.is_open(**ticket));
        let (mut batch, mut bytes, mut more) = (Vec::new(), 0, false);
        for &ticket in unsent {
            let record = if ticket % 97 == 0 { Err("unreadable".to_owned()) } else { Ok(record(ticket)) };
            let claimed = Claimed::new(ticket, record);
            bytes += size(&claimed);
            more = batch.len() == limit || (bytes > BATCH_BYTES && !batch.is_empty());
            if more {
                break;
            }
            batch.push(claimed);
        }
        self.given.extend(batch.iter().map(|claimed| claimed.ticket));
        self.held.add(&batch);
        (batch, more)
    }

    fn is_open(&self, ticket: u64) -> bool {
        !self.settled.contains(&ticket) && !self.dead.contains_key(&ticket)
    }

    fn is_done(&self) -> bool {
        self.settled.len() + self.dead.len() == RECORDS as usize
    }
}

impl Source for SimulatedTable {
    fn claim(&mut self) -> Result<bool, SourceError> {
        self.may_fail()?;
        self.takes_time();
        assert!(!self.claimed, "claimed twice");
        self.commit_some();
        self.given.clear();
        self.ahead = None;
        self.held.let_all_go();
        self.claimed = self.committed.iter().any(|ticket| self.is_open(*ticket));
        Ok(self.claimed)
    }

    fn read(&mut self, limit: usize, records: &mut Vec<Claimed>) -> Result<bool, SourceError> {
        self.may_fail()?;
        self.takes_time();
        assert!(self.claimed, "read without a claim");
        self.commit_some();
        let (batch, more) = self.ahead.take().unwrap_or_else(|| self.next_batch(limit));
        records.extend(batch);
        Ok(more)
    }

    fn read_ahead(&mut self, limit: usize) -> Result<(), SourceError> {
        self.may_fail()?;
        self.ahead = Some(self.next_batch(limit));
        Ok(())
    }

    fn settle(&mut self, tickets: &[u64]) -> Result<(), SourceError> {
        self.may_fail()?;
        self.pending.extend(tickets.iter().map(|ticket| (*ticket, None)));
        Ok(())
    }

    fn dead_letter(&mut self, ticket: u64, reason: &str) -> Result<DeadLettered, SourceError> {
        self.may_fail()?;
        self.pending.push((ticket, Some(reason.to_owned())));
        self.held.let_go(ticket);
        Ok(DeadLettered::default().holding_back(self.chance.one_in(3)))
    }

    fn release(&mut self) -> Result<(), SourceError> {
        self.may_fail()?;
        assert!(self.claimed, "released without a claim");
        self.claimed = false;
        for (ticket, reason) in std::mem::take(&mut self.pending) {
            assert!(self.is_open(ticket), "{ticket} settled twice");
            match reason {
                None => _ = self.settled.insert(ticket),
                Some(reason) => _ = self.dead.insert(ticket, reason),
            }
        }
        Ok(())
    }

    fn abandon(&mut self) {
        self.claimed = false;
        self.pending.clear();
    }

    fn lingers(&self) -> bool {
        self.chance.one_in(2)
    }

    fn is_awaited(&self) -> bool {
        self.chance.one_in(3)
    }

    fn wait(&mut self, _: Duration) -> Result<bool, SourceError> {
        Ok(true)
    }
}

/// A broker that keeps the order, takes its time, loses connections and refuses every 31st record. For each partition, it takes one
/// record until that is acknowledged.
struct Broker {
    chance: Chance,
    habits: Habits,
    /// Whether it was asked for acknowledgements since it was given something.
    asked: bool,
    in_flight: Vec<u64>,
    open: BTreeSet<u64>,
    held: Held,
    log: Arc<Mutex<Vec<u64>>>,
    hangs: bool,
    /// Takes nothing more until it is abandoned.
    jammed: bool,
}

/// Returns the partition of the record's aggregate.
fn partition(ticket: u64) -> u64 {
    ticket % AGGREGATES % 3
}

impl Publisher for Broker {
    fn publish(&mut self, ticket: u64, topic: &str, _: &Record) -> Result<(), Refusal> {
        assert_eq!(topic, "outbox.event.order");
        if ticket.is_multiple_of(31) {
            return Err(Refusal::Rejected { reason: "refused at once".to_owned() });
        }
        let mut in_flight = self.in_flight.iter();
        if !self.open.contains(&partition(ticket))
            && let Some(first) = in_flight.find(|other| partition(**other) == partition(ticket))
        {
            return Err(Refusal::Behind { ticket: *first });
        }
        if self.in_flight.len() >= 20 || self.jammed {
            return Err(Refusal::Full);
        }
        self.jammed = self.chance.one_in(500);
        if self.habits.fails_early && self.in_flight.iter().any(|ticket| ticket % 37 == 0) {
            return Err(Refusal::Retry { reason: "failed for good".to_owned() });
        }
        if self.chance.one_in(200) {
            return Err(Refusal::Retry { reason: "not now".to_owned() });
        }
        self.in_flight.push(ticket);
        self.asked = false;
        Ok(())
    }

    fn acknowledgements(
        &mut self,
        _: Duration,
        acknowledgements: &mut Vec<Acknowledgement>,
    ) -> Result<(), PublishError> {
        if self.chance.one_in(80) {
            return Err(PublishError::new("the broker failed by chance"));
        }
        if !std::mem::replace(&mut self.asked, true) {
            return Ok(());
        }
        self.hangs |= self.chance.one_in(150);
        if self.hangs {
            return Ok(());
        }
        if self.chance.one_in(100) {
            // The connection is lost: nothing that was in flight is known to have arrived.
            for ticket in self.in_flight.drain(..) {
                self.held.let_go(ticket);
                let outcome = Outcome::Retry { reason: "lost".to_owned() };
                acknowledgements.push(Acknowledgement::new(ticket, outcome));
            }
            return Ok(());
        }
        let count = self.chance.below(self.in_flight.len() as u64 + 1) as usize;
        for ticket in self.in_flight.drain(..count) {
            self.held.let_go(ticket);
            let outcome = if ticket % 37 == 0 {
                Outcome::Rejected { reason: "refused later".to_owned() }
            } else {
                self.log.lock().unwrap().push(ticket);
                self.open.insert(partition(ticket));
                Outcome::Durable
            };
            acknowledgements.push(Acknowledgement::new(ticket, outcome));
        }
        Ok(())
    }

    fn abandon(&mut self) {
        // Some of what was in flight arrives all the same, in its order.
        let arrives = self.chance.below(self.in_flight.len() as u64 + 1) as usize;
        let arrived = self.in_flight.drain(..).take(arrives).filter(|ticket| ticket % 37 != 0);
        self.log.lock().unwrap().extend(arrived);
        self.open.clear();
        self.hangs = false;
        self.jammed = false;
    }

    fn ready(&mut self, _: Duration) -> Result<(), PublishError> {
        Ok(())
    }
}

fn simulate(seed: u64, habits: Habits) -> (usize, usize) {
    let chance = Chance::new(seed);
    let log = Arc::new(Mutex::new(Vec::new()));
    let clock = Clock::default();
    let max_in_flight_bytes = BATCH_BYTES + chance.below(64 << 20) as usize;
    let held = Held { sizes: Arc::default(), limit: max_in_flight_bytes };
    let mut table = SimulatedTable {
        chance: chance.clone(),
        clock: clock.clone(),
        habits,
        committed: BTreeSet::new(),
        settled: BTreeSet::new(),
        dead: BTreeMap::new(),
        pending: Vec::new(),
        given: BTreeSet::new(),
        ahead: None,
        held: held.clone(),
        claimed: false,
    };
    let mut broker = Broker {
        chance: chance.clone(),
        habits,
        asked: false,
        in_flight: Vec::new(),
        open: BTreeSet::new(),
        held,
        log: log.clone(),
        hangs: false,
        jammed: false,
    };
    let start = Instant::now();
    let now = || start + Duration::from_millis(clock.advance(5));
    let limits = Limits {
        batch_size: 1 + chance.below(12) as usize,
        max_in_flight: 24,
        max_in_flight_bytes,
        max_pass_duration: Duration::from_millis(50 + chance.below(400)),
        stall_timeout: Duration::from_millis(300),
        ..Limits::default()
    };
    let max_rate =
        if chance.one_in(3) { MaxRate::new(100 + chance.below(2_000) as u32) } else { MaxRate::default() };
    let stops = chance.clone();
    let pipeline = Pipeline {
        topic_naming: &TopicNaming::default(),
        max_rate: &max_rate,
        metrics: &Metrics::new(),
        limits,
        now: &now,
        published: &Cell::new(0),
        stopping: &|| stops.one_in(100),
    };
    let mut failures = 0;
    for _ in 0..10_000 {
        match pipeline.pass(&mut table, &mut broker) {
            Ok(Passed::Idle) if table.is_done() => break,
            Ok(Passed::Idle) => {}
            Ok(Passed::Worked) => {
                assert!(broker.in_flight.is_empty(), "released with records in flight")
            }
            Err(PassError::Source(_) | PassError::Publisher(_)) => failures += 1,
        }
        assert!(!table.claimed, "a pass left its claim behind");
    }
    let log = log.lock().unwrap();
    let arrived: BTreeSet<u64> = log.iter().copied().collect();
    for ticket in 1..=RECORDS {
        let refused = ticket % 31 == 0 || ticket % 37 == 0 || ticket % 97 == 0;
        assert_eq!(table.dead.contains_key(&ticket), refused, "seed {seed}: dead letter {ticket}");
        assert_eq!(arrived.contains(&ticket), !refused, "seed {seed}: record {ticket}");
    }
    let mut seen = BTreeSet::new();
    let mut last = BTreeMap::new();
    for ticket in log.iter().filter(|ticket| seen.insert(**ticket)) {
        let before = last.insert(ticket % AGGREGATES, *ticket);
        assert!(before.is_none_or(|before| before < *ticket), "seed {seed}: {ticket} after {before:?}");
    }
    (failures, log.len() - arrived.len())
}

#[test]
fn nothing_is_lost_and_order_is_kept_whatever_fails() {
    let (mut failures, mut repeated) = (0, 0);
    for seed in 0..500 {
        let (failed, again) = simulate(seed, Habits::default());
        failures += failed;
        repeated += again;
    }
    // A simulation without failures and repetitions would show nothing.
    assert!(failures > 500 && repeated > 500, "{failures} failures, {repeated} repetitions");
}

#[test]
fn a_slow_database_is_waited_for() {
    for seed in 0..50 {
        simulate(seed, Habits { slow_database: true, ..Habits::default() });
    }
}

#[test]
fn what_a_failed_publisher_still_tells_is_heard() {
    let histories = 50_u64;
    let habits = Habits { fails_early: true, ..Habits::default() };
    let failures: usize = (0..histories).map(|seed| simulate(seed, habits).0).sum();
    assert!(failures < 100 * histories as usize, "{failures} failures");
}
