//! Emitters at full speed while the way to the broker is narrow, so that a backlog grows. They must not notice, and the relay must not
//! grow. When the way is wide again, it catches up.

use std::thread;
use std::time::{Duration, Instant};

use diesel_outbox::Migrations;
use outbox_tests::{Database, Postgres, Proxy};

use super::{Overload, PEAK, count, megabytes, once, wait_until_all_is_sent};
use crate::latency::{emitter, percentiles};
use crate::relays::{relay_process, stop};
use crate::report::Figure;
use crate::rows::record;
use crate::servers::warm_kafka_with;
use crate::topics::new_topic;

const EMITTERS: usize = 2;
/// The way lets this part of what the emitters wrote before pass.
const NARROW: f64 = 0.25;
/// About how many bytes a record has besides its payload.
const BESIDES: usize = 100;
/// The emitters emit for this part of the time before the way becomes narrow.
const BEFORE: f64 = 0.2;
/// They take turns between the outbox and one that nobody relays, because a machine is not the same after ten minutes.
const TURN: Duration = Duration::from_secs(20);
const BESIDE: Duration = Duration::from_secs(5);

/// How long each transaction took, in their order.
#[derive(Default)]
struct Emitted {
    relayed: Vec<Duration>,
    beside: Vec<Duration>,
}

impl Overload {
    pub(super) fn slow_broker(&self, postgres: &Postgres) -> Vec<Figure> {
        let way = Proxy::open();
        let address = format!("PLAINTEXT://127.0.0.1:{}", way.port());
        let kafka =
            &warm_kafka_with(&[("advertised.listeners", &address)], |kafka| way.lead_to(kafka.brokers()));
        let databases = [postgres.database(), postgres.database()];
        for database in &databases {
            Migrations::new().run(&mut database.connect()).unwrap();
        }
        let [relayed, _] = &databases;
        let topic = new_topic(kafka);
        let counter = kafka.counter(&topic);
        let relay = relay_process(relayed.url(), kafka, &topic, &[]);
        let time = Duration::from_secs_f64(self.minutes * 60.0);

        let quick = self.emit_in_turns(&databases, time.mul_f64(BEFORE));
        wait_until_all_is_sent(relayed, &relay);
        let speed = quick.relayed.len() as f64 / relayed_seconds(time.mul_f64(BEFORE));
        way.limit((speed * NARROW * (self.bytes + BESIDES) as f64) as usize);
        let slow = self.emit_in_turns(&databases, time);
        let behind = count(&mut relayed.connect(), "outbox WHERE sent_at IS NULL");
        let peak_before = megabytes(relay.peak_resident_kb());
        way.heal();
        let began = Instant::now();
        wait_until_all_is_sent(relayed, &relay);
        let caught_up = began.elapsed().as_secs_f64();
        let emitted = quick.relayed.len() + slow.relayed.len();
        let twice = counter.count() as f64 - emitted as f64;
        let peak = megabytes(relay.peak_resident_kb());
        stop(&relay);

        let quarter = slow.relayed.len() / 4;
        let (first, last) = (&slow.relayed[..quarter], &slow.relayed[slow.relayed.len() - quarter..]);
        let of = |emitted: &[Duration]| percentiles(emitted.iter().copied());
        let ([quick_p50, quick_p99], [slow_p50, slow_p99]) = (of(&quick.relayed), of(&slow.relayed));
        let [beside_p50, beside_p99] = of(&slow.beside);
        let ([_, first_p99], [_, last_p99]) = (of(first), of(last));
        let named = |name: &str| format!("slow broker: {name}");
        vec![
            once(&named("emitted"), "events/s", slow.relayed.len() as f64 / relayed_seconds(time)),
            once(&named("emit, p50 while it is quick"), "ms", quick_p50),
            once(&named("emit, p50"), "ms", slow_p50),
            once(&named("emit, p50 without a relay"), "ms", beside_p50),
            once(&named("emit, p99 while it is quick"), "ms", quick_p99),
            once(&named("emit, p99"), "ms", slow_p99),
            once(&named("emit, p99 without a relay"), "ms", beside_p99),
            once(&named("emit, p50 / without a relay"), "ratio", slow_p50 / beside_p50).at_most(1.10),
            once(&named("emit, p99 / without a relay"), "ratio", slow_p99 / beside_p99).at_most(1.25),
            once(&named("emit, p99 / while it is quick"), "ratio", slow_p99 / quick_p99).at_most(1.25),
            once(&named("emit, p99 of the last quarter / the first"), "ratio", last_p99 / first_p99)
                .at_most(1.25),
            once(&named("peak of the relay while the backlog grows"), "MB", peak_before).below(PEAK),
            once(&named("peak of the relay"), "MB", peak).below(PEAK),
            once(&named("unsent when the emitters stop"), "events", behind as f64),
            once(&named("all sent after"), "s", caught_up),
            once(&named("speed of catching up"), "events/s", behind as f64 / caught_up),
            once(&named("sent twice"), "events", twice).at_most(0.0),
        ]
    }

    /// Emits into the outbox that is relayed, and for a while into the other, in turn.
    fn emit_in_turns(&self, [relayed, beside]: &[Database<'_>; 2], time: Duration) -> Emitted {
        let (mut emitted, until) = (Emitted::default(), Instant::now() + time);
        while Instant::now() < until {
            emitted.relayed.extend(self.emit_for(relayed, TURN));
            emitted.beside.extend(self.emit_for(beside, BESIDE));
        }
        emitted
    }

    /// Returns how long each transaction took, in their order.
    fn emit_for(&self, database: &Database<'_>, time: Duration) -> Vec<Duration> {
        let emit_until = |first: usize| {
            let mut emit = emitter(database);
            let (until, mut took) = (Instant::now() + time, Vec::new());
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

/// Returns for how long the emitters emit into the outbox that is relayed.
fn relayed_seconds(time: Duration) -> f64 {
    let turns = (time.as_secs_f64() / (TURN + BESIDE).as_secs_f64()).ceil();
    turns * TURN.as_secs_f64()
}
