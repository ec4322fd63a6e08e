//! How a consumer starts, and the ways in which it ends.

use std::future::pending;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use diesel::connection::SimpleConnection;
use diesel::prelude::*;
use diesel::r2d2::{ConnectionManager, Pool, PooledConnection};
use diesel_async::AsyncPgConnection;
use diesel_outbox_kafka::consumer::{Consumer, ConsumerError, HandlerError, Received};
use futures_executor::block_on;
use outbox_tests::{Folder, Kafka, Mariadb, Postgres, Server, eventually, logged, start_logging};

use super::bench::{Bench, PATIENCE, Sent, insert_effect, insert_effect_async};

#[test]
fn a_consumer_whose_inbox_is_missing_ends_at_once_with_an_error_that_says_what_to_do() {
    start_logging();
    let database = Postgres::shared().database();
    let (brokers, name) = (Kafka::shared().brokers(), Kafka::shared().unique("billing"));
    let consumer = || {
        let consumer = Consumer::<PgConnection>::new(brokers, &name).database_url(database.url());
        consumer.topics(["order"]).on_other(|_, _| Ok(()))
    };
    let error = block_on(consumer().run(pending())).unwrap_err();
    assert!(matches!(error, ConsumerError::NoInbox));
    assert!(error.to_string().contains("`diesel_outbox_kafka::Migrations::inbox_only().run(..)`"), "{error}");
    let line = logged(&["ERROR", &name]).expect("no error was logged");
    assert!(line.contains("no table `inbox`"), "{line}");

    let handle = consumer().spawn().unwrap();
    eventually("the end", PATIENCE, || handle.is_finished().then_some(()));
    assert!(matches!(handle.stop_blocking(), Err(ConsumerError::NoInbox)));

    diesel_outbox_kafka::Migrations::inbox_only().run(&mut database.connect()).unwrap();
    let handle = consumer().spawn().unwrap();
    eventually("the connection", PATIENCE, || logged(&["connected to the database", &name]));
    handle.stop_blocking().unwrap();
}

#[tokio::test]
async fn a_consumer_on_diesel_async_whose_inbox_is_missing_ends_too() {
    let database = Postgres::shared().database();
    let consumer = Consumer::<AsyncPgConnection>::new_async(Kafka::shared().brokers(), "billing");
    let consumer = consumer.database_url(database.url()).topics(["order"]).on_other(async |_, _| Ok(()));
    assert!(matches!(consumer.run(pending()).await, Err(ConsumerError::NoInbox)));
}

#[test]
fn a_consumer_on_sqlite_whose_inbox_is_missing_ends_too() {
    let consumer = Consumer::<SqliteConnection>::new("127.0.0.1:1", "billing").database_url(":memory:");
    let consumer = consumer.topics(["order"]).on_other(|_, _| Ok(()));
    assert!(matches!(block_on(consumer.run(pending())), Err(ConsumerError::NoInbox)));
}

#[test]
fn a_consumer_finds_its_inbox_in_the_schema_that_it_is_given() {
    let bench = Bench::new(1);
    let mut conn = bench.database.connect();
    conn.batch_execute(
        "create schema \"it's\"; grant usage on schema \"it's\" to public; alter table inbox set schema \"it's\"",
    )
    .unwrap();
    bench.send([(0, &Sent::new("a"))]);
    let consumer = || bench.consumer().on("Counted", insert_effect);
    assert!(matches!(block_on(consumer().run(pending())), Err(ConsumerError::NoInbox)));
    let consumer = consumer().schema("it's").spawn().unwrap();
    bench.wait_for_effects(1);
    consumer.stop_blocking().unwrap();
}

/// A database file with the inbox and a table for effects, and the folder that removes it when dropped.
fn sqlite() -> (Folder, String) {
    let folder = Folder::new("consumer");
    let path = folder.path().join("inbox.db").display().to_string();
    let mut conn = SqliteConnection::establish(&path).unwrap();
    diesel_outbox_kafka::Migrations::inbox_only().run(&mut conn).unwrap();
    conn.batch_execute(EFFECT_BY_TYPE).unwrap();
    (folder, path)
}

