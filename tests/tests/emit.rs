//! Emitting on every kind of connection. What is committed is stored, what is rolled back in any way was never emitted, and a
//! mistake leaves the transaction usable.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use diesel::connection::SimpleConnection;
use diesel::prelude::*;
use diesel::result::Error as DieselError;
use diesel_async::sync_connection_wrapper::SyncConnectionWrapper;
use diesel_async::{AsyncConnection, AsyncMysqlConnection, AsyncPgConnection};
use diesel_outbox::{AsyncEmit, Emit, EmitError, Migrations, OutboxEvent, Record, RecordError};
use diesel_outbox_core::Source;
use diesel_outbox_relay::source::{SourceOptions, SqliteSource};
use outbox_tests::{
    Database, Folder, Mariadb, MariadbDatabase, Postgres, bb8_pool, deadpool_pool, eventually,
    on_an_async_bb8_diesel_pool, r2d2_pool,
};
use uuid::Uuid;

fn placed(order: &str) -> Record {
    Record::new("order", order, "OrderPlaced").with_payload(*b"{}")
}

fn postgres() -> Database<'static> {
    let database = Postgres::shared().database();
    Migrations::new().run(&mut database.connect()).unwrap();
    database
}

fn mariadb_and_mysql() -> [MariadbDatabase<'static>; 2] {
    [Mariadb::shared(), Mariadb::shared_mysql()].map(migrated)
}

fn migrated(server: &Mariadb) -> MariadbDatabase<'_> {
    let database = server.database();
    Migrations::new().run(&mut database.connect()).unwrap();
    database
}

/// A database file with the tables, and the folder that removes it when dropped.
fn sqlite() -> (Folder, String) {
    let folder = Folder::new("emit");
    let path = folder.path().join("outbox.db").display().to_string();
    let mut conn = SqliteConnection::establish(&path).unwrap();
    Migrations::new().run(&mut conn).unwrap();
    (folder, path)
}

/// Returns the aggregate ids in the outbox, in order.
macro_rules! stored {
    ($conn:expr) => {{
        let text = "SELECT aggregateid FROM outbox ORDER BY seq";
        diesel::dsl::sql::<diesel::sql_types::Text>(text).load::<String>($conn).unwrap()
    }};
}

fn emit_error<T>(result: &QueryResult<T>) -> Option<&EmitError> {
    result.as_ref().err().and_then(EmitError::of)
}

/// Checks the whole behaviour on a synchronous connection, pooled or not.
macro_rules! behaves {
    ($conn:expr) => {{
        let conn = $conn;

        let refused = conn.emit(&placed("outside"));
        assert!(matches!(emit_error(&refused), Some(EmitError::NotInTransaction)), "{refused:?}");
        let refused = conn.emit_all([placed("outside")]);
        assert!(matches!(emit_error(&refused), Some(EmitError::NotInTransaction)), "{refused:?}");

        let event = placed("committed");
        let id = conn.transaction(|c| c.emit(&event)).unwrap();
        assert_eq!(id, event.id());

        let rolled_back: Result<(), DieselError> = conn.transaction(|c| {
            c.emit(&placed("rolled back"))?;
            Err(DieselError::RollbackTransaction)
        });
        assert!(rolled_back.is_err());

        let nested: Result<(), DieselError> = conn.transaction(|c| {
            c.emit(&placed("before the savepoint"))?;
            let inner: Result<(), DieselError> = c.transaction(|c| {
                c.emit(&placed("in the savepoint"))?;
                Err(DieselError::RollbackTransaction)
            });
            assert!(inner.is_err());
            c.transaction(|c| c.emit(&placed("in a released savepoint")))?;
            Ok(())
        });
        nested.unwrap();

        let too_long: QueryResult<()> = conn.transaction(|c| {
            let refused = c.emit(&placed(&"x".repeat(256)));
            assert!(
                matches!(
                    emit_error(&refused),
                    Some(EmitError::Record(RecordError::TooLong { field: "aggregate_id", limit: 255, .. }))
                ),
                "{refused:?}"
            );
            let refused = c.emit_all([placed("never"), placed("")]);
            assert!(
                matches!(emit_error(&refused), Some(EmitError::Record(RecordError::Empty { .. }))),
                "{refused:?}"
            );
            c.emit(&placed("after a refusal")).map(drop)
        });
        too_long.unwrap();

        let many: Vec<Record> = (0..2_500).map(|n| placed(&format!("many {n}"))).collect();
        let ids = conn.transaction(|c| c.emit_all(&many)).unwrap();
        assert_eq!(ids, many.iter().map(Record::id).collect::<Vec<Uuid>>());

        let mut expected =
            ["committed", "before the savepoint", "in a released savepoint", "after a refusal"]
                .map(str::to_owned)
                .to_vec();
        expected.extend((0..2_500).map(|n| format!("many {n}")));
        assert_eq!(stored!(conn), expected);
    }};
}

