//! The same on MariaDB.

use std::time::{Duration, Instant};

use diesel::dsl::sql;
use diesel::prelude::*;
use diesel::sql_types::Bool;
use diesel_outbox_relay::Relay;
use outbox_tests::{Kafka, MariadbDatabase, eventually};

use super::Drain;
use crate::contenders::{Contender, take_turns};
use crate::mariadb::{Template, relay, start_mariadb};
use crate::producer::produce;
use crate::report::{Figure, Report};
use crate::rows::records;
use crate::servers::{PATIENCE, warm_kafka};
use crate::topics::new_topic;

impl Drain {
    pub(super) fn run_on_mariadb(&self, rounds: usize) -> Report {
        let (mariadb, kafka) = (start_mariadb(), warm_kafka());
        let database = mariadb.database();
        let records = records(self.rows, self.bytes);
        let template = Template::new(&database, &records);
        let drain = |options: fn(Relay) -> Relay| {
            template.refill();
            [self.drain_mariadb(&database, &kafka, options)]
        };
        let names = ["bare producer", "relay, sent_at kept", "relay, delete"];
        let contenders = vec![
            Contender::new(names[0], || [produce(&kafka, &records)]),
            Contender::new(names[1], || drain(|relay| relay)),
            Contender::new(names[2], || drain(Relay::delete_sent)),
        ];
        let speeds: Vec<Figure> = take_turns(rounds, contenders)
            .into_iter()
            .zip(names)
            .map(|([values], name)| Figure::new(name, "events/s", values))
            .collect();
        let mut figures = vec![
            Figure::ratio("sent_at kept / bare producer", &speeds[1], &speeds[0]).at_least(0.45),
            Figure::ratio("delete / bare producer", &speeds[2], &speeds[0]).at_least(0.45),
        ];
        figures.extend(speeds);
        Report {
            benchmark: "drain on MariaDB".into(),
            conditions: format!(
                "{} rows, {} bytes of payload, {} worker(s), `batch_size` {}, `max_in_flight` {}, passes of {} ms, MariaDB with \
                 the binary log on",
                self.rows, self.bytes, self.workers, self.batch_size, self.max_in_flight, self.pass_ms
            ),
            figures,
        }
    }

    fn drain_mariadb(
        &self,
        database: &MariadbDatabase<'_>,
        kafka: &Kafka,
        options: fn(Relay) -> Relay,
    ) -> f64 {
        let topic = new_topic(kafka);
        let counter = kafka.counter(&topic);
        let relay = relay(database, kafka, &topic)
            .workers(self.workers)
            .batch_size(self.batch_size)
            .max_in_flight(self.max_in_flight)
            .max_pass_duration(Duration::from_millis(self.pass_ms));
        let conn = &mut database.connect();
        let unsettled = "SELECT EXISTS (SELECT 1 FROM (SELECT sent_at FROM outbox ORDER BY seq DESC LIMIT 20000) AS last \
                         WHERE sent_at IS NULL)";
        let began = Instant::now();
        let handle = options(relay).spawn().unwrap();
        eventually("the relay to publish and settle all", PATIENCE, || {
            let all_came = counter.count() >= self.rows;
            (all_came && !sql::<Bool>(unsettled).get_result::<bool>(conn).unwrap()).then_some(())
        });
        let speed = self.rows as f64 / began.elapsed().as_secs_f64();
        handle.stop_blocking().unwrap();
        speed
    }
}
