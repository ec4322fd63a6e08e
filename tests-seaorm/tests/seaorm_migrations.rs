//! The migrations on each database: by SeaORM and by Diesel, alone and among others', once and again.

use std::time::{Duration, Instant};

use diesel_outbox::{MigrateConnection, OutboxConnection};
use outbox_tests_seaorm::{Ground, WithDiesel, on_each_database};
use sea_orm::{ConnectionTrait, DbBackend, DbErr, TransactionTrait};
use sea_orm_migration::async_trait::async_trait;
use sea_orm_migration::{MigrationTrait, MigratorTrait};
use sea_orm_outbox::{Emit, Inbox, MigrationError, Migrations, Record};

on_each_database!(
    what_has_run_is_not_run_again_by_either_crate,
    either_part_can_be_run_alone_and_the_other_later,
    sea_orm_migration_runs_them_and_takes_them_back,
    only_postgres_has_schemas,
);

const ALL: [&str; 3] = [
    "2026-11-24-000000_create_outbox",
    "2026-11-24-000001_create_inbox",
    "2026-11-24-000002_create_outbox_scheduled",
];

struct MigrateWithDiesel;

impl WithDiesel<Vec<String>> for MigrateWithDiesel {
    fn on<C: OutboxConnection + MigrateConnection>(self, conn: &mut C) -> Vec<String> {
        diesel_outbox::Migrations::new().run(conn).unwrap()
    }
}

async fn drop_all(ground: &Ground) {
    for table in ["outbox", "outbox_dead_letter", "outbox_scheduled", "inbox", "outbox_migration"] {
        ground.run(&format!("DROP TABLE {table}")).await;
    }
    if ground.backend() == DbBackend::Postgres {
        ground.run("DROP TABLE outbox_slot").await;
        ground.run("DROP TABLE outbox_requeued").await;
        ground.run("DROP VIEW outbox_reader").await;
    }
    if ground.backend() != DbBackend::Sqlite {
        ground.run("DROP TABLE outbox_shard").await;
        ground.run("DROP TABLE outbox_promotion").await;
    }
}

async fn emits(ground: &Ground) {
    let txn = ground.db.begin().await.unwrap();
    txn.emit(&Record::new("order", "1", "Placed")).await.unwrap();
    txn.commit().await.unwrap();
}

async fn what_has_run_is_not_run_again_by_either_crate(ground: &Ground) {
    assert_eq!(Migrations::new().run(&ground.db).await.unwrap(), [""; 0]);
    assert_eq!(ground.with_diesel(MigrateWithDiesel), [""; 0]);
    drop_all(ground).await;
    assert_eq!(ground.with_diesel(MigrateWithDiesel), ALL);
    assert_eq!(Migrations::new().run(&ground.db).await.unwrap(), [""; 0]);
    emits(ground).await;
}

async fn either_part_can_be_run_alone_and_the_other_later(ground: &Ground) {
    drop_all(ground).await;
    assert_eq!(Migrations::inbox_only().run(&ground.db).await.unwrap(), [ALL[1]]);
    assert_eq!(Inbox::new("billing").has_table(&ground.db).await, Ok(true));
    assert_eq!(Migrations::outbox_only().run(&ground.db).await.unwrap(), [ALL[0], ALL[2]]);
    emits(ground).await;
    assert_eq!(ground.with_diesel(MigrateWithDiesel), [""; 0]);
}

struct Migrator;

#[async_trait]
impl MigratorTrait for Migrator {
    fn migrations() -> Vec<Box<dyn MigrationTrait>> {
        Migrations::new().for_migrator()
    }
}

async fn sea_orm_migration_runs_them_and_takes_them_back(ground: &Ground) {
    // It finds the tables, and says that it has run.
    Migrator::up(&ground.db, None).await.unwrap();
    emits(ground).await;
    let versions: Vec<String> = ground.column("SELECT version FROM seaql_migrations ORDER BY version").await;
    assert_eq!(versions, ALL.map(|name| format!("outbox_{name}")));

    Migrator::down(&ground.db, Some(2)).await.unwrap();
    assert_eq!(Inbox::new("billing").has_table(&ground.db).await, Ok(false));
    emits(ground).await;
    assert_eq!(Migrations::new().run(&ground.db).await.unwrap(), [ALL[1], ALL[2]]);
    // All back and forth, and once more from nothing.
    Migrator::refresh(&ground.db).await.unwrap();
    emits(ground).await;
    assert_eq!(ground.count("outbox").await, 1);
    Migrator::fresh(&ground.db).await.unwrap();
    emits(ground).await;
    assert_eq!(ground.count("outbox").await, 1);
    assert_eq!(Migrations::new().run(&ground.db).await.unwrap(), [""; 0]);
}

