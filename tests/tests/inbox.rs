//! The inbox on each database, sync and async: it distinguishes first deliveries from duplicates, commits effect and mark
//! together, and allows one effect for any number of racing deliveries.

use std::sync::Barrier;
use std::time::Duration;

use diesel::connection::{Connection, SimpleConnection};
use diesel::prelude::*;
use diesel::result::Error as DieselError;
use diesel::sql_types::BigInt;
use diesel_async::sync_connection_wrapper::SyncConnectionWrapper;
use diesel_async::{AsyncConnection, AsyncMysqlConnection, AsyncPgConnection};
use diesel_outbox::{Inbox, Migrations, Once};
use outbox_tests::{
    Database, Folder, Mariadb, MariadbDatabase, Postgres, bb8_pool, deadpool_pool, eventually,
    on_an_async_bb8_diesel_pool, r2d2_pool,
};
use uuid::Uuid;

type AsyncSqliteConnection = SyncConnectionWrapper<SqliteConnection>;

const EFFECT: &str = "INSERT INTO effect VALUES (1)";
const TABLE: &str = "CREATE TABLE effect (n int)";

fn postgres() -> Database<'static> {
    let database = Postgres::shared().database();
    let mut conn = database.connect();
    Migrations::new().run(&mut conn).unwrap();
    conn.batch_execute(TABLE).unwrap();
    database
}

fn mariadb_and_mysql() -> [MariadbDatabase<'static>; 2] {
    [Mariadb::shared(), Mariadb::shared_mysql()].map(migrated)
}

fn migrated(server: &Mariadb) -> MariadbDatabase<'_> {
    let database = server.database();
    let mut conn = database.connect();
    Migrations::new().run(&mut conn).unwrap();
    conn.batch_execute(TABLE).unwrap();
    database
}

/// A database file with the tables, and the folder that removes it when dropped.
fn sqlite() -> (Folder, String) {
    let folder = Folder::new("inbox");
    let path = folder.path().join("inbox.db").display().to_string();
    let mut conn = open(&path);
    Migrations::new().run(&mut conn).unwrap();
    conn.batch_execute(TABLE).unwrap();
    (folder, path)
}

fn open(path: &str) -> SqliteConnection {
    let mut conn = SqliteConnection::establish(path).unwrap();
    conn.batch_execute("PRAGMA busy_timeout = 20000").unwrap();
    conn
}

macro_rules! count {
    ($conn:expr, $from:expr) => {
        diesel::dsl::sql::<BigInt>(&format!("SELECT count(*) FROM {}", $from))
            .get_result::<i64>($conn)
            .unwrap()
    };
}

macro_rules! behaves {
    ($conn:expr) => {{
        let conn = $conn;
        let inbox = Inbox::new("billing");
        let event = Uuid::now_v7();
        let failed: Result<Once<()>, DieselError> = inbox.once(conn, event, |c| {
            c.batch_execute(EFFECT)?;
            Err(DieselError::RollbackTransaction)
        });
        assert!(failed.is_err());
        assert_eq!(
            (count!(conn, "inbox"), count!(conn, "effect")),
            (0, 0),
            "neither mark nor effect is left"
        );

        assert_eq!(inbox.once(conn, event, |c| c.batch_execute(EFFECT).map(|()| 7)), Ok(Once::First(7)));
        let never = |_: &mut _| -> QueryResult<i32> { panic!("the effect of a duplicate was run") };
        assert_eq!(inbox.once(conn, event, never), Ok(Once::Duplicate));
        assert_eq!(count!(conn, "effect"), 1);

        let other = Inbox::new("shipping").once(conn, event, |c| c.batch_execute(EFFECT));
        assert_eq!(other, Ok(Once::First(())), "another consumer handles every event too");

        // Within a transaction of the caller: the end of that transaction decides.
        let later = Uuid::now_v7();
        let outer: Result<(), DieselError> = conn.transaction(|c| {
            assert_eq!(inbox.once(c, later, |c| c.batch_execute(EFFECT))?, Once::First(()));
            assert_eq!(inbox.once(c, later, |c| c.batch_execute(EFFECT))?, Once::Duplicate);
            Err(DieselError::RollbackTransaction)
        });
        assert!(outer.is_err());
        assert_eq!(inbox.once(conn, later, |c| c.batch_execute(EFFECT)), Ok(Once::First(())));

        conn.batch_execute(
            "UPDATE inbox SET received_at = '2001-01-01 00:00:00' WHERE consumer = 'shipping'",
        )
        .unwrap();
        let retention = Duration::from_secs(24 * 60 * 60);
        assert_eq!(inbox.prune(conn, retention), Ok(0), "only its own, and only what is old");
        assert_eq!(Inbox::new("shipping").prune(conn, retention), Ok(1));
        assert_eq!(count!(conn, "inbox"), 2);
    }};
}

