//! The place of the transactions: a database with both tables, and a relay if one is wanted.

use std::time::Duration;

use diesel::connection::SimpleConnection;
use diesel::dsl::sql;
use diesel::prelude::*;
use diesel::sql_types::{Bool, Text};
use diesel_outbox::{Emit, Migrations};
use diesel_outbox_relay::RelayHandle;
use outbox_tests::{Database, Kafka, eventually};

use super::clients::How;
use super::tables;
use crate::relays::relay;
use crate::rows::record;
use crate::topics::new_topic;

pub(super) struct Ground<'a> {
    pub(super) database: &'a Database<'a>,
    kafka: &'a Kafka,
    topic: String,
}

impl<'a> Ground<'a> {
    pub(super) fn new(database: &'a Database<'a>, kafka: &'a Kafka) -> Self {
        let conn = &mut database.connect();
        Migrations::new().run(conn).unwrap();
        conn.batch_execute(tables::CREATE_ORDERS).unwrap();
        Self { database, kafka, topic: new_topic(kafka) }
    }

    /// Measures on empty tables, just after a checkpoint.
    pub(super) fn alone(&'a self, measure: impl Fn(How) -> f64 + 'a) -> impl Fn(How) -> f64 + 'a {
        move |how| {
            let conn = &mut self.database.connect();
            conn.batch_execute("TRUNCATE orders, outbox").unwrap();
            conn.batch_execute("CHECKPOINT").unwrap();
            measure(how)
        }
    }

    /// Measures the same while a relay drains the outbox. A plain insert does not wake the relay, so it looks by itself at short
    /// intervals. It has as much to do then as with emits.
    pub(super) fn beside_relay(&'a self, measure: impl Fn(How) -> f64 + 'a) -> impl Fn(How) -> f64 + 'a {
        self.alone(move |how| {
            let relay = self.relay();
            self.wait_until_it_sends();
            let measured = measure(how);
            relay.stop_blocking().unwrap();
            measured
        })
    }

    fn relay(&self) -> RelayHandle {
        let relay = relay(self.database, self.kafka, &self.topic);
        relay.poll_interval(Duration::from_millis(100)).spawn().unwrap()
    }

    fn wait_until_it_sends(&self) {
        let conn = &mut self.database.connect();
        conn.transaction(|c| c.emit(&record(0, 0))).unwrap();
        eventually("the relay to be at work", Duration::from_secs(30), || {
            let sent = "SELECT EXISTS (SELECT FROM outbox WHERE sent_at IS NOT NULL)";
            sql::<Bool>(sent).get_result::<bool>(conn).unwrap().then_some(())
        });
    }

    /// Returns the server's settings of durability.
    pub(super) fn settings(&self) -> String {
        let conn = &mut self.database.connect();
        let setting = |name: &str| {
            let value: String = sql::<Text>("SELECT current_setting(")
                .bind::<Text, _>(name)
                .sql(")")
                .get_result(conn)
                .unwrap();
            format!("{name} {value}")
        };
        ["fsync", "synchronous_commit", "wal_level"].map(setting).join(", ")
    }
}