const EFFECT_BY_TYPE: &str = "CREATE TABLE effect_by_type (event varchar(255))";

fn note<C: SimpleConnection>(conn: &mut C, received: &Received) -> Result<(), HandlerError> {
    Ok(conn.batch_execute(&format!("INSERT INTO effect_by_type VALUES ('{}')", received.event_type()))?)
}

/// Waits until the table for effects has these.
macro_rules! wait_for_noted {
    ($conn:expr, $expected:expr) => {{
        let mut noted = Vec::new();
        eventually("the effects", PATIENCE, || {
            let all = diesel::dsl::sql::<diesel::sql_types::Text>("SELECT event FROM effect_by_type");
            noted = all.load::<String>($conn).unwrap_or_default();
            (noted.len() >= $expected.len()).then_some(())
        });
        noted.sort();
        assert_eq!(noted, $expected);
    }};
}

/// The second delivery of an event is that of a relay which had crashed before it settled.
#[test]
fn a_consumer_on_sqlite_handles_each_event_once() {
    let bench = Bench::new(1);
    let [a, b] = ["A", "B"].map(|event_type| Sent::new("1").with_type(event_type));
    bench.send([(0, &a), (0, &a), (0, &b)]);
    let (_folder, path) = sqlite();
    let consumer = Consumer::<SqliteConnection>::new(bench.kafka.brokers(), &bench.name);
    let consumer = consumer.topics([&bench.topic]).database_url(&path).on_other(|c, r| note(c, r));
    let consumer = consumer.spawn().unwrap();
    bench.wait_until_all_is_committed();
    consumer.stop_blocking().unwrap();
    wait_for_noted!(&mut SqliteConnection::establish(&path).unwrap(), ["A", "B"]);
}

#[derive(diesel::MultiConnection)]
enum AnyConnection {
    Postgres(PgConnection),
    Mysql(MysqlConnection),
    Sqlite(SqliteConnection),
}

diesel_outbox_kafka::multi_connection!(AnyConnection { Postgres, Mysql, Sqlite });

#[test]
fn a_consumer_works_on_an_enum_of_connections() {
    let bench = Bench::new(1);
    bench.send([(0, &Sent::new("a"))]);
    bench.database.connect().batch_execute(EFFECT_BY_TYPE).unwrap();
    let [mariadb, mysql] = [Mariadb::shared(), Mariadb::shared_mysql()].map(Server::migrated);
    mariadb.connect().batch_execute(EFFECT_BY_TYPE).unwrap();
    mysql.connect().batch_execute(EFFECT_BY_TYPE).unwrap();
    let (_folder, sqlite) = sqlite();
    for url in [bench.database.url(), mariadb.url(), mysql.url(), &sqlite] {
        let group = Kafka::shared().unique("any");
        let consumer = Consumer::<AnyConnection>::new(bench.kafka.brokers(), group).topics([&bench.topic]);
        let consumer = consumer.database_url(url).on("Counted", |c, r| match c {
            AnyConnection::Postgres(c) => note(c, r),
            AnyConnection::Mysql(c) => note(c, r),
            AnyConnection::Sqlite(c) => note(c, r),
        });
        let consumer = consumer.spawn().unwrap();
        match AnyConnection::establish(url).unwrap() {
            AnyConnection::Postgres(mut c) => wait_for_noted!(&mut c, ["Counted"]),
            AnyConnection::Mysql(mut c) => wait_for_noted!(&mut c, ["Counted"]),
            AnyConnection::Sqlite(mut c) => wait_for_noted!(&mut c, ["Counted"]),
        }
        consumer.stop_blocking().unwrap();
    }
    let sqlite = Consumer::<AnyConnection>::new("127.0.0.1:1", "billing").database_url(":memory:");
    let sqlite = sqlite.topics(["order"]).on_other(|_, _| Ok(()));
    assert!(matches!(block_on(sqlite.run(pending())), Err(ConsumerError::NoInbox)));
}

