//! Emitters at full speed while the broker is slow. They must not notice, and the relay must not grow.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use diesel_outbox::Migrations;
use outbox_tests::{Database, Kafka, Postgres, eventually};

use super::{Overload, PEAK, count, megabytes, once, wait_until_all_is_sent};
use crate::latency::{emitter, percentiles};
use crate::relays::{relay_process, stop};
use crate::report::Figure;
use crate::rows::record;
use crate::servers::PATIENCE;
use crate::topics::new_topic;

const EMITTERS: usize = 2;
/// The broker is frozen for most of the time.
const FROZEN: Duration = Duration::from_millis(190);
const AWAKE: Duration = Duration::from_millis(10);
/// The emitters emit for this part of the time before the broker becomes slow.
const BEFORE: f64 = 0.2;

impl Overload {
    pub(super) fn slow_broker(&self, postgres: &Postgres, kafka: &Kafka) -> Vec<Figure> {
        let database = postgres.database();
        Migrations::new().run(&mut database.connect()).unwrap();
        let topic = new_topic(kafka);
        let counter = kafka.counter(&topic);
        let relay = relay_process(database.url(), kafka, &topic, &[]);
        let time = Duration::from_secs_f64(self.minutes * 60.0);

        let quick = self.emit_for(&database, time.mul_f64(BEFORE));
        let caught_up = || (counter.count() >= quick.len()).then_some(());
        eventually("the events from before", PATIENCE, caught_up);
        let done = AtomicBool::new(false);
        let slow = thread::scope(|scope| {
            scope.spawn(|| freeze_again_and_again(kafka, &done));
            let slow = self.emit_for(&database, time);
            done.store(true, Ordering::Relaxed);
            slow
        });
        let (emitted, began) = (quick.len() + slow.len(), Instant::now());
        let behind = count(&mut database.connect(), "outbox WHERE sent_at IS NULL");
        wait_until_all_is_sent(&database, &relay);
        let caught_up = began.elapsed().as_secs_f64();
        let twice = counter.count() as f64 - emitted as f64;
        let peak = megabytes(relay.peak_resident_kb());
        stop(&relay);

        let (first, last) = (&slow[..slow.len() / 4], &slow[slow.len() - slow.len() / 4..]);
        let [quick_p50, quick_p99] = percentiles(quick.iter().copied());
        let [slow_p50, slow_p99] = percentiles(slow.iter().copied());
        let ([_, first_p99], [_, last_p99]) =
            (percentiles(first.iter().copied()), percentiles(last.iter().copied()));
        vec![
            once("slow broker: emitted", "events/s", slow.len() as f64 / time.as_secs_f64()),
            once("slow broker: emit, p50 before", "ms", quick_p50),
            once("slow broker: emit, p50", "ms", slow_p50),
            once("slow broker: emit, p99 before", "ms", quick_p99),
            once("slow broker: emit, p99", "ms", slow_p99),
            once("slow broker: emit, p50 / before", "ratio", slow_p50 / quick_p50).at_most(1.10),
            once("slow broker: emit, p99 / before", "ratio", slow_p99 / quick_p99).at_most(1.25),
            once("slow broker: emit, p99 of the last quarter / the first", "ratio", last_p99 / first_p99)
                .at_most(1.25),
            once("slow broker: peak of the relay", "MB", peak).below(PEAK),
            once("slow broker: unsent when the emitters stop", "events", behind as f64),
            once("slow broker: all sent after", "s", caught_up),
            once("slow broker: sent twice", "events", twice).at_most(0.0),
        ]
    }

    /// Returns how long each transaction took, in their order.
    fn emit_for(&self, database: &Database<'_>, time: Duration) -> Vec<Duration> {
        let until = Instant::now() + time;
        let emit_until = |first: usize| {
            let mut emit = emitter(database);
            let mut took = Vec::new();
            for number in (first..).step_by(EMITTERS) {
                let began = Instant::now();
                if began >= until {
                    break;
                }
                emit(&[record(number, self.bytes)]);
                took.push((began, began.elapsed()));
            }
            took
        };
        let mut took: Vec<(Instant, Duration)> = thread::scope(|scope| {
            let emitters: Vec<_> =
                (0..EMITTERS).map(|first| scope.spawn(move || emit_until(first))).collect();
            emitters.into_iter().flat_map(|emitter| emitter.join().unwrap()).collect()
        });
        took.sort_unstable();
        took.into_iter().map(|(_, took)| took).collect()
    }
}

fn freeze_again_and_again(kafka: &Kafka, done: &AtomicBool) {
    while !done.load(Ordering::Relaxed) {
        kafka.pause();
        thread::sleep(FROZEN);
        kafka.resume();
        thread::sleep(AWAKE);
    }
}
