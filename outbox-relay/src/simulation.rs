//! Relays, services, a database and a broker that fail at random. A seed always makes the same history.
//!
//! Real here are the pipeline, the gate of the publisher, and what each source decides: the fence and the progress of a pass on
//! PostgreSQL, the fence, the groups and the bounds on MySQL, the cursor on SQLite, and the decoder, the window, the positions and the
//! bound of what is confirmed for the WAL. Simulated are the database with what its statements answer, the broker, librdkafka, the
//! services that emit, and time.

mod broker;
mod database;
mod hand;
mod kind;
mod mysql;
mod pgoutput;
mod postgres;
mod publisher;
mod sqlite;
mod transactions;
mod turns;
mod wal;
mod world;
mod writers;

use std::cell::Cell;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use diesel_outbox_core::wire::TopicNaming;
use diesel_outbox_core::{Publisher as _, Source};

use self::hand::{Hand, Shared};
use self::kind::{Kind, Mistake};
use self::mysql::SimulatedMysql;
use self::postgres::SimulatedPostgres;
use self::publisher::SimulatedPublisher;
use self::sqlite::SimulatedSqlite;
use self::turns::Turns;
use self::wal::SimulatedWal;
use self::world::World;
use crate::max_rate::MaxRate;
use crate::metrics::Metrics;
use crate::pipeline::{BATCH_BYTES, Limits, Passed, Pipeline};

/// What happened in a history, or in several.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Story {
    stored: u64,
    repeated: u64,
    faults: u64,
    dead: u64,
    /// The time that it took in the simulation, in milliseconds.
    time: u64,
}

impl Story {
    fn add(&mut self, other: Self) {
        self.stored += other.stored;
        self.repeated += other.repeated;
        self.faults += other.faults;
        self.dead += other.dead;
        self.time += other.time;
    }
}

fn source(kind: Kind, hand: Hand) -> Box<dyn Source> {
    match kind {
        Kind::Postgres | Kind::PostgresExactlyOnce | Kind::PostgresBlocking => {
            Box::new(SimulatedPostgres::new(hand))
        }
        Kind::Mysql | Kind::MysqlExactlyOnce | Kind::MysqlBlocking => Box::new(SimulatedMysql::new(hand)),
        Kind::Sqlite | Kind::SqliteBlocking => Box::new(SimulatedSqlite::new(hand)),
        Kind::Wal | Kind::WalBlocking => Box::new(SimulatedWal::new(hand)),
    }
}

/// A worker: relay after relay, because each may crash.
fn work(shared: &Arc<Shared>, worker: usize, kind: Kind, mistake: Option<Mistake>) {
    while !shared_is_over(shared) {
        let hand = Hand::new(shared.clone(), worker, kind, mistake);
        let (mut source, mut publisher) = (source(kind, hand.clone()), SimulatedPublisher::new(hand.clone()));
        let (limits, max_rate) = {
            let world = hand.world();
            let is_limited = world.chance.one_in(4);
            let rate = 200 + world.chance.below(2_000) as u32;
            let limits = Limits {
                batch_size: 1 + world.chance.below(12) as usize,
                max_in_flight: 24,
                max_in_flight_bytes: BATCH_BYTES << world.chance.below(4),
                max_pass_duration: Duration::from_millis(50 + world.chance.below(400)),
                stall_timeout: Duration::from_secs(2),
                exactly_once: kind.is_exactly_once(),
                transaction: 1 + world.chance.below(30) as usize,
            };
            (limits, if is_limited { MaxRate::new(rate) } else { MaxRate::default() })
        };
        let now = || hand.world().now();
        let pipeline = Pipeline {
            topic_naming: &TopicNaming::default(),
            max_rate: &max_rate,
            metrics: &Metrics::new(),
            limits,
            now: &now,
            published: &Cell::new(0),
            stopping: &|| {
                let world = hand.world();
                world.is_over || world.chance.one_in(200)
            },
        };
        while !hand.has_crashed() && !shared_is_over(shared) {
            let passed = pipeline.pass(source.as_mut(), &mut publisher);
            if passed.is_err() && limits.exactly_once {
                publisher.abandon();
            }
            let mut world = hand.world();
            if !matches!(passed, Ok(Passed::Worked)) {
                world.clock += world.chance.below(60);
            }
            if world.is_done() {
                world.is_over = true;
            }
        }
    }
}

