//! A PgBouncer that knows the statements which its clients prepare. Services change nothing.

use diesel::dsl::sql;
use diesel::prelude::*;
use diesel::sql_types::BigInt;
use diesel_async::pooled_connection::{AsyncDieselConnectionManager, deadpool};
use diesel_async::{AsyncConnection, AsyncPgConnection};
use outbox_tests::PgBouncer;
use outbox_tests::load::{count, migrated, write_together_on};

use super::pools::{assert_all_is_stored, at_once, emit_and_consume_async};
use super::{async_consumers_run_effects_once, async_services_emit, consumers_run_effects_once, locks_left};

/// How many statements the pooler has prepared in a session of the database.
fn prepared(bouncer: &PgBouncer) -> i64 {
    sql::<BigInt>("SELECT count(*) FROM pg_prepared_statements").get_result(&mut bouncer.connect()).unwrap()
}

/// Eight services and then four consumers share two sessions.
#[test]
fn services_keep_their_statements_prepared_through_a_pooler_that_knows_them() {
    let database = migrated();
    let bouncer = PgBouncer::start_knowing_statements(&database, 2);
    let committed = write_together_on(|| bouncer.connect(), 8, 4_000);
    let conn = &mut database.connect();
    assert_eq!(count(conn, "outbox"), committed.len());
    assert_eq!(locks_left(conn), 0, "locks are left in sessions of the pooler");
    consumers_run_effects_once(|| bouncer.connect());
    assert!(prepared(&bouncer) > 2, "the services have prepared nothing");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn async_services_keep_their_statements_prepared_through_a_pooler_that_knows_them() {
    let database = migrated();
    let bouncer = PgBouncer::start_knowing_statements(&database, 2);
    let url = bouncer.url().to_owned();
    let connect = async move || AsyncPgConnection::establish(&url).await.unwrap();
    async_services_emit(&database, &connect).await;
    async_consumers_run_effects_once(&connect).await;
    assert!(prepared(&bouncer) > 2, "the services have prepared nothing");
}

/// Its check of an idle connection prepares a statement too.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pool_needs_no_settings_before_a_pooler_that_knows_prepared_statements() {
    let database = migrated();
    let bouncer = PgBouncer::start_knowing_statements(&database, 2);
    let manager = AsyncDieselConnectionManager::<AsyncPgConnection>::new(bouncer.url());
    let pool = deadpool::Pool::builder(manager).max_size(4).build().unwrap();
    at_once(|| {
        let pool = pool.clone();
        async move { Ok(emit_and_consume_async(&mut *pool.get().await?).await?) }
    })
    .await;
    assert_all_is_stored(&database);
}
