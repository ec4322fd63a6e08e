//! The pools of docs/poolers.md, each before PgBouncer. `emit.rs` has them without it.

use std::error::Error;
use std::pin::Pin;

use async_bb8_diesel::{AsyncConnection as _, ConnectionError, ConnectionManager as Bb8Manager};
use diesel::connection::CacheSize;
use diesel::prelude::*;
use diesel::r2d2::{self, ConnectionManager, CustomizeConnection};
use diesel_async::pooled_connection::{
    AsyncDieselConnectionManager, ManagerConfig, RecyclingMethod, bb8, deadpool,
};
use diesel_async::{AsyncConnection, AsyncPgConnection, SimpleAsyncConnection};
use diesel_outbox::{AsyncEmit, Emit, Inbox, Once};
use outbox_tests::load::{count, migrated};
use outbox_tests::{Database, PgBouncer};
use uuid::Uuid;

use super::{record, uncached_async};

/// How many tasks or threads take connections from a pool, and how many transactions each makes.
const WORKERS: usize = 6;
const EACH: usize = 20;

type Failure = Box<dyn Error + Send + Sync>;
type Bb8Connection = async_bb8_diesel::Connection<PgConnection>;

/// Turns off what a pooler in transaction mode does not allow.
#[derive(Debug)]
struct WithoutCache;

impl CustomizeConnection<PgConnection, r2d2::Error> for WithoutCache {
    fn on_acquire(&self, conn: &mut PgConnection) -> Result<(), r2d2::Error> {
        conn.set_prepared_statement_cache_size(CacheSize::Disabled);
        Ok(())
    }
}

impl ::bb8::CustomizeConnection<Bb8Connection, ConnectionError> for WithoutCache {
    fn on_acquire<'a>(
        &'a self,
        conn: &'a mut Bb8Connection,
    ) -> Pin<Box<dyn Future<Output = Result<(), ConnectionError>> + Send + 'a>> {
        Box::pin(conn.run(|c| {
            c.set_prepared_statement_cache_size(CacheSize::Disabled);
            Ok(())
        }))
    }
}

fn without_cache() -> ManagerConfig<AsyncPgConnection> {
    let mut config = ManagerConfig::default();
    config.custom_setup = Box::new(|url| Box::pin(uncached_async(url)));
    config.recycling_method =
        RecyclingMethod::CustomFunction(Box::new(|conn| Box::pin(conn.batch_execute("SELECT 1"))));
    config
}

/// What each worker does once with a synchronous connection.
fn emit_and_consume(conn: &mut PgConnection) -> QueryResult<()> {
    let event = conn.transaction(|c| c.emit(&record("Emitted")))?;
    assert_eq!(Inbox::new("billing").once(conn, event, |_| QueryResult::Ok(()))?, Once::First(()));
    assert_eq!(Inbox::new("billing").once(conn, event, |_| QueryResult::Ok(()))?, Once::Duplicate);
    Ok(())
}

async fn emit_and_consume_async(conn: &mut AsyncPgConnection) -> QueryResult<()> {
    let event: Uuid = conn.transaction(async |c| c.emit(&record("Emitted")).await).await?;
    let inbox = Inbox::new("billing");
    let once = inbox.once_async(conn, event, async |_| QueryResult::Ok(())).await?;
    assert_eq!(once, Once::First(()));
    let once = inbox.once_async(conn, event, async |_| QueryResult::Ok(())).await?;
    assert_eq!(once, Once::Duplicate);
    Ok(())
}

#[track_caller]
fn assert_all_is_stored(database: &Database<'_>) {
    let conn = &mut database.connect();
    assert_eq!((count(conn, "outbox"), count(conn, "inbox")), (WORKERS * EACH, WORKERS * EACH));
}

/// Runs this as often as [`WORKERS`] and [`EACH`] say, several at once.
async fn at_once<F>(work: impl Fn() -> F)
where
    F: Future<Output = Result<(), Failure>> + Send + 'static,
{
    let workers: Vec<_> = (0..WORKERS * EACH).map(|_| tokio::spawn(work())).collect();
    for worker in workers {
        worker.await.unwrap().unwrap();
    }
}

#[test]
fn a_pool_of_r2d2_works_before_a_pooler() {
    let database = migrated();
    let bouncer = PgBouncer::start(&database, "transaction", 2);
    let pool = r2d2::Pool::builder()
        .max_size(4)
        .connection_customizer(Box::new(WithoutCache))
        .build(ConnectionManager::<PgConnection>::new(bouncer.url()))
        .unwrap();
    std::thread::scope(|scope| {
        for _ in 0..WORKERS {
            scope.spawn(|| (0..EACH).for_each(|_| emit_and_consume(&mut pool.get().unwrap()).unwrap()));
        }
    });
    assert_all_is_stored(&database);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pool_of_deadpool_works_before_a_pooler() {
    let database = migrated();
    let bouncer = PgBouncer::start(&database, "transaction", 2);
    let manager = AsyncDieselConnectionManager::new_with_config(bouncer.url(), without_cache());
    let pool = deadpool::Pool::builder(manager).max_size(4).build().unwrap();
    at_once(|| {
        let pool = pool.clone();
        async move { Ok(emit_and_consume_async(&mut *pool.get().await?).await?) }
    })
    .await;
    assert_all_is_stored(&database);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pool_of_bb8_works_before_a_pooler() {
    let database = migrated();
    let bouncer = PgBouncer::start(&database, "transaction", 2);
    let manager = AsyncDieselConnectionManager::new_with_config(bouncer.url(), without_cache());
    let pool = bb8::Pool::builder().max_size(4).build(manager).await.unwrap();
    at_once(|| {
        let pool = pool.clone();
        async move { Ok(emit_and_consume_async(&mut *pool.get().await?).await?) }
    })
    .await;
    assert_all_is_stored(&database);
}

/// It runs synchronous code on the threads of tokio that may block.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pool_of_async_bb8_diesel_works_before_a_pooler_and_without_one() {
    let database = migrated();
    let bouncer = PgBouncer::start(&database, "transaction", 2);
    let pool = ::bb8::Pool::builder()
        .max_size(4)
        .connection_customizer(Box::new(WithoutCache))
        .build(Bb8Manager::<PgConnection>::new(bouncer.url()))
        .await
        .unwrap();
    at_once(|| {
        let pool = pool.clone();
        async move { Ok(pool.get().await?.run(emit_and_consume).await?) }
    })
    .await;
    assert_all_is_stored(&database);

    let database = migrated();
    let manager = Bb8Manager::<PgConnection>::new(database.url());
    let pool = ::bb8::Pool::builder().max_size(4).build(manager).await.unwrap();
    at_once(|| {
        let pool = pool.clone();
        async move { Ok(pool.get().await?.run(emit_and_consume).await?) }
    })
    .await;
    assert_all_is_stored(&database);

    // Emitting in its own asynchronous transaction, and outside any.
    let conn = pool.get().await.unwrap();
    let emitted: QueryResult<Uuid> =
        conn.transaction_async(async |c| c.run(|c| c.emit(&record("Async"))).await).await;
    emitted.unwrap();
    let refused = conn.run(|c| c.emit(&record("Outside"))).await.unwrap_err();
    assert!(refused.to_string().contains("outside a transaction"), "{refused}");
    assert_eq!(count(&mut database.connect(), "outbox WHERE type = 'Async'"), 1);
}
