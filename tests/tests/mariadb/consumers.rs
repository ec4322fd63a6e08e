//! From a table to effects on the same server.

use std::time::Duration;

use diesel::connection::SimpleConnection;
use diesel::prelude::*;
use diesel_async::AsyncMysqlConnection;
use diesel_outbox_kafka::consumer::Consumer;
use diesel_outbox_relay::{Kafka as Broker, Relay};
use outbox_tests::load::new_topic;
use outbox_tests::{Kafka, Mariadb, eventually};
use tokio::runtime::Runtime;

use super::{count, emit, migrated_on};

const PATIENCE: Duration = Duration::from_secs(60);

suite!(events_go_to_consumers_on_the_same_server_and_take_effect_once);

/// The same event comes to both consumers twice.
fn events_go_to_consumers_on_the_same_server_and_take_effect_once(server: &'static Mariadb) {
    let database = migrated_on(server);
    let conn = &mut database.connect();
    conn.batch_execute("CREATE TABLE effect (consumer text, event text)").unwrap();
    let topic = new_topic("mariadb-consumer");
    let relay = Relay::mysql(database.url())
        .broker(Broker::new(Kafka::shared().brokers()))
        .topic_naming(topic.parse().unwrap())
        .spawn()
        .unwrap();
    emit(conn, 0..50);
    eventually("everything to be sent", PATIENCE, || {
        (count(conn, "outbox WHERE sent_at IS NULL") == 0).then_some(())
    });
    // As if a relay had crashed before it settled.
    conn.batch_execute("UPDATE outbox SET sent_at = NULL; UPDATE outbox_shard SET sent_through = 0").unwrap();
    eventually("everything to be sent again", PATIENCE, || {
        (Kafka::shared().counter(&topic).count() == 100).then_some(())
    });
    relay.stop_blocking().unwrap();

    let effect = |consumer: &str, event: &str| format!("INSERT INTO effect VALUES ('{consumer}', '{event}')");
    let group = |name| Kafka::shared().unique(name);
    let blocking = Consumer::<MysqlConnection>::new(Kafka::shared().brokers(), group("blocking"))
        .database_url(database.url())
        .topics([&topic])
        .on_other(move |c, event| Ok(c.batch_execute(&effect("blocking", event.event_type()))?))
        .spawn()
        .unwrap();
    // It keeps the runtime in which it is started.
    let runtime = Runtime::new().unwrap();
    let entered = runtime.enter();
    let asynchronous = Consumer::<AsyncMysqlConnection>::new_async(Kafka::shared().brokers(), group("async"))
        .database_url(database.url())
        .topics([&topic])
        .on_other(async move |c, event| {
            let insert = effect("async", event.event_type());
            diesel_async::RunQueryDsl::execute(diesel::sql_query(insert), c).await?;
            Ok(())
        })
        .spawn()
        .unwrap();
    drop(entered);
    eventually("all effects", PATIENCE, || (count(conn, "effect") >= 100).then_some(()));
    eventually("all marks", PATIENCE, || (count(conn, "inbox") == 100).then_some(()));
    blocking.stop_blocking().unwrap();
    asynchronous.stop_blocking().unwrap();
    assert_eq!(count(conn, "effect"), 100);
    assert_eq!(count(conn, "(SELECT DISTINCT consumer, event FROM effect) AS different"), 100);
}
