//! Whoever can connect can take the locks by which relays agree who looks. Nobody else may suffer from that.

use std::time::Duration;

use diesel::connection::SimpleConnection;
use diesel::prelude::*;
use diesel_outbox::Emit;
use diesel_outbox_relay::{Kafka as Broker, Relay};
use outbox_tests::load::migrated;
use outbox_tests::{Kafka, Mariadb, Tables, eventually, migrated_mariadb};

use super::{PATIENCE, record, relay};

#[test]
fn a_stranger_who_holds_the_advisory_locks_does_not_stop_the_relay() {
    let database = migrated();
    let conn = &mut database.connect();
    let role = format!("{}_stranger", database.name());
    conn.batch_execute(&format!("CREATE ROLE {role} LOGIN PASSWORD 'stranger'")).unwrap();
    let mut stranger = PgConnection::establish(&database.url_as(&role, "stranger")).unwrap();
    let oid = database.number("SELECT 'outbox'::regclass::oid::bigint");
    for key in 1_869_968_482..1_869_968_487 {
        stranger.batch_execute(&format!("SELECT pg_advisory_lock({key}, {oid})")).unwrap();
    }
    conn.batch_execute(
        "INSERT INTO outbox (id, aggregatetype, aggregateid, type, shard, sent_at) \
         VALUES (gen_random_uuid(), 'order', 'old', 'Sent', 0, now() - interval '1 day')",
    )
    .unwrap();
    let topic = Kafka::shared().unique("stranger");
    let relay = Relay::postgres(database.url())
        .broker(Broker::new(Kafka::shared().brokers()))
        .topic_naming(topic.parse().unwrap())
        .poll_interval(Duration::from_secs(3_600))
        .keep_sent(Duration::ZERO)
        .spawn()
        .unwrap();
    for count in 1..=3 {
        conn.transaction(|c| c.emit(&record("Sent"))).unwrap();
        Kafka::shared().read_at_least(&topic, count, PATIENCE);
        let quiet = "pg_stat_activity WHERE application_name = 'outbox relay' \
                     AND datname = current_database() AND state = 'idle' \
                     AND state_change < clock_timestamp() - interval '150 ms'";
        eventually("the relay to be quiet", PATIENCE, || (database.count(quiet) == 1).then_some(()));
    }
    eventually("what was sent long ago to be pruned", PATIENCE, || {
        (database.count("outbox WHERE aggregateid = 'old'") == 0).then_some(())
    });
    drop(stranger);
    drop(relay);
    eventually("the role to be free", PATIENCE, || conn.batch_execute(&format!("DROP ROLE {role}")).ok());
}

/// Its events wait for a few seconds after a silence, because nobody leads.
#[test]
fn a_stranger_who_holds_the_leaders_lock_does_not_stop_the_relay() {
    let database = migrated_mariadb();
    let conn = &mut database.connect();
    let role = format!("{}_stranger", database.name());
    conn.batch_execute(&format!("CREATE USER {role} IDENTIFIED BY 'stranger'")).unwrap();
    let (_, server) = Mariadb::shared().url().rsplit_once('@').unwrap();
    let mut stranger = MysqlConnection::establish(&format!("mysql://{role}:stranger@{server}")).unwrap();
    let name = database.name();
    stranger
        .batch_execute(&format!(
            "DO GET_LOCK(CONCAT('outbox_', LEFT('{name}', 36), '_', CRC32('{name}'), '_leader'), 0)"
        ))
        .unwrap();
    let topic = Kafka::shared().unique("stranger");
    let relay = relay(&database, &topic);
    // The first one comes at once. Before the second one, the relay stands by.
    for count in 1..=2 {
        conn.transaction(|c| c.emit(&record("Sent"))).unwrap();
        Kafka::shared().read_at_least(&topic, count, PATIENCE);
        eventually("the relay to stand by", PATIENCE, || {
            let working = "(SELECT IS_USED_LOCK(CONCAT('outbox_', LEFT(DATABASE(), 36), '_', CRC32(DATABASE()), '_w0')) AS id) AS w";
            (database.count(&format!("{working} WHERE id IS NOT NULL")) == 0).then_some(())
        });
    }
    drop(stranger);
    drop(relay);
    conn.batch_execute(&format!("DROP USER {role}")).unwrap();
}