#[test]
fn a_consumer_waits_for_a_database_that_is_away_at_its_start() {
    let bench = Bench::new(1);
    bench.send([(0, &Sent::new("a"))]);
    let pool = Arc::new(Mutex::new(None));
    let (taken, tries) = (Arc::clone(&pool), Arc::new(AtomicU32::new(0)));
    let counted = Arc::clone(&tries);
    let connect = move || -> Result<_, Box<dyn std::error::Error + Send + Sync>> {
        counted.fetch_add(1, Ordering::Relaxed);
        let pool = taken.lock().unwrap();
        let pool: &Pool<ConnectionManager<PgConnection>> = pool.as_ref().ok_or("it is away")?;
        Ok(pool.get()?)
    };
    type Pooled = PooledConnection<ConnectionManager<PgConnection>>;
    let consumer = Consumer::<Pooled>::new(bench.kafka.brokers(), &bench.name).topics([&bench.topic]);
    let consumer = consumer.backoff(Duration::from_millis(10), Duration::from_millis(50));
    let consumer = consumer.on("Counted", |c, r| insert_effect(c, r)).connect_with(connect).spawn().unwrap();
    eventually("tries", PATIENCE, || (tries.load(Ordering::Relaxed) >= 3).then_some(()));
    assert!(!consumer.is_finished());
    let manager = ConnectionManager::new(bench.database.url());
    *pool.lock().unwrap() = Some(Pool::builder().max_size(1).build(manager).unwrap());
    bench.wait_for_effects(1);
    consumer.stop_blocking().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_consumer_runs_until_the_future_ends_and_commits_what_is_done() {
    let bench = Arc::new(Bench::new(1));
    let wait_for = |effects| {
        let bench = Arc::clone(&bench);
        async move { tokio::task::spawn_blocking(move || bench.wait_for_effects(effects)).await.unwrap() }
    };
    bench.send([(0, &Sent::new("a"))]);
    bench.consumer().on("Counted", insert_effect).run(wait_for(1)).await.unwrap();
    assert_eq!(bench.committed(), [1]);
    bench.send([(0, &Sent::new("b"))]);
    bench.async_consumer().on("Counted", insert_effect_async).run(wait_for(2)).await.unwrap();
    assert_eq!(bench.committed(), [2]);
}

#[test]
fn a_stop_does_not_wait_for_a_handler_for_ever() {
    let bench = Bench::new(1);
    bench.send([(0, &Sent::new("a"))]);
    let (entered, has_entered) = mpsc::channel();
    let (leave, may_leave) = mpsc::channel::<()>();
    let handler = move |_: &mut PgConnection, _: &Received| {
        entered.send(())?;
        Ok(may_leave.recv()?)
    };
    let timeout = Duration::from_millis(50);
    let consumer = bench.consumer().shutdown_timeout(timeout).on("Counted", handler).spawn().unwrap();
    has_entered.recv_timeout(PATIENCE).unwrap();
    let error = consumer.stop_blocking().unwrap_err();
    assert!(matches!(error, ConsumerError::ShutdownTimeout(waited) if waited == timeout), "{error}");
    leave.send(()).unwrap();
}

#[test]
fn a_handle_that_is_dropped_stops_the_consumer_with_a_warning_and_a_detached_one_does_not() {
    start_logging();
    let bench = Bench::new(1);
    bench.consumer().on("Counted", insert_effect).spawn().unwrap().detach();
    bench.send([(0, &Sent::new("a"))]);
    bench.wait_for_effects(1);

    let name = Kafka::shared().unique("dropped");
    let consumer = Consumer::<PgConnection>::new("127.0.0.1:1", &name).database_url(bench.database.url());
    drop(consumer.topics(["order"]).on_other(|_, _| Ok(())).spawn().unwrap());
    assert!(logged(&["WARN", "the consumer's handle was dropped"]).is_some());
    eventually("the stop", PATIENCE, || logged(&["the consumer has stopped", &name]));
}