#[test]
fn the_inbox_works_on_postgres() {
    let database = postgres();
    behaves!(&mut database.connect());
}

#[test]
fn the_inbox_works_on_mariadb_and_mysql() {
    for database in mariadb_and_mysql() {
        behaves!(&mut database.connect());
    }
}

#[test]
fn the_inbox_works_on_sqlite() {
    let (_folder, path) = sqlite();
    behaves!(&mut open(&path));
}

/// The same in short, on an asynchronous connection.
async fn behaves_async<C>(conn: &mut C)
where
    C: AsyncConnection<Backend: diesel_outbox::OutboxBackend>,
{
    let inbox = Inbox::new("billing");
    let event = Uuid::now_v7();
    let failed: Result<Once<()>, DieselError> = inbox
        .once_async(conn, event, async |c| {
            c.batch_execute(EFFECT).await?;
            Err(DieselError::RollbackTransaction)
        })
        .await;
    assert!(failed.is_err());
    let first = inbox.once_async(conn, event, async |c| c.batch_execute(EFFECT).await.map(|()| 7)).await;
    assert_eq!(first, Ok(Once::First(7)));
    let again = inbox.once_async(conn, event, async |c| c.batch_execute(EFFECT).await.map(|()| 7)).await;
    assert_eq!(again, Ok(Once::Duplicate));
    conn.batch_execute("UPDATE inbox SET received_at = '2001-01-01 00:00:00'").await.unwrap();
    assert_eq!(inbox.prune_async(conn, Duration::from_secs(60)).await, Ok(1));
}

#[tokio::test]
async fn the_inbox_works_on_async_postgres() {
    let database = postgres();
    behaves_async(&mut AsyncPgConnection::establish(database.url()).await.unwrap()).await;
    assert_eq!(count!(&mut database.connect(), "effect"), 1);
}

#[tokio::test]
async fn the_inbox_works_on_async_mariadb_and_mysql() {
    for database in mariadb_and_mysql() {
        behaves_async(&mut AsyncMysqlConnection::establish(database.url()).await.unwrap()).await;
        assert_eq!(count!(&mut database.connect(), "effect"), 1);
    }
}

#[tokio::test]
async fn the_inbox_works_on_async_sqlite() {
    let (_folder, path) = sqlite();
    behaves_async(&mut AsyncSqliteConnection::establish(&path).await.unwrap()).await;
    assert_eq!(count!(&mut open(&path), "effect"), 1);
}

#[test]
fn the_inbox_works_on_r2d2_pools() {
    let database = postgres();
    behaves!(&mut r2d2_pool::<PgConnection>(database.url()).get().unwrap());
    for database in mariadb_and_mysql() {
        behaves!(&mut r2d2_pool::<MysqlConnection>(database.url()).get().unwrap());
    }
    let (_folder, path) = sqlite();
    behaves!(&mut r2d2_pool::<SqliteConnection>(&path).get().unwrap());
}

#[tokio::test]
async fn the_inbox_works_on_an_async_bb8_diesel_pool() {
    let database = postgres();
    on_an_async_bb8_diesel_pool::<PgConnection>(database.url(), |c| behaves!(c)).await;
    for database in mariadb_and_mysql() {
        on_an_async_bb8_diesel_pool::<MysqlConnection>(database.url(), |c| behaves!(c)).await;
    }
    let (_folder, path) = sqlite();
    on_an_async_bb8_diesel_pool::<SqliteConnection>(&path, |c| behaves!(c)).await;
}

/// Uses the inbox on pools of each database, which this macro makes.
macro_rules! behaves_on_pools {
    ($pool:ident) => {{
        let database = postgres();
        behaves_async(&mut $pool!(AsyncPgConnection, database.url()).get().await.unwrap()).await;
        for database in mariadb_and_mysql() {
            behaves_async(&mut $pool!(AsyncMysqlConnection, database.url()).get().await.unwrap()).await;
        }
        let (_folder, path) = sqlite();
        behaves_async(&mut $pool!(AsyncSqliteConnection, &path).get().await.unwrap()).await;
    }};
}

#[tokio::test]
async fn the_inbox_works_on_a_deadpool_pool() {
    behaves_on_pools!(deadpool_pool);
}

#[tokio::test]
async fn the_inbox_works_on_a_bb8_pool() {
    behaves_on_pools!(bb8_pool);
}

/// Delivers each of fifty events eight times, all at the same time.
fn race<C: diesel_outbox::OutboxConnection>(connect: impl Fn() -> C + Sync) {
    const RACERS: usize = 8;
    let events: Vec<Uuid> = (0..50).map(|_| Uuid::now_v7()).collect();
    let barrier = Barrier::new(RACERS);
    let firsts: usize = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..RACERS)
            .map(|_| {
                scope.spawn(|| {
                    let (mut conn, inbox) = (connect(), Inbox::new("billing"));
                    let mut firsts = 0;
                    for event in &events {
                        barrier.wait();
                        let once = inbox.once(&mut conn, *event, |c| c.batch_execute(EFFECT)).unwrap();
                        firsts += usize::from(once == Once::First(()));
                    }
                    firsts
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).sum()
    });
    assert_eq!(firsts, events.len());
}