async fn only_postgres_has_schemas(ground: &Ground) {
    let run = Migrations::new().schema("events").run(&ground.db).await;
    if ground.backend() == DbBackend::Postgres {
        assert_eq!(run.unwrap(), ALL);
        assert_eq!(ground.count("events.outbox_migration").await, 3);
    } else {
        let error = run.unwrap_err();
        assert!(matches!(error, MigrationError::NoSchemas), "{error}");
        assert!(DbErr::from(error).to_string().contains("only PostgreSQL has schemas"));
    }
}

/// Several processes start at the same time.
async fn together(ground: Ground) {
    // First in an empty database, then in one that has a record of what has run.
    for (migrations, expected) in [(Migrations::inbox_only(), 1), (Migrations::new(), 2)] {
        let tasks: Vec<_> = (0..6)
            .map(|_| {
                let (db, migrations) = (ground.db.clone(), migrations.clone());
                tokio::spawn(async move { migrations.run(&db).await.unwrap().len() })
            })
            .collect();
        let mut run = 0;
        for task in tasks {
            run += task.await.unwrap();
        }
        assert_eq!(run, expected);
    }
    emits(&ground).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_postgres_processes_may_migrate_at_the_same_time() {
    together(Ground::empty_postgres().await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_mariadb_processes_may_migrate_at_the_same_time() {
    together(Ground::empty_mariadb().await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_sqlite_processes_may_migrate_at_the_same_time() {
    together(Ground::empty_sqlite().await).await;
}

#[tokio::test]
async fn on_postgres_a_transaction_around_the_migrations_keeps_its_search_path_and_decides() {
    let ground = Ground::empty_postgres().await;
    let txn = ground.db.begin().await.unwrap();
    Migrations::new().schema("events").run(&txn).await.unwrap();
    txn.execute_unprepared("CREATE TABLE mine (n int)").await.unwrap();
    txn.commit().await.unwrap();
    assert_eq!(ground.count("public.mine").await, 0);
    assert_eq!(ground.count("events.outbox").await, 0);

    let txn = ground.db.begin().await.unwrap();
    Migrations::new().run(&txn).await.unwrap();
    txn.rollback().await.unwrap();
    assert_eq!(Migrations::new().run(&ground.db).await.unwrap(), ALL);
}

#[tokio::test]
async fn on_mariadb_a_lock_that_another_session_holds_is_named() {
    use diesel::RunQueryDsl;
    let ground = Ground::empty_mariadb().await;
    let mut holder = <diesel::MysqlConnection as diesel::Connection>::establish(ground.url()).unwrap();
    let lock = "DO GET_LOCK(CONCAT('outbox_migration_', CRC32(DATABASE())), 5)";
    diesel::sql_query(lock).execute(&mut holder).unwrap();
    let error = Migrations::new().run(&ground.db).await.unwrap_err();
    assert!(matches!(error, MigrationError::Locked), "{error}");
    drop(holder);
    assert_eq!(Migrations::new().run(&ground.db).await.unwrap(), ALL);
}

/// The tables are there, so there is nothing to wait for.
#[tokio::test]
async fn on_sqlite_a_service_whose_tables_are_there_starts_while_another_one_writes() {
    let ground = Ground::empty_sqlite().await.migrated().await;
    let writer = ground.db.begin().await.unwrap();
    writer.emit(&Record::new("order", "1", "Placed")).await.unwrap();
    let began = Instant::now();
    assert_eq!(Migrations::new().run(&ground.db).await.unwrap(), [""; 0]);
    assert!(began.elapsed() < Duration::from_secs(4), "it has waited for the writer");
    writer.commit().await.unwrap();
}