/// The same on an asynchronous connection. The given expression reads what was stored.
macro_rules! behaves_async {
    ($conn:expr, $stored:expr) => {{
        let mut pooled = $conn;
        let conn = &mut pooled;

        let refused = conn.emit(&placed("outside")).await;
        assert!(matches!(emit_error(&refused), Some(EmitError::NotInTransaction)), "{refused:?}");
        let refused = conn.emit_all([placed("outside")]).await;
        assert!(matches!(emit_error(&refused), Some(EmitError::NotInTransaction)), "{refused:?}");

        let event = placed("committed");
        let id = conn.transaction(async |c| c.emit(&event).await).await.unwrap();
        assert_eq!(id, event.id());

        let rolled_back: Result<(), DieselError> = conn
            .transaction(async |c| {
                c.emit(&placed("rolled back")).await?;
                Err(DieselError::RollbackTransaction)
            })
            .await;
        assert!(rolled_back.is_err());

        let nested: Result<(), DieselError> = conn
            .transaction(async |c| {
                c.emit(&placed("before the savepoint")).await?;
                let inner: Result<(), DieselError> = c
                    .transaction(async |c| {
                        c.emit(&placed("in the savepoint")).await?;
                        Err(DieselError::RollbackTransaction)
                    })
                    .await;
                assert!(inner.is_err());
                let refused = c.emit(&placed(&"x".repeat(256))).await;
                assert!(
                    matches!(emit_error(&refused), Some(EmitError::Record(RecordError::TooLong { .. }))),
                    "{refused:?}"
                );
                c.emit_all((0..1_200).map(|n| placed(&format!("many {n}")))).await?;
                Ok(())
            })
            .await;
        nested.unwrap();

        let mut expected = ["committed", "before the savepoint"].map(str::to_owned).to_vec();
        expected.extend((0..1_200).map(|n| format!("many {n}")));
        assert_eq!($stored, expected);
    }};
}

#[test]
fn emit_works_on_a_postgres_connection() {
    let database = postgres();
    behaves!(&mut database.connect());
}

#[test]
fn emit_works_on_a_mysql_connection() {
    for database in mariadb_and_mysql() {
        behaves!(&mut database.connect());
    }
}

#[test]
fn emit_works_on_an_sqlite_connection() {
    let (_folder, path) = sqlite();
    behaves!(&mut SqliteConnection::establish(&path).unwrap());
}

#[test]
fn emit_works_on_r2d2_pools() {
    let database = postgres();
    behaves!(&mut r2d2_pool::<PgConnection>(database.url()).get().unwrap());
    for database in mariadb_and_mysql() {
        behaves!(&mut r2d2_pool::<MysqlConnection>(database.url()).get().unwrap());
    }
    let (_folder, path) = sqlite();
    behaves!(&mut r2d2_pool::<SqliteConnection>(&path).get().unwrap());
}

#[tokio::test]
async fn emit_works_on_an_async_bb8_diesel_pool() {
    let database = postgres();
    on_an_async_bb8_diesel_pool::<PgConnection>(database.url(), |c| behaves!(c)).await;
    for database in mariadb_and_mysql() {
        on_an_async_bb8_diesel_pool::<MysqlConnection>(database.url(), |c| behaves!(c)).await;
    }
    let (_folder, path) = sqlite();
    on_an_async_bb8_diesel_pool::<SqliteConnection>(&path, |c| behaves!(c)).await;
}

