//! Emitting on each database: events are stored with the change that caused them, or not at all, and exactly as they are.

use std::time::{Duration, SystemTime};

use outbox_tests::eventually;
use outbox_tests_seaorm::{Ground, WithDiesel, on_each_database};
use sea_orm::{DatabaseTransaction, DbBackend, DbErr, QueryResult, TransactionError, TransactionTrait};
use sea_orm_outbox::testing::{Expected, ReadEmitted};
use sea_orm_outbox::{Emit, EmitError, InTransaction, Inbox, Once, Outbox, OutboxEvent, Record, RecordError};
use uuid::Uuid;

on_each_database!(
    an_event_is_stored_if_and_only_if_its_transaction_commits,
    a_savepoint_that_is_rolled_back_takes_its_events_along,
    a_closure_and_a_generic_function_emit_as_well,
    many_events_keep_their_order_and_their_ids,
    a_refused_event_leaves_the_transaction_usable,
    a_missing_table_is_explained,
    rows_are_the_same_as_those_of_diesel,
    an_event_is_scheduled_listed_and_cancelled,
    what_a_transaction_has_emitted_is_seen_before_it_commits,
);

fn record(event_type: impl ToString) -> Record {
    Record::new("order", "1", event_type.to_string()).with_payload(*b"{}")
}

async fn types(ground: &Ground) -> Vec<String> {
    ground.column("SELECT type FROM outbox ORDER BY seq").await
}

async fn an_event_is_stored_if_and_only_if_its_transaction_commits(ground: &Ground) {
    let txn = ground.db.begin().await.unwrap();
    let id = txn.emit(&record("Committed")).await.unwrap();
    txn.commit().await.unwrap();
    let txn = ground.db.begin().await.unwrap();
    txn.emit(&record("RolledBack")).await.unwrap();
    txn.rollback().await.unwrap();
    let txn = ground.db.begin().await.unwrap();
    txn.emit(&record("Dropped")).await.unwrap();
    drop(txn);
    assert_eq!(types(ground).await, ["Committed"]);
    assert_eq!(ids(ground).await, [id]);
}

async fn ids(ground: &Ground) -> Vec<Uuid> {
    let text = if ground.backend() == DbBackend::Postgres { "id::text" } else { "id" };
    let ids: Vec<String> = ground.column(&format!("SELECT {text} FROM outbox ORDER BY seq")).await;
    ids.iter().map(|id| id.parse().unwrap()).collect()
}

async fn a_savepoint_that_is_rolled_back_takes_its_events_along(ground: &Ground) {
    let txn = ground.db.begin().await.unwrap();
    txn.emit(&record(1)).await.unwrap();
    let nested = txn.begin().await.unwrap();
    nested.emit(&record(2)).await.unwrap();
    nested.rollback().await.unwrap();
    let nested = txn.begin().await.unwrap();
    nested.emit(&record(3)).await.unwrap();
    nested.commit().await.unwrap();
    txn.commit().await.unwrap();
    assert_eq!(types(ground).await, ["1", "3"]);
}

async fn a_closure_and_a_generic_function_emit_as_well(ground: &Ground) {
    async fn emit<C: InTransaction>(txn: &C) -> Result<(), DbErr> {
        txn.emit(&record("Generic")).await.map(drop)
    }
    // A task needs a future that is `Send`.
    let db = ground.db.clone();
    let task = tokio::spawn(async move {
        db.transaction(|txn| {
            Box::pin(async move {
                txn.emit(&record("Closure")).await?;
                emit(txn).await
            })
        })
        .await?;
        db.transaction_async(async |txn: &DatabaseTransaction| {
            Outbox::new().emit(txn, &record("AsyncClosure")).await.map(drop)
        })
        .await
    });
    let done: Result<(), TransactionError<DbErr>> = task.await.unwrap();
    done.unwrap();
    assert_eq!(types(ground).await, ["Closure", "Generic", "AsyncClosure"]);
}

async fn many_events_keep_their_order_and_their_ids(ground: &Ground) {
    let txn = ground.db.begin().await.unwrap();
    let emitted = txn.emit_all((0..2_500).map(record)).await.unwrap();
    assert!(txn.emit_all(Vec::<Record>::new()).await.unwrap().is_empty());
    txn.commit().await.unwrap();
    let expected: Vec<String> = (0..2_500).map(|number| number.to_string()).collect();
    assert_eq!(types(ground).await, expected);
    assert_eq!(ids(ground).await, emitted);
}