fn shared_is_over(shared: &Shared) -> bool {
    shared.world.lock().is_ok_and(|world| world.is_over)
}

/// Plays the history of a seed, and returns what happened, or what went wrong.
fn play(seed: u64, kind: Kind, mistake: Option<Mistake>) -> Result<Story, String> {
    let world = World::new(seed, kind);
    let workers = 1 + world.chance.below(4) as usize;
    let shared = Arc::new(Shared { world: Mutex::new(world), turns: Turns::of(workers), workers });
    let panicked = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..workers)
            .map(|worker| {
                let shared = shared.clone();
                let name = format!("seed {seed}, worker {worker}");
                let work = move || {
                    let _leaves = Leaves(&shared.turns, worker);
                    shared.turns.wait(worker);
                    work(&shared, worker, kind, mistake);
                };
                std::thread::Builder::new().name(name).spawn_scoped(scope, work).expect("a thread")
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().is_err()).fold(false, |any, panicked| any | panicked)
    });
    if panicked {
        return Err("a worker panicked".to_owned());
    }
    let world = shared.world.lock().map_err(|_| "a worker panicked".to_owned())?;
    world.verdict()?;
    let dead = world.database.rows.iter().filter(|row| row.dead_by.is_some()).count() as u64;
    let (stored, repeated) = (world.broker.stored, world.broker.repeated);
    Ok(Story { stored, repeated, faults: world.faults, dead, time: world.clock })
}

/// Gives the turn to somebody else, however the worker ends.
struct Leaves<'a>(&'a Turns, usize);

impl Drop for Leaves<'_> {
    fn drop(&mut self) {
        self.0.leave(self.1);
    }
}

/// Plays so many seeds from the first one on, on all processors. Returns what happened, or the lowest seed that failed and why.
fn play_all(
    first: u64,
    count: u64,
    kind: Option<Kind>,
    mistake: Option<Mistake>,
) -> Result<Story, (u64, String)> {
    let (next, all) = (AtomicU64::new(first), Mutex::new(Ok(Story::default())));
    let player = || {
        while let seed = next.fetch_add(1, Ordering::Relaxed)
            && seed < first + count
        {
            let played = play(seed, kind.unwrap_or_else(|| Kind::of(seed)), mistake);
            let mut all = all.lock().unwrap();
            match (&mut *all, played) {
                (Ok(all), Ok(story)) => all.add(story),
                (Err((failed, _)), _) if *failed < seed => break,
                (Err(_), Ok(_)) => {}
                (_, Err(wrong)) => *all = Err((seed, wrong)),
            }
        }
    };
    let processors = std::thread::available_parallelism().map_or(1, |processors| processors.get());
    std::thread::scope(|scope| {
        for _ in 0..processors {
            scope.spawn(player);
        }
    });
    all.into_inner().unwrap()
}

fn number(variable: &str, default: u64) -> u64 {
    let number = std::env::var(variable).ok();
    number.map_or(default, |number| number.parse().expect("a number"))
}

#[test]
fn whatever_fails_all_that_was_committed_arrives_in_order_and_nothing_else() {
    let (first, count) = (number("OUTBOX_SIMULATION_FIRST", 1), number("OUTBOX_SIMULATION_SEEDS", 200));
    let began = std::time::Instant::now();
    let story = play_all(first, count, None, None).unwrap_or_else(|(seed, wrong)| {
        panic!(
            "seed {seed} ({:?}): {wrong}\nrepeat it: OUTBOX_SIMULATION_FIRST={seed} OUTBOX_SIMULATION_SEEDS=1 cargo test --workspace \
             --all-features --lib whatever_fails_all",
            Kind::of(seed)
        )
    });
    println!("{count} seeds from {first} in {:.1?}: {story:?}", began.elapsed());
    // Without failures and repetitions, it would show nothing.
    if count >= 100 {
        assert!(story.stored > 10 * count && story.repeated > count && story.dead > count, "{story:?}");
        assert!(story.faults > count, "{story:?}");
    }
}

#[test]
fn a_seed_makes_the_same_history_each_time() {
    for seed in 1..=12 {
        let kind = Kind::of(seed);
        assert_eq!(play(seed, kind, None), play(seed, kind, None), "seed {seed}");
    }
}

