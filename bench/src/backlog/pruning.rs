//! What pruning costs a relay that drains, and whether pruning keeps up.

use std::time::Duration;

use diesel::dsl::sql;
use diesel::prelude::*;
use diesel::sql_types::BigInt;
use diesel_outbox_relay::Relay;
use outbox_tests::Kafka;

use crate::contenders::{Contender, take_turns};
use crate::relays::drain_batches;
use crate::report::Figure;
use crate::rows::Template;

/// How many rows were sent before.
const SENT: usize = 1_000_000;
const BATCHES: usize = 5;
const DRAINED: usize = 100_000;

pub(super) fn figures(rounds: usize, kafka: &Kafka, template: &Template<'_>) -> Vec<Figure> {
    // They were sent a minute ago.
    let measured = take_turns(
        rounds,
        vec![
            Contender::new("nothing expired", || {
                work(kafka, template, |relay| relay.keep_sent(Duration::from_secs(3_600)))
            }),
            Contender::new("all expired", || {
                work(kafka, template, |relay| relay.keep_sent(Duration::from_secs(1)))
            }),
        ],
    );
    let [[speed, _], [pruning_speed, pruned]]: [_; 2] = measured.try_into().unwrap();
    let speed = Figure::new("drained beside sent rows", "events/s", speed);
    let pruning_speed = Figure::new("drained while sent rows are pruned", "events/s", pruning_speed);
    vec![
        Figure::ratio("drained, sent rows pruned / kept", &pruning_speed, &speed).at_least(0.95),
        Figure::new("rows pruned for each that is drained", "", pruned).at_least(1.0),
        speed,
        pruning_speed,
    ]
}

/// Returns the speed of draining, and how many rows were pruned for each that was drained.
pub(crate) fn work(kafka: &Kafka, template: &Template<'_>, options: impl FnOnce(Relay) -> Relay) -> [f64; 2] {
    template.empty();
    template.append_sent(SENT);
    template.vacuum();
    let speed = drain_batches(template, kafka, options, BATCHES, DRAINED);
    let rows = diesel::select(sql::<BigInt>("(SELECT count(*) FROM outbox)"));
    let left: i64 = rows.get_result(&mut template.database.connect()).unwrap();
    let drained = BATCHES * DRAINED;
    [speed, (SENT + drained).saturating_sub(left.unsigned_abs() as usize) as f64 / drained as f64]
}
