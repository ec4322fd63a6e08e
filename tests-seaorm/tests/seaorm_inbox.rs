//! The inbox on each database: it distinguishes first deliveries from duplicates, commits effect and mark together, and allows one
//! effect for any number of racing deliveries.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use outbox_tests_seaorm::{Ground, on_each_database};
use sea_orm::{ConnectionTrait, DatabaseTransaction, DbBackend, DbErr, TransactionTrait};
use sea_orm_outbox::{EmitError, Inbox, Once, Pruning};
use tokio::sync::Barrier;
use uuid::Uuid;

on_each_database!(
    an_event_takes_effect_once_for_each_consumer,
    an_effect_that_fails_leaves_neither_mark_nor_effect,
    an_effect_within_a_transaction_lasts_as_long_as_that,
    of_racing_deliveries_one_takes_effect,
    a_dropped_delivery_leaves_nothing,
    old_marks_are_pruned,
    a_missing_table_is_noticed,
);

const EFFECT: &str = "INSERT INTO effect VALUES (1)";

async fn effect(txn: &DatabaseTransaction) -> Result<i32, DbErr> {
    txn.execute_unprepared(EFFECT).await?;
    Ok(7)
}

async fn never(_: &DatabaseTransaction) -> Result<i32, DbErr> {
    panic!("the effect of a duplicate was run")
}

async fn with_effects(ground: &Ground) {
    ground.run("CREATE TABLE effect (n int)").await;
}

async fn counts(ground: &Ground) -> (i64, i64) {
    (ground.count("inbox").await, ground.count("effect").await)
}

async fn an_event_takes_effect_once_for_each_consumer(ground: &Ground) {
    with_effects(ground).await;
    let (billing, event) = (Inbox::new("billing"), Uuid::now_v7());
    assert_eq!(billing.once(&ground.db, event, effect).await, Ok(Once::First(7)));
    assert_eq!(billing.once(&ground.db, event, never).await, Ok(Once::Duplicate));
    assert_eq!(Inbox::new("shipping").once(&ground.db, event, effect).await, Ok(Once::First(7)));
    assert_eq!(Inbox::new("billing ").once(&ground.db, event, effect).await, Ok(Once::First(7)));
    assert_eq!(billing.once(&ground.db, Uuid::now_v7(), effect).await, Ok(Once::First(7)));
    assert_eq!(counts(ground).await, (4, 4));
}

async fn an_effect_that_fails_leaves_neither_mark_nor_effect(ground: &Ground) {
    #[derive(Debug, PartialEq)]
    enum Failure {
        OutOfStock,
        Database(DbErr),
    }
    impl From<DbErr> for Failure {
        fn from(error: DbErr) -> Self {
            Self::Database(error)
        }
    }
    with_effects(ground).await;
    let (inbox, event) = (Inbox::new("billing"), Uuid::now_v7());
    let failed = inbox
        .once(&ground.db, event, async |txn| {
            effect(txn).await?;
            Err::<(), _>(Failure::OutOfStock)
        })
        .await;
    assert_eq!(failed, Err(Failure::OutOfStock));
    assert_eq!(counts(ground).await, (0, 0));
    assert_eq!(inbox.once(&ground.db, event, effect).await, Ok(Once::First(7)));
}

async fn an_effect_within_a_transaction_lasts_as_long_as_that(ground: &Ground) {
    with_effects(ground).await;
    let (inbox, event) = (Inbox::new("billing"), Uuid::now_v7());
    let txn = ground.db.begin().await.unwrap();
    assert_eq!(inbox.once(&txn, event, effect).await, Ok(Once::First(7)));
    assert_eq!(inbox.once(&txn, event, never).await, Ok(Once::Duplicate));
    txn.rollback().await.unwrap();
    assert_eq!(counts(ground).await, (0, 0));
    assert_eq!(inbox.once(&ground.db, event, effect).await, Ok(Once::First(7)));
}

async fn of_racing_deliveries_one_takes_effect(ground: &Ground) {
    with_effects(ground).await;
    const DELIVERIES: usize = 8;
    for _ in 0..10 {
        let event = Uuid::now_v7();
        let (barrier, firsts) = (Arc::new(Barrier::new(DELIVERIES)), Arc::new(AtomicUsize::new(0)));
        let tasks: Vec<_> = (0..DELIVERIES)
            .map(|_| {
                let (db, barrier, firsts) = (ground.db.clone(), barrier.clone(), firsts.clone());
                // A task needs a future that is `Send`.
                tokio::spawn(async move {
                    barrier.wait().await;
                    loop {
                        match Inbox::new("billing").once(&db, event, effect).await {
                            Ok(Once::First(_)) => break firsts.fetch_add(1, Ordering::Relaxed),
                            Ok(Once::Duplicate) => break 0,
                            // A deadlock: the event is delivered again.
                            Err(error) => assert!(db.get_database_backend() == DbBackend::MySql, "{error}"),
                        }
                    }
                })
            })
            .collect();
        for task in tasks {
            task.await.unwrap();
        }
        assert_eq!(firsts.load(Ordering::Relaxed), 1);
    }
    assert_eq!(counts(ground).await, (10, 10));
}

