//! Payloads of 0 bytes, and of as many as the broker takes: what is larger becomes a dead letter, and nothing else does.

use std::collections::BTreeSet;

use diesel::dsl::sql;
use diesel::prelude::*;
use diesel::sql_types::Integer;
use diesel_outbox::{Emit, Migrations, Record};
use outbox_tests::{Kafka, Postgres};

use super::{Overload, once, wait_until_all_is_sent};
use crate::relays::{relay_process, stop};
use crate::report::Figure;

/// The sizes near a limit: so many on each side, in these steps.
const NEAR: usize = 40;
const STEP: usize = 25;
const EMPTY: usize = 1_000;

impl Overload {
    pub(super) fn payloads(&self, postgres: &Postgres, kafka: &Kafka) -> Vec<Figure> {
        // Of a topic, and of librdkafka by default.
        [100_000, 1_000_000].into_iter().flat_map(|limit| near(limit, postgres, kafka)).collect()
    }
}

fn near(limit: usize, postgres: &Postgres, kafka: &Kafka) -> Vec<Figure> {
    let database = postgres.database();
    let conn = &mut database.connect();
    Migrations::new().run(conn).unwrap();
    let topic = kafka.unique("payloads");
    kafka.create_topic_with(&topic, 3, &[("max.message.bytes", &limit.to_string())]);
    let largest = limit + NEAR * STEP;
    let sizes: BTreeSet<usize> = (0..=2 * NEAR).map(|n| largest - n * STEP).collect();
    conn.transaction(|c| {
        for (n, size) in sizes.iter().copied().chain([0; EMPTY]).enumerate() {
            c.emit(&Record::new("order", n.to_string(), "OrderPlaced").with_payload(vec![b'x'; size]))?;
        }
        QueryResult::Ok(())
    })
    .unwrap();
    let relay = relay_process(database.url(), kafka, &topic, &[]);
    wait_until_all_is_sent(&database, &relay);
    stop(&relay);
    let mut sizes_in = |from: &str| -> Vec<i32> {
        sql::<Integer>(&format!("SELECT length(payload) FROM {from} ORDER BY 1")).load(conn).unwrap()
    };
    let (sent, refused) = (sizes_in("outbox"), sizes_in("outbox_dead_letter"));
    let (largest, smallest) = (sent.last().copied().unwrap_or(0), refused.first().copied().unwrap_or(0));
    let lost = (sizes.len() + EMPTY) as f64 - (kafka.counter(&topic).count() + refused.len()) as f64;
    let empty = sent.iter().filter(|&&size| size == 0).count();
    let named = |name: &str| format!("payloads, limit of {limit}: {name}");
    vec![
        once(&named("largest sent"), "bytes", f64::from(largest)),
        once(&named("smallest refused"), "bytes", f64::from(smallest)),
        once(&named("between them"), "bytes", f64::from(smallest - largest)).at_most(STEP as f64),
        once(&named("sent of 0 bytes"), "events", empty as f64).at_least(EMPTY as f64),
        once(&named("neither sent nor refused"), "events", lost).at_most(0.0),
    ]
}