#[tokio::test]
async fn emit_works_on_an_async_postgres_connection() {
    let database = postgres();
    let conn = AsyncPgConnection::establish(database.url()).await.unwrap();
    behaves_async!(conn, stored!(&mut database.connect()));
}

#[tokio::test]
async fn emit_works_on_an_async_mysql_connection() {
    for database in mariadb_and_mysql() {
        let conn = AsyncMysqlConnection::establish(database.url()).await.unwrap();
        behaves_async!(conn, stored!(&mut database.connect()));
    }
}

#[tokio::test]
async fn emit_works_on_an_async_sqlite_connection() {
    let (_folder, path) = sqlite();
    let conn = SyncConnectionWrapper::<SqliteConnection>::establish(&path).await.unwrap();
    behaves_async!(conn, stored!(&mut SqliteConnection::establish(&path).unwrap()));
}

/// Emits on pools of each database, which this macro makes.
macro_rules! behaves_on_pools {
    ($pool:ident) => {{
        let database = postgres();
        let pool = $pool!(AsyncPgConnection, database.url());
        behaves_async!(pool.get().await.unwrap(), stored!(&mut database.connect()));

        for database in mariadb_and_mysql() {
            let pool = $pool!(AsyncMysqlConnection, database.url());
            behaves_async!(pool.get().await.unwrap(), stored!(&mut database.connect()));
        }

        let (_folder, path) = sqlite();
        let pool = $pool!(SyncConnectionWrapper<SqliteConnection>, &path);
        behaves_async!(pool.get().await.unwrap(), stored!(&mut SqliteConnection::establish(&path).unwrap()));
    }};
}

#[tokio::test]
async fn emit_works_on_a_deadpool_pool() {
    behaves_on_pools!(deadpool_pool);
}

#[tokio::test]
async fn emit_works_on_a_bb8_pool() {
    behaves_on_pools!(bb8_pool);
}

#[test]
fn a_panic_in_the_transaction_leaves_nothing() {
    let database = postgres();
    let mut conn = database.connect();
    let panicked = catch_unwind(AssertUnwindSafe(|| {
        conn.transaction(|c| -> QueryResult<()> {
            c.emit(&placed("panicked"))?;
            panic!("on purpose");
        })
    }));
    assert!(panicked.is_err());
    drop(conn);
    assert!(stored!(&mut database.connect()).is_empty());
}

#[derive(serde::Serialize, OutboxEvent)]
#[outbox(aggregate = "order")]
enum OrderEvent {
    Placed {
        #[outbox(id)]
        order_id: Uuid,
        total_cents: i64,
    },
    #[outbox(type = "OrderPaid", version = 2)]
    Paid {
        #[outbox(id)]
        order_id: Uuid,
        #[outbox(header)]
        currency: String,
    },
}

type StoredColumns = (String, String, String, String, Option<String>, i16, bool);

