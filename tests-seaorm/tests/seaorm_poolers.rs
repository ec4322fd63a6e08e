//! PgBouncer before PostgreSQL. sqlx names each statement that it prepares, so a pooler in transaction mode must know such statements, which
//! this version does not.

use outbox_tests::load::{count, migrated};
use outbox_tests::{Database, PgBouncer};
use sea_orm::{ConnectOptions, DatabaseConnection, TransactionTrait};
use sea_orm_outbox::{Emit, Inbox, Once, Record};

/// The setting that sqlx makes is unknown to PgBouncer, unless it has `ignore_startup_parameters = extra_float_digits`.
async fn connect(bouncer: &PgBouncer, cached: usize) -> DatabaseConnection {
    let mut options = ConnectOptions::new(bouncer.url());
    options.max_connections(1).sqlx_logging(false);
    options.map_sqlx_postgres_opts(move |options| {
        options.extra_float_digits(None).statement_cache_capacity(cached)
    });
    sea_orm::Database::connect(options).await.unwrap()
}

async fn emit(db: &DatabaseConnection) -> Result<uuid::Uuid, sea_orm::DbErr> {
    let txn = db.begin().await?;
    let id = txn.emit(&Record::new("order", "1", "Placed")).await?;
    txn.commit().await?;
    Ok(id)
}

fn stored(database: &Database<'_>) -> usize {
    count(&mut database.connect(), "outbox")
}

#[tokio::test]
async fn emit_and_inbox_work_through_a_pooler_in_session_mode() {
    let database = migrated();
    let bouncer = PgBouncer::start(&database, "session", 3);
    for _ in 0..2 {
        let db = connect(&bouncer, 100).await;
        let event = emit(&db).await.unwrap();
        let once =
            Inbox::new("billing").once(&db, event, async |_| Ok::<_, sea_orm::DbErr>(())).await.unwrap();
        assert_eq!(once, Once::First(()));
    }
    assert_eq!(stored(&database), 2);
}

#[tokio::test]
async fn an_emit_through_a_pooler_that_knows_no_prepared_statements_says_what_to_do() {
    let database = migrated();
    for cached in [100, 0] {
        let bouncer = PgBouncer::start(&database, "transaction", 1);
        let before = stored(&database);
        emit(&connect(&bouncer, cached).await).await.unwrap();
        let error = emit(&connect(&bouncer, cached).await).await.unwrap_err().to_string();
        assert!(error.contains("already exists (if there is a pooler in transaction mode"), "{error}");
        assert!(error.contains("max_prepared_statements"), "{error}");
        assert_eq!(stored(&database), before + 1);
    }
}