/// Plays seeds on each of these sources until one of them goes wrong in this way.
fn is_found(mistake: Mistake, kinds: &[Kind], effect: &str) {
    for &kind in kinds {
        let goes_wrong =
            |seed: &u64| play(*seed, kind, Some(mistake)).is_err_and(|wrong| wrong.contains(effect));
        let seed = (1..=500).find(goes_wrong);
        assert!(seed.is_some(), "500 seeds do not find {mistake:?} on {kind:?}");
        println!("{mistake:?} on {kind:?} is found by seed {seed:?}");
    }
}

const NOT_ARRIVED: &str = "has not arrived";
const TWICE: &str = "settled by two passes";
const ARRIVED_LATE: &str = "first arrived after";
const ARRIVED_TWICE: &str = "arrived twice";
const NOT_SENT: &str = "not all is sent";
const HELD_BACK: &str = "held back";

#[test]
fn settling_before_the_acknowledgement_is_found_on_every_source() {
    is_found(Mistake::SettlesBeforeTheAcknowledgement, &Kind::AT_LEAST_ONCE, NOT_ARRIVED);
}

#[test]
fn settling_by_range_is_found_on_every_source() {
    is_found(Mistake::SettlesByRange, &Kind::AT_LEAST_ONCE, NOT_ARRIVED);
}

#[test]
fn a_bound_that_passes_a_late_commit_is_found() {
    is_found(Mistake::PassesLateCommits, &[Kind::Postgres, Kind::Mysql], NOT_SENT);
}

#[test]
fn a_shard_that_two_workers_have_is_found() {
    is_found(Mistake::SharesShards, &[Kind::Postgres, Kind::Mysql], TWICE);
}

#[test]
fn what_was_acknowledged_and_never_stored_is_found_without_the_gate() {
    is_found(Mistake::HasNoGate, &Kind::ALL, NOT_ARRIVED);
}

#[test]
fn what_overtakes_a_dead_letter_of_its_aggregate_is_found() {
    is_found(Mistake::HoldsNothingBack, &Kind::BLOCKING, ARRIVED_LATE);
}

#[test]
fn what_overtakes_a_requeued_record_that_the_relay_has_not_come_to_is_found() {
    is_found(Mistake::ForgetsWhatWasRequeued, &[Kind::WalBlocking], ARRIVED_LATE);
}

#[test]
fn an_aggregate_that_is_held_back_for_no_reason_is_found() {
    is_found(Mistake::KeepsWhatWasRequeued, &[Kind::WalBlocking], HELD_BACK);
}

#[test]
fn a_position_that_is_confirmed_too_early_is_found() {
    is_found(Mistake::ConfirmsWhatIsNotSettled, &[Kind::Wal], NOT_ARRIVED);
}

#[test]
fn a_publisher_that_another_one_does_not_fence_is_found() {
    is_found(Mistake::FencesNobody, &Kind::EXACTLY_ONCE, ARRIVED_TWICE);
}

#[test]
fn what_was_committed_and_not_settled_is_found_if_nobody_asks_for_it() {
    is_found(Mistake::ForgetsWhatWasCommitted, &Kind::EXACTLY_ONCE, ARRIVED_TWICE);
}

#[test]
fn a_commit_of_which_nobody_knows_the_outcome_is_found_if_it_counts_as_done() {
    is_found(Mistake::TakesSilenceForACommit, &Kind::EXACTLY_ONCE, NOT_ARRIVED);
}

#[test]
fn what_the_database_forgets_when_it_crashes_is_found_if_it_was_to_be_sent_once() {
    is_found(Mistake::SettlesLazily, &[Kind::PostgresExactlyOnce], ARRIVED_TWICE);
}

#[test]
fn a_transaction_that_does_not_wait_for_the_one_before_it_is_found() {
    is_found(Mistake::CommitsBesideTheLast, &Kind::EXACTLY_ONCE, ARRIVED_LATE);
}

#[test]
fn a_producer_that_is_not_fenced_because_another_one_is_is_found() {
    is_found(Mistake::FencesOneOfTwo, &Kind::EXACTLY_ONCE, ARRIVED_TWICE);
}
