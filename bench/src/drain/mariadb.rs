//! The same on MariaDB. Debezium reads the binlog.

use std::time::{Duration, Instant};

use diesel::dsl::sql;
use diesel::prelude::*;
use diesel::sql_types::{BigInt, Bool};
use diesel_outbox_relay::Relay;
use outbox_tests::artifacts::DEBEZIUM_FOR_MARIADB;
use outbox_tests::{BinlogDebezium, Connect, Kafka, MariadbDatabase, eventually};

use super::{Drain, TRANSACTION, resume_and_drain};
use crate::contenders::{Contender, take_turns};
use crate::mariadb::{CONDITIONS, Template, relay, start_mariadb};
use crate::producer::produce;
use crate::relays::binary;
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
        // Debezium reads the binlog of a server of its own, so that it need not read what the relay does to the table.
        let start_servers = || (start_mariadb(), BinlogDebezium::start_connect_for_benchmark(&kafka));
        let servers = (!self.without_debezium).then(start_servers);
        let for_debezium = servers.as_ref().map(|(mariadb, connect)| (mariadb.database(), connect));
        let topic = new_topic(&kafka);
        let debezium = for_debezium.as_ref().map(|(database, connect)| {
            let template = Template::new(database, &records);
            (template, connect, start_debezium(database, connect, &kafka, &topic))
        });
        let names = ["bare producer", "relay, sent_at kept", "relay, delete", "Debezium"];
        let mut contenders = vec![
            Contender::new(names[0], || [produce(&kafka, &records)]),
            Contender::new(names[1], || drain(|relay| relay)),
            Contender::new(names[2], || drain(Relay::delete_sent)),
        ];
        if let Some((template, connect, _)) = &debezium {
            let (kafka, topic) = (&kafka, &topic);
            contenders.push(Contender::new(names[3], move || {
                let before = kafka.counter(topic).count();
                template.empty();
                template.append_in_transactions(TRANSACTION);
                [resume_and_drain(**connect, kafka, topic, before, self.rows)]
            }));
        }
        let speeds = Figure::speeds(take_turns(rounds, contenders), names);
        let mut figures = vec![
            Figure::ratio("sent_at kept / bare producer", &speeds[1], &speeds[0]).at_least(0.45),
            Figure::ratio("delete / bare producer", &speeds[2], &speeds[0]).at_least(0.45),
        ];
        if let Some(debezium) = speeds.get(3) {
            figures.push(Figure::ratio("sent_at kept / Debezium", &speeds[1], debezium).at_least(2.0));
        }
        figures.extend(speeds);
        Report {
            benchmark: "drain --database mariadb".into(),
            conditions: format!(
                "{} rows, {} bytes of payload, {} worker(s), `batch_size` {}, `max_in_flight` {}, passes of {} ms; \
                 {CONDITIONS}; Debezium {DEBEZIUM_FOR_MARIADB} has a server of its own, on which the rows are inserted in \
                 transactions of {TRANSACTION}",
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

/// Starts Debezium where the binlog ends, as `outbox debezium` sets it up, and freezes it. Its configuration is made for speed: it
/// polls every 5 ms, takes large batches, and its producer is set as the relay's.
fn start_debezium<'a>(
    database: &'a MariadbDatabase<'a>,
    connect: &'a Connect,
    kafka: &Kafka,
    topic: &str,
) -> BinlogDebezium<'a> {
    // When it is thawed, it would otherwise take the silence for the loss of its connection, and read part of the binlog again. To
    // count the queue's bytes takes time.
    let debezium = BinlogDebezium::prepared_by(binary().clone(), database, kafka, topic)
        .with("connect.keep.alive", "false")
        .with("max.queue.size.in.bytes", "0")
        .on(connect);
    debezium.begin(&debezium.offset());
    let conn = &mut database.connect();
    eventually("Debezium to read the binlog", PATIENCE, || {
        let readers = "SELECT count(*) FROM information_schema.processlist WHERE command = 'Binlog Dump'";
        (sql::<BigInt>(readers).get_result::<i64>(conn).unwrap() == 1).then_some(())
    });
    connect.freeze();
    debezium
}
