//! What a transaction costs that has emitted and stays open while millions of events are sent.

use diesel::connection::{AnsiTransactionManager, TransactionManager};
use diesel_outbox::Emit;
use outbox_tests::{Kafka, eventually};

use crate::contenders::{Contender, take_turns};
use crate::latency::{Latency, MODERATE, emitter};
use crate::relays::{Window, relay};
use crate::report::Figure;
use crate::rows::{Template, record};
use crate::servers::{DatabaseKind, PATIENCE};
use crate::topics::new_topic;

/// How many events are sent while it is open, and how many are drained after them.
const SENT: usize = 2_000_000;
const DRAINED: usize = 250_000;
const SECONDS: u64 = 10;

pub(super) fn figures(rounds: usize, bytes: usize, kafka: &Kafka, template: &Template<'_>) -> Vec<Figure> {
    let work = |is_open| work(bytes, kafka, template, is_open);
    let measured = take_turns(
        rounds,
        vec![
            Contender::new("no writer open", || work(false)),
            Contender::new("a writer open", || work(true)),
        ],
    );
    let [[p50, speed], [open_p50, open_speed]]: [_; 2] = measured.try_into().unwrap();
    let name = |what: &str, whether: &str| format!("{what} after {SENT} sent events, {whether}");
    let figures = |whether, p50, speed| {
        (
            Figure::new(name("500/s: p50", whether), "ms", p50),
            Figure::new(name("drained", whether), "events/s", speed),
        )
    };
    let (p50, speed) = figures("no writer open", p50, speed);
    let (open_p50, open_speed) = figures("a writer open", open_p50, open_speed);
    vec![
        Figure::ratio("p50, a writer open / none", &open_p50, &p50).at_most(2.0),
        Figure::ratio("drained, a writer open / none", &open_speed, &speed).at_least(0.9),
        p50,
        open_p50,
        speed,
        open_speed,
    ]
}

/// Returns the median latency, and the speed of draining a batch.
fn work(bytes: usize, kafka: &Kafka, template: &Template<'_>, is_open: bool) -> [f64; 2] {
    template.empty();
    let mut writer = template.database.connect();
    if is_open {
        AnsiTransactionManager::begin_transaction(&mut writer).unwrap();
        writer.emit(&record(0, bytes)).unwrap();
    }
    let topic = new_topic(kafka);
    let counter = kafka.counter(&topic);
    let relay = relay(template.database, kafka, &topic).spawn().unwrap();
    template.append_many(SENT);
    eventually("all events", PATIENCE, || (counter.count() >= SENT).then_some(()));
    let latency = Latency { seconds: SECONDS, bytes, database: DatabaseKind::Postgres, postgres: 0 };
    let [p50, ..] = latency.measure(kafka, &topic, MODERATE, None, &|| emitter(template.database));
    let before = counter.count();
    template.append_many(DRAINED);
    let speed = Window::speed(&[Window::watch(&counter, before, DRAINED, PATIENCE)]);
    relay.stop_blocking().unwrap();
    [p50, speed]
}
