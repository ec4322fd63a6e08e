//! PgBouncer in transaction mode gives each transaction any of its sessions. Services emit and consume through it. What needs a
//! session of its own notices it, and says so.

#[path = "poolers/pools.rs"]
mod pools;
#[path = "poolers/prepared.rs"]
mod prepared;
#[path = "poolers/relays.rs"]
mod relays;

use std::time::{Duration, Instant};

use diesel::connection::{AnsiTransactionManager, CacheSize, TransactionManager};
use diesel::prelude::*;
use diesel_async::{AsyncConnection, AsyncPgConnection};
use diesel_outbox::{AsyncEmit, Emit, Inbox, Once, Record};
use diesel_outbox_kafka::consumer::Consumer;
use outbox_tests::load::{count, migrated, new_topic, relay, repetitions, write_together_on};
use outbox_tests::{Database, Kafka, PgBouncer, eventually};
use uuid::Uuid;

const PATIENCE: Duration = Duration::from_secs(60);

fn record(event_type: impl ToString) -> Record {
    Record::new("order", "1", event_type.to_string()).with_payload(*b"{}")
}

/// A connection that keeps no statement prepared for another transaction, which may have another session.
fn uncached(bouncer: &PgBouncer) -> PgConnection {
    let mut conn = bouncer.connect();
    conn.set_prepared_statement_cache_size(CacheSize::Disabled);
    conn
}

/// The same of diesel-async. To connect, it prepares statements outside a transaction, which fails if others use the session meanwhile.
async fn uncached_async(url: &str) -> ConnectionResult<AsyncPgConnection> {
    let began = Instant::now();
    let mut conn = loop {
        match AsyncPgConnection::establish(url).await {
            Err(ConnectionError::CouldntSetupConfiguration(_)) if began.elapsed() < PATIENCE => {}
            connected => break connected?,
        }
    };
    conn.set_prepared_statement_cache_size(CacheSize::Disabled);
    Ok(conn)
}

/// The locks that sessions still hold after their transactions. Those of a relay are its own.
fn locks_left(conn: &mut PgConnection) -> usize {
    count(
        conn,
        "pg_locks AS l JOIN pg_stat_activity AS a USING (pid) WHERE l.locktype = 'advisory' AND a.datname = current_database() \
         AND a.application_name <> 'outbox relay'",
    )
}