#[test]
fn racing_deliveries_have_one_effect_on_postgres() {
    let database = postgres();
    race(|| database.connect());
    assert_eq!(count!(&mut database.connect(), "effect"), 50);
}

#[test]
fn racing_deliveries_have_one_effect_on_mariadb_and_mysql() {
    for database in mariadb_and_mysql() {
        race(|| database.connect());
        assert_eq!(count!(&mut database.connect(), "effect"), 50);
    }
}

#[test]
fn racing_deliveries_have_one_effect_on_sqlite() {
    let (_folder, path) = sqlite();
    race(|| open(&path));
    assert_eq!(count!(&mut open(&path), "effect"), 50);
}

/// PostgreSQL answers the COMMIT of such a transaction with success, although it rolls back.
#[tokio::test]
async fn an_effect_that_ignores_an_error_of_the_database_is_not_taken_for_done() {
    let database = postgres();
    let conn = &mut database.connect();
    let (inbox, event) = (Inbox::new("billing"), Uuid::now_v7());
    let ignored = inbox.once(conn, event, |c| {
        c.batch_execute(EFFECT)?;
        let _ = c.batch_execute("INSERT INTO nowhere VALUES (1)");
        QueryResult::Ok(())
    });
    assert!(ignored.is_err(), "{ignored:?}");
    assert_eq!(count!(conn, "effect") + count!(conn, "inbox"), 0);

    let asynchronous = &mut AsyncPgConnection::establish(database.url()).await.unwrap();
    let ignored = inbox.once_async(asynchronous, event, async |c: &mut AsyncPgConnection| {
        diesel_async::RunQueryDsl::execute(diesel::sql_query(EFFECT), c).await?;
        let _ =
            diesel_async::RunQueryDsl::execute(diesel::sql_query("INSERT INTO nowhere VALUES (1)"), c).await;
        QueryResult::Ok(())
    });
    let ignored = ignored.await;
    assert!(ignored.is_err(), "{ignored:?}");
    assert_eq!(count!(conn, "effect") + count!(conn, "inbox"), 0);

    // In a savepoint of its own it may fail.
    let allowed = inbox.once(conn, event, |c| {
        let _ = c.transaction(|c| c.batch_execute("INSERT INTO nowhere VALUES (1)"));
        c.batch_execute(EFFECT)
    });
    assert_eq!(allowed, Ok(Once::First(())));
    assert_eq!((count!(conn, "effect"), count!(conn, "inbox")), (1, 1));
}

/// To end a deadlock, MySQL and MariaDB roll the whole transaction back. What follows in it commits by itself.
#[test]
fn an_effect_that_ignores_a_deadlock_is_not_taken_for_done() {
    let database = migrated(Mariadb::shared());
    let (conn, other) = (&mut database.connect(), &mut database.connect());
    conn.batch_execute(
        "CREATE TABLE account (n int PRIMARY KEY, cents int); INSERT INTO account VALUES (1, 0), (2, 0)",
    )
    .unwrap();
    let (inbox, event) = (Inbox::new("billing"), Uuid::now_v7());
    let ignored = std::thread::scope(|scope| {
        inbox.once(conn, event, |c| {
            c.batch_execute("UPDATE account SET cents = 1 WHERE n = 1")?;
            // The transaction that has changed fewer rows is rolled back.
            let rows: Vec<String> = (0..500).map(|n| format!("({n})")).collect();
            other.batch_execute("START TRANSACTION").unwrap();
            other.batch_execute(&format!("INSERT INTO effect VALUES {}", rows.join(", "))).unwrap();
            other.batch_execute("UPDATE account SET cents = 2 WHERE n = 2").unwrap();
            let other = scope.spawn(|| {
                other.batch_execute("UPDATE account SET cents = 2 WHERE n = 1")?;
                other.batch_execute("ROLLBACK")
            });
            let waiting = &mut database.connect();
            eventually("the other to wait for this one", Duration::from_secs(20), || {
                let waits = "information_schema.processlist WHERE db = DATABASE() AND info LIKE 'UPDATE account SET cents = 2 WHERE n = 1'";
                (count!(waiting, waits) == 1).then_some(())
            });
            let deadlock = c.batch_execute("UPDATE account SET cents = 1 WHERE n = 2");
            assert!(deadlock.is_err());
            other.join().unwrap().unwrap();
            QueryResult::Ok(())
        })
    });
    let error = ignored.unwrap_err().to_string();
    assert!(error.contains("has rolled back the transaction"), "{error}");
    assert_eq!(count!(conn, "inbox"), 0);
}