async fn a_refused_event_leaves_the_transaction_usable(ground: &Ground) {
    struct Unencodable;
    impl OutboxEvent for Unencodable {
        fn to_record(&self) -> Result<Record, RecordError> {
            Err(RecordError::encode("a secret of the encoder"))
        }
    }
    let txn = ground.db.begin().await.unwrap();
    let error = txn.emit(&record("x".repeat(256))).await.unwrap_err();
    assert!(matches!(EmitError::of(&error), Some(EmitError::Record(RecordError::TooLong { .. }))), "{error}");
    assert!(error.to_string().contains("event_type has 256 characters"), "{error}");
    let error = txn.emit_all([record(1), record("a\0b")]).await.unwrap_err();
    assert!(matches!(EmitError::of(&error), Some(EmitError::Record(RecordError::Nul { .. }))), "{error}");
    let error = txn.emit(&Unencodable).await.unwrap_err();
    assert!(error.to_string().ends_with("the event's payload cannot be encoded"), "{error}");
    if ground.backend() == DbBackend::Sqlite {
        let error = Outbox::new().schema("events").emit(&txn, &record(1)).await.unwrap_err();
        assert!(matches!(EmitError::of(&error), Some(EmitError::NoSchemas)), "{error}");
    }
    txn.emit(&record("Sound")).await.unwrap();
    txn.commit().await.unwrap();
    assert_eq!(
        types(ground).await,
        ["Sound"],
        "of emit_all, all events are checked before the first is written"
    );
    assert!(EmitError::of(&DbErr::RecordNotInserted).is_none());
}

async fn a_missing_table_is_explained(ground: &Ground) {
    ground.run("DROP TABLE outbox").await;
    let txn = ground.db.begin().await.unwrap();
    let error = txn.emit(&record(1)).await.unwrap_err();
    let text = error.to_string();
    assert!(text.contains("outbox") && text.contains("Migrations::new().run(&db)"), "{text}");
    let DbErr::Exec(sea_orm::RuntimeErr::SqlxError(error)) = error else { panic!("{error:?}") };
    let code = error.as_database_error().unwrap().code().unwrap().into_owned();
    let expected = match ground.backend() {
        DbBackend::Postgres => "42P01",
        DbBackend::MySql => "42S02",
        _ => "1",
    };
    assert_eq!(code, expected, "the error is the database's own all the same");
}

/// Records with odd values in every field.
fn odd() -> Vec<Record> {
    let bytes: Vec<u8> = (0..=255).collect();
    vec![
        Record::new("order", "1", "Tombstone"),
        Record::new("order", "1", "Empty").with_payload(*b""),
        Record::new("order", "2", "Bytes").with_payload(bytes.clone()),
        Record::new("order", "3", "Large").with_payload(bytes.repeat(4_000)),
        Record::new("in-voice_2.x", "ключ-🔑", "Plåced ✓").with_payload(*b"null"),
        Record::new("Customer", " 4\t\"\\'$1 ? ", "E").with_payload(*b" {\"a\":1.0} \r\n"),
        Record::new("order", "ü".repeat(255), "E").header("traceparent", "00-4bf9-01").version(2),
        Record::new("order", "5", "E").header("z", "").header("a", "\"q\" \\ \n ?").header("ключ ✓", "🙂\0"),
    ]
}

/// Emits with Diesel, first each by itself and then all at once.
struct EmitOdd;

impl WithDiesel<()> for EmitOdd {
    fn on<C: diesel_outbox::OutboxConnection + diesel_outbox::MigrateConnection>(self, conn: &mut C) {
        use diesel_outbox::Emit;
        conn.transaction(|c| {
            for record in odd() {
                c.emit(&record)?;
            }
            c.emit_all(odd())?;
            diesel_outbox::Outbox::new()
                .header("tenant", "acme")
                .header("z", "not this")
                .emit_all(c, odd())?;
            diesel::QueryResult::Ok(())
        })
        .unwrap();
    }
}

type Row = (String, String, String, Option<Vec<u8>>, Option<String>, i16, Option<String>);

async fn stored(ground: &Ground) -> Vec<Row> {
    let (headers, sent_at) = match ground.backend() {
        DbBackend::Postgres => ("headers::text", "sent_at::text"),
        DbBackend::MySql => ("headers", "CAST(sent_at AS char)"),
        _ => ("headers", "sent_at"),
    };
    let select = format!(
        "SELECT aggregatetype, aggregateid, type, payload, {headers}, shard, {sent_at} FROM outbox ORDER BY seq"
    );
    let row = |row: &QueryResult| {
        (
            row.try_get_by_index(0).unwrap(),
            row.try_get_by_index(1).unwrap(),
            row.try_get_by_index(2).unwrap(),
            row.try_get_by_index(3).unwrap(),
            row.try_get_by_index(4).unwrap(),
            row.try_get_by_index(5).unwrap(),
            row.try_get_by_index(6).unwrap(),
        )
    };
    ground.rows(&select).await.iter().map(row).collect()
}