/// Eight writers share two sessions, so most transactions get another session than the one before.
#[test]
fn what_services_emit_through_a_pooler_arrives_once_and_in_order() {
    let database = migrated();
    let bouncer = PgBouncer::start(&database, "transaction", 2);
    let topic = new_topic("pooled");
    let _relay = relay(&database, &topic, &[]);
    let committed = write_together_on(|| uncached(&bouncer), 8, 4_000);
    let conn = &mut database.connect();
    eventually("everything to be sent", PATIENCE, || {
        (count(conn, "outbox WHERE sent_at IS NULL") == 0).then_some(())
    });
    assert_eq!(repetitions(&Kafka::shared().read_all(&topic), &committed), 0);
    assert_eq!(locks_left(conn), 0, "locks are left in sessions of the pooler");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_async_services_emit_through_a_pooler_is_stored() {
    let database = migrated();
    let bouncer = PgBouncer::start(&database, "transaction", 2);
    let url = bouncer.url().to_owned();
    async_services_emit(&database, async move || uncached_async(&url).await.unwrap()).await;
}

/// Eight services at once, each with a connection of its own. All connect first: diesel-async prepares statements when it connects, and while
/// others emit, a pooler may give these to another session.
async fn async_services_emit<F>(database: &Database<'_>, connect: F)
where
    F: AsyncFn() -> AsyncPgConnection,
{
    const EACH: usize = 50;
    let mut connections = Vec::new();
    for _ in 0..8 {
        connections.push(connect().await);
    }
    let mut writers = Vec::new();
    for (writer, mut conn) in connections.into_iter().enumerate() {
        writers.push(tokio::spawn(async move {
            for n in 0..EACH {
                let emitted: QueryResult<()> = conn
                    .transaction(async |c| {
                        c.emit(&record(n)).await?;
                        c.emit_all([record(n), record(n)]).await?;
                        Ok(())
                    })
                    .await;
                emitted.unwrap_or_else(|error| panic!("writer {writer}, {n}: {error}"));
            }
        }));
    }
    for writer in writers {
        writer.await.unwrap();
    }
    let conn = &mut database.connect();
    assert_eq!(count(conn, "outbox"), 8 * EACH * 3);
    assert_eq!(locks_left(conn), 0, "locks are left in sessions of the pooler");
}

/// Makes the next transaction of others get another session than their last one.
fn holding_a_session(bouncer: &PgBouncer) -> PgConnection {
    let mut conn = uncached(bouncer);
    AnsiTransactionManager::begin_transaction(&mut conn).unwrap();
    diesel::sql_query("SELECT 1").execute(&mut conn).unwrap();
    conn
}

/// This PgBouncer does not know the statements that its clients prepare.
#[tokio::test]
async fn an_emit_whose_statement_was_prepared_in_another_session_says_what_to_do() {
    let database = migrated();
    let bouncer = PgBouncer::start(&database, "transaction", 2);
    let conn = &mut bouncer.connect();
    conn.transaction(|c| c.emit(&record(1))).unwrap();
    let holder = holding_a_session(&bouncer);
    let error = conn.transaction(|c| c.emit(&record(2))).unwrap_err().to_string();
    assert!(error.starts_with("prepared statement \"__diesel_stmt_"), "{error}");
    assert!(error.contains("does not exist: if there is a pooler"), "{error}");
    assert!(error.contains("conn.set_prepared_statement_cache_size(CacheSize::Disabled)"), "{error}");
    drop(holder);
    // Another client comes to the session in which the first one has prepared its statements.
    let bouncer = PgBouncer::start(&database, "transaction", 1);
    bouncer.connect().transaction(|c| c.emit(&record(3))).unwrap();
    let error = bouncer.connect().transaction(|c| c.emit(&record(4))).unwrap_err().to_string();
    assert!(error.contains("already exists"), "{error}");

    let bouncer = PgBouncer::start(&database, "transaction", 2);
    let conn = &mut AsyncPgConnection::establish(bouncer.url()).await.unwrap();
    conn.transaction(async |c| c.emit(&record(5)).await).await.unwrap();
    let _holder = holding_a_session(&bouncer);
    let error = conn.transaction(async |c| c.emit(&record(6)).await).await.unwrap_err().to_string();
    assert!(error.contains("does not exist: if there is a pooler"), "{error}");
}

#[test]
fn the_inbox_runs_an_effect_once_through_a_pooler() {
    let database = migrated();
    let bouncer = PgBouncer::start(&database, "transaction", 2);
    consumers_run_effects_once(|| uncached(&bouncer));
}

/// Four consumers at once, which get the same events.
fn consumers_run_effects_once(connect: impl Fn() -> PgConnection) {
    let events: Vec<Uuid> = (0..20).map(|_| Uuid::now_v7()).collect();
    let first: usize = std::thread::scope(|scope| {
        let consumers: Vec<_> = (0..4)
            .map(|_| {
                let (mut conn, events) = (connect(), &events);
                scope.spawn(move || {
                    let inbox = Inbox::new("billing");
                    assert!(inbox.has_table(&mut conn).unwrap());
                    let once = |event: &Uuid| inbox.once(&mut conn, *event, |_| QueryResult::Ok(())).unwrap();
                    let first = events.iter().map(once).filter(|once| *once == Once::First(())).count();
                    assert_eq!(inbox.prune(&mut conn, Duration::from_secs(3_600)).unwrap(), 0);
                    first
                })
            })
            .collect();
        consumers.into_iter().map(|consumer| consumer.join().unwrap()).sum()
    });
    assert_eq!(first, events.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_inbox_runs_an_effect_once_through_a_pooler_on_an_async_connection() {
    let database = migrated();
    let bouncer = PgBouncer::start(&database, "transaction", 2);
    let url = bouncer.url().to_owned();
    async_consumers_run_effects_once(async move || uncached_async(&url).await.unwrap()).await;
}

/// Others use the sessions in between, also while it looks for its table and prunes.
async fn async_consumers_run_effects_once<F>(connect: F)
where
    F: AsyncFn() -> AsyncPgConnection,
{
    let events: Vec<Uuid> = (0..20).map(|_| Uuid::now_v7()).collect();
    let mut consumers = Vec::new();
    for _ in 0..8 {
        let (mut conn, events) = (connect().await, events.clone());
        consumers.push(tokio::spawn(async move {
            let (inbox, mut first) = (Inbox::new("billing"), 0);
            for event in events {
                assert!(inbox.has_table_async(&mut conn).await.unwrap());
                let once = inbox.once_async(&mut conn, event, async |_| QueryResult::Ok(())).await.unwrap();
                first += usize::from(once == Once::First(()));
                assert_eq!(inbox.prune_async(&mut conn, Duration::from_secs(3_600)).await.unwrap(), 0);
            }
            first
        }));
    }
    let mut first = 0;
    for consumer in consumers {
        first += consumer.await.unwrap();
    }
    assert_eq!(first, events.len());
}

/// A consumer on Diesel and one on diesel-async, which share two sessions.
#[tokio::test(flavor = "multi_thread")]
async fn consumers_handle_events_through_a_pooler() {
    let database = migrated();
    let bouncer = PgBouncer::start(&database, "transaction", 2);
    let topic = new_topic("pooled-consumer");
    let _relay = relay(&database, &topic, &[]);
    database.connect().transaction(|c| c.emit_all((0..50).map(record))).unwrap();
    let url = bouncer.url().to_owned();
    let connect = move || {
        let mut conn = PgConnection::establish(&url)?;
        conn.set_prepared_statement_cache_size(CacheSize::Disabled);
        ConnectionResult::Ok(conn)
    };
    let consumer = Consumer::<PgConnection>::new(Kafka::shared().brokers(), Kafka::shared().unique("pooled"))
        .connect_with(connect)
        .topics([&topic])
        .on_other(|_, _| Ok(()))
        .spawn()
        .unwrap();
    let url = bouncer.url().to_owned();
    let group = Kafka::shared().unique("pooled-async");
    let asynchronous = Consumer::<AsyncPgConnection>::new_async(Kafka::shared().brokers(), group)
        .connect_with(async move || uncached_async(&url).await)
        .topics([&topic])
        .on_other(async |_, _| Ok(()))
        .spawn()
        .unwrap();
    let conn = &mut database.connect();
    eventually("all marks", PATIENCE, || (count(conn, "inbox") == 100).then_some(()));
    consumer.stop().await.unwrap();
    asynchronous.stop().await.unwrap();
}