async fn a_dropped_delivery_leaves_nothing(ground: &Ground) {
    with_effects(ground).await;
    let (inbox, event) = (Inbox::new("billing"), Uuid::now_v7());
    let (began, wait) = tokio::sync::oneshot::channel();
    let task = tokio::spawn({
        let (db, inbox) = (ground.db.clone(), inbox.clone());
        async move {
            inbox
                .once(&db, event, async move |txn: &DatabaseTransaction| {
                    effect(txn).await?;
                    began.send(()).unwrap();
                    std::future::pending::<Result<(), DbErr>>().await
                })
                .await
        }
    });
    wait.await.unwrap();
    task.abort();
    assert!(task.await.unwrap_err().is_cancelled());
    assert_eq!(inbox.once(&ground.db, event, effect).await, Ok(Once::First(7)));
    assert_eq!(counts(ground).await, (1, 1));
}

async fn old_marks_are_pruned(ground: &Ground) {
    const DAY: Duration = Duration::from_secs(24 * 60 * 60);
    with_effects(ground).await;
    for consumer in ["billing", "shipping"] {
        for _ in 0..3 {
            let once = Inbox::new(consumer).once(&ground.db, Uuid::now_v7(), effect).await;
            assert_eq!(once, Ok(Once::First(7)));
        }
    }
    ground.run("UPDATE inbox SET received_at = '2001-01-01 00:00:00' WHERE consumer = 'shipping'").await;
    assert_eq!(
        Inbox::new("billing").prune(&ground.db, DAY).await,
        Ok(0),
        "only its own, and only what is old"
    );
    assert_eq!(Inbox::new("shipping").prune(&ground.db, DAY).await, Ok(3));
    assert_eq!(ground.count("inbox").await, 3);
    ground.run("UPDATE inbox SET received_at = '2001-01-01 00:00:00'").await;
    assert_eq!(Inbox::new("billing").prune_step(&ground.db, &mut Pruning::new(DAY)).await, Ok(false));
    assert_eq!(ground.count("inbox").await, 0);
}

async fn a_missing_table_is_noticed(ground: &Ground) {
    let inbox = Inbox::new("billing");
    assert_eq!(inbox.has_table(&ground.db).await, Ok(true));
    match ground.backend() {
        DbBackend::Sqlite => {
            let error = inbox.clone().schema("events").has_table(&ground.db).await.unwrap_err();
            assert!(matches!(EmitError::of(&error), Some(EmitError::NoSchemas)), "{error}");
        }
        _ => assert_eq!(inbox.clone().schema("events").has_table(&ground.db).await, Ok(false)),
    }
    ground.run("DROP TABLE inbox").await;
    assert_eq!(inbox.has_table(&ground.db).await, Ok(false));
    assert!(inbox.once(&ground.db, Uuid::now_v7(), never).await.is_err());
}

/// PostgreSQL answers the COMMIT of an aborted transaction with success.
#[tokio::test]
async fn on_postgres_an_effect_that_ignores_an_error_does_not_count_as_done() {
    let ground = Ground::empty_postgres().await.migrated().await;
    with_effects(&ground).await;
    let (inbox, event) = (Inbox::new("billing"), Uuid::now_v7());
    let ignored = inbox
        .once(&ground.db, event, async |txn| {
            effect(txn).await?;
            let _ = txn.execute_unprepared("INSERT INTO nowhere VALUES (1)").await;
            Ok::<_, DbErr>(())
        })
        .await;
    let error = ignored.unwrap_err().to_string();
    assert!(error.contains("current transaction is aborted"), "{error}");
    assert_eq!(counts(&ground).await, (0, 0));
    // In a savepoint the error may be ignored.
    let tried = inbox
        .once(&ground.db, event, async |txn| {
            let savepoint = txn.begin().await?;
            assert!(savepoint.execute_unprepared("INSERT INTO nowhere VALUES (1)").await.is_err());
            savepoint.rollback().await?;
            effect(txn).await
        })
        .await;
    assert_eq!(tried, Ok(Once::First(7)));
}

/// MariaDB rolls back the whole transaction, mark and all, and answers its COMMIT with success.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_mariadb_an_effect_that_ignores_a_deadlock_does_not_count_as_done() {
    let ground = Ground::empty_mariadb().await.migrated().await;
    with_effects(&ground).await;
    ground.run("CREATE TABLE pair (n int PRIMARY KEY, v int)").await;
    ground.run("INSERT INTO pair VALUES (1, 0), (2, 0)").await;
    // It has changed more, so the other one is the one that is rolled back.
    let other = ground.db.begin().await.unwrap();
    for _ in 0..100 {
        other.execute_unprepared(EFFECT).await.unwrap();
    }
    other.execute_unprepared("UPDATE pair SET v = 1 WHERE n = 2").await.unwrap();
    let (inbox, event) = (Inbox::new("billing"), Uuid::now_v7());
    let other = std::sync::Mutex::new(Some(other));
    let ignored = inbox
        .once(&ground.db, event, async |txn| {
            txn.execute_unprepared("UPDATE pair SET v = 2 WHERE n = 1").await?;
            let other = other.lock().unwrap().take().unwrap();
            let blocking = tokio::spawn(async move {
                other.execute_unprepared("UPDATE pair SET v = 1 WHERE n = 1").await.unwrap();
                other
            });
            let deadlock = txn.execute_unprepared("UPDATE pair SET v = 2 WHERE n = 2").await.unwrap_err();
            assert!(deadlock.to_string().contains("Deadlock"), "{deadlock}");
            blocking.await.unwrap().rollback().await?;
            Ok::<_, DbErr>(())
        })
        .await;
    let error = ignored.unwrap_err().to_string();
    assert!(error.contains("rolled back the transaction in which the event was handled"), "{error}");
    assert_eq!(counts(&ground).await, (0, 0));
    assert_eq!(inbox.once(&ground.db, event, effect).await, Ok(Once::First(7)));
}