async fn rows_are_the_same_as_those_of_diesel(ground: &Ground) {
    ground.with_diesel(EmitOdd);
    let of_diesel = stored(ground).await;
    assert_eq!(of_diesel.len(), 3 * odd().len());
    ground.run("DELETE FROM outbox").await;

    let txn = ground.db.begin().await.unwrap();
    for record in odd() {
        txn.emit(&record).await.unwrap();
    }
    txn.emit_all(odd()).await.unwrap();
    let outbox = Outbox::new().header("tenant", "acme").header("z", "not this");
    outbox.emit_all(&txn, odd()).await.unwrap();
    txn.commit().await.unwrap();
    assert_eq!(stored(ground).await, of_diesel);

    // What differs has the same form: ids of 36 characters, and times of the database's clock in UTC with milliseconds.
    let recent = match ground.backend() {
        DbBackend::Postgres => {
            "abs(extract(epoch FROM created_at - (now() AT TIME ZONE 'utc'))) < 60 \
             AND created_at = date_trunc('milliseconds', created_at)"
        }
        DbBackend::MySql => {
            "length(id) = 36 AND created_at BETWEEN UTC_TIMESTAMP(3) - INTERVAL 1 MINUTE AND UTC_TIMESTAMP(3)"
        }
        _ => "length(id) = 36 AND length(created_at) = 24 AND created_at LIKE '20%T%Z'",
    };
    assert_eq!(ground.count(&format!("outbox WHERE {recent}")).await, of_diesel.len() as i64);
}

#[tokio::test]
async fn on_postgres_each_emit_wakes_a_relay_that_sleeps() {
    use diesel::connection::SimpleConnection;
    use diesel::prelude::*;
    fn heard(relay: &mut PgConnection) -> String {
        eventually("a notification", Duration::from_secs(20), || relay.notifications_iter().next())
            .map(|notification| notification.payload)
            .unwrap()
    }
    let ground = Ground::empty_postgres().await.migrated().await;
    let mut relay = PgConnection::establish(ground.url()).unwrap();
    let oid: i64 = ground.column("SELECT 'outbox'::regclass::oid::bigint").await[0];
    relay.batch_execute(&format!("SELECT pg_advisory_lock(1869968482, {oid}); LISTEN outbox_{oid}")).unwrap();
    for many in [false, true] {
        let txn = ground.db.begin().await.unwrap();
        match many {
            false => drop(txn.emit(&record(1)).await.unwrap()),
            true => drop(txn.emit_all([record(1), record(2)]).await.unwrap()),
        }
        txn.commit().await.unwrap();
        assert_eq!(heard(&mut relay), "", "many: {many}");
    }
    // Nobody is notified while the relay is awake, so what it hears next is the end.
    relay.batch_execute("SELECT pg_advisory_unlock_all()").unwrap();
    let txn = ground.db.begin().await.unwrap();
    txn.emit(&record(1)).await.unwrap();
    txn.commit().await.unwrap();
    ground.run(&format!("NOTIFY outbox_{oid}, 'the end'")).await;
    assert_eq!(heard(&mut relay), "the end");
}

#[tokio::test]
async fn on_postgres_the_outbox_may_be_in_a_schema_of_its_own() {
    let ground = Ground::empty_postgres().await;
    let schema = "o'ne \"two\"";
    sea_orm_outbox::Migrations::new().schema(schema).run(&ground.db).await.unwrap();
    let outbox = Outbox::new().schema(schema);
    let txn = ground.db.begin().await.unwrap();
    outbox.emit(&txn, &record(1)).await.unwrap();
    outbox.emit_all(&txn, [record(2), record(3)]).await.unwrap();
    txn.commit().await.unwrap();
    let types: Vec<String> = ground.column("SELECT type FROM \"o'ne \"\"two\"\"\".outbox ORDER BY seq").await;
    assert_eq!(types, ["1", "2", "3"]);
}

#[tokio::test]
async fn on_mariadb_the_outbox_may_be_in_a_database_of_its_own() {
    let events = Ground::empty_mariadb().await.migrated().await;
    let name: String = events.column("SELECT DATABASE()").await.remove(0);
    let shop = Ground::empty_mariadb().await;
    let txn = shop.db.begin().await.unwrap();
    Outbox::new().schema(&name).emit_all(&txn, [record(1), record(2)]).await.unwrap();
    let (inbox, outbox) = (Inbox::new("billing").schema(&name), Outbox::new().schema(&name));
    let once = inbox.once(&txn, Uuid::now_v7(), async |txn| outbox.emit(txn, &record(3)).await);
    assert!(matches!(once.await, Ok::<_, DbErr>(Once::First(_))));
    txn.commit().await.unwrap();
    assert_eq!(types(&events).await, ["1", "2", "3"]);
    assert_eq!(inbox.has_table(&shop.db).await, Ok(true));
}