#[test]
fn the_columns_are_those_that_debezium_reads() {
    use diesel::sql_types::{Bool, Nullable, SmallInt, Text};

    let database = postgres();
    let conn = &mut database.connect();
    let order_id = Uuid::from_u128(7);
    conn.transaction(|c| {
        c.emit(&OrderEvent::Placed { order_id, total_cents: 990 })?;
        c.emit(&OrderEvent::Paid { order_id, currency: "EUR".to_owned() })
    })
    .unwrap();
    let rows = diesel::dsl::sql::<(Text, Text, Text, Text, Nullable<Text>, SmallInt, Bool)>(
        "SELECT aggregatetype, aggregateid, type, convert_from(payload, 'UTF8'), headers::text, shard, \
         sent_at IS NULL AND created_at <= clock_timestamp() AT TIME ZONE 'utc' + interval '1 ms' FROM outbox ORDER BY seq",
    )
    .load::<StoredColumns>(conn)
    .unwrap();
    let id = order_id.to_string();
    let shard = diesel_outbox::Record::new("order", &id, "any").shard();
    let row = |event_type: &str, payload: String, headers: Option<&str>| {
        (
            "order".to_owned(),
            id.clone(),
            event_type.to_owned(),
            payload,
            headers.map(str::to_owned),
            shard,
            true,
        )
    };
    assert_eq!(
        rows,
        [
            row("Placed", format!(r#"{{"order_id":"{id}","total_cents":990}}"#), None),
            row(
                "OrderPaid",
                format!(r#"{{"order_id":"{id}","currency":"EUR"}}"#),
                Some(r#"{"eventVersion":"2","currency":"EUR"}"#)
            ),
        ]
    );
}

/// Emit notifies a relay only if the relay sleeps and says so.
#[test]
fn a_notification_is_sent_only_to_a_relay_that_sleeps() {
    let database = postgres();
    let (conn, listener) = (&mut database.connect(), &mut database.connect());
    let oid = diesel::dsl::sql::<diesel::sql_types::Text>("SELECT 'outbox'::regclass::oid::text")
        .get_result::<String>(conn)
        .unwrap();
    listener.batch_execute(&format!("LISTEN outbox_{oid}")).unwrap();
    let mut notified = |conn: &mut PgConnection, what: &str| {
        match what {
            "one" => conn.transaction(|c| c.emit(&placed("1")).map(drop)).unwrap(),
            _ => conn.transaction(|c| c.emit_all([placed("1"), placed("2")]).map(drop)).unwrap(),
        }
        // The answer to a query arrives after the notifications that were sent before it.
        listener.batch_execute("SELECT 1").unwrap();
        listener.notifications_iter().count()
    };
    assert_eq!(notified(conn, "one"), 0);
    assert_eq!(notified(conn, "many"), 0);
    let relay = &mut database.connect();
    relay.batch_execute("SELECT pg_advisory_lock(1869968482, 'outbox'::regclass::oid::int4)").unwrap();
    assert_eq!(notified(conn, "one"), 1);
    assert_eq!(notified(conn, "many"), 1);
}

/// Makes a relay's pass on an SQLite database.
fn relay_once(source: &mut SqliteSource) -> usize {
    let mut claimed = Vec::new();
    if source.claim().unwrap() {
        source.read(100, &mut claimed).unwrap();
        let tickets: Vec<u64> = claimed.iter().map(|claimed| claimed.ticket).collect();
        source.settle(&tickets).unwrap();
        source.release().unwrap();
    }
    claimed.len()
}

#[test]
fn on_sqlite_a_transaction_that_reads_first_and_emits_beside_a_relay_must_be_immediate() {
    let (_folder, path) = sqlite();
    let mut conn = SqliteConnection::establish(&path).unwrap();
    conn.batch_execute("PRAGMA journal_mode = WAL; PRAGMA busy_timeout = 20000").unwrap();
    let mut source = SqliteSource::new(&path, SourceOptions::default());
    conn.transaction(|c| c.emit(&placed("1"))).unwrap();

    let deferred: QueryResult<_> = conn.transaction(|c| {
        assert_eq!(stored!(c), ["1"]);
        assert_eq!(relay_once(&mut source), 1, "the relay writes");
        c.emit(&placed("2"))
    });
    let error = deferred.unwrap_err();
    let text = error.to_string();
    assert!(text.contains("database is locked") && text.contains("immediate_transaction"), "{text}");
    let DieselError::DatabaseError(_, information) = &error else { panic!("{error:?}") };
    let hint = information.hint().unwrap();
    assert!(hint.contains("`busy_timeout`") && !text.contains(hint), "{hint}");

    let (done, sent) = (AtomicBool::new(false), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                sent.fetch_add(relay_once(&mut source), Ordering::Relaxed);
            }
        });
        let work = AssertUnwindSafe(|| {
            for order in 2..=60 {
                let emitted: QueryResult<_> = conn.immediate_transaction(|c| {
                    assert_eq!(stored!(c).len(), order - 1);
                    c.emit(&placed(&order.to_string()))
                });
                emitted.unwrap();
                // The relay gets its turn now and then. It contends with the emitter all the time.
                if order % 10 == 0 {
                    eventually("the relay", Duration::from_secs(20), || {
                        (sent.load(Ordering::Relaxed) + 1 == order).then_some(())
                    });
                }
            }
        });
        let worked = catch_unwind(work);
        done.store(true, Ordering::Relaxed);
        worked.unwrap();
    });
}