/// SeaORM refuses text on such a connection, with the text and its values in the error.
#[tokio::test]
async fn a_restricted_transaction_emits_if_its_user_may_insert() {
    use sea_orm::rbac::{RbacContext, RbacUserId};
    let ground = Ground::empty_postgres().await.migrated().await;
    let db = &ground.db;
    sea_orm::rbac::schema::create_tables(db, Default::default()).await.unwrap();
    let mut context = RbacContext::load(db).await.unwrap();
    context.add_tables(db, &["outbox", "inbox"]).await.unwrap();
    context.add_crud_permissions(db).await.unwrap();
    context.add_roles(db, &["emitter", "nobody"]).await.unwrap();
    context.assign_user_role(db, &[(1, "emitter"), (2, "nobody")]).await.unwrap();
    context.add_role_permissions(db, "emitter", &["insert", "select"], &["outbox", "inbox"]).await.unwrap();
    db.load_rbac().await.unwrap();

    let emitter = db.restricted_for(RbacUserId(1)).unwrap();
    let txn = emitter.begin().await.unwrap();
    txn.emit(&record(1)).await.unwrap();
    txn.emit_all([record(2), record(3)]).await.unwrap();
    txn.commit().await.unwrap();
    assert_eq!(types(&ground).await, ["1", "2", "3"]);
    let inbox = Inbox::new("billing");
    let once = inbox.once(&emitter, Uuid::now_v7(), async |txn| txn.emit(&record(4)).await);
    assert!(matches!(once.await, Ok::<_, DbErr>(Once::First(_))));

    let txn = db.restricted_for(RbacUserId(2)).unwrap().begin().await.unwrap();
    let secret = Record::new("order", "1", "E").with_payload(*b"s3cret");
    for error in [txn.emit(&secret).await.map(drop), txn.emit_all([secret]).await.map(drop)] {
        let error = error.unwrap_err();
        assert!(matches!(error, DbErr::AccessDenied { .. }), "{error}");
    }
}

async fn an_event_is_scheduled_listed_and_cancelled(ground: &Ground) {
    let event = record("Later").header("z", "1").header("a", "2");
    let txn = ground.db.begin().await.unwrap();
    let later = txn.emit_at(&event, SystemTime::now() + Duration::from_secs(60)).await.unwrap();
    let sooner = txn.emit_after(&record("Sooner"), Duration::from_secs(30)).await.unwrap();
    txn.commit().await.unwrap();
    let scheduled = ground.db.scheduled().await.unwrap();
    let listed: Vec<Uuid> = scheduled.iter().map(|event| event.record().id()).collect();
    assert_eq!(listed, [sooner, later]);
    assert_eq!(scheduled[1].record().headers(), event.headers());
    assert_eq!(scheduled[1].record().payload(), event.payload());
    for event in &scheduled {
        let left = event.due_at().duration_since(SystemTime::now()).unwrap().as_secs();
        assert!((20..=60).contains(&left), "{left}");
    }
    let txn = ground.db.begin().await.unwrap();
    assert!(txn.cancel_scheduled(later).await.unwrap());
    txn.rollback().await.unwrap();
    assert!(ground.db.cancel_scheduled(later).await.unwrap());
    assert!(!ground.db.cancel_scheduled(later).await.unwrap());
    assert_eq!(ground.db.scheduled().await.unwrap().len(), 1);
    assert_eq!(ground.count("outbox").await, 0);
}

async fn what_a_transaction_has_emitted_is_seen_before_it_commits(ground: &Ground) {
    let txn = ground.db.begin().await.unwrap();
    txn.emit(&record("Earlier")).await.unwrap();
    let before = txn.emitted().await.unwrap();
    let event = record("Placed").header("z", "1").header("a", "2");
    let id = txn.emit(&event).await.unwrap();
    txn.emit(&Record::new("order", "1", "Forgotten")).await.unwrap();
    let emitted = txn.emitted().await.unwrap().since(&before);
    emitted.assert_only([Expected::from(&event), Expected::event_type("Forgotten").tombstone()]);
    let found = emitted.assert(&event);
    assert_eq!((found.id(), found.headers()), (id, event.headers()));
    txn.rollback().await.unwrap();
    ground.db.emitted().await.unwrap().assert_none();
}
